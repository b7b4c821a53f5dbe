"""Tiny models whose texts are read by towers of BERT's kind: configurations, arrays of a formula, tokenizers of a few words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from foreign import HUGGING_FACE, number
from safetensors.numpy import save_file

TEXT: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 60},
    "layer_norm_eps": 1e-5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "chinese_clip": {
        "text_config": {**TEXT, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0},
        "vision_config": HUGGING_FACE["vision_config"],
        **{"model_type": "chinese_clip", "projection_dim": 20},
    },
    "altclip": {
        "text_config": {**TEXT, "max_position_embeddings": 22, "type_vocab_size": 1, "pad_token_id": 1, "project_dim": 28},
        "vision_config": HUGGING_FACE["vision_config"],
        **{"model_type": "altclip", "projection_dim": 20},
    },
}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 24, "width": 24}, "do_center_crop": False}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_words(folder: Path) -> None:
    """A vocab.txt of BERT's with 60 words."""
    words = [*SPECIAL, "a", "dog", "bark", "##s", "##ing", ",", "!", "猫", "la", "##ut", "uber", *(f"word{i}" for i in range(44))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def write_roberta(folder: Path, name: str = "RobertaTokenizer") -> None:
    """A tokenizer.json with RoBERTa's special tokens and a few words, which puts <s> and </s> around a text."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"word{i}": i for i in range(4, 60)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    around = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}
    added = [
        {"id": i, "content": token, "special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
        for token, i in list(words.items())[:4]
    ]
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "decoder"))
    split = {"pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": around}
    content = {"version": "1.0", "added_tokens": added, **rest, **split, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays of a model, as transformers keeps them."""
    text, vision = CONFIGS[kind]["text_config"], CONFIGS[kind]["vision_config"]
    at = {"chinese_clip": "text_model.", "altclip": "text_model.roberta."}[kind]
    width, hidden = text["hidden_size"], text["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {f"{at}embeddings.word_embeddings.weight": (60, width), "logit_scale": ()}
    found[f"{at}embeddings.position_embeddings.weight"] = (text["max_position_embeddings"], width)
    found[f"{at}embeddings.token_type_embeddings.weight"] = (text["type_vocab_size"], width)
    norms, dense = [f"{at}embeddings.LayerNorm"], list[tuple[str, int, int]]()
    for i in range(text["num_hidden_layers"]):
        block = f"{at}encoder.layer.{i}."
        norms += [f"{block}attention.output.LayerNorm", f"{block}output.LayerNorm"]
        dense += [(f"{block}attention.self.{name}", width, width) for name in ("query", "key", "value")]
        dense += [(f"{block}attention.output.dense", width, width), (f"{block}intermediate.dense", width, hidden)]
        dense += [(f"{block}output.dense", hidden, width)]
    if kind == "altclip":
        norms.append("text_model.pre_LN")
        dense.append(("text_model.transformation", width, text["project_dim"]))
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, inner, outer in dense:
        found |= {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}
    found["text_projection.weight"] = (20, text.get("project_dim", width))
    return found | _vision_shapes(vision)


def _vision_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden, at = vision["hidden_size"], vision["intermediate_size"], "vision_model."
    found: dict[str, tuple[int, ...]] = {f"{at}embeddings.class_embedding": (width,), "visual_projection.weight": (20, width)}
    found |= {
        f"{at}embeddings.patch_embedding.weight": (width, 3, 8, 8),
        f"{at}embeddings.position_embedding.weight": (10, width),
    }
    norms = [f"{at}pre_layrnorm", f"{at}post_layernorm"]
    for i in range(vision["num_hidden_layers"]):
        block = f"{at}encoder.layers.{i}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= {f"{block}self_attn.{name}.weight": (width, width), f"{block}self_attn.{name}.bias": (width,)}
        found |= {f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,)}
        found |= {f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,)}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return found


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A folder as transformers writes it, with arrays of a formula; `changes` of its configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | changes))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    save_file({name: np.asarray(number(name, shape)) for name, shape in shapes(kind).items()}, folder / "model.safetensors")
    if kind == "chinese_clip":
        write_words(folder)
    else:
        write_roberta(folder, "XLMRobertaTokenizer")
    return folder
