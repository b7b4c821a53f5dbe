"""Options of `open_clip_config.json`: each has the effect that it has in open_clip, means nothing, or is refused by its name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from foreign import OPEN_CLIP

from jclip.config import Model, Preprocess, VisionTower
from jclip.weights import WeightsError
from jclip.weights.open_clip import config_of, read_model


def read(folder: Path, preprocess: Any = None, **changes: Any) -> Model:
    """The model of a configuration; `changes` by dotted path into model_cfg."""
    made = json.loads(json.dumps(OPEN_CLIP))
    for path, value in changes.items():
        section, _, option = path.rpartition(".")
        (made[section] if section else made)[option] = value
    return read_model(folder, {"model_cfg": made, "preprocess_cfg": preprocess})[0]


def image(model: Model) -> VisionTower:
    tower = model.towers["image"]
    assert isinstance(tower, VisionTower)
    return tower


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Preprocess()),
        ({"size": 24, "mode": "RGB"}, Preprocess()),
        ({"size": [24, 24], "mean": None}, Preprocess()),
        ({"mean": [0, 0.5, 1], "std": [1, 1, 1], "resize_mode": "squash"}, Preprocess((0, 0.5, 1), (1, 1, 1), resize="squash")),
        ({"resize_mode": "longest", "fill_color": 3, "interpolation": "bilinear"}, None),
    ],
)
def test_preprocessing_is_what_the_configuration_says(given: Any, expected: Preprocess | None, tmp_path: Path) -> None:
    expected = expected or Preprocess(resize="longest", fill=3, interpolation="bilinear")
    assert image(read(tmp_path, given)).preprocess == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": [24, 25]}, r"images of 24 pixels a side; vision_cfg.image_size is 24, and preprocess_cfg.size \(24, 25\)"),
        (
            {"size": [24, 25, 3]},
            r"preprocess_cfg.size is \[24, 25, 3\]; it must be a whole number from 1, or a list of two: height",
        ),
        ({"size": [], "mode": "L"}, r"preprocess_cfg.size is \[\]"),
        ({"size": 25}, r"images of 24 pixels a side; vision_cfg.image_size is 24, and preprocess_cfg.size 25"),
        ({"mode": "L"}, "preprocess_cfg.mode is 'L': only 'RGB' is reproduced"),
        ({"mean": 0.5}, r"preprocess_cfg.mean is 0\.5; it must be a list of three numbers"),
        ({"std": [1, 1]}, r"preprocess_cfg.std is \[1, 1\]"),
        ({"fill_color": [1, 2, 3]}, r"fill_color is \[1, 2, 3\]; it must be a whole number"),
        ({"interpolation": "random"}, "interpolation is 'random'; it must be one of bicubic, bilinear"),
        ({"resize_mode": "fit"}, "resize_mode is 'fit'"),
        ({"crop_pct": 0.9}, r"preprocess_cfg.crop_pct is 0\.9: the option is unknown"),
        ([1], r"config\.json: preprocess_cfg is \[1\]; it must be an object"),
    ],
)
def test_preprocessing_that_is_not_reproduced_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, given)


def test_height_comes_before_width(tmp_path: Path) -> None:
    tower = image(read(tmp_path, {"size": [40, 24]}, **{"vision_cfg.image_size": [40, 24]}))
    assert (tower.image_size, tower.size, tower.grid) == ((40, 24), (40, 24), (5, 3))


@pytest.mark.parametrize(("resize", "interpolation"), [("shortest", "bicubic"), ("longest", "bilinear"), ("squash", "bilinear")])
def test_the_filter_of_a_rectangle_is_the_one_that_open_clip_takes(resize: str, interpolation: str, tmp_path: Path) -> None:
    """open_clip makes ResizeKeepRatio without the filter that the configuration says, where the shortest side is resized."""
    given = {"resize_mode": resize, "interpolation": "bilinear"}
    tower = image(read(tmp_path, given, **{"vision_cfg.image_size": [40, 24]}))
    assert tower.preprocess == Preprocess(resize=resize, interpolation=interpolation)  # type: ignore[arg-type]
    ours = dataclasses.replace(tower, preprocess=Preprocess(resize=resize, interpolation="bilinear"))  # type: ignore[arg-type]
    model = Model({"image": ours, "text": read(tmp_path).towers["text"]}, 24)
    if resize == "shortest":
        with pytest.raises(WeightsError, match=r"open_clip cannot compute this model: image.preprocess is .*bilinear"):
            config_of(model, ())
    else:
        assert config_of(model, ())["model_cfg"]["vision_cfg"]["image_size"] == [40, 24]


def test_squares_are_sides(tmp_path: Path) -> None:
    assert read(tmp_path, **{"vision_cfg.image_size": [24, 24], "vision_cfg.patch_size": [8, 8]}) == read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg.image_size": [24, 0]}, r"vision_cfg.image_size is \[24, 0\]; it must be"),
        ({"vision_cfg.patch_size": [8, 4]}, r"vision_cfg.patch_size is \[8, 4\]; it must be .* a list of two equal ones"),
        (
            {"vision_cfg.image_size": [96, 64], "vision_cfg.layers": [1, 1, 1, 1]},
            r"image_size is \[96, 64\]; the ResNets of open_clip",
        ),
        ({"vision_cfg.width": "36"}, "vision_cfg.width is '36'; it must be a whole number from 1"),
        ({"vision_cfg.patch_size": None}, "vision_cfg.patch_size is None; it must be a whole number from 1"),
        ({"vision_cfg.head_width": 0}, "head_width is 0; it must be a whole number from 1"),
        ({"vision_cfg.layers": [2, 2]}, r"layers is \[2, 2\]; it must be a whole number from 1, or a list of four"),
        ({"vision_cfg.act_kwargs": 3}, "act_kwargs is 3; it must be an object, or null"),
        ({"text_cfg.norm_kwargs": {"eps": "x"}}, "text_cfg.norm_kwargs.eps is 'x'; it must be a number"),
        ({"text_cfg.norm_kwargs": {"bias": False}}, "norm_kwargs.bias is False: the option is unknown"),
        ({"text_cfg.heads": 2.5}, r"text_cfg.heads is 2\.5; it must be a whole number"),
        ({"text_cfg.proj_type": "mlp"}, "proj_type is 'mlp'; it must be one of linear, none"),
        ({"text_cfg.tokenizer_kwargs": ["x"]}, "tokenizer_kwargs is"),
        ({"quick_gelu": "yes"}, "model_cfg.quick_gelu is 'yes'; it must be true or false"),
        ({"text_cfg": None}, "model_cfg.text_cfg is None; it must be an object"),
        ({"embed_dim": None}, "model_cfg.embed_dim is None"),
        ({"multimodal_cfg": {}}, "multimodal_cfg.context_length is 77, and text_cfg's 20"),
    ],
)
def test_options_of_another_kind_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, **changes)


def test_options_of_a_tower_that_is_not_named_mean_nothing(tmp_path: Path) -> None:
    others: dict[str, Any] = {"vision_cfg.timm_model_name": None, "vision_cfg.timm_pool": "avg", "text_cfg.hf_proj_type": "mlp"}
    assert read(tmp_path, **others) == read(tmp_path)
