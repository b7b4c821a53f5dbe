"""Losses of other libraries and ours of the same arrays: values, and gradients in all that goes in.

x-clip is asked as far as it computes: in one process, in training mode, towers replaced by the arrays themselves; its temperature
is set, because it begins at e, and arrays are such that the 1e-20 in its logarithms is nothing. Of tokens it asks with every text
among the images in both directions, where an image should ask among the texts: that matrix is turned for it. Its similarities
within a side need extra projections, without which it stops.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from peers import peer

from jclip import losses
from jclip.config import Contrastive, MultiView, View
from jclip.models import unit
from jclip.objectives import Setting
from jclip.objectives.contrastive import ContrastiveObjective as ContrastiveObjective
from jclip.objectives.multi_view import MultiViewObjective as MultiViewObjective

GOLDEN = Path(__file__).parent / "golden" / "losses.npz"
SCALE = 12.0
BATCH, SIZE, PATCHES, WORDS = 10, 7, 6, 5

Arrays = dict[str, np.ndarray]
Result = tuple[float, Arrays]


@functools.cache
def arrays() -> Arrays:
    """Arrays that all losses are given: no unit vectors."""
    rng = np.random.default_rng(16)
    shapes = {
        "image": (BATCH, SIZE),
        "image_1": (BATCH, SIZE),
        "image_2": (BATCH, SIZE),
        "text": (BATCH, SIZE),
        "text_1": (BATCH, SIZE),
        "image_extra": (SIZE, SIZE),
        "text_extra": (SIZE, SIZE),
        "patches": (BATCH, PATCHES, SIZE),
        "words": (BATCH, WORDS, SIZE),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    made["words"] += 0.5 * made["patches"][:, :WORDS]
    return made | {"log_scale": np.float32(np.log(SCALE))}


MASK = np.arange(WORDS) < np.array([[5], [3], [1], [4], [2], [5], [2], [3], [4], [1]])
"""Words that are real."""


def ours(case: str) -> Result:
    """The loss of a case and its gradients by the name of the array."""
    names = CASES[case][0]
    value, slopes = jax.jit(jax.value_and_grad(CASES[case][1]))({name: arrays()[name] for name in names})
    return float(value), {name: np.asarray(slope) for name, slope in slopes.items()}


def theirs(case: str) -> Result:
    """The same by another library; the test is skipped where that is missing."""
    peer({"metric_learning": "pytorch_metric_learning"}.get(library := case.split("/")[0], library))
    import torch

    given = {name: torch.nn.Parameter(torch.from_numpy(np.array(arrays()[name]))) for name in CASES[case][0]}
    loss = CASES[case][2](given)
    loss.backward()
    slopes = {name: p.grad.numpy() if p.grad is not None else np.zeros_like(arrays()[name]) for name, p in given.items()}
    return loss.item(), slopes


def pair(x: Any, **how: Any) -> jax.Array:
    """Our objective of an image and a text."""
    objective = ContrastiveObjective("x", Contrastive(block=3, **how), Setting.of(_config()), None)
    rows = [x["image"], x["text"]]
    if how.get("extra_projections"):
        rows += [x["image"] @ x["image_extra"].T, x["text"] @ x["text_extra"].T]
    return objective.batch({"logit_scale": x["log_scale"]}, {}, tuple(map(unit, rows)), {})[0]


def views(x: Any) -> jax.Array:
    """Our objective of three images and two texts, with the weights of x-clip."""
    how = MultiView(("image", "image@1", "image@2"), ("text", "text@1"), block=4)
    objective = MultiViewObjective("x", how, Setting.of(_config()), None)
    rows = {"a": [unit(x[f"image{i}"]) for i in ("", "_1", "_2")], "b": [unit(x[f"text{i}"]) for i in ("", "_1")]}
    return 0.9 * objective.batch({"logit_scale": x["log_scale"]}, {}, rows, {})[0]


def _config() -> Any:
    from tiny import tiny_config

    return tiny_config(views={name: View(name.split("@")[0]) for name in ("image@1", "image@2", "text@1")})


def tokens(x: Any, **how: Any) -> jax.Array:
    """Our token-wise loss."""
    every = jnp.ones(x["patches"].shape[:2], bool)
    return losses.token_wise(unit(x["patches"]), unit(x["words"]), every, MASK, jnp.exp(x["log_scale"]), block=3, **how)


def similarities(x: Any) -> jax.Array:
    """Our softmax with extra projections, and half the difference of similarities, the mean of that of both projections."""
    own = losses.sim_reg(unit(x["image"]), unit(x["text"]))
    other = losses.sim_reg(unit(x["image"] @ x["image_extra"].T), unit(x["text"] @ x["text_extra"].T))
    return pair(x, extra_projections=True) + 0.5 * (own + other) / 2


def two_views(x: Any) -> jax.Array:
    """Our NT-Xent."""
    return losses.nt_xent(unit(x["image_1"]), unit(x["image_2"]), 0.2, block=3)


def cosine(x: Any) -> jax.Array:
    """Our negative cosine, of which one side gets no gradient."""
    return losses.negative_cosines(unit(x["image_1"]), unit(x["image_2"])).mean()


def ranked(x: Any, **how: Any) -> jax.Array:
    """Our triplet loss."""
    return losses.triplet(unit(x["image"]), unit(x["text"]), block=3, margin=0.3, **how)


def x_clip(x: Any, **how: Any) -> Any:
    """The loss of x-clip whose towers are the arrays."""
    import torch
    from x_clip import CLIP
    from x_clip import x_clip as module

    class Tower(torch.nn.Module):
        def __init__(self, *views: Any) -> None:
            super().__init__()
            self.views = views

        def forward(self, *_: Any) -> Any:
            return torch.cat(self.views)

    class Matrix(torch.nn.Module):
        def __init__(self, kernel: Any) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self, z: Any) -> Any:
            return z @ self.kernel.T

    many = "image_1" in x
    late = how.get("use_all_token_embeds", False)
    images = [x["patches"]] if late else [x[name] for name in ("image", "image_1", "image_2") if name in x]
    texts = [x["words"]] if late else [x[name] for name in ("text", "text_1") if name in x]
    towers = {"image_encoder": Tower(*images), "text_encoder": Tower(*texts)}
    sizes = {"dim_text": SIZE, "dim_image": SIZE, "dim_latent": SIZE, "visual_image_size": 8, "visual_patch_size": 4}
    if late:
        how |= {"visual_has_cls_token": False, "text_has_cls_token": False}
    model = CLIP(**towers, **sizes, **how)
    model.to_text_latent = model.to_visual_latent = torch.nn.Identity()
    if how.get("extra_latent_projection"):
        model.to_visual_latent_extra, model.to_text_latent_extra = Matrix(x["image_extra"]), Matrix(x["text_extra"])
    del model.temperature
    model.temperature = x["log_scale"]
    ids, pixels = torch.from_numpy(MASK.astype(np.int64)), torch.zeros(BATCH, 3, 8, 8)
    more = {"aug_text": (ids,), "aug_image": (pixels, pixels)} if many else {}
    rearrange, turned = module.rearrange, itertools.cycle([False, late])

    def mended(x: Any, pattern: str, **sizes: Any) -> Any:
        x = rearrange(x, pattern, **sizes)
        return x.transpose(-1, -2) if pattern == "m n ... -> (m n) ..." and next(turned) else x

    with mock.patch.object(module, "rearrange", mended):
        return model.train()(ids, pixels, return_loss=True, **more)


def lightly_nt_xent(x: Any) -> Any:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.2)(x["image_1"], x["image_2"])


def lightly_cosine(x: Any) -> Any:
    from lightly.loss import NegativeCosineSimilarity

    return NegativeCosineSimilarity()(x["image_1"], x["image_2"].detach())


def metric_learning(x: Any, mining: str = "hardest", distance: str = "cosine") -> Any:
    """The triplets that `mining` names, given one by one: its miners do not know that anchors and negatives are of two sides."""
    import torch
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning.losses import TripletMarginLoss

    a, b = (torch.nn.functional.normalize(x[name]) for name in ("image", "text"))
    triplets = []
    for start, other, asks, answers in ((0, BATCH, a, b), (BATCH, 0, b, a)):
        s = (asks @ answers.T).detach()
        for i in range(BATCH):
            negatives = [j for j in range(BATCH) if j != i]
            if mining == "semi_hard":
                negatives = [j for j in negatives if s[i, j] < s[i, i]] or [min(negatives, key=lambda j, s=s, i=i: s[i, j])]
            if mining != "all":
                negatives = [max(negatives, key=lambda j, s=s, i=i: s[i, j])]
            triplets += [(start + i, other + i, other + j) for j in negatives]
    how = distances.CosineSimilarity() if distance == "cosine" else distances.LpDistance()
    loss = TripletMarginLoss(margin=0.3, distance=how, reducer=reducers.SumReducer())
    indices = tuple(torch.tensor(column) for column in zip(*triplets, strict=True))
    return loss(torch.cat([a, b]), indices_tuple=indices) / BATCH


_PAIR = ("image", "text", "log_scale")
_TOKENS = ("patches", "words", "log_scale")
_VIEWS = ("image", "image_1", "image_2", "text", "text_1", "log_scale")
_p = functools.partial

CASES: dict[str, tuple[tuple[str, ...], Callable[[Any], jax.Array], Callable[[Any], Any]]] = {
    "x_clip/plain": (_PAIR, pair, x_clip),
    "x_clip/decoupled": (_PAIR, _p(pair, decoupled=True), _p(x_clip, decoupled_contrastive_learning=True)),
    "x_clip/extra": (
        (*_PAIR, "image_extra", "text_extra"),
        _p(pair, extra_projections=True),
        _p(x_clip, extra_latent_projection=True),
    ),
    "x_clip/tokens": (_TOKENS, tokens, _p(x_clip, use_all_token_embeds=True)),
    "x_clip/decoupled_tokens": (
        _TOKENS,
        _p(tokens, decoupled=True),
        _p(x_clip, use_all_token_embeds=True, decoupled_contrastive_learning=True),
    ),
    "x_clip/views": (_VIEWS, views, x_clip),
    "x_clip/sim_reg": (
        (*_PAIR, "image_extra", "text_extra"),
        similarities,
        _p(x_clip, extra_latent_projection=True, sim_reg_loss_weight=0.5),
    ),
    "lightly/nt_xent": (("image_1", "image_2"), two_views, lightly_nt_xent),
    "lightly/cosine": (("image_1", "image_2"), cosine, lightly_cosine),
    **{
        f"metric_learning/{mining}_{distance}": (
            ("image", "text"),
            _p(ranked, mining=mining, distance=distance),
            _p(metric_learning, mining=mining, distance=distance),
        )
        for mining, distance in (("all", "cosine"), ("hardest", "cosine"), ("semi_hard", "cosine"), ("hardest", "euclidean"))
    },
}
"""Cases by name: the arrays that go in, our loss, and that of the library that the name begins with."""
