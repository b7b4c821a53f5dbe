"""open_clip's CoCa against numbers that it wrote, and what of it is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from coca_tiny import config, inputs, numbers
from foreign import GOLDEN
from safetensors.numpy import load_file, save_file

from jclip.captioning import Captioner, Search, generate
from jclip.config import replace
from jclip.models import Compute, MultiTower, caption_decoder
from jclip.tree import unflatten
from jclip.weights import Weights, WeightsError, read_weights, write_weights


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "coca.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coca")
    shapes = {name: tuple(shape) for name, shape in told["shapes"].items()}
    save_file(numbers(shapes), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config()}))
    return folder


def test_features_logits_and_captions_are_those_that_open_clip_wrote(folder: Path, told: dict[str, Any]) -> None:
    weights = read_weights(folder)
    params, how = unflatten(dict(weights)), weights.captioners["caption"]
    pixels, ids = inputs()

    @jax.jit
    def run(params: Any) -> Any:
        encoded = MultiTower(weights.model).apply({"params": params}, {"image": pixels, "text": ids}, normalised=True)
        images, text = encoded["image"].output.tokens, encoded["text"].output
        decoder = caption_decoder(how, weights.model, Compute())
        features, vocabulary = decoder.apply({"params": params["caption"]["decoder"]}, text.tokens, images)
        captions = generate(Captioner("caption", how, weights.model), params, images, Search())
        return encoded["image"].z, encoded["text"].z, (features @ vocabulary)[:, :, ::4999], text.mask, captions

    image, text, logits, real, captions = run(params)
    np.testing.assert_allclose(image, told["image"], atol=1e-5)
    np.testing.assert_allclose(text, told["text"], atol=1e-5)
    want = np.array(told["logits"])
    np.testing.assert_allclose(logits[real], want[np.asarray(real)], atol=1e-5 * np.abs(want).max())
    np.testing.assert_array_equal(captions, told["captions"])


@pytest.mark.parametrize("to", ["open_clip", "jclip"])
def test_weights_go_out_and_come_back_bit_by_bit(to: str, folder: Path, tmp_path: Path) -> None:
    weights = read_weights(folder)
    write_weights(tmp_path / "out", to, weights.model, dict(weights), weights.captioners)
    again = read_weights(tmp_path / "out")
    assert (again.model, again.captioners) == (weights.model, weights.captioners)
    ours = dict(weights)
    for path, array in again:
        np.testing.assert_array_equal(array, ours.pop(path), err_msg=path)
    assert not ours
    if to == "open_clip":
        theirs, have = (load_file(place / "open_clip_model.safetensors") for place in (folder, tmp_path / "out"))
        assert theirs.keys() == have.keys()
        assert all(np.array_equal(theirs[name], have[name]) for name in theirs)


def changed(folder: Path, at: Path, section: str, **changes: Any) -> Path:
    made = config()
    made[section] |= changes
    at.mkdir(exist_ok=True)
    (at / "open_clip_config.json").write_text(json.dumps({"model_cfg": made}))
    (at / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    return at


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("multimodal_cfg", {"width": 8}, r"multimodal_cfg\.width is 8, and text_cfg's 16; equal ones are reproduced"),
        ("multimodal_cfg", {"context_length": 8}, r"multimodal_cfg\.context_length is 8, and text_cfg's 9"),
        ("multimodal_cfg", {"qk_norm": True}, r"multimodal_cfg\.qk_norm is True: the option is unknown"),
        ("text_cfg", {"embed_cls": False}, r"with vision_cfg\.attentional_pool and text_cfg\.embed_cls alone"),
        ("vision_cfg", {"attentional_pool": "parallel"}, r"vision_cfg\.attentional_pool is 'parallel'; it must be"),
        ("vision_cfg", {"final_ln_after_pool": True}, r"attentional_pool with pool_type 'tok' or final_ln_after_pool"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, r"text_cfg\.hf_model_name is 'roberta-base' beside a multimodal_cfg"),
    ],
)
def test_a_captioner_of_other_parts_is_refused_by_name(
    section: str, changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        read_weights(changed(folder, tmp_path / "w", section, **changes))


def without(weights: Weights, path: str, value: Any) -> Weights:
    return dataclasses.replace(weights, model=replace(weights.model, path, value))


def test_what_open_clip_has_no_captioner_for_is_not_written(folder: Path, tmp_path: Path) -> None:
    weights = read_weights(folder)
    params = dict(weights)
    for path, value, message in (
        ("towers.text.pool", "cls", "it has that of its published weights, pool='cls_legacy'"),
        ("towers.image.class_token", False, "pools images by queries, of a class token too"),
        ("towers.image.query_width", 8, "has queries and texts of embed_dim 16"),
    ):
        with pytest.raises(WeightsError, match=message):
            write_weights(tmp_path / "x", "open_clip", without(weights, path, value).model, params, weights.captioners)
    with pytest.raises(WeightsError, match="CoCa has one captioner, and this model with towers like it has 0"):
        write_weights(tmp_path / "x", "open_clip", weights.model, params)
    with pytest.raises(WeightsError, match="cannot compute this model"):
        write_weights(tmp_path / "x", "hugging_face", weights.model, params, weights.captioners)
    assert not (tmp_path / "x").exists()


def test_a_longer_text_keeps_the_place_of_its_class_token(folder: Path) -> None:
    weights = read_weights(folder)
    longer = dict(weights.resized(context_length=13))["text/pos_embed"]
    before = dict(weights)["text/pos_embed"]
    assert longer.shape == (14, 16)
    np.testing.assert_array_equal(longer[-1], before[-1])
    np.testing.assert_allclose(longer[0], before[0], atol=1e-6)
