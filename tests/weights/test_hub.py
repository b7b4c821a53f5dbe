"""hf://ORG/NAME is loaded from the cache of huggingface_hub without a network; online, only what is needed is fetched."""

import builtins
import fnmatch
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import OPEN_CLIP, TEXTS, arrays
from safetensors.numpy import save_file
from test_cli import exit_status
from test_weights import write_folder

import jclip
from jclip.config import Config, InitFrom, replace
from jclip.init_from import start_from
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.weights import WeightsError, local_path, read_weights, write_weights

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
constants = pytest.importorskip("huggingface_hub.constants")

TOKENIZERS = Path(__file__).parents[1] / "data" / "golden" / "tokenizers"
FILE = "towers.text.tokenizer.file"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def repository(folder: Path) -> Path:
    """A tiny model of open_clip."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    save_file(arrays("open_clip"), folder / "open_clip_model.safetensors")
    return folder


def test_what_is_cached_is_loaded_converted_and_described_without_a_network(cache: Path, tmp_path: Path) -> None:
    folder = cache / "models--org--tiny"
    snapshot = repository(folder / "snapshots" / COMMIT)
    for name in ("main", "v1"):
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / name).write_text(COMMIT)
    expected = jclip.load(snapshot).embed_text(TEXTS)
    for revision in ("", "/", "@v1", f"@{COMMIT}"):
        np.testing.assert_array_equal(jclip.load(f"hf://org/tiny{revision}").embed_text(TEXTS), expected)
    assert exit_status(["convert", "hf://org/tiny", str(tmp_path / "ours")]) == 0
    np.testing.assert_array_equal(jclip.load(tmp_path / "ours").embed_text(TEXTS), expected)
    assert exit_status(["info", "hf://org/tiny"]) == 0
    with pytest.raises(WeightsError, match="hf://org/tiny@v2: neither in the cache nor within reach"):
        jclip.load("hf://org/tiny@v2")


def test_a_folder_of_a_repository_and_the_model_that_modules_json_names_are_found(cache: Path) -> None:
    """The layouts of a repository with several models, and of sentence-transformers."""
    folder = cache / "models--org--tiny"
    snapshot = folder / "snapshots" / COMMIT
    expected = jclip.load(repository(snapshot / "models" / "small")).embed_text(TEXTS)
    repository(snapshot / "0_CLIPModel")
    (snapshot / "modules.json").write_text(
        json.dumps([{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}])
    )
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for address in (
        "hf://org/tiny/models/small",
        "hf://org/tiny/models/small@main",
        "hf://org/tiny",
        "hf://org/tiny/0_CLIPModel",
    ):
        np.testing.assert_array_equal(jclip.load(address).embed_text(TEXTS), expected)


def test_a_run_starts_from_an_address(cache: Path) -> None:
    folder = cache / "models--org--tiny"
    repository(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    config = Config(jclip.find_model("hf://org/tiny"), init_from=InitFrom("hf://org/tiny"), batch_size=8)
    mesh = make_mesh(config.mesh)
    state, said = start_from(config.init_from, make_program(config, mesh, warmup_steps=1, total_steps=2))
    np.testing.assert_array_equal(state.params["text"]["token_embed"], arrays("open_clip")["token_embedding.weight"])
    assert "(open_clip)" in said


def test_what_is_not_cached_says_what_to_do(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        WeightsError, match=r"hf://org/none: neither in the cache nor within reach .*HF_HUB_OFFLINE, or give a folder"
    ):
        jclip.load("hf://org/none")
    assert exit_status(["info", "hf://org/none"]) == 1
    assert "hf://org/none: neither" in capsys.readouterr().err
    for address in ("hf://name", "hf://org/name/../more", "hf://org/name@", "hf://org/na me"):
        with pytest.raises(WeightsError, match="use hf://ORG/NAME, or hf://ORG/NAME@REVISION"):
            jclip.load(address)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WeightsError, match=r"pip install 'jclip\[hub\]'"):
        local_path("hf://org/name")


def publish(monkeypatch: pytest.MonkeyPatch, source: Path, target: Path) -> None:
    """Makes a folder the repository org/tiny of the network, and `target` its place in the cache."""

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) in (("org/tiny", "v1"), ("org/tiny", COMMIT))
        target.mkdir(parents=True, exist_ok=True)
        for path in [path for path in source.rglob("*") if path.is_file()]:
            name = path.relative_to(source)
            if any(fnmatch.fnmatch(str(name), pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str]) -> set[str]:
    """The files of a repository that are fetched to load it."""
    source, target = tmp_path / "network", tmp_path / "fetched" / COMMIT
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    publish(monkeypatch, source, target)
    assert local_path("hf://org/tiny@v1") == target
    return names(target)


SMALL = {
    "config.json": "{}",
    "preprocessor_config.json": "{}",
    "tokenizer.json": "{}",
    "spiece.model": "",
    "added_tokens.json": "{}",
}
SMALL |= {"vocab.json": "{}", "merges.txt": ""}
LARGE = {"pytorch_model.bin": "", "tf_model.h5": "", "flax_model.msgpack": "", "README.md": "", "onnx/model.onnx": ""}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"model.safetensors": ""}, {"model.safetensors"}),
        ({}, {"pytorch_model.bin"}),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}'}
            | {"part-1.safetensors": "", "part-2.safetensors": "", "part-3.safetensors": ""},
            {"model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"},
        ),
    ],
)
def test_only_what_is_needed_is_fetched_and_no_pickle_beside_safetensors(
    weights: dict[str, str], expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetched(monkeypatch, tmp_path, SMALL | LARGE | weights) == SMALL.keys() | expected


def test_of_two_libraries_weights_the_preferred_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"open_clip_config.json": "{}", "open_clip_model.safetensors": "", "model.safetensors": ""}
    assert "model.safetensors" not in fetched(monkeypatch, tmp_path, SMALL | LARGE | files)


def grey(folder: Path, nested: bool) -> None:
    """Settings of images, in either file."""
    settings = {"size": 24, "crop_size": 24, "image_mean": [0.1, 0.2, 0.3]}
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (folder / file).write_text(json.dumps({"image_processor": settings} if nested else settings))


def special(folder: Path) -> None:
    """The padding in special_tokens_map.json alone."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": config.pop("pad_token")}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def pieces(folder: Path) -> None:
    """SigLIP's own tokenizer, a sentencepiece model."""
    (folder / "tokenizer.json").unlink()
    shutil.copy(TOKENIZERS / "t5.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("open_clip", None),
        ("open_clip_clipa", special),
        ("hugging_face", partial(grey, nested=True)),
        ("hugging_face", partial(grey, nested=False)),
        ("hugging_face_siglip", special),
        ("hugging_face_siglip", pieces),
        ("hugging_face_siglip2", None),
    ],
)
def test_a_repository_is_the_same_model_as_its_folder(
    name: str, change: Callable[[Path], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_folder(tmp_path / "here", name), tmp_path / "fetched" / COMMIT
    if change is not None:
        change(source)
    publish(monkeypatch, source, target)
    model, there = read_weights(source).model, read_weights(local_path("hf://org/tiny@v1")).model
    assert replace(there, FILE, "") == replace(model, FILE, "")
    assert names(target) == names(source)


def test_vocabularies_of_our_own_are_fetched_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = read_weights(write_folder(tmp_path / "theirs", "open_clip_clipa"))
    shutil.copy(tmp_path / "theirs" / "tokenizer.json", tmp_path / "words.txt")
    write_weights(tmp_path / "ours", "jclip", replace(theirs.model, FILE, str(tmp_path / "words.txt")), dict(theirs))
    publish(monkeypatch, tmp_path / "ours", tmp_path / "fetched" / COMMIT)
    there = read_weights(local_path("hf://org/tiny@v1")).model
    assert names(tmp_path / "fetched" / COMMIT) == {"jclip.json", "jclip.safetensors", "words.txt"}
    assert replace(there, FILE, "") == replace(read_weights(tmp_path / "ours").model, FILE, "")


def test_of_two_libraries_weights_those_that_are_asked_for_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = {"vision_config.hidden_act": "gelu", "text_config.hidden_act": "gelu"}
    source = write_folder(tmp_path / "both", "hugging_face", **gelu)
    shutil.copytree(write_folder(tmp_path / "other", "open_clip"), source, dirs_exist_ok=True)
    for kind in ("hugging_face", "open_clip"):
        publish(monkeypatch, source, tmp_path / kind / COMMIT)
        assert exit_status(["convert", "hf://org/tiny@v1", str(tmp_path / "out" / kind), "--from", kind]) == 0
        weights = {"hugging_face": "model.safetensors", "open_clip": "open_clip_model.safetensors"}[kind]
        assert {name for name in names(tmp_path / kind / COMMIT) if name.endswith(".safetensors")} == {weights}
