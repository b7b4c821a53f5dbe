"""Runs with sounds: trained, stopped and resumed, loaded, embedded, inspected and surveyed."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import exit_status
from test_spectrogram import SMALL, TEXT

import jclip
from jclip import train
from jclip.config import (
    Caption,
    Checkpoint,
    Config,
    ConfigError,
    Contrastive,
    Data,
    Model,
    Optim,
    Retrieval,
    SoundAugment,
    SpecAugment,
    ZeroShot,
    load,
)
from jclip.data import make_run_loader
from jclip.weights import resize_positions
from jclip.weights.errors import WeightsError

soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")

ROOT = Path(__file__).parents[1]


def config(**changes: Any) -> Config:
    """Six steps on drawn scenes that are heard and read."""
    tower = dataclasses.replace(SMALL, depth=1, patch_dropout=0.2, spec_augment=SpecAugment(1, 4, 1, 4))
    how = Config(
        model=Model({"sound": tower, "text": TEXT}, 16),
        data=Data("shapes:train?size=8&length=100", sound_augment=SoundAugment((-6.0, 6.0), 0.1, 0.5)),
        optim=Optim(lr=1e-3, warmup="1"),
        objectives={"sound_text": Contrastive("sound", "text")},
        evals={
            "seen": ZeroShot("shapes:test?size=8&length=20", templates=("a {}",), image="sound"),
            "pairs": Retrieval("shapes:val?size=8&length=20", a="sound"),
        },
        checkpoint=Checkpoint(every="3"),
        batch_size=8,
        eval_batch_size=8,
        duration="6",
        log_every=1,
    )
    return dataclasses.replace(how, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("sound") / "W"
    train.main(config(), workdir)
    return workdir


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_sounds_is_evaluated_and_loaded(run: Path) -> None:
    names = {name for line in lines(run) for name in line}
    assert {"seen/top1", "pairs/sound_to_text/recall@1"} <= names
    model = jclip.load(run)
    scene = jclip.data.open_source("shapes:val?size=8")[3]
    one, both = model.embed_sound(scene["sound"]), model.embed_sound([scene["sound"], scene["sound"]])
    assert one.shape == (1, 16)
    np.testing.assert_allclose(both, np.repeat(one, 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)


def test_sounds_are_embedded_from_files_bytes_arrays_and_mappings(run: Path, tmp_path: Path) -> None:
    import soundfile

    model, (wave, rate) = jclip.load(run), jclip.data.open_source("shapes:val?size=8")[3]["sound"]
    soundfile.write(tmp_path / "a.flac", wave, rate, subtype="PCM_24")
    data = (tmp_path / "a.flac").read_bytes()
    forms = [tmp_path / "a.flac", str(tmp_path / "a.flac"), data, (wave, rate), {"array": wave, "sampling_rate": rate}]
    each = np.concatenate([model.embed_sound(form) for form in forms])
    np.testing.assert_allclose(each, model.embed_sound(forms), atol=1e-6)
    np.testing.assert_allclose(each, np.repeat(each[:1], len(forms), axis=0), atol=1e-3)
    with pytest.raises(jclip.data.BadExample, match="input 1: sound of 3 bytes cannot be decoded"):
        model.embed_sound([data, b"abc"])
    with pytest.raises(ConfigError, match="the model has no tower for images"):
        model.embed_image("a.jpg")


def test_what_is_not_a_sound_takes_no_place_in_a_batch(tmp_path: Path) -> None:
    import soundfile

    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", np.full(2000, i / 10, np.float32), 8000)
        (tmp_path / f"{i}.txt").write_text(f"level {i}")
    (tmp_path / "3.wav").write_bytes((tmp_path / "3.wav").read_bytes()[:400])
    (tmp_path / "4.wav").write_bytes(b"")
    how = config(data=Data(f"folder:{tmp_path}"), evals={})
    with make_run_loader(how) as loader:
        batches = [next(loader) for _ in range(6)]
    assert {key for batch in batches for key in batch.keys} == {"0.wav", "1.wav", "2.wav", "5.wav"}
    said = {problem.partition(": sound of ")[0].partition(": sound is")[0] for batch in batches for problem in batch.problems}
    assert said == {"3.wav", "4.wav"}
    sounds = np.concatenate([batch.arrays["sound"] for batch in batches])
    assert (sounds.dtype, sounds.shape[1]) == (np.int16, 2000)


def test_commands_see_sounds(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "E"
    source = "shapes:val?size=8&length=12"
    assert exit_status(["embed", str(run), source, "--towers", "sound", "text", "--out", str(out)]) == 0
    z = np.load(out / "sound.npy")
    right = jclip.load(run).embed_sound([jclip.data.open_source(source)[i]["sound"] for i in range(12)])
    np.testing.assert_allclose(z, right, atol=1e-6)
    assert exit_status(["info", str(run)]) == 0


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_equal(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "W")
    train.main(config(), tmp_path / "W", resume_from=3)
    whole, again = (jax.tree.leaves_with_path(jclip.load(workdir).params) for workdir in (run, tmp_path / "W"))
    for (path, one), (_, two) in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=str(path))


def shards(folder: Path) -> str:
    """Two samples of each of four lengths, of which one is cut short, as LAION's shards have them."""
    import soundfile

    with tarfile.open(folder / "00000.tar", "w") as file:
        for i in range(8):
            sound = io.BytesIO()
            wave = 0.3 * np.sin(np.arange(round(11025 * (0.5 + 3 * (i // 2)))) * (i + 1) / 30)
            soundfile.write(sound, wave, 11025, format="FLAC")
            data = sound.getvalue() if i != 5 else sound.getvalue()[:2000]
            for name, content in ((f"{i}.flac", data), (f"{i}.json", json.dumps({"text": [f"tone {i}", "a sine"]}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return f"{folder}/00000.tar"


def test_what_a_source_of_sounds_holds_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shards(tmp_path)
    assert exit_status(["data", f"webdataset:{data}", "--text", "json.text"]) == 0
    out = capsys.readouterr().out
    for line in (
        "8 with flac json sound",
        "looked at 8: 7 sounds that can be read, 7 usable as pairs of sound and text (87.5%)",
        "1 (12.5%): sound of N bytes cannot be decoded",
        "seconds: 0.5 to 9.5, median 3.5",
        "formats: FLAC 7",
    ):
        assert line in out, (line, out)
    assert "images" not in out


@pytest.mark.slow
def test_the_recipe_of_clap_trains_on_shards_of_sounds(tmp_path: Path) -> None:
    options = {
        "model.towers.sound.depth": "1", "model.towers.sound.width": "96", "model.towers.text.depth": "1",
        "model.towers.text.width": "64", "model.dtype": "float32", "batch-size": "8", "eval-batch-size": "8", "duration": "2",
        "optim.warmup": "1", "data.workers": "0", "log-every": "1",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = ["train", str(ROOT / "configs" / "clap.py"), "--data", shards(tmp_path), "--workdir", str(tmp_path / "W"), *words]
    assert exit_status(command) == 0
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / "W") if "loss" in line)


def test_positions_of_longer_sounds_are_resampled_along_time_alone() -> None:
    before, after = (Model({"sound": dataclasses.replace(SMALL, waveform=dataclasses.replace(SMALL.waveform, seconds=s))}, 16)
                     for s in (0.25, 0.5))  # fmt: skip
    (rows, columns), (_, more) = (model.towers["sound"].grid for model in (before, after))
    assert more > columns
    along = np.linspace(0, 1, columns)[None, :, None] * np.ones((rows, 1, 32))
    positions = np.concatenate([np.full((1, 32), 7.0), along.reshape(-1, 32)]).astype(np.float32)
    found = resize_positions({"sound/pos_embed": positions}, before, after)["sound/pos_embed"]
    np.testing.assert_array_equal(found[0], 7)
    grid = found[1:].reshape(rows, more, 32)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:1, :, :1], grid.shape), atol=1e-6)
    assert (np.diff(grid[0, 1:-1, 0]) > 0).all()
    other = Model({"sound": dataclasses.replace(SMALL, mel=dataclasses.replace(SMALL.mel, fmax=3000.0))}, 16)
    with pytest.raises(WeightsError, match=r"sound: positions fit towers .* also different: mel \("):
        resize_positions({"sound/pos_embed": positions}, before, other)


def test_the_recipe_of_sounds_and_pictures_is_whole() -> None:
    from jclip.config import check

    for arguments in ([], ["--images"]):
        how = load(ROOT / "configs" / "shapes_sound.py", arguments)
        check(how)
        assert ("image" in how.model.towers) == bool(arguments)


def test_the_forms_of_claps_recipe_are_whole() -> None:
    from jclip.config import check

    for arguments in ([], ["--small"], ["--small", "--captions"], ["--captions"], ["--small", "--data.sound-mix.p", "0.5"]):
        how = load(ROOT / "configs" / "clap.py", arguments)
        check(how)
        assert ("caption" in how.objectives) == ("--captions" in arguments)


@pytest.mark.slow
def test_a_decoder_writes_captions_of_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = config(objectives={"sound_text": Contrastive("sound", "text"), "caption": Caption("sound", "text", depth=1)}, evals={})
    train.main(dataclasses.replace(how, duration="2"), tmp_path / "run")
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.sin(np.arange(4000) / (2 + number)), 8000)
    (tmp_path / "2.wav").write_bytes(b"no sound")
    capsys.readouterr()
    asked = ["caption", str(tmp_path / "run"), f"{tmp_path}/*.wav", "--length", "4", "--json"]
    assert exit_status(asked) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [Path(answer["sound"]).name for answer in answers] == ["0.wav", "1.wav", "2.wav"]
    assert all(isinstance(answer["caption"], str) for answer in answers[:2])
    assert "2.wav: sound of 8 bytes cannot be decoded" in err
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert exit_status(["caption", str(tmp_path / "run"), str(tmp_path / "a.png")]) == 1
    assert "the model describes sounds, by its tower 'sound'; these files are images" in capsys.readouterr().err
