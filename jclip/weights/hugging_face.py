"""Models as Hugging Face describes them, in and out: `config.json` and `preprocessor_config.json` of CLIP and SigLIP."""

import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from jclip.config import Model, TextTower, Tokenizer, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.hugging_face_names import model_type, rules
from jclip.weights.hugging_face_processor import FILE, preprocess, read_processor, settings
from jclip.weights.layout import BIAS, SCALE
from jclip.weights.options import COUNT, ID, NUMBER, SECTION, Kind, check_options, one_of, optional
from jclip.weights.same import require_same
from jclip.weights.tokenizer_files import write_hugging_face
from jclip.weights.tokenizers import read_hugging_face

__all__ = ["BUFFERS", "CONFIG", "FILES", "read_model", "rules", "write_config"]

CONFIG = "config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of the weights in a folder, the preferred first."""

MARK = r"(.*\.)?(vision|text)_model\..*"
"""Names that tell weights of this library."""

BUFFERS = r"(text|vision)_model\.embeddings\.position_ids"
"""What some state dicts hold besides parameters."""

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Their name of an activation, and ours."""

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""Their types of models, and the classes."""

ONE_TOWER = ("clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model")
ALONE = {
    **dict.fromkeys(ONE_TOWER, "one tower alone, whose embeddings have nothing to be compared with; give the whole model"),
    "chinese_clip": "a BERT reads its texts, which no tower here is",
    "altclip": "an XLM-RoBERTa reads its texts, which no tower here is",
}
"""Types of models that are known and not read, and why."""

SCALES = {"clip": (SCALE,), "siglip": (SCALE, BIAS), "siglip2": (SCALE, BIAS)}
"""The parameters of the objective of a type of model."""

SIGLIP_END = 1
"""Id that ends a text in the vocabularies of all SigLIP models, whatever `eos_token_id` says."""

SECTIONS = dict.fromkeys(("vision_config", "text_config", "vision_config_dict", "text_config_dict"), optional(SECTION))
COMMON = {"hidden_size": COUNT, "intermediate_size": COUNT, "num_hidden_layers": COUNT, "num_attention_heads": COUNT}
COMMON |= {"hidden_act": one_of(ACTIVATIONS), "layer_norm_eps": NUMBER}
VISION = COMMON | {"image_size": COUNT, "patch_size": COUNT, "num_patches": COUNT}
TEXT = COMMON | {"vocab_size": COUNT, "max_position_embeddings": COUNT, "projection_size": optional(COUNT)}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"num_channels": (3,), "vision_use_head": (True,), "pruned_heads": ({}, None), "chunk_size_feed_forward": (0, None)},
    **dict.fromkeys(("is_decoder", "is_encoder_decoder", "add_cross_attention"), (False, None)),
}
"""Options that change what is computed, with the values that are reproduced."""

