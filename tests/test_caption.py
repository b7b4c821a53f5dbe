"""`jclip caption`, `jclip.load(...).caption` and evaluations of captions, of a run and of what `jclip convert` makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_words import SHAPES
from tiny import tiny_config

import jclip
from jclip import cli, convert, train
from jclip.config import Caption, Captioning, Config, ConfigError, Contrastive, check, replace

VAL = "shapes:val?size=16&length=10&captions=complete"


def tiny() -> Config:
    """Four steps of CoCa: a class token behind the text, pooling by queries, and a decoder of one block."""
    tower = {f"model.towers.text.{name}": value for name, value in SHAPES.items()} | {"model.towers.text.pool": "cls"}
    pool = {"pool": "queries", "queries": 4, "query_width": 16, "query_heads": 2, "depth": 1, "stem": (), "patch_dropout": 0.0}
    return tiny_config(
        objectives={"image_text": Contrastive(), "caption": Caption(depth=1)},
        evals={"captions": Captioning(VAL)},
        duration="4",
        **{"checkpoint.best": "captions/cider", **tower, "data.source": "shapes:train?size=16&length=200&captions=complete"},
        **{f"model.towers.image.{name}": value for name, value in pool.items()},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    train.main(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.mark.slow
def test_captions_of_a_run_are_those_of_its_export_in_any_batches_and_from_the_shell(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(photos.iterdir())
    model = jclip.load(run)
    want = model.caption(images, length=6)
    assert all(len(text.split()) <= 5 for text in want)
    assert [model.caption(image, length=6) for image in images] == [[text] for text in want]
    assert model.caption(images, length=6, batch_size=2) == want
    convert.main(run, tmp_path / "model")
    assert jclip.load(tmp_path / "model").caption(images, length=6) == want
    capsys.readouterr()

    assert cli.main(["caption", str(tmp_path / "model"), str(photos), "--length", "6"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{image}: {text}" for image, text in zip(images, want, strict=True)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.jsonl"
    arguments = ["caption", str(run), str(tmp_path / "broken.png"), str(images[1]), "--length", "6", "--output", str(out)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[1] == {"image": str(images[1]), "caption": want[1]}
    assert lines[0].keys() == {"image", "problem"}
    assert said.out == ""
    assert "broken.png: " in said.err
    assert cli.main(["caption", str(run), str(tmp_path / "broken.png")]) == 1
    assert "none of 1 images can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_beams_are_asked_for_by_name_and_what_is_out_of_range_is_a_line(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = jclip.load(run)
    assert len(model.caption(photos / "a.png", beams=3, length=5)) == 1
    for arguments, message in (
        (["--beams", "0"], "beams 0 must be at least 1"),
        (["--length", "25"], "length 25 must be at least 2 and at most the context_length 24"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    ):
        assert cli.main(["caption", str(run), str(photos), *arguments]) == 1
        assert message in capsys.readouterr().err


def test_a_model_without_a_decoder_says_so_in_a_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", "ViT-tiny-test", str(photos)]) == 1
    said = capsys.readouterr().err
    assert "captions: the model has to have one decoder, of an objective Caption; it has none" in said
    assert said.count("\n") == 1
    with pytest.raises(ConfigError, match="of an objective Caption; it has none"):
        jclip.load("ViT-tiny-test").caption(photos / "a.png")


@pytest.mark.slow
def test_a_run_evaluates_its_captions_as_jclip_eval_does_and_its_decoder_is_part_of_the_key(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    want = {key: value for key, value in lines[-1].items() if key.startswith("captions/")}
    assert want.keys() >= {f"captions/{name}" for name in ("bleu4", "cider", "exact_match", "exact_objects")}
    assert cli.main(["eval", str(run), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"]["captions"]
    assert {f"captions/{key}": value for key, value in found["metrics"].items()} == pytest.approx(
        {key: value for key, value in want.items() if key.partition("/")[2] in found["metrics"]}
    )
    assert found["weights"].keys() == {"image", "text", "caption"}
    assert len(found["details"]["captions"]) == 10


def test_an_evaluation_of_captions_that_nothing_writes_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing writes captions of the towers 'image' and 'text'; add an objective Caption"):
        check(replace(tiny(), "objectives", {"image_text": Contrastive()}))
