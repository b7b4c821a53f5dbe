"""Models as Hugging Face describes them, in and out: `config.json` and `preprocessor_config.json` of CLIP and SigLIP.

Whole models, or a tower alone.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from jclip.config import BertTower, Caption, Model, SoundTower, TextTower, TokenizerConfig, VisionTower
from jclip.config import replace as replace_path
from jclip.weights.errors import WeightsError
from jclip.weights.hugging_face.bert import DEFAULTS, bert_config, bert_tower
from jclip.weights.hugging_face.clap import opened_clap, read_clap, write_clap
from jclip.weights.hugging_face.names import model_type, rules
from jclip.weights.hugging_face.processor import FILE, preprocess, read_processor, settings
from jclip.weights.io.files import Lazy
from jclip.weights.layout import BIAS, SCALE, require_one_scale, require_pair
from jclip.weights.options import COUNT, ID, NUMBER, SECTION, Values, check_options, one_of, optional
from jclip.weights.same import require_same
from jclip.weights.texts.tokenizer_files import write_hugging_face
from jclip.weights.texts.tokenizers import longest_text, read_hugging_face

__all__ = [
    "BUFFERS",
    "CONFIG",
    "FILES",
    "MARK",
    "finish",
    "opened",
    "read_captioners",
    "read_model",
    "rules",
    "write_config",
]

CONFIG = "config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of the weights in a folder, the preferred first."""

MARK = r"(.*\.)?(vision_model|text_model|audio_model|embeddings)\..*"
"""Names that identify weights of this library."""

BUFFERS = r"((text|vision)_model\.(roberta\.)?)?embeddings\.(position_ids|token_type_ids)"
"""Names in some state dicts that are no parameters."""

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""Activations: transformers' name, and ours."""

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
KINDS |= {"chinese_clip": "ChineseCLIPModel", "altclip": "AltCLIPModel", "clap": "ClapModel"}
"""Types of models in transformers, and their classes."""

LIKE_CLIP = ("clip", "chinese_clip", "altclip")
"""Types with CLIP's image tower and linear projections."""

ALONE: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("chinese_clip_vision_model", "altclip_vision_model"), ("clip", "image")),
    **{f"{kind}_vision_model": (kind, "image") for kind in ("clip", "siglip")},
    **{f"{kind}_text_model": (kind, "text") for kind in ("clip", "siglip")},
}
"""Types of towers alone in transformers: the type of model that each is of, and which tower."""

CLASSES = {("clip", "image"): "CLIPVisionModel", ("clip", "text"): "CLIPTextModel"}
CLASSES |= {("siglip", "image"): "SiglipVisionModel", ("siglip", "text"): "SiglipTextModel"}
PROJECTED = "WithProjection"
"""Classes of towers alone in transformers; CLIP's end in PROJECTED where the tower comes with its projection."""

REFUSED = {f"{kind}_text_model": kind for kind in ("chinese_clip", "altclip")}
"""Types of towers alone that are known and not read, and the type of the model in which they are."""

SCALES = {**dict.fromkeys(LIKE_CLIP, (SCALE,)), "siglip": (SCALE, BIAS), "siglip2": (SCALE, BIAS)}
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
    """Options that say what is computed, of images and of texts, with the library's defaults: files leave these out. Those of
    texts of BERT's kind stand in `hugging_face_bert`."""
    clip = kind in LIKE_CLIP
    act, eps = ("quick_gelu", 1e-5) if clip else ("gelu_pytorch_tanh", 1e-6)
    common = {"num_hidden_layers": 12, "hidden_act": act, "layer_norm_eps": eps}
    base = common | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    small = common | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = base | {"image_size": 224, "patch_size": 32 if clip else 16, "num_patches": 256}
    if clip:
        return vision, small | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    return vision, base | {"vocab_size": 32000, "max_position_embeddings": 64}


Processor = tuple[str, Mapping[str, Any] | None]
"""Settings of images, after the place they stand in; see `read_processor`."""


