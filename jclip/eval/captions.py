"""Captions against what people wrote: BLEU-4, CIDEr-D and exact matches, in words of a plain kind.

A word is a run of letters, digits and underscores in lower case, with an apostrophe inside ("don't"); all else is left out. The
published numbers of COCO are of the Penn Treebank's tokenizer, which takes "don't" apart, so that the two differ a little.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

Gram = tuple[str, ...]

LONGEST = 4
"""Words of the longest n-grams."""

SIGMA = 6.0
"""Deviation, in words, of the Gaussian that lets CIDEr-D fall with a difference in length."""


def words_of(text: str) -> list[str]:
    """The words of a caption."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a corpus with n-grams up to 4 (Papineni et al. 2002, section 2.3), 0 to 1.

        BP exp( 1/4 sum_n log p_n ),    BP = min(1, exp(1 - r/c))

    p_n is the share of the captions' n-grams that a reference has, each counted as often as the reference with most of it; c is
    the length of all captions, and r that of the references, of each image the one nearest in length (the shorter of two). There
    is no smoothing: where no n-gram of a length is right, it is 0.

    Args:
        captions: one an image.
        references: of each image at least one.
    """
    right, made = Counter[int](), Counter[int]()
    length, wanted = 0, 0
    for caption, several in zip(captions, references, strict=True):
        words, others = words_of(caption), [words_of(text) for text in several]
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, LONGEST + 1):
            most = Counter[Gram]()
            for other in others:
                most |= grams(other, n)
            own = grams(words, n)
            right[n] += (own & most).total()
            made[n] += own.total()
    if not all(right[n] for n in range(1, LONGEST + 1)):
        return 0.0
    precision = sum(math.log(right[n] / made[n]) for n in range(1, LONGEST + 1)) / LONGEST
    return math.exp(precision + min(0.0, 1 - wanted / length))


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, mean of the images (Vedantam et al. 2015, section 5 and its appendix on CIDEr-D), 0 to 10.

    For n of 1 to 4 captions are vectors of their n-grams' counts, each times log(N / images of whose references one has it), N
    images in all. With h of the caption and r of a reference, both of that kind, l their lengths in words,

        10 mean_n mean_r  exp(-(l_h - l_r)^2 / (2 SIGMA^2))  <min(h, r), r> / (|h| |r|)

    An n-gram that all references have weighs nothing, so that the value of a single image is 0.

    Args:
        captions: one an image.
        references: of each image at least one.
    """
    having = Counter[Gram]()
    for several in references:
        having.update({gram for text in several for n in range(1, LONGEST + 1) for gram in grams(words_of(text), n)})
    total = math.fsum(
        math.fsum(_similarity(words_of(caption), words_of(text), having, len(references)) for text in several) / len(several)
        for caption, several in zip(captions, references, strict=True)
    )
    return 10 * total / len(references)


def _similarity(caption: list[str], reference: list[str], having: Counter[Gram], images: int) -> float:
    """Mean over n of a caption and one reference."""

    def vector(words: list[str], n: int) -> dict[Gram, float]:
        return {gram: count * math.log(images / max(1, having[gram])) for gram, count in grams(words, n).items()}

    total = 0.0
    for n in range(1, LONGEST + 1):
        h, r = vector(caption, n), vector(reference, n)
        norm = math.hypot(*h.values()) * math.hypot(*r.values())
        shared = sum(min(weight, r[gram]) * r[gram] for gram, weight in h.items() if gram in r)
        total += shared / norm if norm else 0.0
    return total / LONGEST * math.exp(-((len(caption) - len(reference)) ** 2) / (2 * SIGMA**2))


def exact_match(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of captions that have the words of one of their references, in their order."""
    right = [words_of(caption) in map(words_of, several) for caption, several in zip(captions, references, strict=True)]
    return sum(right) / len(right)


def grams(words: Sequence[str], n: int) -> Counter[Gram]:
    """Counts of the n-grams of a caption."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
