"""The dataclasses of the methods of adaptation, with the hyperparameters of the published codes as defaults."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.adapt import Method
from jclip.config.augment import Augment
from jclip.config.evals.base import Count
from jclip.config.optim import Factor
from jclip.config.ranges import Range
from jclip.config.rules import rule_problems

Rate = Annotated[float, Range(above=0, most=100)]
Decay = Annotated[float, Range(least=0, most=1e6)]
Share = Annotated[float, Range(least=0, most=1)]
Weight = Annotated[float, Range(least=0, most=1e6)]
Number = Annotated[int, Range(least=0)]

CROPS = Augment(scale=(0.08, 1.0), flip=0.5)
"""Random crops and flips of CoOp's training."""


@dataclass(frozen=True)
class Views:
    """Random views of the shots, which frozen towers encode once."""

    count: Number | None = None
    """Views of each image; in epoch e training sees view e modulo this. None: one for each epoch, as in published codes, which
    augment anew each time. 0: the image as evaluations see it, nothing random."""
    augment: Augment = CROPS
    """Changes of an image that make a view."""


@dataclass(frozen=True)
class TipAdapter(Method):
    """Tip-Adapter (Zhang et al. 2022): a cache of the shots beside the classifier, without training.

    logits = scale z W^T + alpha exp(-beta (1 - z K^T)) L, with K the shots' embeddings and L their labels.
    """

    alpha: Weight = 1.17
    """Weight of the cache before the search (published: 1.17 on ImageNet, pets, food and SUN; 2 on DTD and EuroSAT; 3 on Caltech,
    cars and UCF; 5 on aircraft; 10 on flowers)."""
    beta: Weight = 1.0
    """Sharpness of its affinities before the search."""
    steps: tuple[Number, Number] = (200, 20)
    """Values of beta and alpha that the search tries, from 0.1 on; (0, 0): alpha and beta stay."""
    most: tuple[Weight, Weight] = (7.0, 3.0)
    """End of the grids of beta and alpha, not tried itself (published: 7 and 3 on ImageNet, pets and UCF; 12 and 5 on Caltech; 13
    and 13 on DTD; 12 and 10 on EuroSAT and SUN; 10 and 10 on food; 20 and 10 on cars; 30 and 30 on aircraft; 50 and 50 on
    flowers)."""
    views: Views = Views(10, Augment(scale=(0.5, 1.0), flip=0.5))
    """Views of a shot whose mean embedding, before the norm, is its key."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if (self.steps[0] == 0) != (self.steps[1] == 0):
            yield f".steps {self.steps}: give both grids values, or none"
        if self.steps[0] and min(self.most) <= 0.1:
            yield f".most {self.most}: grids begin at 0.1 and end above it"
        if self.views.count is None:
            yield ".views.count: keys need a number of views, or 0"


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: the keys of the cache are trained, then alpha and beta are searched.

    The published code takes the epoch that is best on the test set, and reports the better of that and of the search.
    """

    lr: Rate = 1e-3
    """Learning rate of AdamW, which falls as a cosine to 0, step by step."""
    eps: Rate = 1e-4
    """Added to the root of the second moment."""
    weight_decay: Decay = 0.01
    """Decoupled decay (torch's default)."""
    batch_size: Count = 256
    """Images a batch."""
    epochs: Count = 20
    """Passes over the shots (EuroSAT: 100)."""
    training_views: Views = Views(None, Augment(scale=(0.5, 1.0), flip=0.5))
    """Views of the images that are trained on."""


@dataclass(frozen=True)
class OfCoOp(Method):
    """Base of the methods that CoOp's trainer trains: SGD, whose first epoch has a small constant rate, then a cosine."""

    lr: Rate = 0.002
    """Learning rate after the first epoch. Epoch e has lr (1 + cos(pi (e - 1) / epochs)) / 2, so that it ends above 0."""
    warmup_lr: Rate = 1e-5
    """Learning rate of the first epoch."""
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9
    """Momentum."""
    weight_decay: Decay = 5e-4
    """Decay, added to the gradient as in torch's SGD."""
    batch_size: Count = 32
    """Images a batch; an epoch leaves out the rest that fills none, but for an epoch smaller than one."""
    epochs: Count | None = None
    """Passes over the shots; None: 50 for 1 shot, 100 for 2 to 4, 200 for more (ImageNet: 50)."""
    views: Views = Views()
    """Views of the images that are trained on."""

    def passes(self, shots: int) -> int:
        """Epochs for a number of shots."""
        return self.epochs or (50 if shots == 1 else 100 if shots <= 4 else 200)


