"""Preprocessing as Hugging Face's files say it: `processor_config.json` and `preprocessor_config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jclip.config import Preprocess, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import read_json
from jclip.weights.options import COLOUR, FLAG, Values, check_options, one_of, optional

FILES = NESTED, FILE = "processor_config.json", "preprocessor_config.json"

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""

HALF = (0.5, 0.5, 0.5)
CLIP: dict[str, Any] = {
    "image_mean": Preprocess().mean,
    "image_std": Preprocess().std,
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
}
SIGLIP: Mapping[str, Any] = {
    "image_mean": HALF,
    "image_std": HALF,
    "resample": 3,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
}
CLASSES = {"CLIPImageProcessor": CLIP, "SiglipImageProcessor": SIGLIP, "ChineseCLIPImageProcessor": CLIP | {"size": {}}}
"""The processors that are reproduced, with the options that a file may leave out: the size that Chinese-CLIP's then has differs
between versions of transformers."""

CLASS_OF = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "siglip2": "Siglip2ImageProcessor"}
"""The processor of a type of model, where a file names none."""

SIZE = Values(
    "a whole number, a list of two, or an object of them",
    lambda size: all(
        type(n) is int for n in (size.values() if isinstance(size, Mapping) else size if isinstance(size, list) else [size])
    ),
)
READ = {
    **{"size": SIZE, "crop_size": optional(SIZE), "resample": one_of(RESAMPLE), "do_center_crop": optional(FLAG)},
    **{"image_mean": COLOUR, "image_std": COLOUR},
}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"do_resize": (True,), "do_rescale": (True,), "rescale_factor": (1 / 255,), "do_normalize": (True,)},
    **{"do_convert_rgb": (True, None), "do_pad": (False, None), "pad_size": (None,), "default_to_square": (False, None)},
}
"""Options that change the pixels, with the values that are reproduced."""

INERT = {"image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "_name_or_path"}
INERT |= {"data_format", "input_data_format", "device", "disable_grouping", "return_tensors", "transformers_version"}


def read_processor(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """The settings of a folder, after the place they stand in; None: no file has any.

    What transformers 5 nests in `processor_config.json` counts before `preprocessor_config.json`, there as well.
    """
    path = folder / NESTED
    if path.is_file() and (nested := read_json(path).get("image_processor")) is not None:
        if not isinstance(nested, Mapping):
            raise WeightsError(f"{path}: image_processor is {nested!r}; it must be an object")
        return f"{path}: image_processor", nested
    path = folder / FILE
    return str(path), read_json(path) if path.is_file() else None


def preprocess(kind: str, at: str, given: Mapping[str, Any] | None, image_size: int) -> Preprocess:
    """Preprocess of the settings `given`, which stand at `at`, for a model of type `kind`; None: as its library trained it.

    Raises:
        WeightsError: pixels would be others.
    """
    if given is None:
        return Preprocess() if kind == "clip" else Preprocess(HALF, HALF, resize="squash")
    named = str(given.get("image_processor_type") or given.get("feature_extractor_type") or CLASS_OF[kind])
    name = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name == CLASS_OF["siglip2"]:
        raise WeightsError(
            f"{at}: {name} makes images of several shapes; reproduced are weights for one: where yours are, put the "
            f"{FILE} of a SiglipImageProcessor there"
        )
    if name not in CLASSES:
        raise WeightsError(f"{at}: image_processor_type is {named!r}; reproduced are {', '.join(CLASSES)}")
    check_options(f"{at}: ", given, READ, NEUTRAL, INERT)
    how = {**CLASSES[name], **given}
    return Preprocess(
        mean=tuple(how["image_mean"]),
        std=tuple(how["image_std"]),
        interpolation=cast(Any, RESAMPLE[how["resample"]]),
        resize=cast(Any, _resize(at, how, image_size)),
    )


def _resize(at: str, how: Mapping[str, Any], image_size: int) -> str:
    """shortest or squash."""
    square = {"height": image_size, "width": image_size}
    size, crop = how["size"], how.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) else _sides(size)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else _sides(crop or {})
    if not how["do_center_crop"]:
        crop = size  # which is no crop
    for resize, resized in (("shortest", {"shortest_edge": image_size}), ("squash", square)):
        if size == resized and crop == square:
            return resize
    raise WeightsError(
        f"{at}: reproduced is a resize of the shortest edge to {image_size} and a centre crop, or a resize to {image_size} by "
        f"{image_size}; this says size {how['size']}, crop_size {how.get('crop_size')}, do_center_crop {how['do_center_crop']}"
    )


def _sides(size: Any) -> Mapping[str, int]:
    return dict(zip(("height", "width"), size, strict=False)) if isinstance(size, list) else size


def settings(kind: str, image: VisionTower) -> dict[str, Any]:
    """Content of `preprocessor_config.json` from which transformers makes our pixels for a model of type `kind`."""
    how, square = image.preprocess, dict(zip(("height", "width"), image.size, strict=True))
    crop = how.resize == "shortest"
    crops = {"do_center_crop": crop, "crop_size": square} if kind == "clip" else {}
    return {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "image_mean": list(how.mean),
        "image_std": list(how.std),
        "resample": {ours: number for number, ours in RESAMPLE.items()}[how.interpolation],
        "do_resize": True,
        "size": {"shortest_edge": image.image_size} if crop else square,
        **crops,
        "do_normalize": True,
        "do_rescale": True,
        "do_convert_rgb": True,
    }
