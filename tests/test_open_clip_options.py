"""Options of open_clip: `jclip train` says what they are called here, and so does the page."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT
from peers import peer
from PIL import Image
from recipe_tiny import get_config
from test_cli import RECIPE, exit_status

import jclip
from jclip import train
from jclip.config import ConfigError, Retrieval, architecture, load
from jclip.config.open_clip_options import OPTIONS
from jclip.parser import make_parser

SHOWN = re.findall(r"--[\w.-]+", " ".join(OPTIONS.values()))


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        (["--lr", "3e-4"], ["--lr is an option of open_clip, here: --optim.lr 3e-4"]),
        (["--train_data={0..9}.tar"], ['--train-data is an option of open_clip, here: --data.source "webdataset:{0..9}.tar"']),
        (["--epochs", "5", "--model", "RN50"], ["here: --duration 5ep", 'here: model=architecture("RN50")']),
        (["--precision", "fp32", "--lr-scheduler=const"], ["--model.dtype float32", "--optim.schedule constant"]),
        (["--zeroshot-frequency", "0", "--workers", "--siglip"], ["here: --evals none", "here: --data.workers;"]),
        (["--seed", "1", "--siglip", "--local-loss"], ["here: --objectives.image-text.loss sigmoid", "here: nothing: one loss"]),
    ],
)
def test_an_option_of_open_clip_is_answered_with_its_name_here(
    arguments: list[str], answers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(["train", RECIPE, "--workdir", "never", *arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(answer in error for answer in answers)


def test_a_command_of_open_clip_is_answered_although_it_has_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["train", "--train-data", "x.tar", "--model", "ViT-B-32"]) == 1
    assert 'here: --data.source "webdataset:' in capsys.readouterr().err


def test_a_recipe_may_have_an_argument_of_that_name(tmp_path: Any) -> None:
    (tmp_path / "own.py").write_text(
        "from jclip.config import Config\ndef get_config(epochs: int = 1) -> Config:\n    return Config(duration=f'{epochs}ep')\n"
    )
    assert load(tmp_path / "own.py", ["--epochs", "7"]).duration == "7ep"
    with pytest.raises(ConfigError, match=r"here: --optim\.lr"):
        load(tmp_path / "own.py", ["--epochs", "7", "--lr", "1"])


def test_the_recipe_with_open_clip_s_names_has_its_defaults(tmp_path: Path) -> None:
    recipe = ROOT / "configs/open_clip.py"
    config = load(recipe, ["--model", "RN50", "--train-data", "x.tar", "--val-data", "y.tar", "--pretrained", str(tmp_path)])
    assert config.model.towers == architecture("RN50").towers
    assert (config.data.source, config.init_from.path) == ("webdataset:x.tar", str(tmp_path))
    assert config.evals == {"val/retrieval": Retrieval("webdataset:y.tar", every="1ep")}
    assert (config.optim.b2, config.optim.eps, load(recipe).optim.b2, load(recipe).optim.eps) == (0.999, 1e-8, 0.98, 1e-6)


def test_folders_of_imagenet_without_names_are_refused_before_the_first_step(tmp_path: Path) -> None:
    for i, name in enumerate(("n01440764", "n01443537", "n01484850")):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / "val" / name / "a.png")
    options = [
        "--model",
        "ViT-tiny-test",
        "--imagenet-val",
        str(tmp_path / "val"),
        "--data.source",
        "shapes:train?size=16&length=64",
    ]
    few = ["--batch-size", "8", "--duration", "2", "--optim.warmup", "1", "--data.workers", "0"]
    config = load(ROOT / "configs/open_clip.py", options + few)
    with pytest.raises(ConfigError, match=r"'n01440764', \.\.\.: numbers of WordNet.*DIR/classnames\.txt"):
        train.main(config, tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").iterdir())
    (tmp_path / "val/classnames.txt").write_text("tench\ngoldfish\ngreat white shark\n")
    assert train.main(config, tmp_path / "run")["imagenet/templates"] == 80


def test_a_name_of_open_clip_in_python_is_answered_with_the_one_here() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'get_tokenizer', which is open_clip's; here models have `tokenize`"):
        jclip.get_tokenizer  # noqa: B018
    assert not hasattr(jclip, "nothing_of_that_name")


def test_the_page_has_the_table() -> None:
    training = PAGES["docs/tutorials/from_open_clip.md"].partition("## Training")[2]
    page = {}
    for row in re.findall(r"^\| (`--.*?) \| (.*?) \| .*\|$", training.replace("\\|", "\0"), re.MULTILINE):
        page |= dict.fromkeys(re.findall(r"(?<=`)--[\w-]+", row[0]), row[1].replace("`", "").replace("\0", "|"))
    assert page == OPTIONS


def test_what_the_table_answers_is_an_option_here() -> None:
    train = make_parser().parse_known_args(["train"])[0].parser.format_help()
    for option in SHOWN:
        path = option.removeprefix("--").replace("-", "_").replace("evals.NAME", "evals.pairs")
        value: Any = get_config()
        if option in train:
            continue
        for name in path.replace("objectives.NAME", "objectives.image_text").replace(".FIELD", "").split("."):
            names = value if isinstance(value, dict) else {field.name for field in dataclasses.fields(value)}
            assert name in names, option
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        assert option not in OPTIONS


@pytest.mark.parity
def test_they_are_options_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = peer("open_clip_train.params").parse_args
    names = set[str]()
    add = argparse.ArgumentParser.add_argument
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", lambda self, *a, **k: [names.update(a), add(self, *a, **k)][1])
    parse_args([])
    assert OPTIONS.keys() <= names
