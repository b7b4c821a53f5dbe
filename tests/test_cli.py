"""The command line: quick to answer, clear when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from jclip import cli, train
from jclip.config import ConfigError, load
from jclip.parser import make_parser

RECIPE = str(Path(__file__).parent / "recipe_tiny.py")


def test_help_imports_nothing_heavy() -> None:
    """`jclip --help` answers in a fraction of a second because neither jax nor numpy is imported for it."""
    code = "import sys, jclip.cli\ntry: jclip.cli.main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = out.splitlines()[-1]
    assert "train the model of a recipe" in out
    assert "'jclip.cli'" in loaded
    for heavy in ("jax", "numpy", "flax", "grain", "tyro", "rich", "PIL"):
        assert f"'{heavy}'" not in loaded, heavy


def test_the_parser_has_the_commands_that_can_be_run() -> None:
    assert f"{{{','.join(cli.COMMANDS)}}}" in "".join(make_parser().format_usage().split())
    for name in cli.COMMANDS:
        options = make_parser().parse_known_args([name, "a", "b", "--model", "c", "--out", "d"])[0]
        assert (options.command, options.parser.prog) == (name, f"jclip {name}")


def exit_status(command: list[str]) -> object:
    """Exit status of a command, which may also end by SystemExit, as --help does."""
    try:
        return cli.main(command)
    except SystemExit as done:
        return done.code


@pytest.mark.parametrize("command", [["train", "--help"], ["eval", "--help"], ["embed", "--help"], ["--version"]])
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(command) == 0
    assert len(capsys.readouterr().out) > 10


def test_help_of_a_recipe_shows_every_field_with_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", RECIPE, "--help"])
    out = capsys.readouterr().out
    assert "--optim.lr FLOAT" in out
    assert "Peak learning rate. (default: 0.01)" in " ".join(out.replace("│", " ").split())
    assert "--model.towers.image.patch-size INT" in out
    assert "--evals.seen.source STR" in out


def test_a_quiet_run_says_nothing_and_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--duration", "2", "--optim.warmup", "1", "--evals", "none"]
    options += ["--checkpoint.every", "2", "--checkpoint.best", "None"]
    assert exit_status(["train", RECIPE, "--workdir", str(tmp_path / "w"), "--quiet", *options]) == 0
    assert capsys.readouterr().out == ""
    assert len((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_misspelt_option_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["train", RECIPE, "--workdir", "never", "--optim.learning-rate", "1"])
    assert error.value.code == 2
    assert "optim.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "none.py", "--workdir", "W"], "ConfigError: config: no recipe at none.py"),
        (["train", RECIPE, "--workdir", "W", "--batch-size", "12"], "batch_size 12 is not divisible by 8 devices; use 8 or 16"),
        (["train", RECIPE, "--workdir", "W", "--data.source", "shapes:trian"], "the split 'trian' is unknown"),
        (["eval", "nowhere"], "FileNotFoundError: nowhere is neither a path nor an architecture"),
        (["embed", "ViT-X", "shapes:test", "--out", "O"], "ViT-X is neither a path nor an architecture"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "W" / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    train.main(tiny_config(), path)
    return path


def test_eval_prints_json_of_the_evaluations_asked_for(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(workdir), "--evals", "seen", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["step"] == 12
    assert {"seen/top1", "seen/examples"} <= results.keys()
    assert not any(name.startswith("pairs") for name in results)


def test_eval_refuses_what_is_not_there(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(workdir), "--evals", "sene"]) == 1
    assert "there is no evaluation 'sene'; evaluations: seen, pairs" in capsys.readouterr().err
    assert cli.main(["eval", str(workdir), "--step", "3"]) == 1
    assert "no checkpoint of step 3; it has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["train", "r.py", "--resume-from", "latest"],
            "'latest' is no step, such as 1000; to go on from the last checkpoint",
        ),
        (["embed", "MODEL", "PHOTOS", "--out", "gs://b/out"], "gs://b/out is an address and no path; mount the bucket"),
        (["convert", "MODEL", "s3://b/out"], "s3://b/out is an address"),
        (["report", "a.json", "--html", "gs://b/a.html"], "gs://b/a.html is an address"),
        (["eval", "MODEL", "--json", "gs://b/a.json"], "gs://b/a.json is an address"),
        (["info", "az://b/model"], "az://b/model: only hf://, and runs at s3:// and gs://, are fetched"),
        (["embed", "az://b/model", "PHOTOS", "--out", "OUT"], "az://b/model: only hf://"),
        (["data", "a.tar::b.tar"], "'::' joins nothing"),
        (["data", "gs://b/a.tar"], "an address has its scheme before it, 'webdataset:gs://b/a.tar'"),
        (["data", "webdataset:a.tar", "webdataset:b.tar"], "put it in quotes, or the shell expands it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_addresses_and_patterns_that_a_shell_has_expanded_have_a_clear_answer_everywhere(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    names = {"MODEL": "ViT-tiny-test", "PHOTOS": "photos", "OUT": "out"}
    try:
        status = cli.main([names.get(word, word) for word in command])
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_pattern_that_a_shell_has_expanded_is_refused_with_the_word_quotes() -> None:
    with pytest.raises(ConfigError, match="put a pattern of shards in quotes, or the shell expands it"):
        load(RECIPE, ["--data.source", "webdataset:a.tar", "webdataset:b.tar"])


def test_embed_writes_a_row_an_example_in_order(workdir: Path, tmp_path: Path) -> None:
    from jclip.data import open_source
    from jclip.inference import load

    command = ["embed", str(workdir), "shapes:test?size=16&length=21", "--out", str(tmp_path), "--towers", "image", "text"]
    assert cli.main([*command, "--batch-size", "8"]) == 0
    source, model = open_source("shapes:test?size=16&length=21"), load(workdir)
    images, texts = np.load(tmp_path / "image.npy"), np.load(tmp_path / "text.npy")
    np.testing.assert_allclose(images, model.embed_image([source[i]["image"] for i in range(21)]), atol=1e-6)
    np.testing.assert_allclose(texts, model.embed_text([source[i]["text"] for i in range(21)]), atol=1e-6)
    keys = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    assert keys == [source[i]["key"] for i in range(21)]
    assert not (tmp_path / "problems.txt").exists()


def test_embed_takes_the_first_alternative_of_a_field_and_refuses_another_field(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jclip.data import open_source
    from jclip.inference import load

    source = open_source("shapes:test?size=16&length=6")
    command = [
        "embed",
        str(workdir),
        "shapes:test?size=16&length=6",
        "--towers",
        "text",
        "--batch-size",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert cli.main([*command, "--fields", "text", "nothing*9 | a photo of a {label} | text"]) == 0
    texts = [f"a photo of a {source.classes[source[i]['label']]}" for i in range(6)]
    np.testing.assert_allclose(np.load(tmp_path / "text.npy"), load(workdir).embed_text(texts), atol=1e-6)
    for fields, said in (
        ([], "holds embeddings of text of another field, 'nothing*9 | a photo of a {label} | text'; give another --out"),
        (["--fields", "text", "a {"], "embed: fields.text: field 'a {', at character 3"),
        (["--fields", "image", "png"], "--fields of image, of which no embedding is asked"),
    ):
        assert cli.main([*command, *fields]) == 1
        assert said in capsys.readouterr().err.replace("\n", "")
    known = json.loads((tmp_path / "embed.json").read_text())
    del known["towers"]["text"]["field"]  # as files of before are: of the field of the tower's name
    (tmp_path / "embed.json").write_text(json.dumps(known))
    assert cli.main(command) == 0


def test_embed_keeps_names_goes_on_and_refuses_another_source(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jclip.inference import Encoder

    photos, out, whole = tmp_path / "photos", tmp_path / "out", tmp_path / "whole"
    photos.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 30), (20 * i, 10, 10)).save(photos / f"{i:02}.png")
    os.rename(os.fsencode(photos / "03.png"), os.fsencode(photos) + b"/03\xff\nline.png")
    (photos / "05.png").write_bytes(b"no image")
    command = ["embed", str(workdir), str(photos), "--batch-size", "8", "--out"]
    assert cli.main([*command, str(whole)]) == 0
    encode, calls = Encoder.encode_rows, []

    def interrupted(self, rows, batch_size):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, rows, batch_size)

    monkeypatch.setattr(Encoder, "encode_rows", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, str(out)])
    assert stop.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (out / "image.npy").exists()
    assert cli.main([*command, str(out)]) == 0
    assert len(calls) == 3, "the first batch is not embedded again"
    assert "8 of 12 rows are there" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(out / "image.npy"), np.load(whole / "image.npy"))
    for name in ("keys.jsonl", "problems.txt"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    keys = [json.loads(line) for line in (out / "keys.jsonl").read_text().splitlines()]
    assert keys[:5] == ["00.png", "01.png", "02.png", "03\udcff\nline.png", "04.png"]
    assert len(keys) == 12
    keys_file = (out / "keys.jsonl").read_bytes()
    for left in (b"", b"".join(keys_file.splitlines(keepends=True)[:5])):  # keys of later rows would move up
        (out / "keys.jsonl").write_bytes(left)
        assert cli.main([*command, str(out)]) == 1
        assert f"keys.jsonl is damaged: it has {len(left.splitlines())} lines, where 12 were written" in capsys.readouterr().err
    (out / "keys.jsonl").write_bytes(keys_file)
    assert cli.main([*command, str(out), "--max-pixels", "1000"]) == 1
    assert "holds embeddings of another --max-pixels" in capsys.readouterr().err
    (photos / "00.png").write_bytes((photos / "01.png").read_bytes())
    assert cli.main([*command, str(out)]) == 1
    assert "holds embeddings of another source" in capsys.readouterr().err


def test_embed_of_a_folder_marks_what_it_cannot_read(workdir: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 30), (80 * i, 10, 10)).save(photos / f"{i}.png")
    (photos / "1.png").write_bytes(b"no image")
    assert cli.main(["embed", str(workdir), str(photos), "--out", str(out)]) == 0
    z = np.load(out / "image.npy")
    assert np.isnan(z[1]).all()
    np.testing.assert_allclose(np.linalg.norm(z[[0, 2]], axis=1), 1, rtol=1e-5)
    assert (out / "problems.txt").read_text().startswith("image: 1.png: ")


def test_classify_refuses_at_once_what_is_no_file_of_an_image(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(6 << 30)
    for name, message in (
        ("pipe.jpg", "no regular file"), ("huge.jpg", "6442450944 bytes, more than"), (".", "6442450944 bytes, more than"),
        ("none.jpg", "cannot be read"), ("*.png", "no image or sound matches"),
    ):  # fmt: skip
        assert cli.main(["classify", str(tmp_path / name), "--model", str(workdir), "--labels", "a", "b"]) == 1
        assert message in capsys.readouterr().err


def test_a_folder_named_as_the_package_beside_a_script_does_not_hide_it(tmp_path: Path) -> None:
    """A clone lies in such a folder, and people write their first script beside it."""
    (tmp_path / "jclip").mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import jclip; jclip.load"]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_who_has_gone_is_no_error() -> None:
    """Others go so when they have had enough, such as `head`."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "jclip", "train", RECIPE, "--help"]
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "jclip", "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("jclip ")
