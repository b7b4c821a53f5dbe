"""Adaptation on 1, 2 and 8 devices, in two processes, and of a command that is killed: the same results."""

import dataclasses
import functools
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from adapt_fakes import make_task
from programs import load_program
from test_adaptation import QUICK, protocol, write_pictures
from test_processes import finish_all, two_processes
from test_train import finish, start_command

from jclip import adaptation
from jclip.adapt import fit
from jclip.adapt.contexts import layout, prompt_encoder
from jclip.adapt.data import AdaptData
from jclip.adapt.heads import Features
from jclip.config import Augment, CoCoOp, ConfigError, CoOp, FineTune, LoRA, MeshConfig, PromptSearch, TextTower, Views
from jclip.config.adapt import Method
from jclip.inference import Encoder, load
from jclip.sharding import make_mesh, replicated
from jclip.weights import write_weights

STILL = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
KERNELS = (
    (r"image(_projection)?/.*kernel", 1.0),
    (r".*", 0.0),
)  # the bias of keys has no gradient, which AdamW divides by itself
CACHED: dict[str, Method] = {**QUICK, "prompts": PromptSearch(("a {}.", "the {}.", "a photo of a {}."))}
TOWERS: dict[str, Method] = {
    "coop": CoOp(contexts=2, epochs=2, warmup_lr=0.01, batch_size=4, views=Views(0)),
    "per_class": CoOp(contexts=2, epochs=2, warmup_lr=0.01, batch_size=4, views=Views(0), per_class=True, remat=False),
    "cocoop": CoCoOp(contexts=2, words="", epochs=2, warmup_lr=0.01, batch_size=3, reduction=4, views=Views(0)),
    "lora": LoRA(steps_per_shot=1, batch_size=5, augment=STILL, remat=False),
    "fine_tune": FineTune(epochs=1, batch_size=5, lr=(1e-3, 2e-3), soup="uniform", rules=KERNELS, augment=STILL, remat=False),
}
RECIPE = """
from jclip.config import Adapt, CoCoOp, CoOp, FineTune, LoRA, TipAdapterF, Views

STILL = Views(0)


def get_adapt() -> Adapt:
    methods = {
        "tip_f": TipAdapterF(steps=(5, 5), epochs=2, views=STILL, training_views=Views(2)),
        "coop": CoOp(contexts=2, epochs=2, views=STILL),
        "cocoop": CoCoOp(contexts=2, words="", epochs=2, batch_size=3, views=STILL),
        "lora": LoRA(steps_per_shot=1),
        "fine_tune": FineTune(epochs=1),
    }
    return Adapt(methods=methods, seeds=1)
"""


@functools.cache
def encoder_on(devices: int) -> Encoder:
    """The tiny model, whose features are made to differ, on so many devices."""
    encoder = load("ViT-tiny-test")
    image = encoder.params["image"]
    image = {**image, "patch_embed": {**image["patch_embed"], "kernel": 20 * image["patch_embed"]["kernel"]}}
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    params = jax.device_put({**encoder.params, "image": image}, replicated(mesh))
    return dataclasses.replace(encoder, mesh=mesh, params=params)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, {"train": 3, "val": 3, "test": 7})
    return root


@functools.cache
def data_on(devices: int, root: Path) -> AdaptData:
    config = protocol(root, methods={**CACHED, **TOWERS}, shots=(2,), seeds=1)
    return adaptation.make_data(config, encoder_on(devices), None, None)


MARKS = {name: pytest.mark.exhaustive if name in ("per_class", "cocoop") else pytest.mark.slow for name in TOWERS}


