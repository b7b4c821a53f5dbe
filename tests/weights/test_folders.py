"""Folders as people have them, what a file does not say itself, and damage to what jclip has written."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import arrays
from safetensors.numpy import load_file, save_file
from test_training_checkpoints import NAME, state_dict, theirs, torch_save
from test_weights import write_folder

import jclip
from jclip import cli
from jclip.config import Preprocess, VisionTower, architecture
from jclip.weights import WeightsError, read_weights, tower_shapes, write_weights
from jclip.weights.open_clip import config_of


def token_table(path: Path, **how: Any) -> np.ndarray:
    return dict(read_weights(path, **how))["text/token_embed"]


def hugging_face(folder: Path) -> Path:
    return write_folder(folder, "hugging_face")


HUGGING_FACE = "text_model.embeddings.token_embedding.weight"


def test_an_index_of_torch_archives_is_read(tmp_path: Path) -> None:
    from test_training_checkpoints import Tensor

    folder = hugging_face(tmp_path / "w")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays("hugging_face"))
    parts = {"one.bin": names[::2], "two.bin": names[1::2]}
    for file, part in parts.items():
        torch_save(folder / file, {name: Tensor(arrays("hugging_face")[name].astype(np.float32)) for name in part})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(token_table(folder), arrays("hugging_face")[HUGGING_FACE])


def test_a_configuration_of_open_clip_may_lie_beside_model_safetensors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "w", "open_clip")
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    weights = read_weights(folder)
    assert weights.format == "open_clip"
    np.testing.assert_array_equal(dict(weights)["text/token_embed"], arrays("open_clip")["token_embedding.weight"])


@pytest.mark.parametrize("owner", ["open_clip", "hugging_face"])
def test_of_two_configurations_beside_one_file_the_names_in_it_decide(owner: str, tmp_path: Path) -> None:
    folder, other = write_folder(tmp_path / "open_clip", "open_clip"), hugging_face(tmp_path / "hugging_face")
    shutil.copy(other / "config.json", folder)
    (folder / "open_clip_model.safetensors").unlink()
    save_file(arrays(owner), folder / "model.safetensors")
    assert read_weights(folder).format == owner
    name = HUGGING_FACE if owner == "hugging_face" else "token_embedding.weight"
    np.testing.assert_array_equal(token_table(folder), arrays(owner)[name])


def test_the_root_of_sentence_transformers_is_the_folder_of_its_model(tmp_path: Path) -> None:
    hugging_face(tmp_path / "root" / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "root" / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_array_equal(token_table(tmp_path / "root"), arrays("hugging_face")[HUGGING_FACE])
    for wrong, message in (
        ([{**modules[0], "path": "../x"}], "names 1 folders of a CLIPModel; give the folder"),
        ([{**modules[0], "type": "sentence_transformers.models.Transformer"}], "names 0 folders of a CLIPModel"),
        ({"a": 1}, "no list of modules, or damaged"),
        ([3], "no list of modules, or damaged"),
    ):
        (tmp_path / "root" / "modules.json").write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match=message):
            read_weights(tmp_path / "root")


@pytest.mark.parametrize("kind", ["chinese_clip", "altclip"])
def test_a_text_tower_alone_of_a_model_that_is_read_whole_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "w", "hugging_face", model_type=f"{kind}_text_model")
    said = rf"config\.json: model_type is '{kind}_text_model'; give the folder of the whole model, of type '{kind}'"
    with pytest.raises(WeightsError, match=said):
        read_weights(folder)


def test_the_end_of_text_of_the_first_files_is_the_largest_id(tmp_path: Path) -> None:
    for i, end in enumerate((2, 49407)):  # which is 49,407 in a vocabulary of 49,408 ids; 2 is a letter
        weights = read_weights(write_folder(tmp_path / str(i), "hugging_face", **{"text_config.eos_token_id": end}))
        assert weights.model.towers["text"].eot_id is None
    with pytest.raises(jclip.config.ConfigError, match=r"eot_id 7 is not the end of text of the clip tokenizer"):
        read_weights(write_folder(tmp_path / "other", "hugging_face", **{"text_config.eos_token_id": 7}))


PIXELS = ["--mean", ".5", ".25", ".125", "--std", "1", ".5", ".25", "--interpolation", "bilinear", "--resize", "squash"]
OTHER = Preprocess((0.5, 0.25, 0.125), (1.0, 0.5, 0.25), "bilinear", "squash")


def test_pixels_of_a_weight_file_alone_can_be_said(tmp_path: Path) -> None:
    file = torch_save(tmp_path / "w.pt", {"state_dict": state_dict()})
    assert cli.main(["convert", str(file), str(tmp_path / "out"), "--architecture", NAME, *PIXELS]) == 0
    image = read_weights(tmp_path / "out").model.towers["image"]
    assert image == dataclasses.replace(architecture(NAME).towers["image"], preprocess=OTHER)
    with pytest.raises(WeightsError, match=r"says its preprocessing itself; leave out mean"):
        read_weights(tmp_path / "out", preprocess={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(jclip.config.ConfigError, match=r"preprocess\.std\[0\] nan must be at least 0\.001"):
        read_weights(file, NAME, preprocess={"std": (float("nan"), 1.0, 1.0)})


COMMANDS: dict[str, list[str]] = {
    "convert": ["convert", "MODEL", "OUT"],
    "info": ["info", "MODEL"],
    "embed": ["embed", "MODEL", "shapes:test?size=16&length=8", "--out", "OUT"],
    "classify": ["classify", "IMAGE", "--model", "MODEL", "--labels", "a", "b"],
    "eval": ["eval", "MODEL", "--suite", "SUITE", "--no-cache"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_model_takes_what_has_to_be_said_of_it(command: str, tmp_path: Path) -> None:
    from PIL import Image

    file = torch_save(tmp_path / "w.pt", {"state_dict": state_dict("module.")})
    Image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / "i.png")
    evals = "{'r': Retrieval('shapes:val?size=16&length=8')}"
    (tmp_path / "suite.py").write_text(f"from jclip.config import *\ndef get_suite():\n    return Suite({evals}, batch_size=8)")
    places = {"MODEL": file, "OUT": tmp_path / "out", "IMAGE": tmp_path / "i.png", "SUITE": tmp_path / "suite.py"}
    line = [str(places.get(word, word)) for word in COMMANDS[command]]
    said = ["--architecture", NAME, "--image-size", "24", "--context-length", "6", *PIXELS]
    assert cli.main(line) == 1
    assert cli.main([*line, *said]) == 0
    folder = write_folder(tmp_path / "two", "open_clip")
    shutil.copytree(hugging_face(tmp_path / "other"), folder, dirs_exist_ok=True)
    if command != "eval":
        places |= {"MODEL": folder, "OUT": tmp_path / "out2"}
        assert cli.main([*(str(places.get(word, word)) for word in COMMANDS[command]), "--from", "hugging_face"]) == 0


def written(folder: Path) -> Path:
    model = architecture(NAME)
    shapes = tower_shapes(model) | {"image_text/logit_scale": ()}
    write_weights(folder, "jclip", model, {p: np.random.default_rng(0).normal(size=s) for p, s in shapes.items()})
    return folder


@pytest.mark.parametrize("damage", ["bit", "byte", "hole", "swap"])
def test_a_damaged_export_is_refused_with_the_array(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "w")
    assert len(dict(read_weights(folder))) > 20
    file = folder / "jclip.safetensors"
    whole = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for seed in range(15):
        data, at = bytearray(whole), int(np.random.default_rng(seed).integers(start, len(whole) - 64))
        match damage:
            case "bit":
                data[at] ^= 1 << seed % 8
            case "byte":
                data[at] ^= 0xFF
            case "hole":
                data[at : at + 16] = bytes(16)
            case "swap":
                data[at : at + 32] = data[at + 16 : at + 32] + data[at : at + 16]
        file.write_bytes(data)
        with pytest.raises(WeightsError, match=r"jclip\.safetensors: \w+(/\w+)+ is damaged"):
            dict(read_weights(folder))


def test_an_export_of_before_digests_is_read_and_wrong_digests_are_not(tmp_path: Path) -> None:
    folder = written(tmp_path / "w")
    config = json.loads((folder / "jclip.json").read_text())
    assert config["digests"].keys() == load_file(folder / "jclip.safetensors").keys()
    for digests, message in ((None, None), ({"x": "y"}, "its digests are not those of the arrays"), (3, "its digests are not")):
        changed = {key: value for key, value in config.items() if key != "digests"} | ({"digests": digests} if digests else {})
        (folder / "jclip.json").write_text(json.dumps(changed))
        if message is None:
            assert len(dict(read_weights(folder))) > 20
        else:
            with pytest.raises(WeightsError, match=message):
                read_weights(folder)


def test_theirs_are_the_weights_of_a_tower_of_open_clip() -> None:
    """The arrays in the checkpoints of these tests have the names that open_clip gives the model."""
    model = architecture(NAME)
    assert isinstance(model.towers["image"], VisionTower)
    assert config_of(model, ())["model_cfg"]["embed_dim"] == theirs()["text_projection"].shape[1]