INERT = {"architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "_name_or_path", "_commit_hash"}
INERT |= {"attention_dropout", "dropout", "initializer_range", "initializer_factor", "logit_scale_init_value", "projection_dim"}
INERT |= {"pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class", "prefix"}
INERT |= {"id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "torchscript", "use_bfloat16"}
INERT |= {"output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate", "use_cache"}
INERT |= {"tie_word_embeddings", "tie_encoder_decoder", "cross_attention_hidden_size", "tf_legacy_loss", "gradient_checkpointing"}
INERT |= {"max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "num_return_sequences"}
INERT |= {"temperature", "top_k", "top_p", "typical_p", "diversity_penalty", "repetition_penalty", "length_penalty"}
INERT |= {"no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "remove_invalid_values"}
INERT |= {"bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"}
INERT |= {"_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "return_loss"}
"""Options on which no feature depends: of training, of generating text, and what any of their models says of itself."""


def _defaults(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that say what is computed, of images and of texts, with the library's defaults: files leave these out."""
    clip = kind == "clip"
    act, eps = ("quick_gelu", 1e-5) if clip else ("gelu_pytorch_tanh", 1e-6)
    common = {"num_hidden_layers": 12, "hidden_act": act, "layer_norm_eps": eps}
    base = common | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    small = common | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = base | {"image_size": 224, "patch_size": 32 if clip else 16, "num_patches": 256}
    if clip:
        return vision, small | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    return vision, base | {"vocab_size": 32000, "max_position_embeddings": 64}


def read_model(folder: Path, config: Mapping[str, Any]) -> tuple[Model, tuple[str, ...]]:
    """The architecture, preprocessing and tokenizer of a `CLIPModel`, `SiglipModel` or `Siglip2Model`, and its SCALES.

    Raises:
        WeightsError: it is another kind of model, or an option has a value that is not reproduced.
    """
    at, kind = str(folder / CONFIG), config.get("model_type")
    if isinstance(kind, str) and kind in ALONE:
        raise WeightsError(f"{at}: model_type is {kind!r}: {ALONE[kind]}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(f"{at}: model_type is {kind!r}; reproduced are {', '.join(KINDS)}")
    return _model(at, config, read_processor(folder), read_hugging_face(folder, kind)), SCALES[kind]


def _model(at: str, config: Mapping[str, Any], processor: tuple[str, Mapping[str, Any] | None], tokenizer: Tokenizer) -> Model:
    kind = config["model_type"]
    clip = {"projection_dim": COUNT} if kind == "clip" else {}
    check_options(f"{at}: ", config, SECTIONS | clip, NEUTRAL, INERT)
    vision, text = _defaults(kind)
    vision |= _section(at, config, "vision_config", VISION, vision)
    text |= _section(at, config, "text_config", TEXT | ({"eos_token_id": ID} if clip else {}), text)
    size, patch_size = vision["image_size"], vision["patch_size"]
    if kind == "siglip2":
        size = math.isqrt(vision["num_patches"]) * patch_size
    if kind != "clip":
        vision |= {"crop": bool(size % patch_size), "patch_bias": True, "pool": "map", "pre_norm": False, "projection": "none"}
        text |= {"causal": False, "pool": "last", "projection": "affine", "eot_id": SIGLIP_END}
    elif text["eos_token_id"] != 2:  # 2 stands for the largest id, as in the first such files
        text["eot_id"] = None if text["eos_token_id"] == text["vocab_size"] - 1 else text["eos_token_id"]
    image = VisionTower(size, patch_size, **_common(vision), preprocess=preprocess(kind, *processor, size))
    words = TextTower(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        tokenizer=tokenizer,
        **_common(text),
    )
    embed_dim = config.get("projection_dim", 512) if clip else text.get("projection_size") or words.width
    return Model({"image": image, "text": words}, embed_dim)


def _section(
    at: str, config: Mapping[str, Any], name: str, read: Mapping[str, Kind], defaults: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The options of a section, which the first files have twice: `text_config_dict` beside `text_config`.

    CLIPConfig completes the former by its defaults and puts all of that over the latter, of which nothing is left then. The
    others ignore it.
    """
    given, again = config.get(name) or {}, config.get(f"{name}_dict")
    check_options(f"{at}: {name}.", given, read, NEUTRAL, INERT)
    if again is None:
        return given
    check_options(f"{at}: {name}_dict.", again, read, NEUTRAL, INERT)
    if config["model_type"] == "clip":
        return again
    ours, theirs = ({option: {**defaults, **section}.get(option) for option in read} for section in (given, again))
    if others := [option for option in read if ours[option] != theirs[option]]:
        raise WeightsError(f"{at}: {name}_dict differs from {name}, which counts, in {', '.join(others)}; leave out {name}_dict")
    return given


OURS = ("crop", "patch_bias", "pool", "pre_norm", "projection", "causal", "eot_id")
"""Fields of our towers that their type of model says."""


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    return {
        "width": width,
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "activation": ACTIVATIONS[config["hidden_act"]],
        "norm_eps": config["layer_norm_eps"],
        **{name: config[name] for name in OURS if name in config},
    }


def write_config(model: Model, folder: Path, scales: Container[str]) -> None:
    """Writes `config.json`, `preprocessor_config.json` and the tokenizer, so that `from_pretrained` builds the same model.

    A tower with pooling by attention makes a `SiglipModel`, or with that tokenizer a `Siglip2Model`; any other a `CLIPModel`.

    Raises:
        WeightsError: the library has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    if not isinstance(image, VisionTower):
        raise WeightsError(f"Hugging Face's models have no {type(image).__name__}")
    if not isinstance(image.image_size, int):
        raise WeightsError(f"Hugging Face's models take square images, and this one's are of {image.image_size} pixels")
    assert isinstance(text, TextTower)
    kind = model_type(model)
    config, processor = _config(kind, model, image, text), settings(kind, image)
    again = _model(CONFIG, config, (FILE, processor), text.tokenizer)
    require_same(f"Hugging Face's {KINDS[kind]} cannot compute this model", model, again)
    if (BIAS in scales) != (BIAS in SCALES[kind]):
        raise WeightsError(f"Hugging Face's {KINDS[kind]} has {'no' if kind == 'clip' else 'a'} bias of the logits")
    write_hugging_face(text.tokenizer, folder, kind)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / FILE).write_text(json.dumps(processor, indent=2) + "\n")


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
        vision |= {"num_patches": math.prod(image.grid)}
    if kind != "clip":
        words |= {"projection_size": model.embed_dim, "pad_token_id": text.tokenizer.pad_id}
        words |= {"bos_token_id": None, "eos_token_id": SIGLIP_END}
    else:
        end = text.vocab_size - 1 if text.eot_id is None else text.eot_id
        words |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, "projection_dim": model.embed_dim}
        vision |= {"projection_dim": model.embed_dim}
        config |= {"projection_dim": model.embed_dim}
    return {**config, "text_config": words, "vision_config": vision}
