"""Models as Hugging Face describes them, in and out: `config.json` and `preprocessor_config.json` of CLIP and SigLIP."""

import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, cast

from jclip.config import Model, Preprocess, TextTower, Tokenizer, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.files import read_json
from jclip.weights.hugging_face_names import model_type, rules
from jclip.weights.layout import BIAS, SCALE
from jclip.weights.same import require_same
from jclip.weights.tokenizer_files import write_hugging_face
from jclip.weights.tokenizers import read_hugging_face

__all__ = ["BUFFERS", "CONFIG", "FILES", "read_model", "rules", "write_config"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Names of the weights in a folder, the preferred first."""

BUFFERS = r"(text|vision)_model\.embeddings\.position_ids"
"""What some state dicts hold besides parameters."""

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Their name of an activation, and ours."""

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""Their types of models, and the classes."""

SCALES = {"clip": (SCALE,), "siglip": (SCALE, BIAS), "siglip2": (SCALE, BIAS)}
"""The parameters of the objective of a type of model."""

SIGLIP_END = 1
"""Id that ends a text in the vocabularies of all SigLIP models, whatever `eos_token_id` says."""

HALF = (0.5, 0.5, 0.5)
WITHOUT_FILE = {"clip": Preprocess(), "siglip": Preprocess(HALF, HALF, resize="squash")}
"""Preprocessing where no file tells it: the library's own."""


def _defaults(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that say what is computed, of images and of texts, with the library's defaults: files leave these out."""
    clip = kind == "clip"
    act, eps = ("quick_gelu", 1e-5) if clip else ("gelu_pytorch_tanh", 1e-6)
    common = {"num_hidden_layers": 12, "hidden_act": act, "layer_norm_eps": eps}
    base = common | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    small = common | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = base | {"num_channels": 3, "image_size": 224, "patch_size": 32 if clip else 16, "num_patches": 256}
    if clip:
        return vision, small | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    return vision | {"vision_use_head": True}, base | {"vocab_size": 32000, "max_position_embeddings": 64}


def read_model(folder: Path, config: Mapping[str, Any]) -> tuple[Model, tuple[str, ...]]:
    """The architecture, preprocessing and tokenizer of a `CLIPModel`, `SiglipModel` or `Siglip2Model`, and its SCALES.

    Raises:
        WeightsError: it is another kind of model, or an option has a value that is not reproduced.
    """
    at, kind = str(folder / CONFIG), config.get("model_type")
    if kind not in KINDS:
        raise WeightsError(f"{at}: model_type is {kind!r}; reproduced are {', '.join(KINDS)}")
    path = folder / PREPROCESSOR
    given = read_json(path) if path.is_file() else None
    return _model(at, config, (str(path), given), read_hugging_face(folder, kind)), SCALES[kind]


def _model(at: str, config: Mapping[str, Any], processor: tuple[str, Mapping[str, Any] | None], tokenizer: Tokenizer) -> Model:
    kind = config["model_type"]
    vision, text = _defaults(kind)
    vision |= {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    text |= {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    for name, value in (("num_channels", 3), ("vision_use_head", True)):
        if vision.get(name, value) != value:
            raise WeightsError(f"{at}: vision_config.{name} is {vision[name]}; {value} is reproduced")
    size, patch_size = vision["image_size"], vision["patch_size"]
    if kind == "siglip2":
        size = math.isqrt(vision["num_patches"]) * patch_size
    if kind != "clip":
        vision |= {"crop": bool(size % patch_size), "patch_bias": True, "pool": "map", "pre_norm": False, "projection": "none"}
        text |= {"causal": False, "pool": "last", "projection": "affine", "eot_id": SIGLIP_END}
    elif text["eos_token_id"] != 2:  # 2 stands for the largest id, as in the first such files
        text["eot_id"] = None if text["eos_token_id"] == text["vocab_size"] - 1 else text["eos_token_id"]
    image = VisionTower(
        size, patch_size, **_common(f"{at}: vision_config", vision), preprocess=_preprocess(kind, *processor, size)
    )
    words = TextTower(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        tokenizer=tokenizer,
        **_common(f"{at}: text_config", text),
    )
    clip_dim = config.get("projection_dim", 512)
    return Model({"image": image, "text": words}, clip_dim if kind == "clip" else text.get("projection_size", words.width))


OURS = ("crop", "patch_bias", "pool", "pre_norm", "projection", "causal", "eot_id")
"""Fields of our towers that their type of model says."""


def _common(at: str, config: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    if config["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(f"{at}.hidden_act is {config['hidden_act']!r}; reproduced are {', '.join(ACTIVATIONS)}")
    return {
        "width": width,
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "activation": ACTIVATIONS[config["hidden_act"]],
        "norm_eps": config["layer_norm_eps"],
        **{name: config[name] for name in OURS if name in config},
    }


def _preprocess(kind: str, path: str, given: Mapping[str, Any] | None, image_size: int) -> Preprocess:
    """Of `preprocessor_config.json`, or the library's own where there is none."""
    default = WITHOUT_FILE["clip" if kind == "clip" else "siglip"]
    if given is None:
        return default
    processor = str(given.get("image_processor_type", ""))
    if processor.startswith("Siglip2"):
        raise WeightsError(
            f"{path}: {processor} makes images of several shapes; reproduced are weights for one: where yours are, put the "
            "preprocessor_config.json of a SiglipImageProcessor there"
        )
    crops = given.get("do_center_crop", kind == "clip")
    sides = [given.get("size", image_size), *([given.get("crop_size", image_size)] if crops else [])]
    lengths = {n for side in sides for n in (side.values() if isinstance(side, Mapping) else [side])}
    shortest = crops and not (isinstance(sides[0], Mapping) and "height" in sides[0])
    resample = given.get("resample", 3)
    steps = all(given.get(name, True) for name in ("do_resize", "do_normalize", "do_rescale"))
    if lengths != {image_size} or resample not in RESAMPLE or not steps or (kind != "clip" and crops):
        raise WeightsError(
            f"{path}: reproduced is a resize (2: bilinear, 3: bicubic) to {image_size}, a centre crop and a normalisation; "
            f"this says size {given.get('size')}, crop_size {given.get('crop_size')}, resample {resample}"
        )
    return Preprocess(
        mean=tuple(given.get("image_mean", default.mean)),
        std=tuple(given.get("image_std", default.std)),
        interpolation=cast(Any, RESAMPLE[resample]),
        resize="shortest" if shortest else "squash",
    )


def write_config(model: Model, folder: Path, scales: Container[str]) -> None:
    """Writes `config.json`, `preprocessor_config.json` and the tokenizer, so that `from_pretrained` builds the same model.

    A tower with pooling by attention makes a `SiglipModel`, or with that tokenizer a `Siglip2Model`; any other a `CLIPModel`.

    Raises:
        WeightsError: the library has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    if not isinstance(image, VisionTower):
        raise WeightsError(f"Hugging Face's models have no {type(image).__name__}")
    assert isinstance(text, TextTower)
    kind = model_type(model)
    config, processor = _config(kind, model, image, text), _processor(kind, image)
    again = _model(CONFIG, config, (PREPROCESSOR, processor), text.tokenizer)
    require_same(f"Hugging Face's {KINDS[kind]} cannot compute this model", model, again)
    if (BIAS in scales) != (BIAS in SCALES[kind]):
        raise WeightsError(f"Hugging Face's {KINDS[kind]} has {'no' if kind == 'clip' else 'a'} bias of the logits")
    write_hugging_face(text.tokenizer, folder, kind)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / PREPROCESSOR).write_text(json.dumps(processor, indent=2) + "\n")


def _config(kind: str, model: Model, image: VisionTower, text: TextTower) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}

    def common(tower: VisionTower | TextTower) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": round(tower.mlp_ratio * tower.width),
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "hidden_act": theirs[tower.activation],
            "layer_norm_eps": tower.norm_eps,
        }

    vision = {**common(image), "image_size": image.image_size, "patch_size": image.patch_size}
    words = {**common(text), "max_position_embeddings": text.context_length, "vocab_size": text.vocab_size}
    config: dict[str, Any] = {"architectures": [KINDS[kind]], "model_type": kind}
    if kind == "siglip2":
        vision |= {"num_patches": image.grid**2}
    if kind != "clip":
        words |= {"projection_size": model.embed_dim, "pad_token_id": text.tokenizer.pad_id}
        words |= {"bos_token_id": None, "eos_token_id": SIGLIP_END}
    else:
        end = text.vocab_size - 1 if text.eot_id is None else text.eot_id
        words |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, "projection_dim": model.embed_dim}
        vision |= {"projection_dim": model.embed_dim}
        config |= {"projection_dim": model.embed_dim}
    return {**config, "text_config": words, "vision_config": vision}


def _processor(kind: str, image: VisionTower) -> dict[str, Any]:
    how, square = image.preprocess, {"height": image.image_size, "width": image.image_size}
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