@dataclass(frozen=True)
class ClipAdapter(OfCoOp):
    """CLIP-Adapter (Gao et al. 2021): x' = ratio ReLU(ReLU(x W1) W2) + (1 - ratio) x of image features before their norm."""

    ratio: Share = 0.2
    """Share of the adapter."""
    reduction: Count = 4
    """Width of the features over that of the adapter's middle."""


@dataclass(frozen=True)
class LinearHead(Method):
    """A linear classifier of unit features, trained on images alone (Lin et al. 2023, "uni-modal").

    One that begins as the text classifier knows that much of the texts; with another start, and wise (0.0,), it knows nothing of
    them. Every combination of rates, decays and batch sizes is trained, and the best iteration of the best one is taken; of
    equally good ones the first by rates, then decays, then batch sizes, as published.
    """

    start: Literal["text", "zero", "random"] = "text"
    """First weights: the text classifier's; zeros; or uniform within 1 / sqrt(embed_dim), as torch makes linear layers."""
    lr: tuple[Rate, ...] = (1e-3, 1e-4)
    """Learning rates of AdamW that are tried; each rises over the warm-up and falls as a cosine."""
    weight_decay: tuple[Decay, ...] = (0.0, 0.01, 1e-4)
    """Decoupled decays that are tried."""
    batches: tuple[Count, ...] = (8, 32)
    """Batch sizes that are tried; one that is not below the number of examples is left out, or else made that number."""
    iterations: Count = 12_800
    """Steps of each training."""
    warmup: Number = 50
    """Steps of the linear warm-up."""
    warmup_lr: Rate = 1e-5
    """Learning rate of the very first step."""
    every: Count = 100
    """Steps between looks at the accuracy on validation."""
    wise: tuple[Share, ...] = (0.0, 0.5)
    """Shares of the text classifier in the weights that are tried in the end (WiSE-FT)."""
    views: Views = Views(1, Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0))
    """Views of the shots that are examples too, beside the images themselves."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        for name in ("lr", "weight_decay", "batches", "wise"):
            if not getattr(self, name):
                yield f".{name} is empty; give one value at least"
        if self.iterations % self.every:
            yield f".iterations {self.iterations} are no multiple of every {self.every}"
        if self.views.count is None:
            yield ".views.count: give a number of views, or 0"


@dataclass(frozen=True)
class CrossModal(LinearHead):
    """Cross-modal adaptation (Lin et al. 2023): prompts of the classes, and what else names them, are shots like images.

    Half of each batch is of texts, and of further towers.
    """

    batch_share: Share = 0.5
    """Share of a batch that is not of images."""
    extra: str = ""
    """Labelled examples of another tower, such as sounds, of which each seed has as many shots as of images."""
    tower: str = ""
    """Tower of `extra`."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from super().problems()
        if bool(self.extra) != bool(self.tower):
            yield ".extra and .tower: give both, or none"
        if not 0 < self.batch_share < 1:
            yield f".batch_share {self.batch_share} must be between 0 and 1; LinearHead is without texts"


@dataclass(frozen=True)
class CoOp(OfCoOp):
    """CoOp (Zhou et al. 2022): learned context vectors in place of the words of a prompt; the last step's are taken."""

    contexts: Count = 16
    """Context vectors, where no words begin them."""
    words: str = ""
    """Words whose embeddings the context begins as, such as "a photo of a"; empty: normal, with deviation 0.02."""
    per_class: bool = False
    """True: each class has a context of its own (CSC)."""
    position: Literal["end", "middle", "front"] = "end"
    """Place of the class name: behind the context, in its middle, or before it."""
    remat: bool = True
    """True: the text tower's activations are computed again in the backward pass. A thousand classes need it, a few do not."""


@dataclass(frozen=True)
class CoCoOp(OfCoOp):
    """CoCoOp (Zhou et al. 2022b): a small network of an image's embedding shifts the context: each image has its prompts."""

    batch_size: Count = 1
    """Images a batch: each has a text of every class."""
    epochs: Count | None = 10
    """Passes over the shots; None: as CoOp's."""
    contexts: Count = 4
    """Context vectors, where no words begin them."""
    words: str = "a photo of a"
    """Words whose embeddings the context begins as; empty: normal, with deviation 0.02."""
    reduction: Count = 16
    """Width of the embeddings over that of the network's middle."""
    remat: bool = True
    """See CoOp."""


