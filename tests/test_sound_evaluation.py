"""Models of sounds, measured and used: zero-shot by folds, classes of files, pages with players, and sounds that are broken."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from programs import load_program

import jclip
from jclip import classify, cli, evaluate, train
from jclip.config import (
    Cnn14Tower,
    Config,
    ConfigError,
    Contrastive,
    Data,
    FewShot,
    LinearProbe,
    Mel,
    Model,
    NearestNeighbours,
    Optim,
    Overlap,
    Retrieval,
    SpectrogramTower,
    Suite,
    Waveform,
    ZeroShot,
    architecture,
)
from jclip.data import SourceError, open_source
from jclip.data.pictures import example_files
from jclip.eval.previews import HEARD, RAMP, SPECTROGRAM, player, player_of, preview, sound_preview, spectrogram
from jclip.report import inspect
from jclip.report import main as report

soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")
pytest.importorskip("soxr", reason="the extra sound is not installed")

RATE = 4000

TOWER = SpectrogramTower(
    waveform=Waveform(RATE, 0.5, "pad"),
    mel=Mel(n_fft=256, window=256, hop=64, mels=16, fmin=50.0, fmax=2000.0, mean=-45.0, std=20.0),
    patch_size=(16, 8),
    width=16,
    depth=1,
    heads=1,
)

PROMPT = "This is a sound of {}."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in ESC-50's layout, of half a second each."""
    root = tmp_path_factory.mktemp("sounds")
    tool: ModuleType = load_program("make_sounds")
    assert tool.main([str(root), "--rate", str(RATE), "--seconds", "0.5", "--clips", "10"]) == 0
    return root


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    text = architecture("ViT-tiny-test").towers["text"]
    return Config(
        model=Model({"sound": TOWER, "text": text}, embed_dim=16),
        data=Data(f"esc50:{data}?folds=1,2", fields={"text": "a {label}"}),
        objectives={"sound_text": Contrastive("sound", "text")},
        optim=Optim(lr=3e-3, warmup="1"),
        batch_size=32,
        duration="3",
    )


