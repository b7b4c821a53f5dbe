"""The configuration of the optimizer: every option with its unit, its default and its source."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.durations import Length
from jclip.config.ranges import Range
from jclip.config.rules import rule_problems

Factor = Annotated[float, Range(least=0, most=1000)]

UNREAD: Mapping[str, tuple[str, ...]] = {
    "adamw": (),
    "lamb": ("clip_update",),
    "lion": ("eps", "clip_update"),
    "adafactor": ("b2", "eps"),
    "muon": ("clip_update",),
}
"""Fields of Optim that a method has no use for."""


@dataclass(frozen=True)
class Optim:
    """The optimizer, and its learning rate over the run."""

    lr: Annotated[float, Range(above=0, most=100)] = 1e-3
    """Peak learning rate."""
    warmup: Annotated[str, Length(least=0)] = "3%"
    """Length of the linear warm-up."""
    final_lr: Annotated[float, Range(least=0, most=1)] = 0.0
    """Learning rate at the end of the run, as a fraction of what it would be without the fall."""
    b1: Annotated[float, Range(least=0, most=0.99999)] = 0.9
    """Decay of the first moment, the momentum."""
    b2: Annotated[float, Range(least=0, most=0.99999)] = 0.98
    """Decay of the second moment (CLIP's ViTs: 0.98)."""
    eps: Annotated[float, Range(above=0, most=1)] = 1e-6
    """Added to the root of the second moment (CLIP's ViTs: 1e-6)."""
    weight_decay: Annotated[float, Range(least=0, most=1e6)] = 0.2
    """Decoupled decay, multiplied by the learning rate."""
    weight_decay_rules: tuple[tuple[str, Factor], ...] = (
        (r".*/(bias|scale|cls|probe|logit_scale|logit_bias)", 0.0),
        (r".*", 1.0),
    )
    """(regex on the parameter's path, factor on weight_decay); the first that matches the whole path counts. As in big_vision the
    query of a pooling by attention, `probe`, is not decayed; open_clip decays it."""
    lr_rules: tuple[tuple[str, Factor], ...] = ((r".*", 1.0),)
    """(regex on the parameter's path, factor on lr); first match counts. 0 freezes: no gradient, no optimizer state, no decay."""
    layer_decay: Mapping[str, Annotated[float, Range(above=0, most=1)]] = field(default_factory=dict)
    """Decay by tower: each block's lr is that of the block after it times this (Bao et al. 2022, BEiT); see
    `optim.lr_factors`."""
    clip_norm: Annotated[float, Range(above=0)] | None = None
    """Largest global norm of the gradient of what is trained; None never clips."""
    ema: Annotated[float, Range(least=0, below=1)] | None = None
    """Decay of a moving average of what is trained, such as 0.9999; see `optim.ema_decay`. None: there is none."""
    method: Literal["adamw", "lamb", "lion", "adafactor", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019); LAMB (You et al. 2020), for large batches; Lion (Chen et al. 2023), with half of the
    state, and a third of the rate or less; Adafactor (Shazeer and Stern 2018) with momentum and without the factor of the
    parameters' size, as Zhai et al. 2022 train ViTs; Muon (Jordan et al. 2024; scaled as by Liu et al. 2025, so that AdamW's rate
    and decay hold) for the matrices of blocks, and AdamW for all else."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment is kept."""
    clip_update: Annotated[float, Range(above=0)] | None = None
    """Largest root mean square of a parameter's gradient over the root of its second moment, in each layer: the update is divided
    by what is above (AdamW: StableAdamW, Wortsman et al. 2023, with 1; Adafactor's own is 1). None never divides."""
    schedule: Literal["cosine", "constant", "wsd", "inverse_sqrt", "cooldown"] = "cosine"
    """The learning rate after the warm-up: half a cosine; constant; constant until the `cooldown` (warm-up, stable, decay: Hu et
    al. 2024); lr sqrt(warmup / step) until the `cooldown` (Vaswani et al. 2017; Zhai et al. 2022). cooldown: no warm-up, and a
    linear fall over the whole run, which takes up another at init_from, with its optimizer's state and its place in the data."""
    cooldown: Annotated[str, Length(least=0)] = "20%"
    """Length of the linear fall to final_lr at the end of wsd and inverse_sqrt."""

    def freezes(self, path: str) -> bool:
        """True where the first of lr_rules that fits a parameter's path is 0."""
        return next((factor == 0 for rule, factor in self.lr_rules if re.fullmatch(rule, path)), False)

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from rule_problems(".weight_decay_rules", self.weight_decay_rules)
        yield from rule_problems(".lr_rules", self.lr_rules)
        for name in UNREAD[self.method]:
            if getattr(self, name) != getattr(Optim, name):
                yield f".{name} {getattr(self, name)} is not read by {self.method}; leave it {getattr(Optim, name)}"
        if self.cooldown != Optim.cooldown and self.schedule not in ("wsd", "inverse_sqrt"):
            yield f'.cooldown "{self.cooldown}" is not read by the schedule {self.schedule}; leave it "{Optim.cooldown}"'
        if self.final_lr and self.schedule == "constant":
            yield f".final_lr {self.final_lr}: a constant learning rate does not fall; leave it 0, or use wsd"
        if self.final_lr and self.schedule in ("wsd", "inverse_sqrt") and self.cooldown.strip() in ("0", "0%", "0ep"):
            yield f'.final_lr {self.final_lr}: nothing falls to it, with a cooldown of "{self.cooldown}"; leave it 0'
        rate, decay = (max(factor for _, factor in rules) for rules in (self.lr_rules, self.weight_decay_rules))
        if self.lr * rate * self.weight_decay * decay >= 1:
            yield (
                f".weight_decay {self.weight_decay} times lr {self.lr} and the factors of the rules is 1 or more: a step "
                "would take away more than there is; use less of one of them"
            )
