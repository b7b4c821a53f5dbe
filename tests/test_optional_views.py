"""Examples that lack a view take part in the objectives of those that they have, and in no other."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.batches import assert_equal, batches
from tiny import tiny_config

from jclip.config import Config, ConfigError, Contrastive, MeshConfig, MultiView, TextTower, TokenizerConfig, check
from jclip.data import BadExample, make_run_loader
from jclip.data.inputs import empty_input
from jclip.data.survey import shortcomings
from jclip.models import end_of_text
from jclip.objectives.contrastive import hash_rows
from jclip.program import make_program
from jclip.report.inspect import seen
from jclip.sharding import make_mesh, to_global
from jclip.step import make_loss_and_grads
from jclip.train import main
from jclip.tree import flatten


def config(**changes: Any) -> Config:
    """Images bound to texts and to depth, each by a scale of its own; nothing is random but the order."""
    base = tiny_config(**{"model.towers.image.patch_dropout": 0.0, "evals": {}, "checkpoint.best": None})
    towers = {**base.model.towers, "depth": base.model.towers["image"]}
    objectives = {"image_text": Contrastive(), "image_depth": Contrastive("image", "depth", logit_scale=5.0)}
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, towers=towers), objectives=objectives)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, optional=("text", "depth")))
    return dataclasses.replace(base, **changes)


class Scenes:
    """Pictures of noise; what is left of i by 4: a text and depth, a text, depth, or neither; 11 is broken."""

    classes = ()
    templates = ()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        dice = np.random.default_rng(index)
        example: dict[str, Any] = {"key": f"k{index}", "image": dice.integers(0, 256, (16, 16, 3), np.uint8)}
        if index % 4 < 2:
            example["text"] = f"scene {index}"
        elif index % 8 > 4:
            example["text"] = " "  # as little as none
        if index % 4 in (0, 2):
            example["depth"] = dice.integers(0, 256, (16, 16, 3), np.uint8)
        if index == 10:
            example["depth"] = b"no picture"
        if index == 11:
            raise BadExample("gone")
        return example

    def fingerprint(self) -> str:
        return "scenes"


def test_what_is_lacking_is_reported_and_what_is_broken_is_replaced() -> None:
    found = batches(config(), 4, source=Scenes())
    rows = {key: (batch, i) for batch in found for i, key in enumerate(batch.keys)}
    assert len(rows) >= 60
    assert not {"k10", "k11"} & rows.keys()
    problems = sorted(problem for batch in found for problem in batch.problems)
    assert len(problems) >= 2
    assert {problem.split(":")[0] for problem in problems} == {"k10", "example 11"}
    for key, (batch, i) in rows.items():
        left = int(key[1:]) % 4
        assert bool(batch.arrays["text/valid"][i]) == (left < 2), key
        assert bool(batch.arrays["depth/valid"][i]) == (left in (0, 2)), key
        for view in ("text", "depth"):
            assert batch.arrays[view][i].any() == batch.arrays[f"{view}/valid"][i]
    assert found[0].arrays["depth/valid"].dtype == np.bool_


def test_hosts_and_workers_change_nothing_of_it() -> None:
    whole = batches(config(), 3, source=Scenes())
    assert_equal(batches(config(), 3, hosts=2, source=Scenes()), whole)
    assert_equal(batches(config(), 2, start=1, source=Scenes()), whole[1:])


@pytest.fixture(scope="module")
def scenes() -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters, and a batch of 16 rows, of which the first half has texts and the second depth."""
    program = make_program(config(), make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=3, total_steps=20)
    everything = dataclasses.replace(config(), data=dataclasses.replace(config().data, optional=()))

    class Whole(Scenes):
        def __getitem__(self, index: int) -> dict[str, Any]:
            dice = np.random.default_rng(index)
            pictures = {view: dice.integers(0, 256, (16, 16, 3), np.uint8) for view in ("image", "depth")}
            return {"key": f"k{index}", "text": f"scene {index}", **pictures}

    return jax.device_get(program.init().params), batches(everything, 1, source=Whole())[0].arrays


def loss_and_grads(how: Config, params: Any, arrays: dict[str, np.ndarray], mesh: tuple[int, int] = (1, 1)) -> tuple[Any, ...]:
    devices = make_mesh(MeshConfig(*mesh), jax.devices()[: mesh[0] * mesh[1]])
    how = dataclasses.replace(how, batch_size=len(arrays["image"]), mesh=MeshConfig(*mesh))
    found = jax.jit(make_loss_and_grads(how, devices))(params, to_global(arrays, devices), jax.random.key(0))
    loss, metrics, grads, _ = jax.device_get(found)
    return float(loss), metrics, flatten(grads)


def only(*names: str, **changes: Any) -> Config:
    """The run without missing views, with these objectives."""
    how = config(**changes)
    kept = {name: how.objectives[name] for name in names}
    return dataclasses.replace(how, objectives=kept, data=dataclasses.replace(how.data, optional=()))


