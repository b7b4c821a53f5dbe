"""Weights as Hugging Face's `CLIPModel` keeps them: `config.json`, `preprocessor_config.json` and the state dict."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jclip.config import Model, Preprocess, TextTower, Tokenizer, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.files import read_json
from jclip.weights.layout import LINEAR, SCALAR, Rule, conv_layout, dense_rules, norm_rules

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Names of the weights in a folder, the preferred first."""

BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""What some state dicts hold besides parameters."""

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Their name of an activation, and ours."""

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""

VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
}
VISION |= {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}
TEXT: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
}
TEXT |= {"max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407}
"""Options that say what is computed, with the library's defaults: a file leaves out what it does not change."""


def read_model(folder: Path, config: Mapping[str, Any]) -> Model:
    """The architecture and preprocessing of a `CLIPModel`.

    Raises:
        WeightsError: it is another kind of model, or an option has a value that is not reproduced.
    """
    at = str(folder / CONFIG)
    if config.get("model_type") != "clip":
        raise WeightsError(f"{at}: model_type is {config.get('model_type')!r}; 'clip' is what is read")
    vision = {**VISION, **(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    text = {**TEXT, **(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    if vision["num_channels"] != 3:
        raise WeightsError(f"{at}: vision_config.num_channels is {vision['num_channels']}; 3 is reproduced")
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):  # 2 stands for the largest id, as in the first such files
        raise WeightsError(
            f"{at}: text_config.eos_token_id is {text['eos_token_id']}; reproduced is {text['vocab_size'] - 1}, or 2"
        )
    image = VisionTower(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        **_common(f"{at}: vision_config", vision),
        preprocess=_preprocess(folder, vision["image_size"]),
    )
    words = TextTower(
        context_length=text["max_position_embeddings"], vocab_size=text["vocab_size"], **_common(f"{at}: text_config", text)
    )
    return Model({"image": image, "text": words}, embed_dim=config.get("projection_dim", 512))


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
    }


def _preprocess(folder: Path, image_size: int) -> Preprocess:
    """Of `preprocessor_config.json`, or CLIP's own where there is none."""
    path, default = folder / PREPROCESSOR, Preprocess()
    if not path.is_file():
        return default
    given = read_json(path)
    sides = [given.get("size", image_size)]
    if given.get("do_center_crop", True):
        sides.append(given.get("crop_size", image_size))
    lengths = {n for side in sides for n in (side.values() if isinstance(side, Mapping) else [side])}
    shortest = given.get("do_center_crop", True) and not (isinstance(sides[0], Mapping) and "height" in sides[0])
    resample = given.get("resample", 3)
    steps = all(given.get(name, True) for name in ("do_resize", "do_normalize", "do_rescale"))
    if lengths != {image_size} or resample not in RESAMPLE or not steps:
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


def write_config(model: Model, folder: Path, *, bias: bool) -> None:
    """Writes `config.json` and `preprocessor_config.json`, so that `CLIPModel.from_pretrained` builds the same model.

    Raises:
        WeightsError: the library has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    like = {
        "positions": "learned",
        "pool": "cls",
        "pre_norm": True,
        "causal": True,
        "mask_padding": False,
        "tokenizer": Tokenizer(),
    }
    obstacles = [
        f"{name}.{field} is {getattr(tower, field)!r}, not {value!r}"
        for name, tower in (("image", image), ("text", text))
        for field, value in {**like, **({"pool": "eot"} if name == "text" else {})}.items()
        if getattr(tower, field, value) != value
    ]
    if bias:
        obstacles.append("it has a bias of the logits")
    if image.preprocess.resize == "longest":
        obstacles.append("image.preprocess.resize is 'longest', not 'shortest' or 'squash'")
    if obstacles:
        raise WeightsError(f"Hugging Face's CLIPModel cannot compute this model: {'; '.join(obstacles)}")
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}

    def common(tower: VisionTower | TextTower) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": round(tower.mlp_ratio * tower.width),
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "hidden_act": theirs[tower.activation],
            "layer_norm_eps": tower.norm_eps,
            "projection_dim": model.embed_dim,
        }

    vision = {**common(image), "image_size": image.image_size, "patch_size": image.patch_size}
    words = {**common(text), "max_position_embeddings": text.context_length, "vocab_size": text.vocab_size}
    words |= {"bos_token_id": text.vocab_size - 2, "eos_token_id": text.vocab_size - 1, "pad_token_id": text.vocab_size - 1}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": model.embed_dim}
    (folder / CONFIG).write_text(json.dumps({**config, "text_config": words, "vision_config": vision}, indent=2) + "\n")
    how, square = image.preprocess, {"height": image.image_size, "width": image.image_size}
    crop = how.resize == "shortest"
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": list(how.mean),
        "image_std": list(how.std),
        "resample": {ours: number for number, ours in RESAMPLE.items()}[how.interpolation],
        "do_resize": True,
        "size": {"shortest_edge": image.image_size} if crop else square,
        "do_center_crop": crop,
        "crop_size": square,
        "do_normalize": True,
        "do_rescale": True,
        "do_convert_rgb": True,
    }
    (folder / PREPROCESSOR).write_text(json.dumps(processor, indent=2) + "\n")


def rules(model: Model, *, bias: bool) -> list[Rule]:
    """Where a `CLIPModel` keeps each parameter."""
    image = model.towers["image"]
    assert isinstance(image, VisionTower)
    return [
        Rule("image/patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", conv_layout(image.patch_size)),
        Rule("image/cls", "vision_model.embeddings.class_embedding"),
        Rule("image/pos_embed", "vision_model.embeddings.position_embedding.weight"),
        *norm_rules("image/norm_pre", "vision_model.pre_layrnorm"),  # their spelling
        *_blocks("image/blocks", "vision_model.encoder.layers.{}"),
        *norm_rules("image/norm", "vision_model.post_layernorm"),
        Rule("image_projection/kernel", "visual_projection.weight", LINEAR),
        Rule("text/token_embed", "text_model.embeddings.token_embedding.weight"),
        Rule("text/pos_embed", "text_model.embeddings.position_embedding.weight"),
        *_blocks("text/blocks", "text_model.encoder.layers.{}"),
        *norm_rules("text/norm", "text_model.final_layer_norm"),
        Rule("text_projection/kernel", "text_projection.weight", LINEAR),
        Rule("image_text/logit_scale", "logit_scale", SCALAR),
    ]


def _blocks(ours: str, theirs: str) -> list[Rule]:
    dense = [(f"attn/{name}", f"self_attn.{name}_proj") for name in "qkv"]
    dense += [("attn/out", "self_attn.out_proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")]
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.layer_norm1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.layer_norm2"),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
    ]
