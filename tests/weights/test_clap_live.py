"""CLAP beside transformers' own, in the same process: tiny random models, with and without fusion."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from clap_tiny import SOUND, config, sounds, write_processor
from encoding import encoder
from peers import peer

import jclip
from jclip.tree import unflatten
from jclip.weights import read_weights, write_weights

pytestmark = pytest.mark.parity
torch, transformers = peer("torch"), peer("transformers")

LENGTHS = (8000, 3000, 8300, 16000, 21111)
"""Samples of sounds of 1 s, shorter, of a few more than 1 s, and longer."""


def saved(folder: Path, *, fused: bool) -> Any:
    """A model with numbers that training might leave, saved by its owner."""
    made = config(fused=fused)
    torch.manual_seed(0)
    model = transformers.ClapModel(transformers.ClapConfig(**made)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("batch_norm.running_mean"):
                value.uniform_(-40, -20)
            elif value.is_floating_point():
                value += (0.1 if value.ndim < 2 else 0.05) * torch.randn(value.shape)
        model.text_model.embeddings.word_embeddings.weight[1] = 0  # what loads such a model makes them so again
        model.text_model.embeddings.position_embeddings.weight[1] = 0
    model.save_pretrained(folder)
    write_processor(folder, fused=fused)
    return model


def features(model: Any, folder: Path, heard: list[np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of sounds and of texts by transformers, which fuses one of several short sounds at random: not so here."""
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    rows = []
    for sound in heard:
        inputs = extractor(sound, sampling_rate=8000, return_tensors="pt")
        if "is_longer" in inputs and len(sound) < 8080:
            inputs["is_longer"][:] = False
        with torch.no_grad():
            rows.append(model.get_audio_features(**inputs).pooler_output[0].numpy())
    with torch.no_grad():
        mask = torch.from_numpy((ids != 1).astype(np.int64))
        text = model.get_text_features(input_ids=torch.from_numpy(ids).long(), attention_mask=mask).pooler_output.numpy()
    return np.stack(rows), text


@pytest.fixture
def _middles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The places that transformers draws are the middle ones, and a crop is the beginning."""
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])
    monkeypatch.setattr(np.random, "randint", lambda low, high: low)


@pytest.mark.usefixtures("_middles")
@pytest.mark.parametrize("fused", [False, True])
def test_whole_models_are_those_of_transformers_both_ways(fused: bool, tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs", fused=fused)
    heard = sounds(*LENGTHS)
    ids = np.full((3, 18), 1, np.int32)
    for row, length in zip(ids, (18, 4, 2), strict=True):
        row[:length] = np.random.default_rng(length).integers(4, 60, length)
    expected, text = features(model, tmp_path / "theirs", heard, ids)
    weights = read_weights(tmp_path / "theirs").resized(context_length=18)
    loaded = jclip.load(tmp_path / "theirs")
    transform = loaded.transform("sound")
    rows = np.stack([transform((sound, 8000)) for sound in heard])
    params = unflatten(dict(weights))
    with jax.default_matmul_precision("highest"):
        ours = encoder(weights.model)({"params": params}, {"sound": rows, "text": ids[np.r_[:3, 0, 1]]})
    np.testing.assert_allclose(ours["text"].z[:3], text, atol=1e-5)
    np.testing.assert_allclose(ours["sound"].z, expected, atol=1e-5)
    np.testing.assert_array_equal(params["sound_text"]["logit_scale"], model.logit_scale_a.detach().numpy())

    write_weights(tmp_path / "back", "hugging_face", weights.model, dict(weights))
    again, report = transformers.ClapModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    constants = {name for name, _ in model.named_buffers()}
    assert set(report["missing_keys"]) <= constants
    assert not report["unexpected_keys"]
    for key, value in again.state_dict().items():
        theirs = model.state_dict()["logit_scale_a" if key == "logit_scale_t" else key]
        assert torch.equal(theirs, value), key
    assert SOUND.items() <= transformers.ClapFeatureExtractor.from_pretrained(tmp_path / "back").to_dict().items()
    for before, after in zip((expected, text), features(again.eval(), tmp_path / "back", heard, ids), strict=True):
        np.testing.assert_array_equal(before, after)