@pytest.mark.parametrize(("mesh", "parts"), [((1, 1), 1), ((2, 4), 2)], ids=["one device", "2x4, in parts"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_batch_of_both_has_the_loss_and_gradients_of_both_halves(
    scenes: Any, loss: str, mesh: tuple[int, int], parts: int
) -> None:
    params, arrays = scenes
    objectives = {name: dataclasses.replace(how, loss=loss) for name, how in config().objectives.items()}
    if loss == "sigmoid":
        params = params | {name: {**params[name], "logit_bias": np.float32(-3)} for name in objectives}
    first = np.arange(16) < 8
    both = arrays | {"text/valid": first, "depth/valid": ~first}
    both["text"], both["depth"] = (
        np.where(first[:, None], both["text"], 0),
        np.where(first[:, None, None, None], 0, both["depth"]),
    )
    found = loss_and_grads(config(objectives=objectives, accumulate=parts), params, both, mesh)
    halves = []
    for name, view, rows in (("image_text", "text", first), ("image_depth", "depth", ~first)):
        part = {key: arrays[key][rows] for key in ("image", view)}
        halves.append(loss_and_grads(only(name, objectives=objectives), params, part))
    assert found[0] == pytest.approx(halves[0][0] + halves[1][0], rel=1e-6)
    assert found[1]["image_text/pairs"] == found[1]["image_depth/pairs"] == 0.5
    for path, grad in found[2].items():
        want = sum(half[2].get(path, 0) for half in halves)
        np.testing.assert_allclose(grad, want, rtol=0, atol=2e-6 * max(1, np.abs(want).max()), err_msg=path)


def test_an_objective_without_a_pair_adds_exactly_nothing(scenes: Any) -> None:
    params, arrays = scenes
    nobody = np.zeros(16, bool)
    lacking = arrays | {"text/valid": ~nobody, "depth/valid": nobody, "depth": np.zeros_like(arrays["depth"])}
    loss, metrics, grads = loss_and_grads(config(), params, lacking)
    alone = loss_and_grads(only("image_text"), params, {key: arrays[key] for key in ("image", "text")})
    assert (metrics["image_depth/loss"], metrics["image_depth/pairs"]) == (0, 0)
    assert loss == pytest.approx(alone[0], rel=1e-6)
    for path, grad in grads.items():
        if path.startswith(("depth", "image_depth")):
            assert not np.any(grad), path
        assert np.isfinite(grad).all(), path


def test_a_run_says_how_many_lack_a_view_and_counts_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Counted(Scenes):
        fields: ClassVar[dict[str, int]] = {"image text depth": 16, "image text": 16, "image depth": 16, "image": 16}

    main(config(duration="4"), tmp_path, source=Counted())
    assert "32 of 64 examples have no depth for the tower depth, and are left out of what needs it" in capsys.readouterr().out
    # An epoch has 32 with depth; another example takes the place of one of them, which is broken.
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(16 * step["image_depth/pairs"] for step in steps) == pytest.approx(31, abs=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optional": ("sound",)}, "no objective reads a view 'sound'; views: depth, image, text"),
        (
            {"objectives": {"both": MultiView(("image", "depth"), ("text",))}},
            "objectives.both needs 'text' of every example; only the two sides of a Contrastive may be missing",
        ),
        (
            {"objectives": {**config().objectives, "image_text": Contrastive(equal="ignore", equal_by="depth")}},
            "objectives.image_text needs 'depth' of every example",
        ),
    ],
)
def test_views_that_cannot_be_missing_are_refused(changes: dict[str, Any], said: str) -> None:
    how = config()
    if "optional" in changes:
        how = dataclasses.replace(how, data=dataclasses.replace(how.data, optional=changes.pop("optional")))
    with pytest.raises(ConfigError, match=said):
        check(dataclasses.replace(how, **changes), devices=1)


def test_a_loader_refuses_an_optional_array_that_nothing_makes() -> None:
    from jclip.data import make_loader

    with pytest.raises(ValueError, match="no transform makes sound"):
        make_loader(Scenes(), {}, batch_size=2, optional={"sound": np.zeros(3)})
    make_run_loader(config(), Scenes()).close()


def test_a_text_that_is_lacking_is_as_short_as_one_can_be_so_that_buckets_fit() -> None:
    for eot, pad in ((None, 0), (5, 0), (5, 1)):
        kind = TokenizerConfig("hugging_face", "x", clean="none", pad_id=pad, eos_id=5)
        tower = TextTower(context_length=6, vocab_size=9, width=8, depth=1, heads=1, eot_id=eot, tokenizer=kind)
        assert int(end_of_text(jnp.asarray(empty_input(tower))[None], tower)[0]) == 0


def test_a_field_that_no_example_has_is_reported_where_it_may_be_missing() -> None:
    (line,) = shortcomings(Scenes(), {"image": "image", "text": "text", "depth": "dpeth"}, optional=("depth",))
    assert line == "none of 32 examples looked at has 'dpeth' for the tower depth, which would learn nothing of them"


def test_examples_of_equal_floats_alone_are_equal() -> None:
    dice = np.random.default_rng(0)
    rows = dice.uniform(-1, 1, (6, 40)).astype(np.float32)
    rows[3] = rows[0]
    rows[1, 0], rows[4] = 0.0, rows[1]
    rows[4, 0] = -0.0
    ids = np.asarray(hash_rows(jnp.asarray(rows)))
    assert ids[0] == ids[3]
    assert ids[1] == ids[4]
    assert len(set(ids.tolist())) == 4


def test_a_page_shows_what_lacks_a_view_as_no_input() -> None:
    (batch,) = batches(config(), 1, source=Scenes())
    valid = batch.arrays["depth/valid"]
    shown = seen(config().inputs()["depth"], batch.arrays["depth"], valid)
    assert [(one.src == "", one.text == "lacks it") for one in shown] == [(not has, not has) for has in valid]
    assert all(one.text != "lacks it" for one in seen(config().inputs()["image"], batch.arrays["image"], None))