@pytest.mark.parametrize("name", [*CACHED, *(pytest.param(name, marks=mark) for name, mark in MARKS.items())])
def test_a_method_gives_the_same_on_every_number_of_devices(name: str, pictures: Path) -> None:
    """Three classes and 21 pictures of the test are no multiple of 2 or 8 devices."""
    method = {**CACHED, **TOWERS}[name]
    found = []
    for devices in (1, 2, 8):
        data = data_on(devices, pictures)
        task = data.task(2, 0)[0]
        assert task.mesh.size == devices
        fitted = fit(method, task)
        found.append((fitted, adaptation._measure(fitted, data), adaptation._selected(fitted, task)))
    (one, *accuracies), *others = found
    for fitted, *others_accuracies in others:
        assert others_accuracies == accuracies
        assert fitted.choice == one.choice
        for part in ("changed", "arrays"):
            _assert_same(getattr(fitted, part), getattr(one, part))
        _assert_same(fitted.head.arrays, one.head.arrays)


def _assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(found[path], array, atol=2e-5, err_msg=path)


def test_embeddings_are_the_same_on_every_number_of_devices_and_tell_pictures_apart(pictures: Path) -> None:
    one, *others = (data_on(devices, pictures) for devices in (1, 2, 8))
    for other in others:
        np.testing.assert_allclose(other.test.features.z, one.test.features.z, atol=2e-6)
        np.testing.assert_allclose(other.classifier, one.classifier, atol=2e-6)
    assert np.ptp(one.test.features.z, axis=0).max() > 0.05


def command(root: Path, out: Path, *more: str) -> tuple[str, ...]:
    places = [word for role in ("source", "val", "test") for word in (f"--{role}", str(root / role.replace("source", "train")))]
    return ("adapt", str(root / "weights"), "--recipe", str(root / "recipe.py"), *places, "--out", str(out), *more)


@pytest.fixture(scope="module")
def prepared(pictures: Path) -> Path:
    encoder = encoder_on(1)
    write_weights(pictures / "weights", "jclip", encoder.config, encoder.params)
    (pictures / "recipe.py").write_text(RECIPE)
    return pictures


def cells(out: Path) -> dict[str, Any]:
    """Rows of results.json, without the seconds."""
    try:
        rows = json.loads((out / "results.json").read_text())["cells"]
    except FileNotFoundError:
        return {}
    return {key: {name: value for name, value in row.items() if name != "seconds"} for key, row in rows.items()}


