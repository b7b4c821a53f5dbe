"""A model of sounds that learns 50 classes: trained on four folds of a set in ESC-50's layout, it names those of the fifth."""

import json
import time
from pathlib import Path

import pytest
from programs import load_program

from jclip import train
from jclip.config import (
    Config,
    Contrastive,
    Data,
    Mel,
    Model,
    Optim,
    SpectrogramTower,
    TextTower,
    Waveform,
    ZeroShot,
)

soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")
pytest.importorskip("soxr", reason="the extra sound is not installed")


def recipe(root: Path, steps: int) -> Config:
    """CLAP in small: a transformer over the mels of 5 s at 8 kHz, and words."""
    sound = SpectrogramTower(
        waveform=Waveform(8000, 5.0, "pad"),
        mel=Mel(n_fft=1024, window=512, hop=160, mels=64, fmin=50.0, fmax=4000.0, mean=-45.0, std=20.0),
        patch_size=(64, 10),
        width=96,
        depth=2,
        heads=2,
        pool="avg",
        activation="gelu_tanh",
    )
    text = TextTower(
        context_length=16,
        width=32,
        depth=1,
        heads=1,
        activation="gelu_tanh",
        causal=False,
        mask_padding=True,
        pool="mean",
    )
    return Config(
        model=Model({"sound": sound, "text": text}, embed_dim=64),
        data=Data(f"esc50:{root}?folds=1,2,3,4", fields={"text": "a sound of {label}"}),
        objectives={"sound_text": Contrastive("sound", "text")},
        optim=Optim(lr=1.5e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        evals={
            "fifth": ZeroShot(f"esc50:{root}?folds=5", image="sound", ks=(1, 5, 10)),
            "bare": ZeroShot(f"esc50:{root}?folds=5", image="sound", templates=("{}",)),
        },
        batch_size=128,
        duration=str(steps),
        log_every=50,
    )


@pytest.mark.exhaustive
def test_a_fold_that_was_not_trained_on_is_named_after_ten_minutes_of_two_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_program("make_sounds")
    assert tool.main([str(tmp_path / "sounds"), "--rate", "8000"]) == 0
    began, cpu = time.perf_counter(), time.process_time()
    train.main(recipe(tmp_path / "sounds", 600), tmp_path / "run")
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = {name: value for line in lines for name, value in json.loads(line).items()}
    with capsys.disabled():
        told = {name: found[name] for name in ("fifth/top1", "fifth/top5", "fifth/map@10", "bare/top1")}
        print(f"\n{wall:.0f} s, {cpu:.0f} s of processors: {told}")
    assert found["fifth/examples"] == 400
    assert found["fifth/top1"] >= 0.60  # chance: 0.02
    assert cpu < 2 * 600