@pytest.fixture(scope="module")
def workdir(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two of the folds."""
    path = tmp_path_factory.mktemp("run") / "w"
    train.main(config, path)
    return path


def wave(seconds: float = 0.5, rate: int = RATE, channels: int = 1, hz: float = 440.0) -> np.ndarray:
    tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(tone[:, None], channels, axis=1).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


GOOD = {
    "24_bit.wav": encoded(wave(), subtype="PCM_24"),
    "192_khz.wav": encoded(wave(rate=192_000), 192_000),
    "8_channels.wav": encoded(wave(channels=8)),
    "mp3.wav": encoded(wave(rate=16_000), 16_000, "MP3", None),
}
BAD = {
    "empty.wav": (b"", "cannot be decoded"),
    "nan.wav": (encoded(np.full((800, 1), np.nan, np.float32), subtype="FLOAT"), "not finite"),
    "no_samples.wav": (encoded(wave(0)), "no samples"),
    "truncated.wav": (encoded(wave())[:-500], "cut short"),
    "words.mp3": (b"no sound at all", "cannot be decoded"),
}


class Page(HTMLParser):
    """Players, pictures and policy of a page, and whatever could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.players, self.pictures, self.policy = list[str](), list[str](), ""
        self.feed(text)
        assert not re.findall(r"""(?:src|href)="(?!data:|#)""", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "audio":
            assert found.keys() == {"controls", "preload", "src"}
            self.players.append(found["src"])
        elif tag == "img":
            self.pictures.append(found["src"])
        elif found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]


def decoded(url: str) -> Any:
    """Samples and rate of a player, or the picture."""
    kind, _, text = url.partition(";base64,")
    file = io.BytesIO(base64.b64decode(text, validate=True))
    return soundfile.read(file, dtype="float32") if kind.startswith("data:audio/") else Image.open(file)


def test_zero_shot_by_folds_is_what_the_embeddings_say(workdir: Path, data: Path, tmp_path: Path) -> None:
    encoder, source = jclip.load(workdir), open_source(f"esc50:{data}?folds=1,3")
    labels, folds = (np.array([source[i][name] for i in range(len(source))]) for name in ("label", "fold"))
    z = encoder.embed("sound", [source[i]["sound"] for i in range(len(source))])
    cosines = z @ encoder.embed_text([PROMPT.format(name) for name in source.classes]).T
    place = 1 + (cosines >= cosines[np.arange(len(z)), labels][:, None]).sum(axis=1) - 1
    expected = {}
    for prefix, kept in (("", folds > 0), ("fold/1/", folds == 1), ("fold/3/", folds == 3)):
        mine = place[kept]
        expected |= {f"{prefix}top{k}": np.mean(mine <= k) for k in (1, 5, 10)}
        expected |= {f"{prefix}map@10": np.mean([1 / p if p <= 10 else 0 for p in mine])}
    for name in ("top1", "top5", "top10", "map@10"):
        expected[f"mean/fold/{name}"] = (expected[f"fold/1/{name}"] + expected[f"fold/3/{name}"]) / 2
    suite = Suite({"e": ZeroShot(f"esc50:{data}?folds=1,3", image="sound", ks=(1, 5, 10), groups="fold")}, batch_size=64)
    found = evaluate.main(workdir, suite=suite, out=tmp_path / "r.json", as_json=True)
    assert {name: found[f"e/{name}"] for name in expected} == pytest.approx(expected, abs=0.011)  # a cosine may be tied
    assert 0 < found["e/top10"] < 1
    assert (found["e/groups"], found["e/templates"]) == (2, 1)
    table = json.loads((tmp_path / "r.json").read_text())["results"]["e"]["details"]["table"]
    assert (table["columns"][:2], [row[0] for row in table["rows"]]) == (["fold", "top1"], ["1", "3"])


def test_groups_that_are_none_are_refused(workdir: Path, data: Path) -> None:
    for groups, message in (
        ("folds", "groups='folds': example 0 has no number or text there: no folds"),
        ("sound", "it is a bytes"),
        ("key", "has 100 values|has 200 values"),
    ):
        suite = Suite({"e": ZeroShot(f"esc50:{data}?folds=1,3", image="sound", groups=groups)})
        with pytest.raises(ConfigError, match=message):
            evaluate.main(workdir, suite=suite)


def test_probes_neighbours_and_retrieval_take_sounds(workdir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit, test = f"esc50:{data}?folds=1,2,3&esc10=1", f"esc50:{data}?folds=4&esc10=1"
    suite = Suite(
        {
            "probe": LinearProbe(fit, test, "ridge", tower="sound"),
            "few": FewShot(fit, test, k=(1, 2), seeds=1, tower="sound"),
            "neighbours": NearestNeighbours(fit, test, k=3, tower="sound"),
            "retrieval": Retrieval(test, a="sound", b="text"),
        },
        batch_size=64,
    )
    found = evaluate.main(workdir, suite=suite)
    assert min(found[name] for name in ("probe/top1", "neighbours/top1", "few/k2/top1")) > 0.2  # chance: 0.1
    assert (found["retrieval/sound"], found["retrieval/right_pairs"]) == (20, 40)
    assert "broken" not in " ".join(found)


def test_broken_sounds_are_counted_and_others_not(workdir: Path, data: Path, tmp_path: Path) -> None:
    files = GOOD | {name: content for name, (content, _) in BAD.items()}
    for folder in ("meta", "audio"):
        (tmp_path / folder).mkdir()
    with (tmp_path / "meta" / "esc50.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["filename", "fold", "target", "category"])
        rows.writerows([name, 1, i % 2, "ab"[i % 2]] for i, name in enumerate(files))
    for name, content in files.items():
        (tmp_path / "audio" / name).write_bytes(content)
    found = evaluate.main(workdir, suite=Suite({"e": ZeroShot(f"esc50:{tmp_path}", image="sound")}))
    assert (found["e/examples"], found["e/broken"]) == (len(GOOD), len(BAD))


def test_files_are_classified_and_those_that_are_broken_said(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = GOOD | {name: content for name, (content, _) in BAD.items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    names = ["low sine", "high bell", "very low noise"]
    command = ["classify", str(tmp_path), "--model", str(workdir), "--labels", *names, "--top", "2"]
    assert cli.main([*command, "--output", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().err
    assert f"{len(GOOD)} of {len(files)} sounds classified" in said
    with (tmp_path / "out.csv").open(newline="") as table:
        rows = {Path(row["sound"]).name: row for row in csv.DictReader(table)}
    assert rows.keys() == files.keys()
    for name, (_, problem) in BAD.items():
        assert problem in rows[name]["problem"]
        assert re.search(rf"{name}: .*{problem}", said)
    encoder = jclip.load(workdir)
    cosines = encoder.embed("sound", list(GOOD.values())) @ encoder.embed_text([PROMPT.format(name) for name in names]).T
    for name, row in zip(GOOD, cosines, strict=True):
        assert rows[name]["class_1"] == names[int(np.argmax(row))]
        assert float(rows[name]["cosine_1"]) == pytest.approx(row.max(), abs=2e-6)
        assert 0 < float(rows[name]["probability_2"]) <= float(rows[name]["probability_1"])
    assert cli.main(["classify", str(tmp_path / "nan.wav"), "--model", str(workdir), "--labels", "a"]) == 1
    assert "nan.wav: sound has samples that are not finite" in capsys.readouterr().err


def test_images_and_sounds_are_not_mixed_and_each_needs_its_tower(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(GOOD["24_bit.wav"])
    (tmp_path / "b.wav").write_bytes(GOOD["24_bit.wav"])
    assert example_files([tmp_path]) == ([tmp_path / "a.wav", tmp_path / "b.wav"], "sound")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert example_files([tmp_path / "*.png"]) == ([tmp_path / "a.png"], "image")
    assert example_files([tmp_path / "*.wav"]) == ([tmp_path / "a.wav", tmp_path / "b.wav"], "sound")
    for names in ([tmp_path], [tmp_path / "*"], [tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "a.png"]):
        with pytest.raises(
            SourceError, match=r"1 images and 2 sounds, such as .*a\.png and .*a\.wav: one call takes one of both"
        ):
            example_files(names)
    with pytest.raises(SourceError, match="no image or sound matches"):
        example_files([tmp_path / "*.ogg"])
    with pytest.raises(ConfigError, match="the model has no tower for images, which this needs; it has sound, text alone"):
        classify.main([tmp_path / "a.png"], str(workdir), labels=["a"])
    with pytest.raises(ConfigError, match="the model has no tower for sounds, which this needs; it has image, text alone"):
        classify.main([tmp_path / "a.wav"], "ViT-tiny-test", labels=["a"])


def test_a_probe_of_sounds_classifies_sounds_alone(workdir: Path, data: Path, tmp_path: Path) -> None:
    fit, test = f"esc50:{data}?folds=1,2,3&esc10=1", f"esc50:{data}?folds=4&esc10=1"
    probe, source = tmp_path / "probe.safetensors", open_source(test)
    evaluate.main(workdir, suite=Suite({"p": LinearProbe(fit, test, tower="sound", save=str(probe))}))
    answers = classify.main([data / "audio" / source[i]["key"] for i in range(3)], str(workdir), probe=probe, top=1)
    assert all(answer["classes"][0][0] in source.classes and 0 <= answer["classes"][0][1] <= 1 for answer in answers)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="is a probe of tower 'sound', which takes sounds; these files are images"):
        classify.main([tmp_path / "a.png"], str(workdir), probe=probe)


def test_a_spectrogram_has_the_pitch_at_its_height_and_time_to_the_right() -> None:
    quiet, high = np.zeros(1000, np.float32), wave(0.25, hz=1500)[:, 0]
    row = np.concatenate([quiet, high])
    image = decoded(spectrogram(row, TOWER))
    assert (image.format, image.size) == ("PNG", SPECTROGRAM)
    levels = np.asarray(image, np.float64).sum(axis=2)
    loudest = np.unravel_index(np.argmax(levels), levels.shape)
    edges = np.linspace(0, 1, 17)  # 1500 Hz is the 14th or 15th of 16 Slaney mels up to 2000 Hz
    assert edges[1] <= loudest[0] / levels.shape[0] <= edges[4]
    assert loudest[1] > levels.shape[1] / 2
    assert levels[:, : levels.shape[1] // 3].max() < levels.max() / 2
    silent = np.asarray(decoded(spectrogram(np.zeros(2000, np.float32), TOWER)))
    assert (silent == RAMP[0]).all()
    assert decoded(spectrogram((row * 32767).astype(np.int16), TOWER)).size == SPECTROGRAM
    longer = np.concatenate([row, np.ones(700, np.float32)])  # the input of a tower that fuses parts
    assert spectrogram(longer, TOWER) == spectrogram(row, TOWER)
    assert player_of(longer, TOWER.waveform) == player_of(row, TOWER.waveform)
    other = Cnn14Tower(waveform=TOWER.waveform, mel=TOWER.mel)
    assert spectrogram(row, other) == spectrogram(row, TOWER)


def test_a_player_has_the_beginning_of_the_sound_and_no_more() -> None:
    samples, rate = decoded(player(encoded(wave(30, 48_000, 2), 48_000)))
    assert (rate, samples.ndim) == (HEARD.sample_rate, 1)
    assert len(samples) / rate == pytest.approx(HEARD.seconds, abs=0.2)  # MP3 has whole frames
    spectrum = np.abs(np.fft.rfft(samples[2000:-2000]))
    assert np.argmax(spectrum) * rate / (len(samples) - 4000) == pytest.approx(440, abs=1)
    assert len(player(encoded(wave(300, 8000), 8000))) < 200_000
    samples, rate = decoded(player_of((wave(0.5)[:, 0] * 32767).astype(np.int16), TOWER.waveform))
    assert rate * 0.5 <= len(samples) <= rate * 0.9
    assert preview(open_source("shapes:val?size=16&length=1"), 0, "image", TOWER) is None


def test_the_report_shows_spectrograms_and_players_and_fetches_nothing(workdir: Path, data: Path, tmp_path: Path) -> None:
    suite = Suite(
        {
            "zero_shot": ZeroShot(f"esc50:{data}?folds=3", image="sound", groups="fold"),
            "retrieval": Retrieval(f"esc50:{data}?folds=3&esc10=1", a="sound", b="text"),
        },
        batch_size=64,
    )
    evaluate.main(workdir, suite=suite, out=tmp_path / "r.json")
    report([tmp_path / "r.json"], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert "media-src data:" in page.policy
    assert len(page.players) == 12 + 12 + 12 * 5  # mistakes, queries by sound, and answers to those by text
    assert len(decoded(page.players[0])[0]) >= 0.5 * HEARD.sample_rate
    assert any(url.startswith("data:image/png") for url in page.pictures)
    assert "Sounds for a text" in text
    assert "Texts for a sound" in text
    found = json.loads((tmp_path / "r.json").read_text())
    for bad in ("data:text/html;base64,AAAA", "https://a.b/c.mp3", 'data:audio/mpeg;base64,AA"onerror="x', 3):
        found["results"]["zero_shot"]["details"]["mistakes"][0]["sound"] = bad
        (tmp_path / "bad.json").write_text(json.dumps(found))
        with pytest.raises(ConfigError, match=r"mistakes\[0\]\.sound is .*, not a(sound: data:audio/mpeg| data URL| sound)"):
            report([tmp_path / "bad.json"], tmp_path / "bad.html")


def test_a_survey_of_sounds_has_their_lengths_and_rates_and_a_page_with_players(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<script>alert(1)</script>"
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (GOOD | {name: content for name, (content, _) in BAD.items()}).items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(evil)
    assert cli.main(["data", str(folder), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "looked at 9: 4 sounds that can be read, 4 usable as pairs of sound and text" in said
    assert "seconds: 0.5 to " in said
    assert "samples a second x channels: " in said
    assert all(part in said for part in ("192000 Hz x 1: 1", "4000 Hz x 8: 1", "4000 Hz x 1: 1", "16000 Hz x 1: 1", "MP3 1"))
    assert "1 (11.1%): sound has samples that are not finite" in said
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert len(page.players) == len(page.pictures) == len(GOOD)
    assert evil not in text
    assert "media-src data:" in page.policy
    assert sound_preview(GOOD["24_bit.wav"]).sound in page.players


def test_a_survey_of_images_with_sounds_counts_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("words")
    (tmp_path / "a.wav").write_bytes(GOOD["24_bit.wav"])
    assert cli.main(["data", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["sounds"], found["usable"], found["unusable"]) == (2, 1, 2, {})
    (tmp_path / "b.wav").write_bytes(BAD["truncated.wav"][0])
    assert cli.main(["data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 images that can be read, 1 sounds that can be read, 1 usable as pairs of image or sound and text" in said
    assert "sound is cut short" in said


def test_inspect_shows_what_a_tower_hears(config: Config, tmp_path: Path) -> None:
    inspect.main(config, "recipe", tmp_path / "i.html", seconds=0.01)
    page = Page((tmp_path / "i.html").read_text())
    assert len(page.players) == inspect.EXAMPLES
    assert sum(decoded(url).size == SPECTROGRAM for url in page.pictures if url.startswith("data:image/png")) >= inspect.EXAMPLES


def test_the_data_of_a_run_are_found_again_in_a_test_set(
    workdir: Path, data: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    seen = Overlap(f"esc50:{data}?folds=2,3", tower="sound", by="src_file")
    unseen = Overlap(f"esc50:{data}?folds=3", tower="sound", by="src_file")
    found = evaluate.main(workdir, suite=Suite({"seen": seen, "unseen": unseen}), out=tmp_path / "r.json")
    assert (found["seen/overlap"], found["seen/by_id"], found["seen/by_contents"]) == (0.5, 100, 100)
    assert (found["unseen/overlap"], found["unseen/checked"]) == (0, 1)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(re.search(r"100 of its 200 examples are in the training data esc50:.*folds=1,2", line) for line in warned)
    settings = json.loads((tmp_path / "r.json").read_text())["results"]["seen"]["settings"]
    assert settings["train"] == f"esc50:{data}?folds=1,2"
    alone = evaluate.main("ViT-tiny-test", suite=Suite({"o": Overlap("shapes:val?size=16&length=4")}))
    assert alone == {"o/examples": 4, "o/checked": 0}
    assert "NOT CHECKED: nothing says what the model was trained on" in caplog.text
