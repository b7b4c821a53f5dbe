"""Recipes and suites: loaded with overrides, and wrong ones answered with a line."""

from dataclasses import replace
from pathlib import Path

import pytest

from jclip import cli
from jclip.config import Config, ConfigError, Labels, Retrieval, ZeroShot, architecture, load, load_suite, source_of


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        '"""A recipe."""\n'
        "from jclip.config import Config, Retrieval, architecture\n"
        "SOURCE = 'shapes:val'\n"
        "def get_config(name: str = 'ViT-tiny-test', epochs: int = 3, start: int | None = None) -> Config:\n"
        "    return Config(model=architecture(name), evals={'pairs': Retrieval(SOURCE)}, duration=f'{epochs}ep',\n"
        "                  seed=start or 0)\n"
    )
    return path


def test_a_recipe_without_overrides_is_what_it_returns(recipe):
    expected = Config(model=architecture("ViT-tiny-test"), evals={"pairs": Retrieval("shapes:val")}, duration="3ep")
    assert load(recipe) == expected


def test_overrides_reach_every_depth_and_the_recipe_s_own_arguments(recipe):
    options = "--optim.lr 3e-4 --epochs 5 --batch-size 64 --start 7 --evals.pairs.every 1ep --name ViT-mini-test"
    config = load(recipe, [*options.split(), "--model.towers.text.context-length", "20"])
    assert (config.optim.lr, config.duration, config.batch_size, config.seed) == (3e-4, "5ep", 64, 7)
    assert config.evals == {"pairs": Retrieval("shapes:val", every="1ep")}
    assert config.model.embed_dim == 32
    assert config.model.towers["text"] == replace(architecture("ViT-mini-test").towers["text"], context_length=20)
    assert config.model.towers["image"] == architecture("ViT-mini-test").towers["image"]


@pytest.mark.parametrize(
    "override",
    [
        ["--optim.learning-rate", "1"],
        ["--optim.lr", "much"],
        ["--epoch", "5"],
        ["--epochs", "five"],
        ["--model.dtype", "f16"],
        ["5"],
    ],
)
def test_an_unknown_or_malformed_override_ends_the_program(recipe, override, capsys):
    with pytest.raises(SystemExit):
        load(recipe, override)
    assert capsys.readouterr().err


def test_help_lists_the_options(recipe, capsys):
    with pytest.raises(SystemExit):
        load(recipe, ["--help"])
    assert "--optim.lr" in capsys.readouterr().out


