"""Files that jclip 0.1.0 saved in November 2026, before they had a format, load, evaluate, convert and go on for ever."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jclip
from jclip import convert, evaluate, runs, train
from jclip.checkpoint import Checkpoints
from jclip.config import (
    Config,
    ConfigError,
    Data,
    MeshConfig,
    Pair,
    Portion,
    TokenizerConfig,
    check,
    from_json,
    history,
    load,
    to_json,
    to_saved,
)
from jclip.config import replace as replace_path
from jclip.data import open_source
from jclip.tree import flatten

NOVEMBER = Path(__file__).parent / "november"
"""`run`, `exported` (by `jclip convert`), and `features.json`: of four images and three texts, TEXTS the first and the last."""

TEXTS = ["a red circle", "a green square"]


def features(model: Path) -> dict[str, np.ndarray]:
    source, encoder = open_source("shapes:test?size=16"), jclip.load(model)
    return {"image": encoder.embed_image([source[i]["image"] for i in range(4)]), "text": encoder.embed_text(TEXTS)}


def assert_features(found: dict[str, np.ndarray]) -> None:
    want = json.loads((NOVEMBER / "features.json").read_text())
    np.testing.assert_allclose(found["image"], want["image"], atol=1e-6)
    np.testing.assert_allclose(found["text"], [want["text"][0], want["text"][2]], atol=1e-6)


@pytest.mark.parametrize("what", ["run", "exported"])
def test_it_loads_with_the_features_of_then(what: str) -> None:
    assert_features(features(NOVEMBER / what))


@pytest.mark.parametrize("what", ["run", "exported"])
def test_it_is_converted_with_the_features_of_then(tmp_path: Path, what: str) -> None:
    convert.main(NOVEMBER / what, tmp_path / "again")
    assert_features(features(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "jclip.json").read_text())["model"]["format"] == history.FORMAT


def test_it_is_evaluated_as_then(tmp_path: Path) -> None:
    then = [json.loads(line) for line in (NOVEMBER / "run" / "metrics.jsonl").read_text().splitlines()]
    (want,) = [line["seen/top1"] for line in then if line["step"] == 4 and "seen/top1" in line]
    assert evaluate.main(NOVEMBER / "run")["seen/top1"] == pytest.approx(want, abs=1 / 64)


def test_it_goes_on_to_its_end_and_what_it_saves_then_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(NOVEMBER / "run", tmp_path, dirs_exist_ok=True)
    config = replace_path(runs.run_config(tmp_path), "duration", "8")
    train.main(config, tmp_path)
    out = capsys.readouterr().out
    assert "resuming after step 4 (saved by an older jclip, without digests: damage would not show)" in out
    assert "another configuration; from here on\n  duration: '4' -> '8'\n" in out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [8]
        assert checkpoints.record(8)["format"] == 2
        assert checkpoints.config(8) == config
    _, step, params, _ = runs.load_run(tmp_path)
    assert step == 8
    assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, flatten(jax.device_get(params)).values()))


def test_a_field_that_a_file_lacks_has_the_value_that_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(history.ADDED, "Data.workers", 5)
    monkeypatch.setitem(history.ADDED, "VisionTower.crop", True)
    config = Config(data=Data(workers=3))
    saved = to_json(config)
    assert from_json(saved) == config
    del saved["data"]["workers"], saved["model"]["towers"]["image"]["crop"]
    want: Any = replace_path(replace_path(config, "data.workers", 5), "model.towers.image.crop", True)
    assert from_json(saved) == want
    del saved["data"]["augment"]  # of which nothing is said
    with pytest.raises(ConfigError, match=r"config.data: missing augment"):
        from_json(saved)


def test_a_recipe_of_then_makes_the_configuration_of_its_run() -> None:
    defaults_of_then = ["--model.reduce-dtype", "bfloat16"]
    assert load(NOVEMBER / "recipe.py", ["--duration", "4", *defaults_of_then]) == runs.run_config(NOVEMBER / "run")


def test_pairs_become_objectives_by_name_and_are_never_mixed_with_them() -> None:
    pairs: Any = {"pairs": (Pair(weight=2.0), Pair("text", "image", loss="sigmoid"))}
    assert Config(**pairs).objectives == {"image_text": pairs["pairs"][0], "text_image": pairs["pairs"][1]}
    with pytest.raises(ConfigError, match="pairs are objectives by name now; give one of them"):
        Config(**pairs, objectives={})
    with pytest.raises(ConfigError, match="two are called image_text; give them names in objectives"):
        Config(**{"pairs": [Pair(), Pair(loss="sigmoid")]})


@pytest.mark.parametrize("written", [history.FORMAT + 1, 0, "2", None])
def test_a_format_that_is_not_known_is_refused(written: Any) -> None:
    assert from_json(to_saved(Config())) == Config()
    with pytest.raises(ConfigError, match=r"config: format .* is not known; this jclip reads 1 to 3: use a later jclip"):
        from_json({**to_saved(Config()), "format": written})


def names_of(value: Any) -> set[str]:
    """Names of all dataclasses in a configuration as JSON."""
    if isinstance(value, list):
        return {name for each in value for name in names_of(each)}
    if not isinstance(value, dict):
        return set()
    return {value[key] for key in ("type",) if key in value} | {name for each in value.values() for name in names_of(each)}


def test_dataclasses_keep_their_names_in_files() -> None:
    """A dataclass that was renamed is written and read as it was called when files with it were saved first."""
    config = Config(mesh=MeshConfig(fsdp=2))
    written = to_json(config)
    assert names_of(written) >= {"Mesh", "Tokenizer", "TextTower"}
    assert from_json(json.loads(json.dumps(written))) == config
    assert not names_of(written) & {*history.STORED}
    with pytest.raises(ConfigError, match=r"^config.mesh: type 'MeshConfig' is unknown; use Mesh$"):
        from_json({**written, "mesh": {**written["mesh"], "type": "MeshConfig"}})


def test_a_recipe_that_says_the_names_of_before_is_read(tmp_path: Path) -> None:
    recipe = (NOVEMBER / "recipe.py").read_text().replace("    Data,\n", "    Data,\n    Mesh,\n    Tokenizer,\n")
    recipe = recipe.replace("heads=1)", 'heads=1, tokenizer=Tokenizer(clean="canonicalize"))').replace(
        "batch_size=8", "batch_size=8, mesh=Mesh(fsdp=2)"
    )
    (tmp_path / "recipe.py").write_text(recipe)
    config = load(tmp_path / "recipe.py")
    assert config.mesh == MeshConfig(fsdp=2)
    assert config.model.towers["text"].tokenizer == TokenizerConfig(clean="canonicalize")  # type: ignore[attr-defined]


def test_a_saved_mixture_beside_the_source_that_was_the_default_is_read() -> None:
    mixed = Config(data=Data(sources={"a": Portion("shapes:val"), "b": Portion("shapes:test")}))
    saved = to_saved(mixed)
    saved["data"]["source"] = "shapes:train"
    assert from_json(saved) == mixed
    check(from_json(saved))