def read_model(folder: Path, config: Mapping[str, Any], names: Iterable[str] = ()) -> tuple[Model, tuple[str, ...]]:
    """The architecture, preprocessing and tokenizer of a model of one of KINDS, and its SCALES.

    Or of one of their towers alone, which has no scale. Its embedding is what is projected, where the folder has the projection,
    and otherwise the pooled output.

    Args:
        folder: of the files.
        config: its `config.json`.
        names: of the arrays beside it, which show whether a tower alone has its projection.

    Raises:
        WeightsError: it is another kind of model, or an option has a value that is not reproduced.
    """
    at, kind = str(folder / CONFIG), config.get("model_type")
    if isinstance(kind, str) and kind in REFUSED:
        raise WeightsError(f"{at}: model_type is {kind!r}; give the folder of the whole model, of type {REFUSED[kind]!r}")
    if isinstance(kind, str) and kind in ALONE:
        projected = any(re.fullmatch(r"(.*\.)?(visual|text)_projection\.weight", name) for name in names)
        part, tower = ALONE[kind]
        source = read_processor(folder) if tower == "image" else read_hugging_face(folder, part)
        if not kind.startswith(part) and not isinstance(source, TokenizerConfig):
            source = _required(source)
        return _tower_alone(at, config, source, projected), ()
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(f"{at}: model_type is {kind!r}; reproduced are {', '.join((*KINDS, *ALONE))}")
    if kind == "clap":
        return read_clap(folder, config, INERT)
    processor = read_processor(folder)
    if kind in DEFAULTS:
        processor = _required(processor)
    return _model(at, config, processor, read_hugging_face(folder, kind), longest_text(folder)), SCALES[kind]


def _model(
    at: str, config: Mapping[str, Any], processor: Processor, tokenizer: TokenizerConfig, longest: int | None = None
) -> Model:
    """`longest`: tokens that a text of a tower of BERT's kind is cut to, where the tokenizer says it."""
    kind = config["model_type"]
    clip = {"projection_dim": COUNT} if kind in LIKE_CLIP else {}
    check_options(f"{at}: ", config, SECTIONS | clip, NEUTRAL, INERT)
    vision, text = _defaults(kind)
    image = _image_tower(kind, {**vision, **_section(at, config, "vision_config", VISION, vision)}, processor)
    if kind in DEFAULTS:
        if "text_config_dict" in config:
            raise WeightsError(f"{at}: text_config_dict beside text_config is not reproduced for {kind!r}; leave it out")
        words = bert_tower(f"{at}: text_config", kind, config.get("text_config") or {}, tokenizer, INERT, longest)
        return Model({"image": image, "text": words}, config.get("projection_dim", 768 if kind == "altclip" else 512))
    options = {**text, **_section(at, config, "text_config", TEXT | ({"eos_token_id": ID} if clip else {}), text)}
    embed_dim = config.get("projection_dim", 512) if clip else options.get("projection_size") or options["hidden_size"]
    return Model({"image": image, "text": _text_tower(kind, options, tokenizer)}, embed_dim)


def _required(processor: Processor) -> Processor:
    """The settings, which a tower that another library trained cannot do without."""
    if processor[1] is None:
        raise WeightsError(f"{processor[0]}: is missing, and this model's pixels need not be those of CLIP; put it there")
    return processor


