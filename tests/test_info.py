"""`jclip info` says what is so."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from products import multiply_adds
from test_cli import exit_status

import jclip
from jclip.config import architecture
from jclip.info import describe
from jclip.models import MultiTower, example_inputs
from jclip.weights import with_sizes, write_weights


def test_sizes_are_the_published_ones() -> None:
    """Parameters as open_clip counts them; 17.6 G multiply-adds of ViT-B/16 (Touvron et al. 2021, table 5)."""
    facts = {name: describe(architecture(name)) for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")}
    millions = {name: round(model["parameters"] / 1e6, 2) for name, model in facts.items()}
    assert millions == {"ViT-B-32": 151.28, "ViT-B-16": 149.62, "ViT-L-14": 427.62, "ViT-H-14": 986.11}
    assert facts["ViT-B-16"]["towers"]["image"]["gflops"] / 2 == pytest.approx(17.6, rel=0.02)


def test_statistics_of_batch_normalisation_are_no_parameters() -> None:
    """102,007,137 as open_clip counts them, with the logit scale."""
    assert describe(architecture("RN50"))["parameters"] == 102_007_136


SIZES = [("ViT-B-32", None), ("RN50", None), ("ViT-B-16-SigLIP", None), ("ViT-B-32", (96, 64)), ("RN50", (64, 160))]


@pytest.mark.parametrize(("architecture_name", "image_size"), SIZES)
def test_operations_are_those_of_the_traced_towers(architecture_name: str, image_size: tuple[int, int] | None) -> None:
    model = dataclasses.replace(architecture(architecture_name), scan=True)  # a loop computes all tokens
    model = model if image_size is None else with_sizes(model, image_size)
    inputs = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(model, 1).items()}
    params = jax.eval_shape(lambda x: MultiTower(model).init(jax.random.key(0), x), inputs)
    for name, facts in describe(model)["towers"].items():
        traced = jax.make_jaxpr(lambda params, x, name=name: MultiTower(model).apply(params, {name: x})[name].z)(
            params, inputs[name]
        )
        assert 2 * multiply_adds(traced.jaxpr) / 1e9 == pytest.approx(facts["gflops"], rel=1e-3)


def test_names_and_folders_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = jclip.load("ViT-tiny-test")
    write_weights(tmp_path / "w", "jclip", model.config, jax.device_get(model.params))
    for given in ("ViT-tiny-test", str(tmp_path / "w")):
        assert exit_status(["info", given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(describe(architecture("ViT-tiny-test"))))
    assert exit_status(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in jclip.list_models())
    assert exit_status(["info", "ViT-tiny-test"]) == 0
    assert "clip" in capsys.readouterr().out
    assert exit_status(["info", "ViT-B-16-SigLIP"]) == 0  # whose vocabulary is left out
    assert "sentencepiece" in capsys.readouterr().out
    assert exit_status(["info", "ViT-B-31"]) == 1
    assert "ViT-B-32" in capsys.readouterr().err
    assert exit_status(["info", str(tmp_path / "nothing")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_weights_of_another_model_are_not_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = jclip.load("ViT-tiny-test")
    write_weights(tmp_path / "w", "jclip", model.config, jax.device_get(model.params))
    config = tmp_path / "w" / "jclip.json"
    deeper = json.loads(config.read_text())
    deeper["model"]["towers"]["text"]["depth"] += 1
    config.write_text(json.dumps(deeper))
    assert exit_status(["info", str(tmp_path / "w")]) == 1
    assert "do not fit the architecture: " in capsys.readouterr().err


def test_height_and_width_are_distinguished(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["info", "ViT-tiny-test", "--image-size", "24x16"]) == 0
    assert "24 x 16 (height x width)" in capsys.readouterr().out
    assert exit_status(["info", "ViT-tiny-test", "--image-size", "24x16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["towers"]["image"]["image_size"] == [24, 16]
    assert exit_status(["info", "ViT-tiny-test", "--image-size", "24x24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["towers"]["image"]["image_size"] == 24
    for wrong in ("24x", "24x16x3", "-24", "24,16"):
        assert exit_status(["info", "ViT-tiny-test", f"--image-size={wrong}"]) == 2
        assert "neither a side, such as 384, nor height and width, such as 96x64" in capsys.readouterr().err


def test_what_the_package_offers_is_listed() -> None:
    assert {"load", "list_models", "find_model"} <= set(dir(jclip))