def models(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/shots-*/seed-*/adapted.*"))}


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(("tip_f", "coop"), marks=pytest.mark.slow),
        pytest.param(("cocoop", "lora", "fine_tune"), marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_adapt_as_one_and_agree_on_what_is_due(methods: tuple[str, ...], prepared: Path, tmp_path: Path) -> None:
    few, last = ("--method", *methods, "--shots", "2", "--cache"), methods[-1]
    finish(start_command(*command(prepared, tmp_path / "one", *few, str(tmp_path / "cache-one")), devices=2))
    two = [command(prepared, tmp_path / out, *few, str(tmp_path / "cache-two")) for out in ("two", "disk-of-another-host")]
    said, other = (err for _, err in finish_all(_start_two(two)))
    assert said.count("2 shots, seed 0 (") == len(methods)
    assert "2 shots, seed 0 (" not in other
    assert cells(tmp_path / "two") == cells(tmp_path / "one")
    first = models(tmp_path / "two")
    assert len(first) == 2 * len(methods)
    (tmp_path / "two" / last / "shots-2/seed-0/adapted.json").unlink()
    said, _ = (err for _, err in finish_all(_start_two(two)))
    assert f"{last}, 2 shots, seed 0 ({len(methods)} of {len(methods)})" in said
    assert said.count("2 shots, seed 0 (") == 1  # the second process, which sees no results, does as the first
    assert models(tmp_path / "two") == first
    assert not list((tmp_path / "disk-of-another-host").iterdir())


def _start_two(commands: list[tuple[str, ...]]) -> list[subprocess.Popen[str]]:
    return [start_command(*own, devices=1, **variables) for own, variables in zip(commands, two_processes(), strict=True)]


@pytest.mark.slow
def test_a_killed_command_does_again_only_what_was_not_finished_and_ends_the_same_to_the_last_bit(
    prepared: Path, tmp_path: Path
) -> None:
    shots = ("--method", "tip_f", "coop", "--shots", "1", "2", "--no-cache")
    finish(start_command(*command(prepared, tmp_path / "whole", *shots), devices=2))
    process = start_command(*command(prepared, tmp_path / "killed", *shots), devices=2)
    done = _killed_in_a_cell(process, tmp_path / "killed")
    assert 0 < len(done) < 4
    times = {key: (tmp_path / "killed" / key / "adapted.json").stat().st_mtime_ns for key in done}
    _, said = finish(start_command(*command(prepared, tmp_path / "killed", *shots), devices=2))
    assert said.count(" of 4) ...") == 4 - len(done)
    assert {key: (tmp_path / "killed" / key / "adapted.json").stat().st_mtime_ns for key in done} == times
    assert cells(tmp_path / "killed") == cells(tmp_path / "whole")
    assert models(tmp_path / "killed") == models(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*/*/.*"))  # no draft is left


def _killed_in_a_cell(process: subprocess.Popen[str], out: Path) -> list[str]:
    """Kills a command that has finished a cell; those that it has finished."""
    until = time.monotonic() + 240
    while not cells(out) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return list(cells(out))


def test_parameters_that_no_process_has_whole_are_refused(pictures: Path) -> None:
    class Elsewhere:
        is_fully_addressable = is_fully_replicated = False

    config = protocol(pictures, shots=(2,), seeds=1)
    strange = dataclasses.replace(encoder_on(1), params={"image": {"kernel": Elsewhere()}})
    with pytest.raises(ConfigError, match=r"sharded over several processes.*`jclip convert`"):
        adaptation.make_data(config, strange, None, None)


@pytest.mark.slow
def test_a_thousand_classes_of_vit_b_32_fit_a_device_and_an_eighth_of_them_is_on_each_of_eight() -> None:
    """CoOp's epoch, compiled from shapes: what a block keeps of 1,000 prompts of 22 tokens, and the activations of one block."""
    memory = load_program("bench_adapt").coop_memory
    one, eight, whole = (memory("ViT-B-32", 1000, n, remat=remat)[1] for n, remat in ((1, True), (8, True), (1, False)))
    kept = 12 * 1000 * 22 * 512 * 4
    inside = 1000 * 22 * 512 * 4 * 16  # two layers four times as wide, with their gradients
    assert kept < one < kept + 1.5 * inside < 2 * 2**30
    assert eight < one / 5
    assert whole > 4 * one


@pytest.mark.slow
def test_a_thousand_classes_learn_contexts_on_eight_devices() -> None:
    names = tuple(str(i) for i in range(1000))  # up to three tokens
    encoder, rng = encoder_on(8), np.random.default_rng(0)
    z = rng.normal(size=(1000, 16)).astype(np.float32)
    images = Features(z / np.linalg.norm(z, axis=1, keepdims=True), np.ones(1000, np.float32))
    task = make_task()
    encode = dataclasses.replace(task.encode, views=lambda *_: images.take(None))
    own = {"model": encoder.config, "params": encoder.params, "mesh": encoder.mesh, "images": images, "encode": encode}
    task = dataclasses.replace(task, names=names, shots=1, labels=np.arange(1000), **own)
    method = CoOp(contexts=2, epochs=1, warmup_lr=1.0, batch_size=250)
    found = fit(method, task)
    assert found.head.arrays["weights"].shape == (1000, 16)
    assert len({row.tobytes() for row in found.head.arrays["weights"]}) == 1000
    few = dataclasses.replace(task, names=names[:7])
    alone = jax.jit(prompt_encoder(encoder.config, encoder_on(1).mesh, "text", remat=False))
    tower = encoder.config.towers["text"]
    assert isinstance(tower, TextTower)
    made = layout(tower, few.names, 2, "", "end")
    expected = alone(encoder_on(1).params, found.arrays["contexts"], made.arrays())
    np.testing.assert_allclose(found.head.arrays["weights"][:7], expected, atol=2e-5)
