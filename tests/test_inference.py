"""`jclip.load` and what it returns."""

import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jclip
from jclip import train
from jclip.config import ConfigError
from jclip.data import BadExample
from jclip.inference import Encoder
from jclip.weights import WeightsError


@pytest.fixture(scope="module")
def model() -> Encoder:
    loaded: Encoder = jclip.load("ViT-tiny-test")
    return loaded


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 20, 3)).astype(np.uint8))


def test_paths_bytes_arrays_and_images_give_the_same_vectors(model: Encoder, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "p.png")
    as_image = model.embed_image(picture(0))
    assert as_image.shape == (1, 16)
    assert as_image.dtype == np.float32
    others = [tmp_path / "p.png", str(tmp_path / "p.png"), (tmp_path / "p.png").read_bytes(), np.asarray(picture(0))]
    for other in others:
        np.testing.assert_array_equal(model.embed_image(other), as_image)
    np.testing.assert_allclose(model.embed_image(others), np.repeat(as_image, 4, axis=0), atol=1e-6)


def test_rows_are_unit_vectors_that_do_not_depend_on_the_batch(model: Encoder) -> None:
    images, texts = [picture(i) for i in range(11)], [f"a picture of number {i}" for i in range(11)]
    for embed, values in ((model.embed_image, images), (model.embed_text, texts)):
        whole = embed(values, batch_size=8)
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(embed(values, batch_size=3), whole, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([embed(v) for v in values]), whole, atol=1e-6)
        assert embed([]).shape == (0, 16)


def test_a_workdir_loads_its_last_checkpoint_or_the_one_asked_for(tmp_path: Path) -> None:
    train.main(tiny_config(**{"evals": {}, "checkpoint.best": None}), tmp_path)
    last, earlier = jclip.load(tmp_path), jclip.load(tmp_path, step=8)
    assert last.config == tiny_config().model
    np.testing.assert_array_equal(last.embed_text("a star"), jclip.load(tmp_path, step=12).embed_text("a star"))
    assert not np.allclose(last.embed_text("a star"), earlier.embed_text("a star"))
    larger = jclip.load(tmp_path, image_size=32)
    assert larger.params["image"]["pos_embed"].shape == (1 + 4**2, 32)
    assert larger.embed_image(picture(0)).shape == (1, 16)
    np.testing.assert_array_equal(larger.embed_text("a star"), last.embed_text("a star"))


def test_what_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a path nor an architecture; architectures: .*ViT-B-32"):
        jclip.load("ViT-B-31")
    with pytest.raises(WeightsError, match="no folder of weights"):
        jclip.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:laion/CLIP-ViT-B-32", "the address of a repository is hf://laion/CLIP-ViT-B-32"),
        ("https://huggingface.co/openai/clip-vit-base-patch32/tree/main", "is hf://openai/clip-vit-base-patch32"),
        ("openai/clip-vit-base-patch32", "there is no folder openai; .* is hf://openai/clip-vit-base-patch32"),
        ("runs/quikstart", "there is no such file or folder; runs has quickstart$"),
        ("az://bucket/weights", "only hf://, and runs at s3:// and gs://, are fetched; mount the bucket or copy the files"),
        ("local-dir:weights", "a folder has no scheme: weights"),
        ("ViT-B/32", "the architecture is ViT-B-32, which has random weights"),
        ("nowhere/a.bin", "there is no such file; there is no folder nowhere"),
        ("a.pt", r"there is no such file; weight files in \.: b\.safetensors$"),
    ],
)
def test_names_of_other_libraries_are_answered_with_those_here(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("b.safetensors", "readme.md"):
        (tmp_path / file).touch()
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for function in (jclip.load, jclip.find_model):
        with pytest.raises(WeightsError, match=f"^{re.escape(name)}: .*{message}"):
            function(name)


def test_a_tag_is_no_weights_and_a_misspelt_architecture_has_its_nearest(caplog: pytest.LogCaptureFixture) -> None:
    for arguments, options in ((("ViT-B-32", "laion2b_s34b_b79k"), {}), (("ViT-B-32",), {"pretrained": "laion2b_s34b_b79k"})):
        with pytest.raises(jclip.ConfigError, match="a tag of open_clip; here its weights are a repository"):
            jclip.load(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"architectures: ViT-B-32, .*list_models"):
        jclip.load("vit_b_32")
    jclip.load("ViT-tiny-test")
    assert "ViT-tiny-test is an architecture: its weights are random" in caplog.text


def test_an_image_that_is_none_is_an_error(model: Encoder) -> None:
    with pytest.raises(jclip.BadExample, match="image cannot be decoded"):
        model.embed_image(b"no image")


def test_the_message_names_the_image_that_is_bad_and_a_batch_of_none_is_refused(model: Encoder, tmp_path: Path) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BadExample, match="input 1: image cannot be decoded"):
        model.embed_image([good, b"bad", good])
    with pytest.raises(BadExample, match=r"input 0 \(.*none.jpg\): file cannot be read"):
        model.embed_image(tmp_path / "none.jpg")
    for batch_size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size {batch_size} must be at least 1"):
            model.embed_image([good], batch_size=batch_size)


def test_an_empty_text_has_an_embedding(model: Encoder) -> None:
    z = model.embed_text(["", "a cat", " "])
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(z[0], z[2], atol=1e-6)


def test_files_are_turned_as_their_exif_data_say(model: Encoder, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = model.embed_image(np.ascontiguousarray(np.rot90(pixels, -1)))
    np.testing.assert_allclose(model.embed_image(tmp_path / "turned.png"), turned, atol=1e-6)
    assert np.abs(model.embed_image(pixels) - turned).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "int32", "float64"])
def test_pixels_that_are_not_bytes_are_refused_unless_they_are_said_to_be_normalised(model: Encoder, dtype: str) -> None:
    from jclip.models import MultiTower

    size = model.config.towers["image"].image_size
    batch = {"image": np.ones((2, size, size, 3), dtype)}
    apply = MultiTower(model.config).apply
    with pytest.raises(ValueError, match="is not uint8, 0 to 255; give these, or floats"):
        apply({"params": model.params}, batch)
    if dtype == "float32":
        z = jax.jit(partial(apply, normalised=True))({"params": model.params}, batch)["image"].z
        assert np.isfinite(z).all()


def test_a_model_with_parameters_is_shown_without_them() -> None:
    assert len(repr(jclip.load("ViT-tiny-test"))) < 6000