def test_what_is_no_recipe_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe at .*missing\.py; give a Python file that defines get_config"):
        load(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.py does not define get_config"):
        load(tmp_path / "empty.py")


HEAD = "from jclip.config import *\n"
WRONG = [  # the lines of a recipe, and what is said behind its path
    ("def get_config():\n    Config()", r": get_config\(\) returns nothing; end it with `return`, not a Config"),
    ("def get_config():\n    return 3", r": get_config\(\) returns a int, not a Config"),
    ("get_config = Config()", r" does not define get_config\(\) -> Config"),
    ("import no_such_module\n", r", line 2: ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config(:\n    return Config()", r", line 2: SyntaxError: "),
    ("def get_config():\n    x = {}\n    return Config(**x['a'])", r", line 4: KeyError: 'a'"),
    ("def get_config():\n    return Config(batchsize=3)", r", line 3: TypeError: .*unexpected keyword argument 'batchsize'"),
    ("def get_config():\n    return Config(model=architecture('ViT-B16'))", r", line 3: .*'ViT-B16'; known: "),
    ("def get_config():\n    return get_config()", r", line 3: RecursionError: maximum recursion depth"),
    ("def get_config():\n    return Config(optim=Optim(lr='1'))", r": optim\.lr '1' must be a number above 0"),
    ("def get_config():\n    return Config(optim=None)", r": optim None must be a Optim"),
    (
        "def get_config():\n    return Config(data=Data(augment=Augment(ratio=(1, float('inf')))))",
        r": data\.augment\.ratio\[1\] inf",
    ),
    ("def get_config():\n    return Config(optim=Optim(lr_rules=()))", r"optim\.lr_rules is empty"),
    ("def get_config():\n    return Config(duration='1' * 400)", r"duration \"1{40}\" is more than the 2,147,483,647 steps"),
    ("def get_config():\n    return Config(seed=2**70)", r": seed 1180591620717411303424 must be at least 0 and at most"),
    ("def get_config():\n    return Config(batch_size=2**80)", r": batch_size 1208925819614629174706176 must be at least 2"),
    ("def get_config(x: 'Nothing'):\n    return Config()", r": .*Nothing"),
    ("raise OSError('gone')", r", line 2: OSError: gone"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG, ids=[lines[:60] for lines, _ in WRONG])
def test_a_wrong_recipe_is_one_line_with_its_place(
    lines: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(HEAD + lines)
    assert cli.main(["train", str(path), "--workdir", str(tmp_path / "W")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(said)
    assert not (tmp_path / "W").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("def get_suite():\n    pass", r": get_suite\(\) returns nothing; end it with `return`, not a Suite$"),
        ("def get_suite():\n    return Config()", r": get_suite\(\) returns a Config, not a Suite$"),
        ("def get_suite(n: int = 0):\n    return Suite({}, batch_size=1 // n)", r", line 3: ZeroDivisionError: "),
        ("def get_suite():\n    return Suite({'e': LinearProbe('a', 'b', l2=float('nan'))})", r": evals\.e\.l2 nan must be"),
        ("def get_suite():\n    return Suite({}, batch_size=0)", r": batch_size 0 must be at least 1$"),
    ],
)
def test_a_wrong_suite_is_one_line_with_its_place(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(HEAD + lines)
    with pytest.raises(ConfigError, match=r"^config: .*wrong\.py" + message):
        load_suite(path)


def test_a_suite_of_sources_named_by_options_has_the_evaluations_that_they_allow() -> None:
    path = Path(__file__).parents[1] / "configs" / "suite_data.py"
    assert load_suite(path, ["--captioned", "a"]).evals == {"retrieval": Retrieval("a")}
    labelled = ["--labelled", "a", "--templates", "{}", "a {}"]
    assert load_suite(path, labelled).evals == {"zero_shot": ZeroShot("a", templates=("{}", "a {}"))}
    named = load_suite(path, ["--labelled", "a", "--classes", "cat", "polar bear", "--names", "file:n.txt"]).evals["zero_shot"]
    assert named == ZeroShot("a", Labels(classes=("cat", "polar bear"), names=("file:n.txt",)))
    assert list(load_suite(path, [*labelled, "--train", "b", "--captioned", "c"]).evals) == [
        "zero_shot", "probe", "neighbours", "retrieval",
    ]  # fmt: skip
    for options in ([], ["--train", "b"]):
        with pytest.raises(ConfigError, match="give --labelled SOURCE, perhaps with --train SOURCE, or --captioned SOURCE"):
            load_suite(path, options)


def test_evaluations_of_a_recipe_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    lines = "def get_config(length: int = 3):\n    spec = f'shapes:val?length={length}'\n"
    path.write_text(f"{HEAD}{lines}    return Config(evals={{name: Retrieval(spec) for name in ('a', 'b/c', 'd')}})")
    assert list(load(path).evals) == ["a", "b/c", "d"]
    assert load(path, ["--evals", "none", "--seed", "3"]) == Config(seed=3)
    chosen = load(path, ["--length", "5", "--evals", "d", "b/c", "--evals.d.every", "7"])
    assert chosen.evals == {"b/c": Retrieval("shapes:val?length=5"), "d": Retrieval("shapes:val?length=5", every="7")}
    for names, message in ((["x"], "there is no evaluation 'x'; evaluations: a, b/c, d"), ([], "--evals needs names, or none")):
        with pytest.raises(ConfigError, match=message):
            load(path, ["--evals", *names])
    with pytest.raises(SystemExit):
        load(path, ["--evals", "a", "--evals.d.every", "7"])


def test_the_suite_of_a_recipe_s_best_checkpoint_cannot_be_left_out_in_silence(tmp_path: Path) -> None:
    from jclip.config import check

    path = tmp_path / "recipe.py"
    evals = "evals={'a': Retrieval('shapes:val')}, checkpoint=Checkpoint(best='a/mean/recall@1')"
    path.write_text(f"{HEAD}def get_config():\n    return Config({evals})")
    with pytest.raises(ConfigError, match=r"checkpoint\.best 'a/mean/recall@1' is no metric of an evaluation; .* or is None"):
        check(load(path, ["--evals", "none"]))
    check(load(path, ["--evals", "none", "--checkpoint.best", "None"]))


def test_help_says_what_the_docstring_says_of_each_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        "from typing import Literal\nfrom jclip.config import Config\n"
        "def get_config(data: str, size: Literal['small', 'large'] = 'small', part: float = 0.0, more: bool = False) -> Config:\n"
        '    """The recipe.\n\n    Args:\n        data: shards,\n            by a pattern.\n        part: of them.\n    """\n'
        "    return Config()\n"
    )
    with pytest.raises(SystemExit):
        load(tmp_path / "own.py", ["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert (
        "--data (required): shards, by a pattern. --size {small,large} (default: small) --part (default: 0.0): of them. "
        "--more (optional)" in words
    )


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("data/{00..09}.tar", "webdataset:data/{00..09}.tar"),
        ("folder:photos", "folder:photos"),
        ("csv:a.csv?text=t", "csv:a.csv?text=t"),
        ("https://host:80/{0..9}.tar", "webdataset:https://host:80/{0..9}.tar"),
        ("s3://bucket/x.tar", "webdataset:s3://bucket/x.tar"),
        ("arrayrecord:s3://bucket/x", "arrayrecord:s3://bucket/x"),
        ("a.tar::b.tar", "webdataset:a.tar::b.tar"),
    ],
)
def test_the_data_of_a_recipe_are_shards_unless_their_kind_is_named(given: str, source: str) -> None:
    assert source_of(given) == source
