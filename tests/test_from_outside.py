"""What others add without touching the package: a kind of tower with inputs of its own, a source, an evaluation, an objective.

Each part is what its author would write, with public names alone; the run at the end has them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jclip
from jclip import config, evaluate, train
from jclip.config import Config, ConfigError, Data, Evaluation, Family, Model, Optim, TextTower, Tower, check, from_json, to_json
from jclip.data import INPUTS, SCHEMES, Scheme
from jclip.eval import EVALUATORS, Evaluator, Result
from jclip.models import TOWERS, Compute, TowerOutput
from jclip.objectives import OBJECTIVES, Objective, Part


# A tower: clouds of points, seen by a network that does not depend on their order.
@dataclass(frozen=True)
class PointTower(Tower):
    """A network of sets (Qi et al. 2017, PointNet)."""

    points: int = 16
    width: int = 32
    projection: str = "linear"  # type: ignore[assignment]

    def input(self) -> tuple[tuple[int, ...], str]:
        return (self.points, 3), "float32"

    def flops(self) -> int:
        return 2 * self.points * (3 * self.width + self.width**2)

    def output_tokens(self) -> int:
        return self.points


class PointNet(nn.Module):
    config: PointTower
    how: Compute

    @nn.compact
    def __call__(self, points: Array, *, rows: Array | None = None) -> TowerOutput:
        hidden = nn.gelu(nn.Dense(self.config.width, name="first")(points), approximate=False)
        tokens = nn.Dense(self.config.width, name="second")(hidden)
        return TowerOutput(tokens.max(axis=1), tokens, jnp.ones(tokens.shape[:2], bool))


def points_of(tower: PointTower, reading: Any) -> Callable[..., np.ndarray]:
    return lambda value, rng=None: np.asarray(value, np.float32)[: tower.points]


# A source: corners of shapes in space, each with its name.
@dataclass(frozen=True)
class Clouds:
    """Random points on one of four solids."""

    length: int
    seed: int = 0
    classes: tuple[str, ...] = ("cube", "ball", "line", "plane")
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        points = np.random.default_rng([self.seed, index]).uniform(-1, 1, (16, 3)).astype(np.float32)
        label = index % 4
        if label == 1:
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        points[:, {2: [1, 2], 3: [2]}.get(label, [])] = 0
        return {"key": str(index), "points": points, "text": f"a {self.classes[label]}", "label": label}

    def fingerprint(self) -> str:
        return f"{self.length:016x}{self.seed:016x}"


# An evaluation: how far apart the embeddings of a tower are.
@dataclass(frozen=True)
class Spread(Evaluation):
    """Mean distance of the embeddings of a source from their mean."""

    source: str
    tower: str = "points"
    fields: Mapping[str, str] = field(default_factory=dict)
    every: str = "100%"

    def towers(self) -> tuple[str, ...]:
        return (self.tower,)

    def sources(self) -> Mapping[str, str]:
        return {"source": self.source}


@dataclass(frozen=True)
class SpreadEvaluator(Evaluator):
    config: Spread
    bench: Any

    def run(self, params: Any, *, details: bool = False) -> Result:
        z = self.bench.embed(params, "source", self.config.tower).z
        return Result({"spread": float(np.linalg.norm(z - z.mean(axis=0), axis=1).mean())}, {"examples": len(z)})


# An objective: embeddings of a tower centred on nothing.
@dataclass(frozen=True)
class Centred(Family):
    """The squared length of the mean embedding."""

    view: str = "points"

    def views(self) -> tuple[str, ...]:
        return (self.view,)


class CentredLoss(Objective):
    def __init__(self, name: str, how: Centred, whole: Config, mesh: Any) -> None:
        self.how = how

    def rows(self, params: Any, extra: Any, part: Part) -> tuple[Any, dict[str, Array]]:
        return part.encoded[self.how.view].z, {}

    def batch(self, params: Any, extra: Any, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        return (loss := jnp.sum(rows.mean(axis=0) ** 2)), {"loss": loss}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows, which a package of its own would leave there."""
    monkeypatch.setitem(TOWERS, PointTower, PointNet)
    monkeypatch.setitem(INPUTS, PointTower, points_of)
    monkeypatch.setitem(SCHEMES, "clouds", Scheme(lambda rest: Clouds(int(rest)), "clouds:100"))
    monkeypatch.setitem(EVALUATORS, Spread, SpreadEvaluator)
    monkeypatch.setitem(OBJECTIVES, Centred, CentredLoss)


def recipe() -> Config:
    text = TextTower(context_length=8, width=32, depth=1, heads=2)
    return Config(
        model=Model({"points": PointTower(), "text": text}, embed_dim=16),
        data=Data("clouds:64"),
        optim=Optim(lr=1e-2, warmup="2"),
        objectives={"points_text": config.Contrastive("points", "text"), "centred": Centred(weight=0.1)},
        evals={
            "spread": Spread("clouds:12"),
            "names": config.ZeroShot("clouds:32", templates=("a {}",), image="points"),
        },
        batch_size=16,
        eval_batch_size=16,
        duration="12",
        log_every=4,
    )


def test_all_of_it_is_trained_saved_evaluated_and_loaded(added: None, tmp_path: Path) -> None:
    results = train.main(recipe(), tmp_path / "run")
    assert (results["names/classes"], results["spread/examples"]) == (4, 12)
    assert results["spread/spread"] > 0
    assert evaluate.main(tmp_path / "run") == pytest.approx(results)
    model = jclip.load(tmp_path / "run")
    clouds = [Clouds(4)[i]["points"] for i in range(4)]
    z = model.embed("points", clouds)
    np.testing.assert_allclose(model.encode(model.params, "points", np.stack(clouds)), z, atol=1e-5)
    np.testing.assert_allclose(model.embed("points", [clouds[0][::-1]]), z[:1], atol=1e-5)
    assert from_json(to_json(recipe())) == recipe()


def test_a_source_of_ones_own_is_given_as_it_is(added: None, tmp_path: Path) -> None:
    config = replace(recipe(), data=Data("my clouds"), evals={})
    train.main(config, tmp_path / "given", source=Clouds(64))
    train.main(replace(config, data=Data("clouds:64")), tmp_path / "named")
    given, named = (jclip.load(tmp_path / name).params for name in ("given", "named"))
    jax.tree.map(np.testing.assert_array_equal, given, named)


def test_what_nobody_has_added_is_said(added: None) -> None:
    with pytest.raises(ConfigError, match=r"type 'Cube' is unknown; use one of .*PointTower.*or import first what defines it"):
        from_json({**to_json(PointTower()), "type": "Cube"}, Tower)
    with pytest.raises(ConfigError, match=r"config: evals.spread: there is no tower 'dots'; towers: points, text"):
        check(replace(recipe(), evals={"spread": Spread("clouds:12", "dots")}))
