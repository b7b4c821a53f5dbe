"""ImageBind's weights, read alone: six towers bound to images, in one file that says nothing of its architecture but shapes."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jclip.config import (
    IMAGEBIND_MEL,
    IMAGEBIND_WAVEFORM,
    DepthTower,
    ImuTower,
    Model,
    SpectrogramTower,
    TextTower,
    ThermalTower,
    Tower,
    VisionTower,
)
from jclip.weights.errors import WeightsError
from jclip.weights.layout import FLAT, LEADING, LINEAR, SCALAR, Layout, Rule, conv_layout, dense_rules, norm_rules, stacked_rules

BUFFER = "modality_preprocessors.text.mask"
"""An array that is no parameter."""

THEIRS = {"image": "vision", "text": "text", "sound": "audio", "depth": "depth", "thermal": "thermal", "imu": "imu"}
"""Their names of our towers."""

HEADS = {"image": 16, "text": 16, "sound": 12, "depth": 8, "thermal": 12, "imu": 8}
"""Attention heads of imagebind_huge, which no shape determines."""

STEMS = {"image": "rgbt_stem", "sound": "rgbt_stem", "depth": "depth_stem", "thermal": "rgbt_stem", "imu": "imu_stem"}

Shapes = Mapping[str, tuple[int, ...]]


def is_imagebind(names: Iterable[str]) -> bool:
    """True for the names of arrays of such a file."""
    return "modality_trunks.vision.pre_transformer_layer.0.weight" in names


def open_model(shapes: Shapes) -> tuple[Model, tuple[str, ...]]:
    """The model, and the paths of its scales, of the shapes of a file's arrays by name.

    Audio is seen as one clip of 2 s; ImageBind's own program takes the mean of three.

    Raises:
        WeightsError: an array that determines a size is missing, or is no array of that kind.
    """
    try:
        towers = {ours: _tower(ours, shapes) for ours in THEIRS}
        embed_dim = shapes["modality_heads.vision.2.weight"][0]
    except (KeyError, IndexError, ValueError) as missing:
        raise WeightsError(f"ImageBind's arrays are not all there, or damaged: {missing}") from None
    return Model(towers, embed_dim), tuple(f"image_{ours}/logit_scale" for ours in towers if ours != "image")


def rules(model: Model, paths: Collection[str], names: Collection[str] | None = None) -> list[Rule]:
    """Places of our parameters in their arrays; see `layout.Rule`."""
    found: list[Rule] = []
    for ours, tower in model.towers.items():
        found += _text_rules(tower) if ours == "text" else _patch_rules(ours, tower)
        found += _block_rules(ours, tower)
    for ours in model.towers.keys() - {"image"}:
        name = f"modality_postprocessors.{THEIRS[ours]}.1.log_logit_scale"
        found.append(Rule(f"image_{ours}/logit_scale", name, SCALAR))
    return [rule for rule in found if rule.ours in paths]


def _tower(ours: str, shapes: Shapes) -> Tower:
    at, trunk = f"modality_preprocessors.{THEIRS[ours]}", f"modality_trunks.{THEIRS[ours]}.blocks."
    depth = len({name[len(trunk) :].split(".")[0] for name in shapes if name.startswith(trunk)})
    common: dict[str, Any] = {"depth": depth, "heads": HEADS[ours], "norm_eps": 1e-6}
    if ours == "text":
        vocabulary, width = shapes[f"{at}.token_embedding.weight"]
        return TextTower(shapes[f"{at}.pos_embed"][1], vocabulary, width, **common)
    tokens, width = shapes[f"{at}.pos_embedding_helper.pos_embed"][1:]
    if ours == "image":
        patch = shapes[f"{at}.rgbt_stem.proj.1.weight"][-1]
        return VisionTower(patch * round((tokens - 1) ** 0.5), patch, width, **common)
    kernel = shapes[f"{at}.{STEMS[ours]}.proj.weight"]
    common |= {"width": width, "extra_key": True, "patch_norm": True}
    if ours == "sound":
        stride = 10 if kernel[-1] == 16 else kernel[-1]
        return SpectrogramTower(IMAGEBIND_WAVEFORM, IMAGEBIND_MEL, kernel[-1], stride, pre_norm=False, **common)
    if ours == "imu":
        return ImuTower(**common, channels=6, patch_size=kernel[1] // 6, samples=(tokens - 1) * (kernel[1] // 6))
    plane = DepthTower if ours == "depth" else ThermalTower
    return plane(**common, image_size=kernel[-1] * round((tokens - 1) ** 0.5), patch_size=kernel[-1])


def _patch_rules(ours: str, tower: Tower) -> list[Rule]:
    theirs, stem = THEIRS[ours], STEMS[ours]
    at, head = f"modality_preprocessors.{theirs}", f"modality_heads.{theirs}"
    found = [
        Rule(f"{ours}/cls", f"{at}.cls_token", FLAT),
        Rule(f"{ours}/pos_embed", f"{at}.pos_embedding_helper.pos_embed", LEADING),
        *norm_rules(f"{ours}/norm", f"{head}.0"),
        Rule(f"{ours}_projection/kernel", f"{head}.{3 if ours == 'imu' else 2}.weight", LINEAR),
    ]
    if isinstance(tower, VisionTower):
        found.append(Rule(f"{ours}/patch_embed/kernel", f"{at}.{stem}.proj.1.weight", _two_frames(tower.patch_size)))
        return found + norm_rules(f"{ours}/norm_pre", f"modality_trunks.{theirs}.pre_transformer_layer.0")
    layout = LINEAR
    if isinstance(tower, SpectrogramTower):
        layout = conv_layout(tower.patch[0])
    elif isinstance(tower, DepthTower | ThermalTower):
        layout = conv_layout(tower.patch_size)
    found.append(Rule(f"{ours}/patch_embed/kernel", f"{at}.{stem}.proj.weight", layout))
    return found + norm_rules(f"{ours}/patch_norm", f"{at}.{stem}.norm_layer")


def _text_rules(tower: Tower) -> list[Rule]:
    at = "modality_preprocessors.text"
    return [
        Rule("text/token_embed", f"{at}.token_embedding.weight"),
        Rule("text/pos_embed", f"{at}.pos_embed", LEADING),
        *norm_rules("text/norm", "modality_heads.text.proj.0"),
        Rule("text_projection/kernel", "modality_heads.text.proj.1.weight", LINEAR),
    ]


def _block_rules(ours: str, tower: Any) -> list[Rule]:
    at, blocks = f"modality_trunks.{THEIRS[ours]}.blocks.{{}}", f"{ours}/blocks"
    heads = tower.heads
    extra = Layout(lambda x: x.reshape(heads, x.size // heads), lambda x: x.reshape(1, 1, -1))
    return [
        *norm_rules(f"{blocks}/norm1", f"{at}.norm_1"),
        *stacked_rules(f"{blocks}/attn", f"{at}.attn.in_proj_"),
        *dense_rules(f"{blocks}/attn/out", f"{at}.attn.out_proj"),
        *norm_rules(f"{blocks}/norm2", f"{at}.norm_2"),
        *dense_rules(f"{blocks}/mlp/fc1", f"{at}.mlp.fc1"),
        *dense_rules(f"{blocks}/mlp/fc2", f"{at}.mlp.fc2"),
        *(Rule(f"{blocks}/attn/extra_{name}", f"{at}.attn.bias_{name}", extra) for name in "kv"),
    ]


def _two_frames(patch_size: int) -> Layout:
    """Their convolution sees two frames, which a still image is twice: the sum of both kernels sees it once."""
    still = conv_layout(patch_size)

    def theirs(x: Any) -> Any:
        raise WeightsError("ImageBind's weights are read, not written: its images have two frames")

    return Layout(lambda x: still.ours(x.sum(axis=2)), theirs)