def opened(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """See Format: the arrays by the names that older versions of transformers write, where newer ones write others."""
    if config.get("model_type") == "clap":
        return opened_clap(folder, tensors)
    if config.get("model_type") != "altclip":
        return dict(tensors)
    return {name.replace("vision_model.encoder.layer.", "vision_model.encoder.layers."): x for name, x in tensors.items()}


def _tower_alone(at: str, config: Mapping[str, Any], source: Processor | TokenizerConfig, projected: bool) -> Model:
    """The model of one tower, whose options are the whole configuration."""
    kind, name = ALONE[config["model_type"]]
    clip = {"projection_dim": COUNT} if kind == "clip" else {}
    end = {"eos_token_id": ID} if clip and name == "text" else {}
    check_options(f"{at}: ", config, (VISION if name == "image" else TEXT) | clip | end, NEUTRAL, INERT)
    vision, text = _defaults(kind)
    tower: VisionTower | TextTower
    if isinstance(source, TokenizerConfig):
        tower = _text_tower(kind, {**text, **config}, source)
    else:
        tower = _image_tower(kind, {**vision, **config}, source)
    if not clip:
        return Model({name: tower}, tower.width if name == "image" else config.get("projection_size") or tower.width)
    if projected or any(str(one).endswith(PROJECTED) for one in config.get("architectures") or ()):
        return Model({name: tower}, config.get("projection_dim", 512))
    return Model({name: replace(tower, projection="none")}, tower.width)


def _image_tower(kind: str, options: Mapping[str, Any], processor: Processor) -> VisionTower:
    size, patch_size = options["image_size"], options["patch_size"]
    if kind == "siglip2":
        size = math.isqrt(options["num_patches"]) * patch_size
    siglip: dict[str, Any] = {"crop": bool(size % patch_size), "patch_bias": True, "pool": "map", "pre_norm": False}
    own = {} if kind in LIKE_CLIP else siglip | {"projection": "none"}
    return VisionTower(
        size,
        patch_size,
        **_common(options),
        **own,
        preprocess=preprocess("clip" if kind in LIKE_CLIP else kind, *processor, size),
    )


def _text_tower(kind: str, options: Mapping[str, Any], tokenizer: TokenizerConfig) -> TextTower:
    own: dict[str, Any] = {"causal": False, "pool": "last", "projection": "affine", "eot_id": SIGLIP_END}
    if kind == "clip":  # 2 stands for the largest id, as in the first such files
        end, largest = options["eos_token_id"], options["vocab_size"] - 1
        own = {"eot_id": None if end in (2, largest) else end}
    length, vocab_size = options["max_position_embeddings"], options["vocab_size"]
    return TextTower(context_length=length, vocab_size=vocab_size, tokenizer=tokenizer, **_common(options), **own)


def _section(
    at: str, config: Mapping[str, Any], name: str, read: Mapping[str, Values], defaults: Mapping[str, Any]
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
    if config["model_type"] in LIKE_CLIP:
        return again
    ours, theirs = ({option: {**defaults, **section}.get(option) for option in read} for section in (given, again))
    if others := [option for option in read if ours[option] != theirs[option]]:
        raise WeightsError(f"{at}: {name}_dict differs from {name}, which counts, in {', '.join(others)}; leave out {name}_dict")
    return given


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    return {
        "width": width,
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "activation": ACTIVATIONS[config["hidden_act"]],
        "norm_eps": config["layer_norm_eps"],
    }


def read_captioners(folder: Path, config: Mapping[str, Any]) -> dict[str, Caption]:
    """None: the models that are read have no decoder."""
    return {}


def finish(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """See Format: nothing is left to write."""


def write_config(
    model: Model, folder: Path, scales: Sequence[str], captioners: Mapping[str, Caption] | None = None
) -> Collection[str]:
    """Writes `config.json`, `preprocessor_config.json` and the tokenizer, so that `from_pretrained` builds the same model.

    A tower with pooling by attention makes a `SiglipModel`, or with that tokenizer a `Siglip2Model`; a text tower of BERT's kind
    a `ChineseCLIPModel` or an `AltCLIPModel`; any other a `CLIPModel`.
    A tower alone makes their class of it. Returns the names of the captioners that are part of it: none.

    Raises:
        WeightsError: the library has no such model.
    """
    if any(isinstance(tower, SoundTower) for tower in model.towers.values()):
        write_clap(model, folder, scales, INERT)
        return ()
    alone = set(model.towers) in ({"image"}, {"text"})
    if not alone:
        require_pair("hugging_face", model)
    image, text = model.towers.get("image"), model.towers.get("text")
    if image is not None and not isinstance(image, VisionTower):
        raise WeightsError(f"Hugging Face's models have no {type(image).__name__}")
    if image is not None and not isinstance(image.image_size, int):
        raise WeightsError(f"Hugging Face's models take square images, and this one's are of {image.image_size} pixels")
    assert text is None or isinstance(text, TextTower | BertTower)
    kind = model_type(model)
    processor = None if image is None else settings("clip" if kind in LIKE_CLIP else kind, image)
    if image is not None and text is not None:
        config = _config(kind, model, image, text)
        again = _model(CONFIG, config, (FILE, processor), text.tokenizer)
        if isinstance(text, BertTower):  # whose length the tokenizer says
            again = replace_path(again, "towers.text.context_length", text.context_length)
        if (BIAS in scales) != (BIAS in SCALES[kind]):
            raise WeightsError(f"Hugging Face's {KINDS[kind]} has {'no' if kind in LIKE_CLIP else 'a'} bias of the logits")
    elif isinstance(text, BertTower):
        raise WeightsError(
            "Hugging Face's models have no tower of BERT's kind with a projection, alone; write it with an image tower"
        )
    else:
        config = _config_alone(kind, model, image, text)
        again = _tower_alone(CONFIG, config, text.tokenizer if text else (FILE, processor), False)
    require_same(f"Hugging Face's {config['architectures'][0]} cannot compute this model", model, again)
    if not alone:
        require_one_scale("hugging_face", scales)
    if text is not None:
        write_hugging_face(text.tokenizer, folder, kind, text.context_length if isinstance(text, BertTower) else None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if processor is not None:
        (folder / FILE).write_text(json.dumps(processor, indent=2) + "\n")
    return ()


def _config(kind: str, model: Model, image: VisionTower, text: TextTower | BertTower) -> dict[str, Any]:
    config: dict[str, Any] = {"architectures": [KINDS[kind]], "model_type": kind}
    if kind in LIKE_CLIP:
        config |= {"projection_dim": model.embed_dim}
    words = bert_config(text) if isinstance(text, BertTower) else _text_config(kind, model, text)
    return {**config, "text_config": words, "vision_config": _vision_config(kind, model, image)}


def _config_alone(kind: str, model: Model, image: VisionTower | None, text: TextTower | None) -> dict[str, Any]:
    name, tower = next(iter(model.towers.items()))
    projected = kind == "clip" and tower.projection != "none"
    section = _vision_config(kind, model, image) if image else _text_config(kind, model, text) if text else {}
    types = {part: theirs for theirs, part in ALONE.items()}
    architecture = CLASSES[kind, name] + (PROJECTED if projected else "")
    return {"architectures": [architecture], "model_type": types[kind, name], **section}


def _vision_config(kind: str, model: Model, image: VisionTower) -> dict[str, Any]:
    config = {**_common_config(image), "image_size": image.image_size, "patch_size": image.patch_size}
    if kind == "siglip2":
        config |= {"num_patches": math.prod(image.grid)}
    return config | ({"projection_dim": model.embed_dim} if kind in LIKE_CLIP else {})


def _text_config(kind: str, model: Model, text: TextTower) -> dict[str, Any]:
    config = {**_common_config(text), "max_position_embeddings": text.context_length, "vocab_size": text.vocab_size}
    if kind == "clip":
        end = text.vocab_size - 1 if text.eot_id is None else text.eot_id
        config |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
        return config | {"projection_dim": model.embed_dim}
    config |= {"bos_token_id": None, "eos_token_id": SIGLIP_END, "pad_token_id": text.tokenizer.pad_id}
    return config | {"projection_size": model.embed_dim}


def _common_config(tower: VisionTower | TextTower) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.mlp_ratio * tower.width),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": theirs[tower.activation],
        "layer_norm_eps": tower.norm_eps,
    }
