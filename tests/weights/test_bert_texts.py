"""Models whose texts are read by towers of BERT's kind: what is read, what is refused, and the way there and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from bert_tiny import CONFIGS, PROCESSOR, write_model, write_words
from foreign import images
from safetensors.numpy import load_file, save_file
from test_cli import exit_status
from test_models import as_f64

import jclip
from jclip.config import BertTower, ConfigError, TokenizerConfig, replace
from jclip.data import get_tokenizer
from jclip.weights import WeightsError, read_weights, write_weights
from jclip.weights.texts.tokenizers import longest_text, read_hugging_face

TEXTS = {"chinese_clip": ["a dog barks", "猫, la", "!"], "altclip": ["word5 word6", "word7", "nothing known"]}


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_and_images_are_embedded_together(kind: str, tmp_path: Path) -> None:
    encoder = jclip.load(write_model(tmp_path / "w", kind))
    tower = encoder.config.towers["text"]
    assert isinstance(tower, BertTower)
    assert tower.context_length == 20  # as many as there are positions for
    z = encoder.embed_text(TEXTS[kind])
    params = as_f64(encoder.params)
    for row, text in zip(z, TEXTS[kind], strict=True):
        pooled, _ = reference.bert(params["text"], get_tokenizer(tower.tokenizer)(text, 20), tower)
        expected = reference.dense(params["text_projection"], pooled)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    assert encoder.embed_image(list(images(24))).shape == (3, 20)
    assert jclip.load(tmp_path / "w", context_length=6).embed_text("a").shape == (1, 20)
    with pytest.raises(ConfigError, match=r"max_positions 2\d: 23 tokens need 2\d; shorten context_length"):
        jclip.load(tmp_path / "w", context_length=23)


@pytest.mark.parametrize("kind", CONFIGS)
def test_they_go_to_jclip_and_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "theirs", kind)
    assert exit_status(["convert", str(source), str(tmp_path / "ours")]) == 0
    assert exit_status(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hugging_face"]) == 0
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key, strict=True)
    models = [read_weights(tmp_path / folder).model for folder in ("theirs", "ours", "back")]
    models = [replace(model, "towers.text.tokenizer.file", "") for model in models]
    assert models[0] == models[1] == models[2]
    assert longest_text(tmp_path / "back") == 20
    with pytest.raises(WeightsError, match="open_clip"):
        write_weights(tmp_path / "x", "open_clip", models[0], dict(read_weights(source)))


def test_newer_names_of_the_image_tower_are_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "w", "altclip")
    arrays = load_file(folder / "model.safetensors")
    newer = {name.replace("vision_model.encoder.layers.", "vision_model.encoder.layer."): x for name, x in arrays.items()}
    assert newer.keys() != arrays.keys()
    old = dict(read_weights(folder))
    save_file(newer, folder / "model.safetensors")
    for path, array in read_weights(folder):
        np.testing.assert_array_equal(array, old[path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key': only 'absolute'"),
        ({"is_decoder": True}, "text_config.is_decoder is True"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; it must be one of gelu"),
        ({"rotary": True}, "text_config.rotary is True: the option is unknown"),
        ({"pad_token_id": 4}, "pad_token_id is 4, and the tokenizer pads with 0"),
        ({"num_hidden_layers": 1}, r"unknown text_model\.encoder\.layer\.1\.attention"),
        ({"num_hidden_layers": 3}, r"missing text_model\.encoder\.layer\.2\.attention"),
    ],
)
def test_what_is_not_reproduced_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = CONFIGS["chinese_clip"]["text_config"] | changes
    with pytest.raises(WeightsError, match=message):
        read_weights(write_model(tmp_path / "w", "chinese_clip", text_config=text))


def test_a_folder_without_tokenizer_or_pixels_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "w", "chinese_clip")
    (folder / "vocab.txt").unlink()
    with pytest.raises(WeightsError, match=r"the tokenizer is missing; put its tokenizer\.json"):
        read_weights(folder)
    write_words(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="this model's pixels need not be those of CLIP; put it there"):
        read_weights(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(WeightsError, match=r"a vocab\.txt with {'do_lower_case': False} is not reproduced"):
        read_weights(folder)


def test_words_of_a_vocabulary_are_their_lines(tmp_path: Path) -> None:
    write_words(tmp_path)
    tokenizer = read_hugging_face(tmp_path, "chinese_clip")
    rows = get_tokenizer(tokenizer)(["A dog barking, LÄUT!", "猫猫 [SEP]", "a" * 200], 12)
    assert rows.tolist() == [
        [2, 5, 6, 7, 9, 10, 13, 14, 11, 3, 0, 0],
        [2, 12, 12, 3, 3, 0, 0, 0, 0, 0, 0, 0],
        [2, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"no vocab\.txt of BERT's, or damaged: it has no \[PAD\]"):
        get_tokenizer(TokenizerConfig("hugging_face", str(tmp_path / "vocab.txt"), clean="none"))("a", 4)
    with pytest.raises(WeightsError, match=r"has no \[PAD\]"):
        read_hugging_face(tmp_path, "chinese_clip")
