"""The rules by which `jclip filter` says which examples of a source are worth training on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.fields import field_problems
from jclip.config.ranges import Range
from jclip.config.subset import Subset

Cosine = Annotated[float, Range(least=-1, most=1)]


@dataclass(frozen=True)
class Filter:
    """Rules, in the order in which they are asked; an example is dropped by the first that it fails, and by default none is."""

    subset: Subset = Subset()
    """Keys, a condition on fields and metadata, or a score that the data bring; the examples outside of it are dropped."""
    image: str = "image"
    """Field of the image, an expression as in data.fields."""
    text: str = "text"
    """Field of the caption, likewise; of alternatives the first that an example has."""
    languages: tuple[str, ...] = ()
    """Languages that a caption may be in, by their codes of ISO 639, such as en; empty: any. The likeliest is taken, as langid
    finds it (Lui and Baldwin 2012; extra: filter)."""
    language_least: Annotated[float, Range(least=0, most=1)] = 0.0
    """Least probability of that language. Short captions say little: "a photo of a dog" is English with 0.2, a whole sentence
    with 0.9."""
    model: str = ""
    """Model of clusters, scores, duplicates and contamination: a workdir, weights or hf://ORG/NAME, as `jclip.load` takes it."""
    like: tuple[str, ...] = ()
    """Sources such as the training set of ImageNet that show what is wanted: the images left are divided into clusters, and a
    cluster that is the nearest to none of theirs is dropped (image-based filtering, Gadre et al. 2023)."""
    clusters: Annotated[int, Range(least=1)] | None = None
    """Number of these clusters; None: one for each hundred images left, 100,000 at most (100,000 in DataComp). Copies of
    an image that are not equal to the bit may be in several: drop duplicates in a run before, where a set has many."""
    score_least: Cosine | None = None
    """Least cosine of image and caption (0.28 to 0.3 in LAION, Schuhmann et al. 2021, with CLIP's ViT-B/32)."""
    score_best: Annotated[float, Range(above=0, most=1)] | None = None
    """Share of the examples with the highest cosines (0.3 in DataComp, Gadre et al. 2023)."""
    score_among: Literal["kept", "source"] = "kept"
    """Examples that score_best is a share of: those that the rules before keep, which alone are embedded then; or the whole
    source, as DataComp's baselines have it, at the cost of embedding all of it."""
    against: tuple[str, ...] = ()
    """Sources such as evaluation sets, of whose images the training set must have none."""
    contaminated: Cosine = 0.95
    """Cosine from which on an image is taken for one of theirs. It depends on the model: look at the pairs on the page."""
    duplicates: Cosine | None = None
    """Cosine from which on an image is taken for one that comes before it, in the order of falling score, or of the source where
    there is none. It is dropped where any that the rules before keep is so near, be that one dropped as a duplicate itself: the
    result needs no order of work, and of a chain of likenesses the first is left. None: duplicates are kept."""
    balance: str = ""
    """Text file of entries, such as titles of encyclopedia articles, one a line; MetaCLIP's balancing (Xu et al. 2023,
    arXiv:2309.16671): an entry matches a caption in which its words stand one after the other. A caption without an entry is
    dropped; one with entries is kept where the draw of any of them keeps it."""
    balance_most: Annotated[int, Range(least=1)] = 20_000
    """Captions of an entry that are kept on average, where it matches more; each is drawn with probability balance_most / count
    (20,000 for 400 million pairs in MetaCLIP)."""
    seed: Annotated[int, Range(least=0)] = 0
    """Seed of these draws, which depend on seed, key and entry alone, and of the clusters."""
    batch_size: Annotated[int, Range(least=1)] = 256
    """Rows a batch of embeddings; changes no result beyond rounding."""
    max_pixels: Annotated[int, Range(least=1)] = 64_000_000
    """Larger images cannot be read."""

    @property
    def scores(self) -> bool:
        """True where a rule asks for the cosine of image and caption."""
        return self.score_least is not None or self.score_best is not None

    @property
    def embeds(self) -> bool:
        """True where a rule asks for embeddings of images."""
        return self.scores or self.duplicates is not None or bool(self.against or self.like)

    @property
    def reads_text(self) -> bool:
        """True where a rule asks for captions before anything is embedded."""
        return bool(self.languages or self.balance)

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.embeds and not self.model:
            asking = {"like": self.like, "a score": self.scores, "duplicates": self.duplicates is not None, "against": True}
            first = next(name for name, asks in asking.items() if asks)
            yield f".model is empty, and {first} needs one; give a workdir, weights, or hf://ORG/NAME"
        if self.model and not self.embeds:
            yield f".model {self.model!r}: no rule asks it; give like, score_least, score_best, duplicates or against"
        if self.score_least is not None and self.score_best is not None:
            yield ".score_least and .score_best: give one of them"
        if self.score_among == "source" and self.score_best is None:
            yield ".score_among source: there is no score_best that is a share of it"
        if self.clusters is not None and not self.like:
            yield f".clusters {self.clusters}: give like, the sources that show what is wanted"
        if self.language_least and not self.languages:
            yield f".language_least {self.language_least}: give languages, such as en"
        yield from (
            f".languages: {code!r} is no code of two or three letters, such as en"
            for code in self.languages
            if not (2 <= len(code) <= 3 and code.isascii() and code.isalpha() and code.islower())
        )
        yield from field_problems("", {"image": self.image, "text": self.text})