@dataclass(frozen=True)
class LoRA(Method):
    """LoRA (Hu et al. 2022; of CLIP, Zanella and Ben Ayed 2024): kernels plus products of small matrices, merged at the end."""

    rank: Number = 2
    """Rank of the products; 0 changes nothing."""
    alpha: Weight = 1.0
    """Products are multiplied by alpha / sqrt(rank), as Zanella and Ben Ayed publish it (Hu et al.: alpha / rank).
    Their dropout of 0.25 is left out."""
    rules: tuple[tuple[str, Factor], ...] = ((r"(image|text)/blocks/attn/(q|k|v)/kernel", 1.0), (r".*", 0.0))
    """(regex on a parameter's path, 1 or 0), the first match counts: the kernels, of any tower, that get a product."""
    lr: Rate = 2e-4
    """Learning rate of AdamW, which falls as a cosine to 0."""
    weight_decay: Decay = 0.01
    """Decoupled decay."""
    batch_size: Count = 32
    """Images a batch."""
    steps_per_shot: Count = 500
    """Steps for each shot of a class."""
    augment: Augment = CROPS
    """Changes of the images that are trained on, anew each time."""
    remat: bool = True
    """See CoOp."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from rule_problems(".rules", self.rules)


@dataclass(frozen=True)
class FineTune(Method):
    """Fine-tuning of a tower with its classifier, which begins as the text classifier, and WiSE-FT (Wortsman et al. 2022).

    Weights between the first and the last, (1 - a) first + a last, are measured on validation for each a, and the best is taken;
    of several learning rates either the best one's, or the mean of weights (a model soup, Wortsman et al. 2022b).
    """

    rules: tuple[tuple[str, Factor], ...] = ((r"image(_projection)?/.*", 1.0), (r".*", 0.0))
    """(regex on a parameter's path, factor on lr), the first match counts; 0 freezes. The tower of texts is frozen always: the
    classifier stands for it."""
    lr: tuple[Rate, ...] = (3e-5,)
    """Learning rates of AdamW; each makes a model. They rise over the warm-up and fall as a cosine to 0."""
    weight_decay: Decay = 0.1
    """Decoupled decay."""
    clip_norm: Annotated[float, Range(above=0)] = 1.0
    """Largest global norm of the gradient."""
    batch_size: Count = 32
    """Images a batch (512 on ImageNet)."""
    epochs: Count = 10
    """Passes over the shots."""
    warmup: Share = 0.1
    """Share of the steps in which the rate rises."""
    soup: Literal["best", "uniform", "greedy"] = "best"
    """Model of several learning rates: the best on validation; the mean of all; or the mean of those that, added from the best
    one down, do not lower the accuracy on validation."""
    alphas: tuple[Share, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Points between the first weights, 0, and the last, 1, that are measured. One alone is taken without a choice."""
    augment: Augment = CROPS
    """Changes of the images that are trained on, anew each time."""
    remat: bool = True
    """See CoOp, of the image tower."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from rule_problems(".rules", self.rules)
        for name in ("lr", "alphas"):
            if not getattr(self, name):
                yield f".{name} is empty; give one value at least"


@dataclass(frozen=True)
class PromptSearch(Method):
    """The ensemble of templates chosen on validation: forward selection, as OpenAI's notebook found 7 of its 80 for ImageNet."""

    templates: tuple[str, ...] = ("set:imagenet",)
    """Templates to choose from, as in ZeroShot."""
    most: Count = 7
    """Largest ensemble."""
    names: str = ""
    """JSON file of names to choose from by class, {"class": ["name", ...]}; after the templates each class in turn takes the name
    that is best for the accuracy of all, of equally good ones the one it has. Empty: names stay."""


METHODS: dict[str, type[Method]] = {
    "tip": TipAdapter,
    "tip_f": TipAdapterF,
    "clip_adapter": ClipAdapter,
    "linear": LinearHead,
    "cross_modal": CrossModal,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "lora": LoRA,
    "fine_tune": FineTune,
    "prompts": PromptSearch,
}
"""Methods that `--method` names, each with its defaults."""
