"""Initial values: the mean and deviation of every new parameter, from the papers' formulas."""

import math
import re

import jax
import numpy as np
import pytest
from tiny import tiny_config

from jclip.config import Config, Contrastive, Model, TextTower, VisionTower
from jclip.data import make_run_loader
from jclip.program import make_program
from jclip.sharding import make_mesh, to_global
from jclip.state import init_params, param_shapes
from jclip.tree import flatten

W, DEPTH, PATCH = 256, 4, 16  # width of all towers, blocks, and side of a patch
RESIDUAL = (2 * DEPTH) ** -0.5  # what adds to the residual stream begins smaller (GPT-2; CLIP)

DEVIATIONS = {  # of kernels and tables, by path; all have mean 0
    r"image/patch_embed/kernel": (8 * (PATCH // 2) ** 2) ** -0.5,  # 1 / sqrt(fan in); the stem has halved the patch
    r"image/stem1/kernel": (2 / (4 * 4 * 3)) ** 0.5,  # He et al. 2015
    r"image/(cls|pos_embed)": W**-0.5,
    r"(image|text)/blocks/attn/[qkv]/kernel": W**-0.5,
    r"(image|text)/blocks/attn/out/kernel": W**-0.5 * RESIDUAL,
    r"(image|text)/blocks/mlp/fc1/kernel": (2 * W) ** -0.5,
    r"(image|text)/blocks/mlp/fc2/kernel": W**-0.5 * RESIDUAL,
    r"(image|text)/map/probe": (2 / (1 + W)) ** 0.5,  # Xavier, of one row
    r"(image|text)/map/attn/([qkv]|out)/kernel": W**-0.5,
    r"(image|text)/map/mlp/fc1/kernel": (2 * W) ** -0.5,
    r"(image|text)/map/mlp/fc2/kernel": W**-0.5,
    r"text/token_embed": 0.02,
    r"text/pos_embed": 0.01,
    r"(image|text)_projection/kernel": W**-0.5,
}
CONSTANTS = {
    r".*/bias": 0.0,
    r".*/(norm|norm1|norm2|norm_pre)/scale": 1.0,
    r".*/blocks/scale[12]/scale": 0.125,
    r"image_text/logit_scale": math.log(1 / 0.07),
    r"text_image/logit_scale": math.log(10),
    r"text_image/logit_bias": -10.0,
}


def config() -> Config:
    """Towers large enough that deviations tell, with every kind of parameter: a class token beside pooling by attention."""
    shared = {"width": W, "depth": DEPTH, "heads": 4, "layer_scale": 0.125, "projection": "affine", "pool": "map"}
    image = VisionTower(64, PATCH, stem=(8,), class_token=True, **shared)  # type: ignore[arg-type]
    text = TextTower(16, **shared)  # type: ignore[arg-type]
    objectives = {"image_text": Contrastive(), "text_image": Contrastive(a="text", b="image", loss="sigmoid")}
    return Config(model=Model({"image": image, "text": text}), objectives=objectives)


def test_every_new_parameter_has_the_mean_and_deviation_of_its_formula() -> None:
    shapes = param_shapes(config())
    everywhere = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    used, params = set(), flatten(init_params(config(), everywhere))
    assert {"image_projection/bias", "text_projection/bias", "image/cls", "image/map/probe"} <= params.keys()
    for path, leaf in params.items():
        x = np.asarray(leaf, np.float64)
        if match := next((pattern for pattern in CONSTANTS if re.fullmatch(pattern, path)), None):
            np.testing.assert_allclose(x, CONSTANTS[match], rtol=1e-6, err_msg=path)
        else:
            match = next(pattern for pattern in DEVIATIONS if re.fullmatch(pattern, path))
            std, spread = DEVIATIONS[match], (2 * x.size) ** -0.5  # the relative error of a deviation of so many numbers
            assert abs(x.std() / std - 1) < max(5 * spread, 0.01), (path, x.std(), std)
            assert abs(x.mean()) < 5 * std * x.size**-0.5, path
        used.add(match)
    assert used == {*DEVIATIONS, *CONSTANTS}


def test_scale_and_bias_begin_where_the_configuration_says() -> None:
    sigmoid = Contrastive(a="text", b="image", loss="sigmoid", logit_scale=7.0, logit_bias="batch")
    objectives = {"image_text": Contrastive(logit_scale=3.0), "text_image": sigmoid}
    params = make_program(
        tiny_config(objectives=objectives), make_mesh(tiny_config().mesh), warmup_steps=1, total_steps=2
    ).init().params  # fmt: skip
    np.testing.assert_allclose(params["image_text"]["logit_scale"], math.log(3), rtol=1e-6)
    np.testing.assert_allclose(params["text_image"]["logit_scale"], math.log(7), rtol=1e-6)
    np.testing.assert_allclose(params["text_image"]["logit_bias"], -math.log(15), rtol=1e-6)  # batches of 16


@pytest.mark.parametrize(
    ("begin", "smoothing", "bound"), [pytest.param(1.01, 0.99, 1.0, marks=pytest.mark.slow), (99.9, 0.0, 100.0)]
)
def test_the_logit_scale_stays_within_its_bounds(begin: float, smoothing: float, bound: float) -> None:
    """A target that is almost uniform drives the scale down to 1; a rate that is too large drives it up to 100."""
    cfg = tiny_config(objectives={"image_text": Contrastive(logit_scale=begin, label_smoothing=smoothing)})
    cfg = tiny_config(
        **{"objectives": cfg.objectives, "optim.lr": 0.5, "optim.lr_rules": ((".*/logit_scale", 1.0), (".*", 1e-4))}
    )
    mesh = make_mesh(cfg.mesh)
    program = make_program(cfg, mesh, warmup_steps=1, total_steps=100)
    state, scales = program.init(), []
    with make_run_loader(cfg) as loader:
        for _, batch in zip(range(6), loader, strict=False):
            state, _ = program.train_step(state, to_global(batch.arrays, mesh))
            scales.append(float(np.exp(state.params["image_text"]["logit_scale"])))
    assert min(scales) >= 1 - 1e-6
    assert max(scales) <= 100 * (1 + 1e-6)
    if bound == 1.0:
        np.testing.assert_allclose(scales[-1], bound, rtol=1e-6)


def test_shapes_that_are_remembered_are_those_of_the_model_that_is_asked_for_and_of_the_caller() -> None:
    small = tiny_config()
    wide = tiny_config(**{"model.embed_dim": 48})
    for config in (small, wide, small):
        shapes = param_shapes(config)
        assert flatten(shapes)["image_projection/kernel"].shape[1] == config.model.embed_dim
        shapes.clear()
