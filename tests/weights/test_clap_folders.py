"""Folders of transformers' ClapModel: the way there and back, the scale that is taken, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_clap_files import opened, write_file
from test_cli import exit_status

import jclip
from jclip.config import HtsatTower, replace
from jclip.weights import WeightsError, read_weights, write_weights


def write_folder(folder: Path, name: str = "htsat", **changes: Any) -> Path:
    """A folder of a tiny CLAP, of the numbers of the golden file; `changes` by dotted path into its configurations."""
    weights = opened(folder.parent / f"{folder.name}-file", name)
    model = weights.model  # transformers knows no samples in int16
    write_weights(folder, "hugging_face", model, dict(weights))
    for file in ("config", "preprocessor_config"):
        path = folder / f"{file}.json"
        content = json.loads(path.read_text())
        for place, value in changes.items():
            if place.startswith(f"{file}:"):
                *parents, last = place.removeprefix(f"{file}:").split(".")
                inner = content
                for parent in parents:
                    inner = inner[parent]
                inner[last] = value
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["htsat", pytest.param("fused", marks=pytest.mark.slow)])
def test_they_go_to_jclip_and_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "theirs", name)
    assert exit_status(["convert", str(source), str(tmp_path / "ours")]) == 0
    assert exit_status(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hugging_face"]) == 0
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key, strict=True)
    for file in ("config.json", "preprocessor_config.json"):
        assert json.loads((source / file).read_text()) == json.loads((tmp_path / "back" / file).read_text())
    models = [read_weights(tmp_path / folder).model for folder in ("theirs", "ours", "back")]
    models = [replace(model, "towers.text.tokenizer.file", "") for model in models]
    assert models[0] == models[1] == models[2]
    sound = models[0].towers["sound"]
    assert isinstance(sound, HtsatTower)
    assert sound.fused_seconds == (30 if name == "fused" else None)
    assert sound.mel.norm == ("none" if name == "fused" else "slaney")


def test_the_scale_is_that_of_sounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LAION's models trained logit_scale_a; logit_scale_t is as it began."""
    folder = write_folder(tmp_path / "w")
    arrays = load_file(folder / "model.safetensors")
    assert arrays["logit_scale_a"] == arrays["logit_scale_t"] == 3
    save_file(arrays | {"logit_scale_t": np.asarray(2.6592, np.float32)}, folder / "model.safetensors")
    with caplog.at_level("INFO"):
        assert dict(read_weights(folder))["sound_text/logit_scale"] == 3
    assert "logit_scale_a is the scale, and logit_scale_t is left out" in caplog.text
    model = jclip.load(folder)
    z = model.embed_text(["word5", "word6"])
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)  # msclap returns them as they are


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A converted HTSAT-base lost the last blocks of a stage without a word.
        ({"config:audio_config.depths": [2, 1]}, r"unknown audio_model\.audio_encoder\.layers\.1\.blocks\.1"),
        ({"config:audio_config.depths": [2, 3]}, r"missing audio_model\.audio_encoder\.layers\.1\.blocks\.2"),
        ({"config:audio_config.depths": "2, 2"}, "depths is '2, 2'; it must be a list of whole numbers"),
        ({"config:audio_config.enable_fusion": True}, r"enable_fusion is True, and truncation in .* 'rand_trunc'"),
        ({"preprocessor_config:truncation": "fusion"}, "sounds are made for the other kind of model"),
        ({"preprocessor_config:truncation": "middle"}, "truncation is 'middle'; it must be one of fusion, rand_trunc"),
        ({"preprocessor_config:top_db": 80}, "top_db is 80: only None is reproduced"),
        ({"preprocessor_config:feature_size": 32}, "feature_size is 32, and the model takes 64 mels"),
        ({"preprocessor_config:mel_norm": "x"}, "mel_norm is 'x': the option is unknown"),
        ({"config:audio_config.qkv_bias": False}, "qkv_bias is False: only True"),
        ({"config:audio_config.hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"config:audio_config.patch_stride": [2, 2]}, r"patch_stride is \[2, 2\]; only that of patch_size"),
        ({"config:audio_config.fusion_type": "channel_map"}, "fusion_type is 'channel_map'"),
        ({"config:audio_config.hidden_size": 768}, "hidden_size is 768; the last stage has 24"),
        ({"config:projection_hidden_act": "gelu"}, "projection_hidden_act is 'gelu': only 'relu'"),
        ({"config:text_config.projection_hidden_act": "gelu"}, "projection_hidden_act is 'gelu'"),
        ({"config:audio_config": [1]}, "audio_config is .1.; it must be an object"),
    ],
)
def test_what_is_not_reproduced_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read_weights(write_folder(tmp_path / "w", **changes))


def test_without_the_settings_of_sounds_nothing_is_guessed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "w")
    given = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="nothing says how sounds are seen; put it there"):
        read_weights(folder)
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": json.loads(given)}))
    assert list(read_weights(folder).model.towers) == ["sound", "text"]


@pytest.mark.parametrize("name", ["pann", "2022", "2023"])
def test_models_that_transformers_has_not_are_not_written(name: str, tmp_path: Path) -> None:
    weights = opened(tmp_path / "w", name)
    with pytest.raises(WeightsError, match=r"ClapModel (has towers sound and text|cannot compute this model)"):
        write_weights(tmp_path / "x", "hugging_face", weights.model, dict(weights))
    assert not (tmp_path / "x").exists()
    write_weights(tmp_path / "ours", "jclip", weights.model, dict(weights))
    again = dict(read_weights(tmp_path / "ours"))
    for path, array in weights:
        np.testing.assert_array_equal(again[path], array, err_msg=path)


def test_a_changed_file_is_reported(tmp_path: Path) -> None:
    file = write_file(tmp_path / "w", "htsat")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut short"):
        read_weights(file, tokenizer=tmp_path / "w" / "tokenizer.json")
