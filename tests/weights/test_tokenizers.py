"""Tokenizers in folders of weights: read as their library reads them, written so that it does, or refused."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vocabularies import CLASSES, strings, write_folder

from jclip.config import Model, TextTower, TokenizerConfig, VisionTower, replace
from jclip.data import get_tokenizer
from jclip.weights import WeightsError, jclip_format
from jclip.weights.texts.tokenizer_files import write_hugging_face, write_open_clip
from jclip.weights.texts.tokenizers import read_hugging_face, read_open_clip

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "tokenizers"
BERT = {"hf_tokenizer_name": "bert-base-uncased"}
CLIPS = {**BERT, "tokenizer_mode": "clips"}
TEXTS = strings(60)


def folder(path: Path, name: str, **changes: Any) -> Path:
    """The folder of a small vocabulary: tokenizer.json, or spiece.model of "siglip"."""
    return write_folder(path, name, GOLDEN / ("t5.model" if name == "siglip" else f"{name}.json"), **changes)


def hugging_face(path: Path, **fields: Any) -> TokenizerConfig:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TokenizerConfig("hugging_face", str(path), digest, **fields)


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("bert", BERT, {"clean": "whitespace"}),
        ("bert", {**BERT, "tokenizer_kwargs": {"strip_sep_token": True}}, {"clean": "whitespace", "strip_id": 3}),
        ("bert", {**BERT, "tokenizer_kwargs": {"clean": "lower", "strip_sep_token": False}}, {"clean": "lower"}),
        ("t5", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}, {"pad_id": 1}),
        ("gemma", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP2", "tokenizer_kwargs": {"clean": "canonicalize"}}, {}),
        ("xlm", {"hf_tokenizer_name": "facebook/xlm-v-base", "eos_id": 2}, {"clean": "whitespace", "pad_id": 1}),
    ],
)
def test_open_clips_tokenizers_are_read_and_go_back(name: str, text: dict[str, Any], fields: Any, tmp_path: Path) -> None:
    source = folder(tmp_path / "theirs", name)
    tokenizer = read_open_clip(source, text)
    assert tokenizer == hugging_face(source / "tokenizer.json", **{"clean": "canonicalize", **fields})
    back = tmp_path / "back"
    back.mkdir()
    section = write_open_clip(tokenizer, back)
    assert bool(section["hf_tokenizer_name"])
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert read_open_clip(back, section) == dataclasses.replace(tokenizer, file=str(back / "tokenizer.json"))


def test_the_mode_clips_is_read_and_goes_back(tmp_path: Path) -> None:
    source = folder(tmp_path / "theirs", "bert", bos_token={"content": "[UNK]"}, eos_token="[SEP]")
    tokenizer = read_open_clip(source, CLIPS)
    file = source / "tokenizer.json"
    assert tokenizer == hugging_face(file, clean="whitespace", bos_id=1, eos_id=3, last_id=2)
    (tmp_path / "back").mkdir()
    section = write_open_clip(tokenizer, tmp_path / "back")
    assert section["tokenizer_mode"] == "clips"
    again = read_open_clip(tmp_path / "back", section)
    np.testing.assert_array_equal(get_tokenizer(again)(TEXTS, 16), get_tokenizer(tokenizer)(TEXTS, 16))


def test_clips_own_tokenizer_needs_no_file(tmp_path: Path) -> None:
    for clean in ("lower", "canonicalize"):
        tokenizer = TokenizerConfig(clean=clean)  # type: ignore[arg-type]
        section = write_open_clip(tokenizer, tmp_path)
        assert read_open_clip(tmp_path, section) == tokenizer
    assert (
        read_open_clip(tmp_path, {"context_length": 77, "hf_tokenizer_name": None, "tokenizer_kwargs": {}}) == TokenizerConfig()
    )
    assert read_hugging_face(tmp_path, "clip") == TokenizerConfig()
    assert not list(tmp_path.iterdir())


def test_clips_own_tokenizer_is_written_for_transformers_and_comes_back(tmp_path: Path) -> None:
    write_hugging_face(TokenizerConfig(), tmp_path, "clip")
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    assert read_hugging_face(tmp_path, "clip") == TokenizerConfig()
    ids = json.loads((tmp_path / "vocab.json").read_text())
    assert sorted(ids.values()) == list(range(49408))
    assert (ids["!"], ids["a</w>"], ids["<|startoftext|>"], ids["<|endoftext|>"]) == (0, 320, 49406, 49407)
    pairs = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()]
    assert [ids["".join(pair)] for pair in pairs[1:]] == list(range(512, 49406))
    for word in (" cat", "photograph", "日本語", "🙂", "\ufffd", "naïve"):  # made of it, and by the tokenizer itself
        row = get_tokenizer(TokenizerConfig())(word, 16)
        assert merged(word.strip(), {(a, b): i for i, (a, b) in enumerate(pairs[1:])}, ids) == list(row[1 : row.argmax()])


def merged(word: str, ranks: dict[Any, int], ids: dict[str, int]) -> list[int]:
    """Byte-pair encoding of a word (Sennrich et al. 2016): the pair of the lowest rank, wherever it is, until there is none."""
    letters = list(ids)[:256]
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    parts = [letters[order.index(byte)] for byte in word.encode()]
    parts[-1] += "</w>"
    while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        first, second = min(pairs, key=lambda pair: ranks[pair])
        for i in reversed(range(len(parts) - 1)):
            if parts[i : i + 2] == [first, second]:
                parts[i : i + 2] = [first + second]
    return [ids[part] for part in parts]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}, "vocab.txt": "[PAD]"}, "is a BertTokenizer, which"),
        ({"tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizerFast"}}, r"XLMRobertaTokenizer, .* tokenizer\.json"),
        ({"config.json": {"tokenizer_class": "BertTokenizer"}}, "is a BertTokenizer"),
        ({"tokenizer_config.json": {"padding_side": "left"}}, "padding_side is 'left'"),
        ({"tokenizer_config.json": {"pad_token": {"content": "!"}}}, "here are {'pad_token': '!'}"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"49408": {"content": "<x>"}}}}, r"added tokens \['<x>'\]"),
        ({"added_tokens.json": {"<x>": 49408}}, r"added tokens \['<x>'\]"),
        ({"vocab.json": {"a": 0}}, "vocab.json alone"),
        ({"vocab.json": {"a": 0}, "merges.txt": "#version: 0.2"}, "another vocabulary than CLIP's own"),
    ],
)
def test_a_tokenizer_that_is_not_clips_own_is_never_taken_for_it(files: dict[str, Any], reason: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(WeightsError, match=reason):
        read_hugging_face(tmp_path, "clip")


@pytest.mark.parametrize(
    ("name", "model_type", "fields"),
    [
        ("clip", "clip", {"clean": "none", "pad_id": 1}),
        ("gemma", "siglip", {"clean": "none"}),
        ("gemma", "siglip2", {"clean": "siglip2"}),
        ("siglip", "siglip", {"clean": "siglip", "pad_id": 1, "eos_id": 1}),
    ],
)
def test_tokenizers_of_transformers_are_read_and_go_back(name: str, model_type: str, fields: Any, tmp_path: Path) -> None:
    source = folder(tmp_path / "theirs", name)
    tokenizer = read_hugging_face(source, model_type)
    file = source / ("spiece.model" if name == "siglip" else "tokenizer.json")
    kind = "sentencepiece" if name == "siglip" else "hugging_face"
    assert tokenizer == dataclasses.replace(hugging_face(file, **fields), kind=kind)
    back = tmp_path / "back"
    back.mkdir()
    write_hugging_face(tokenizer, back, model_type)
    again = read_hugging_face(back, model_type)
    assert again == dataclasses.replace(tokenizer, file=str(back / file.name))
    np.testing.assert_array_equal(get_tokenizer(again)(TEXTS, 16), get_tokenizer(tokenizer)(TEXTS, 16))


def test_what_is_said_nowhere_is_the_default_of_the_class(tmp_path: Path) -> None:
    source = folder(tmp_path / "clip", "clip")
    (source / "tokenizer_config.json").unlink()
    assert read_hugging_face(source, "clip").pad_id == 1
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert read_hugging_face(source, "clip").pad_id == json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]["!"]


@pytest.mark.parametrize(
    ("name", "text", "changes", "reason"),
    [
        (None, BERT, {}, r"'bert-base-uncased': put its tokenizer\.json and tokenizer_config\.json into"),
        ("bert", {**BERT, "tokenizer_mode": "other"}, {}, "tokenizer_mode 'other'"),
        ("bert", {**BERT, "tokenizer_kwargs": {"language": "deu_Latn"}}, {}, "language"),
        ("bert", {**BERT, "tokenizer_kwargs": {"clean": "other"}}, {}, "'other'"),
        ("bert", CLIPS, {}, r"bos_token '' is no token of tokenizer\.json"),
        ("bert", {**BERT, "tokenizer_kwargs": {"strip_sep_token": True}}, {"sep_token": "[X]"}, r"sep_token '\[X\]'"),
        (None, {"tokenizer_kwargs": {"clean": "whitespace"}}, {}, "lower case only"),
        (None, {"tokenizer_kwargs": {"reduction_mask": "simple"}}, {}, "reduction_mask"),
        ("bert", BERT, {"padding_side": "left"}, "padding_side is 'left'"),
        ("bert", BERT, {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("bert", BERT, {"pad_token": "<none>"}, "pad_token '<none>' is no token"),
        ("bert", BERT, {"do_lower_case": False}, "do_lower_case is False, but lowercase"),
        ("bert", BERT, {"added_tokens_decoder": {"9": {"content": "[MASK]"}}}, r"'\[MASK\]' has no id 9"),
        ("gemma", BERT, {"padding_side": None}, "padding_side is 'left'"),
        ("gemma", BERT, {"add_bos_token": True}, "add_bos_token is True, but"),
        ("gemma", BERT, {"add_eos_token": False}, "add_eos_token is False, but"),
        ("bert", BERT, {"tokenizer_class": "SiglipTokenizer"}, "SiglipTokenizer beside"),
    ],
)
def test_what_open_clip_is_not_reproduced_in_is_refused(
    name: str | None, text: dict[str, Any], changes: Any, reason: str, tmp_path: Path
) -> None:
    source = tmp_path if name is None else folder(tmp_path / "theirs", name, **changes)
    with pytest.raises(WeightsError, match=reason):
        read_open_clip(source, text)


@pytest.mark.parametrize(
    ("name", "model_type", "changes", "reason"),
    [
        (None, "siglip", {}, r"needs spiece\.model; put it there"),
        (None, "siglip2", {}, r"put its tokenizer\.json"),
        ("siglip", "siglip", {"do_lower_case": False}, "do_lower_case"),
        ("siglip", "siglip", {"legacy": False}, "legacy"),
        ("siglip", "siglip", {"padding_side": "left"}, "padding_side"),
        ("siglip", "siglip", {"pad_token": "<none>"}, r"'<none>' is no piece of spiece\.model"),
        ("gemma", "siglip2", {"padding_side": "left"}, "padding_side"),
        ("clip", "clip", {"pad_token": "<none>"}, "pad_token"),
    ],
)
def test_what_transformers_is_not_reproduced_in_is_refused(
    name: str | None, model_type: str, changes: Any, reason: str, tmp_path: Path
) -> None:
    source = tmp_path if name is None else folder(tmp_path / "theirs", name, **changes)
    with pytest.raises(WeightsError, match=reason):
        read_hugging_face(source, model_type)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": {}}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {}}, "added_tokens": [3]}']
)
def test_damaged_files_are_refused(content: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "theirs", "bert")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match=r"tokenizer\.json"):
        read_open_clip(source, BERT)
    source = folder(tmp_path / "siglip", "siglip")
    (source / "spiece.model").write_text(content)
    with pytest.raises(WeightsError, match=r"spiece\.model.* damaged"):
        read_hugging_face(source, "siglip")


def test_what_a_library_cannot_make_is_not_written(tmp_path: Path) -> None:
    bert = hugging_face(GOLDEN / "bert.json", clean="lower")
    pieces = TokenizerConfig("sentencepiece", str(GOLDEN / "t5.model"), clean="siglip", eos_id=1, pad_id=1)
    for tokenizer in (pieces, dataclasses.replace(bert, clean="none"), dataclasses.replace(bert, eos_id=3)):
        with pytest.raises(WeightsError, match="open_clip cannot"):
            write_open_clip(tokenizer, tmp_path)
    for tokenizer, model_type in (
        (bert, "clip"),
        (dataclasses.replace(bert, clean="none", strip_id=3), "clip"),
        (dataclasses.replace(bert, clean="none"), "siglip2"),
        (TokenizerConfig(), "siglip"),
        (TokenizerConfig(clean="canonicalize"), "clip"),
        (pieces, "clip"),
        (dataclasses.replace(pieces, bos_id=3), "siglip"),
    ):
        with pytest.raises(WeightsError, match="transformers cannot"):
            write_hugging_face(tokenizer, tmp_path, model_type)
    with pytest.raises(WeightsError, match="another"):
        write_hugging_face(dataclasses.replace(bert, clean="siglip2"), tmp_path, "siglip2")
    with pytest.raises(WeightsError, match="pad_id 5000"):
        write_open_clip(dataclasses.replace(bert, pad_id=5000), tmp_path)
    with pytest.raises(WeightsError, match="another vocabulary"):
        write_open_clip(dataclasses.replace(bert, sha256="0" * 64), tmp_path)


def model(*tokenizers: TokenizerConfig) -> Model:
    towers = {f"text{i}": TextTower(tokenizer=tokenizer) for i, tokenizer in enumerate(tokenizers)}
    return Model({"image": VisionTower(), **towers})


def test_vocabularies_lie_beside_jclip_json_and_the_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(GOLDEN / "xlm.json", tmp_path / "other" / "bert.json")
    first = TokenizerConfig("hugging_face", str(GOLDEN / "bert.json"))
    second = TokenizerConfig("hugging_face", str(tmp_path / "other" / "bert.json"), clean="none")
    given = model(first, second, first, TokenizerConfig(), TokenizerConfig("sentencepiece", str(GOLDEN / "t5.model"), eos_id=1))
    (tmp_path / "written").mkdir()
    jclip_format.write_config(given, tmp_path / "written", ())
    shutil.move(tmp_path / "written", tmp_path / "moved")
    names = {path.name for path in (tmp_path / "moved").iterdir()}
    assert names == {"jclip.json", "bert.json", "text1-bert.json", "t5.model"}
    found, _ = jclip_format.read_model(tmp_path / "moved", json.loads((tmp_path / "moved" / "jclip.json").read_text()))
    for name, tower in found.towers.items():
        before = given.towers[name]
        if not isinstance(tower, TextTower) or not isinstance(before, TextTower):
            continue
        np.testing.assert_array_equal(get_tokenizer(tower.tokenizer)(TEXTS, 16), get_tokenizer(before.tokenizer)(TEXTS, 16))
        if tower.tokenizer.kind != "clip":
            assert Path(tower.tokenizer.file).parent == tmp_path / "moved"
            assert tower.tokenizer.sha256 == hashlib.sha256(Path(before.tokenizer.file).read_bytes()).hexdigest()


@pytest.mark.parametrize("file", ["/etc/passwd", "../bert.json", "sub/bert.json", "..", ".", ""])
def test_a_vocabulary_outside_of_the_folder_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "written").mkdir()
    shutil.copy(GOLDEN / "bert.json", tmp_path)
    jclip_format.write_config(model(TokenizerConfig("hugging_face", str(GOLDEN / "bert.json"))), tmp_path / "written", ())
    config = json.loads((tmp_path / "written" / "jclip.json").read_text())
    config["model"]["towers"]["text0"]["tokenizer"]["file"] = file
    with pytest.raises(WeightsError, match="does not lie in this folder"):
        jclip_format.read_model(tmp_path / "written", config)


def test_a_vocabulary_that_is_missing_is_named(tmp_path: Path) -> None:
    jclip_format.write_config(model(TokenizerConfig("hugging_face", str(GOLDEN / "bert.json"))), tmp_path, ())
    (tmp_path / "bert.json").unlink()
    with pytest.raises(WeightsError, match=r"bert\.json of tower text0 is missing"):
        jclip_format.read_model(tmp_path, json.loads((tmp_path / "jclip.json").read_text()))
    with pytest.raises(WeightsError, match="cannot be read"):
        jclip_format.write_config(replace(model(TokenizerConfig("hugging_face", "nowhere")), "embed_dim", 8), tmp_path, ())


def test_every_small_vocabulary_has_its_configuration() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} - {"ids"} == CLASSES.keys() - {"siglip"}
