"""Distillation from another model: its losses in f64, and embeddings that are stored, found by their keys."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny import tiny_config

import jclip
from jclip import convert, embed, evaluate, info, losses, train
from jclip.config import (
    AffinityDistillation,
    ConfigError,
    Contrastive,
    FeatureDistillation,
    InitFrom,
    MeshConfig,
    Retrieval,
    TextAugment,
    View,
    ZeroShot,
    check,
    make_plan,
)
from jclip.data import SourceError, make_run_loader, open_source
from jclip.data.stored import stored_embeddings
from jclip.facts import between_hosts, changes, make_record
from jclip.init_from import Origin, _renamed
from jclip.models import MultiTower
from jclip.program import make_program
from jclip.runs import load_run
from jclip.sharding import make_mesh, to_global
from jclip.step import make_loss_and_grads
from jclip.tree import flatten


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(za: Any, zb: Any, scale: float, ta: Any, tb: Any, teacher_scale: float) -> tuple[float, tuple[Any, ...]]:
    """The loss in f64, and its gradients in za, zb and the scale, from whole matrices."""
    cosines, n = za @ zb.T, len(za)
    s, t = scale * cosines, teacher_scale * ta @ tb.T
    loss, slope = 0.0, np.zeros((n, n))
    for axis in (0, 1):
        p, q = (np.exp(x - x.max(axis, keepdims=True)) for x in (s, t))
        p, q = (x / x.sum(axis, keepdims=True) for x in (p, q))
        loss += (q * (np.log(q) - np.log(p))).sum() / (2 * n)
        slope += (p - q) / (2 * n)
    return loss, (scale * slope @ zb, scale * slope.T @ za, (slope * cosines).sum())


@pytest.mark.parametrize(("devices", "block"), [(1, 5), (1, 100), (2, 4), (8, 7)])
def test_the_divergence_from_the_teacher_is_that_of_whole_matrices_with_its_gradients(devices: int, block: int) -> None:
    random = np.random.default_rng(0)
    za, zb = (unit(random.normal(size=(16, 6))) for _ in range(2))
    ta, tb = (unit(random.normal(size=(16, 9))) for _ in range(2))
    want, slopes = by_hand(za, zb, 30.0, ta, tb, 90.0)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",)) if devices > 1 else None

    def loss(za: Any, zb: Any, scale: Any, ta: Any, tb: Any) -> Any:
        return losses.affinity(za, zb, scale, ta, tb, 90.0, mesh=mesh, block=block)

    inputs = [jnp.asarray(x, jnp.float32) for x in (za, zb, 30.0, ta, tb)]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))(*inputs)
    assert float(value) == pytest.approx(want, rel=1e-5)
    for have, slope in zip(grads, (*slopes, 0 * ta, 0 * tb), strict=True):
        np.testing.assert_allclose(have, slope, atol=1e-5)


def test_a_student_that_agrees_with_its_teacher_is_at_nought() -> None:
    z = [jnp.asarray(unit(np.random.default_rng(seed).normal(size=(12, 6))), jnp.float32) for seed in (1, 2)]
    value, grads = jax.value_and_grad(lambda za, zb: losses.affinity(za, zb, jnp.float32(20.0), *z, 20.0, block=5), (0, 1))(*z)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert max(float(jnp.abs(g).max()) for g in grads) < 1e-6


def test_the_memory_of_the_divergence_is_linear_in_the_batch() -> None:
    """Blocks of 8, of which there are many: what is kept of each would be seen."""
    sizes = []
    for batch in (4096, 16384):
        z = [jax.ShapeDtypeStruct((batch, 64), jnp.float32)] * 4

        def loss(za: Any, zb: Any, ta: Any, tb: Any) -> Any:
            return losses.affinity(za, zb, jnp.float32(20.0), ta, tb, 50.0, block=8)

        sizes.append(jax.jit(jax.grad(loss, (0, 1))).lower(*z).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 4.02 * sizes[0]


def folder(path: Path, keys: list[str], embeddings: Any) -> Path:
    path.mkdir(exist_ok=True)
    np.save(path / "image.npy", np.asarray(embeddings, np.float32))
    (path / "keys.jsonl").write_text("".join(json.dumps(key) + "\n" for key in keys))
    return path


def stored_config(path: Path, size: int) -> Any:
    return tiny_config(
        views={"image@teacher": View("image", stored=str(path), stored_size=size)},
        objectives={"image_text": Contrastive(), "teacher": FeatureDistillation()},
    )


def test_a_batch_has_the_embeddings_that_embed_has_written_of_its_examples(tmp_path: Path) -> None:
    source = tiny_config().data.source
    embed.main("ViT-tiny-test", source, tmp_path / "z", towers=("image",))
    config = stored_config(tmp_path / "z", 16)
    written = np.load(tmp_path / "z" / "image.npy")
    assert written.shape == (200, 16)
    with make_run_loader(tiny_config()) as plain, make_run_loader(config) as loader:
        before, batch = next(plain), next(loader)
    for row, key in enumerate(batch.keys):
        np.testing.assert_array_equal(batch.arrays["image@teacher"][row], written[int(key.rpartition(":")[2])])
    np.testing.assert_array_equal(batch.arrays["image"], before.arrays["image"])


def test_examples_without_an_embedding_of_their_own_give_way_and_are_reported(tmp_path: Path) -> None:
    keys = [f"shapes:train:{i}" for i in range(200)]
    z = np.random.default_rng(0).normal(size=(200, 4))
    z[100:150] = np.nan
    path = folder(tmp_path / "z", [*keys[:150], *keys[:50]], z)
    with make_run_loader(stored_config(path, 4)) as loader:
        batch = next(loader)
    assert {50 <= int(key.rpartition(":")[2]) < 100 for key in batch.keys} == {True}
    told = "\n".join(batch.problems)
    assert f"{path} has several embeddings of this key" in told
    assert f"{path} has no embedding of this key" in told
    assert f"its embedding in {path} is not finite" in told
    np.testing.assert_array_equal(
        batch.arrays["image@teacher"], [z[int(key.rpartition(":")[2])].astype(np.float32) for key in batch.keys]
    )


def test_a_run_knows_the_embeddings_and_synonyms_that_it_was_trained_on(tmp_path: Path) -> None:
    keys = [f"shapes:train:{i}" for i in range(200)]
    path, words = folder(tmp_path / "z", keys, np.ones((200, 4))), tmp_path / "synonyms.txt"
    words.write_text("circle, disc")
    config = stored_config(path, 4)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, text_augment=TextAugment(0.1, str(words))))
    source, plan = open_source(config.data.source), make_plan(config, 200)
    before = make_record(config, source, plan)
    assert before["files"].keys() == {str(path), str(words)}
    words.write_text("circle, ring")
    folder(path, keys, 2 * np.ones((200, 4)))
    now = make_record(config, source, plan)
    said = changes(before, now, 4, (0.1, 0.1))
    assert said == [
        f"{name} holds other than it did: from here on it is trained on that" for name in sorted((str(path), str(words)))
    ]
    assert changes(before, before, 4, (0.1, 0.1)) == []
    assert any(str(words) in line for line in between_hosts(["a", "b"], [before, now]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "image.npy").unlink(), r"image\.npy is not there; `jclip embed` writes it, with --out"),
        (lambda path: (path / "keys.jsonl").unlink(), r"keys\.jsonl is not there"),
        (lambda path: (path / "image.npy").write_bytes(b"no array"), r"does not hold what `jclip embed` writes"),
        (
            lambda path: (path / "keys.jsonl").write_text('"a"\n'),
            r"do not belong together: .*float32\[3, 4\] and 1 keys",
        ),
        (
            lambda path: np.save(path / "image.npy", np.zeros((3, 5), np.float32)),
            r"of size 5; let the view's stored_size",
        ),
        (lambda path: np.save(path / "image.npy", np.zeros((3, 4))), r"do not belong together: .*float64"),
    ],
)
def test_a_folder_that_is_not_of_embeddings_is_refused_before_the_first_batch(damage: Any, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "z", ["a", "b", "c"], np.ones((3, 4)))
    stored_embeddings(str(folder(tmp_path / "sound", ["a", "b", "c"], np.ones((3, 4)))), "image", 4)
    damage(path)
    with pytest.raises(SourceError, match=message):
        make_run_loader(stored_config(path, 4))


LOCKED = r"teacher_(image|text)(_projection)?/.*"
PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "duration": "2", "optim.warmup": "1"}


def student_config(teacher: Path) -> Any:
    """A smaller model beside the towers of a run, which are loaded under other names and not trained."""
    config = tiny_config(**PLAIN)
    towers = config.model.towers
    small = {name: dataclasses.replace(tower, depth=1) for name, tower in towers.items()}
    both = {**small, **{f"teacher_{name}": tower for name, tower in towers.items()}}
    objectives = {"image": FeatureDistillation(), "pairs": AffinityDistillation()}
    fields = {f"teacher_{name}": name for name in towers}
    evals = {
        "seen": ZeroShot("shapes:test?size=16&length=50", templates=("a {}",)),
        "other": Retrieval("shapes:val?size=16&length=20"),
    }
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, towers=both),
        objectives={f"like_{name}": objective for name, objective in objectives.items()},
        views={f"{name}@teacher": View(f"teacher_{name}", name, same_as=name) for name in towers},
        evals={**evals, "teacher": Retrieval("shapes:val?size=16&length=20", a="teacher_image", b="teacher_text", fields=fields)},
        optim=dataclasses.replace(config.optim, lr_rules=((LOCKED, 0.0), (".*", 1.0))),
        init_from=InitFrom(
            str(teacher), rules=((LOCKED, "load"), (".*", "scratch")), towers={"teacher_image": "image", "teacher_text": "text"}
        ),
    )


def teacher_batch(config: Any) -> dict[str, np.ndarray]:
    with make_run_loader(config) as loader:
        return next(loader).arrays


@pytest.mark.slow
def test_a_teacher_sees_as_in_an_evaluation_and_the_name_of_its_tower_counts(tmp_path: Path) -> None:
    """Its patches are not dropped, nor is a tower of the weights taken that happens to bear its name."""
    config = student_config(tmp_path)
    assert config.model.towers["teacher_image"].patch_dropout == 0.25
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=2)
    params, batch = program.init().params, teacher_batch(config)
    loss = jax.jit(make_loss_and_grads(config, mesh))
    metrics = [loss(params, to_global(batch, mesh), jax.random.key(seed))[1] for seed in (1, 2)]
    sight = jax.jit(MultiTower(config.model, views={"image@teacher": "teacher_image"}).apply)
    teacher = np.asarray(sight({"params": params}, {"image@teacher": batch["image@teacher"]})["image@teacher"].z, np.float64)
    for seed, found in zip((1, 2), metrics, strict=True):
        towers = MultiTower(config.model)
        key = {"dropout": jax.random.key(seed)}
        student = towers.apply({"params": params}, {"image": batch["image"]}, rows=np.arange(16), rngs=key)
        want = 2 - 2 * (np.asarray(student["image"].z, np.float64) * teacher).sum(1).mean()
        assert found["like_image/loss"] == pytest.approx(want, rel=1e-5)
    assert metrics[0]["like_image/loss"] != metrics[1]["like_image/loss"]

    model = dataclasses.replace(config.model, towers={**config.model.towers})
    shapes = {"image/x": (1,), "image_projection/x": (2,), "teacher_image/x": (3,), "text/x": (4,)}
    source = Origin("w", model, shapes, lambda mesh: shapes.items())
    renamed = _renamed(source, {"teacher_image": "image"})
    assert list(renamed.read(mesh)) == [
        ("image/x", (1,)),
        ("teacher_image/x", (1,)),
        ("image_projection/x", (2,)),
        ("teacher_image_projection/x", (2,)),
        ("text/x", (4,)),
    ]


@pytest.mark.slow
def test_a_run_teaches_another_one_that_is_then_a_model_of_its_own(tmp_path: Path) -> None:
    train.main(tiny_config(**PLAIN), tmp_path / "teacher")
    config = student_config(tmp_path / "teacher")
    train.main(config, tmp_path / "student")
    teacher, after = (flatten(jax.device_get(load_run(tmp_path / run, heads=True)[2])) for run in ("teacher", "student"))
    batch = teacher_batch(config)
    np.testing.assert_array_equal(batch["image@teacher"], batch["image"])
    mine = {path for path in after if path.startswith("teacher_")}
    assert mine == {f"teacher_{path}" for path in teacher if not path.startswith("image_text/")}
    for path in mine:
        np.testing.assert_array_equal(after[path], teacher[path.removeprefix("teacher_")], err_msg=path)
    read, _, params, _ = load_run(tmp_path / "student")
    assert set(read.model.towers) == {"image", "text"}
    assert {path.partition("/")[0] for path in flatten(params)} == {"image", "image_projection", "text", "text_projection"}
    assert set(evaluate.main(tmp_path / "student")) == {
        key for key in evaluate.main(tmp_path / "student") if "teacher" not in key
    }
    assert set(info.find_model(tmp_path / "student").towers) == {"image", "text"}
    convert.main(tmp_path / "student", tmp_path / "model")
    images = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8))
    np.testing.assert_array_equal(*(jclip.load(tmp_path / name).embed_image(images) for name in ("student", "model")))

    loose = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr_rules=((".*", 1.0),)))
    with pytest.raises(ConfigError, match=r"tower teacher_image is a teacher, .* let optim\.lr_rules begin with"):
        train.main(loose, tmp_path / "loose")
    init = dataclasses.replace(config.init_from, towers={"teacher_image": "sound"})
    with pytest.raises(ConfigError, match=r"init_from\.towers: .* has no tower sound; it has image, text"):
        train.main(dataclasses.replace(config, init_from=init), tmp_path / "unknown")


@pytest.mark.parametrize(
    ("view", "objective", "message"),
    [
        (
            View("image", stored="x", size=32),
            FeatureDistillation(),
            r"image@teacher\.stored: .* leave the other fields out",
        ),
        (View("image", stored="x"), Contrastive("image@teacher"), r"objectives\.x needs the input of 'image@teacher'"),
        (View("image", stored="x"), FeatureDistillation("image@teacher"), r"student and teacher are both 'image@teacher'"),
        (View("image", stored="x"), AffinityDistillation(teacher_b="text"), r"objectives\.x: .*; use four views"),
    ],
)
def test_what_cannot_be_distilled_is_an_error(view: View, objective: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(views={"image@teacher": view}, objectives={"x": objective, "y": Contrastive()}))
