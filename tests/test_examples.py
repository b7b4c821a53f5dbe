"""The programs of examples/: each runs and does what it says, and a type checker knows what every call of the surface returns."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jclip.tree import flatten

ROOT = Path(__file__).parents[1]

CALLS = (
    'jclip.create_model("ViT-B-32")',
    "clip.init(key)",
    'clip.apply(params, {"image": pixels})',
    "clip.encode_image(params, pixels)",
    "clip.encode_text(params, ids)",
    "clip.logits(params, z, z)",
    "clip.logit_scale(params)",
    "clip.normalise(pixels)",
    'clip.preprocess("picture.jpg")',
    'clip.tokenize("a cat")',
    'jclip.load("ViT-B-32")',
    'jclip.load("ViT-B-32").params',
    'jclip.load("ViT-B-32").embed_image("picture.jpg")',
    'jclip.load("ViT-B-32").embed_text("a cat")',
    'jclip.load("ViT-B-32").caption("picture.jpg")',
    'jclip.open_source("shapes:test")',
    'jclip.make_loader("shapes:test", {}, batch_size=8)',
    "jclip.list_models()",
    "jclip.losses.contrastive(z, z, jnp.float32(1))",
)
"""Expressions that a user evaluates."""

BEFORE = """
import jax
import jax.numpy as jnp
import numpy as np
import jclip
clip = jclip.create_model("ViT-B-32")
key = jax.random.key(0)
params = clip.init(key)
pixels = np.zeros((1, 224, 224, 3), np.uint8)
ids = clip.tokenize("a cat")
z = jnp.zeros((1, 512))
"""


def main_of(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


@pytest.mark.slow
def test_a_loop_of_ones_own_learns() -> None:
    assert main_of("train_loop")() < np.log(64) - 0.3


@pytest.mark.slow
def test_one_tower_is_fine_tuned_and_the_other_stays() -> None:
    before, after = (flatten(params) for params in main_of("finetune_tower")(steps=3))
    assert before.keys() == after.keys()
    for path in before:
        same = path.startswith(("text", "image_text"))
        assert np.array_equal(before[path], after[path]) == same or path.endswith("attn/k/bias"), path  # which softmax ignores


@pytest.mark.slow
def test_features_and_answers_are_there() -> None:
    heat = main_of("features")()
    assert heat.shape == (16, 16)
    assert np.asarray(heat).any()
    assert 0 <= main_of("zero_shot")(images=8) <= 1


@pytest.mark.slow
def test_a_type_checker_knows_what_every_call_returns(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEFORE + "".join(f"reveal_type({call})\n" for call in CALLS))
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    for call, known in zip(CALLS, types, strict=True):
        assert "Any" not in known.replace("ndarray[tuple[Any, ...], ", ""), f"{call}: {known}"  # a shape that is not known
