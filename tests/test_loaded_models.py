"""A model that is loaded, such as one with parameters of the caller's own, wherever a path or a name is taken."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jclip
from jclip import caption, classify, embed, evaluate
from jclip.config import ConfigError, Suite

NAME = "ViT-tiny-test"


@pytest.fixture(scope="module")
def model() -> jclip.Encoder:
    """One that no name leads to: its image tower sees half as much contrast."""
    loaded = jclip.load(NAME)
    image = dict(loaded.params["image"])
    return dataclasses.replace(loaded, params={**loaded.params, "image": jax.tree.map(lambda x: 0.5 * x, image)})


def test_what_is_loaded_is_loaded_as_it_is(model: jclip.Encoder) -> None:
    assert jclip.load(model) is model
    for given in (
        {"step": 0},
        {"step": 3},
        {"image_size": 32},
        {"preprocess": {"mean": (0.0, 0.0, 0.0)}},
        {"seed": 1},
        {"fsdp": 2},
    ):
        with pytest.raises(ConfigError, match="is loaded already"):
            jclip.load(model, **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_embeddings_and_evaluations_are_those_of_the_object(model: jclip.Encoder, tmp_path: Path) -> None:
    source = tiny_config().data.source
    embed.main(model, source, tmp_path / "z")
    embed.main(NAME, source, tmp_path / "named")
    found, named = (np.load(tmp_path / folder / "image.npy") for folder in ("z", "named"))
    images = [jclip.open_source(source)[i]["image"] for i in range(3)]
    np.testing.assert_allclose(found[:3], model.embed_image(images), atol=1e-6)
    assert np.abs(found - named).max() > 1e-3
    with pytest.raises(ConfigError, match="embeddings of another model"):
        embed.main(NAME, source, tmp_path / "z")

    suite = Suite({"seen": tiny_config().evals["seen"]}, batch_size=16)
    values = [evaluate.main(subject, suite=suite, out=tmp_path / f"{i}.json") for i, subject in enumerate((model, NAME))]
    files = [json.loads((tmp_path / f"{i}.json").read_text())["model"] for i in (0, 1)]
    assert [file["name"] for file in files] == ["a loaded model", NAME]
    assert files[0]["weights"] != files[1]["weights"]
    assert values[0].keys() == values[1].keys()
    with pytest.raises(ConfigError, match="a loaded model is no workdir"):
        evaluate.main(model)


def test_pictures_are_classified_and_described_by_it(model: jclip.Encoder, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    names = ("a cat", "a dog")
    (answer,) = classify.main([tmp_path / "a.png"], model, labels=names, templates=("{}",))
    cosines = model.embed_image(tmp_path / "a.png") @ model.embed_text(names).T
    np.testing.assert_allclose([score for _, score in sorted(answer["classes"])], cosines[0], atol=1e-6)
    with pytest.raises(ConfigError, match="caption"):
        caption.main(model, [tmp_path / "a.png"])
