"""CoCa beside open_clip's own, in the same process: features, logits, captions, gradients of nothing lost on the way back."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from coca_tiny import START, config, inputs, numbers
from peers import peer
from safetensors.numpy import save_file

from jclip.captioning import Captioner, Search, generate
from jclip.config import architecture, replace
from jclip.models import Compute, MultiTower, caption_decoder
from jclip.tree import unflatten
from jclip.weights import WeightsError, read_weights, write_weights
from jclip.weights.open_clip import named_captioners, read_captioners, read_model
from jclip.weights.same import require_same

pytestmark = pytest.mark.parity
open_clip, torch = peer("open_clip"), peer("torch")


def theirs_of(made: dict[str, Any]) -> Any:
    model = open_clip.coca_model.CoCa(**{key: value for key, value in made.items() if key != "custom_text"}).eval()
    state = numbers({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()})
    return model, state


def image_features(theirs: Any, pixels: np.ndarray) -> tuple[Any, Any]:
    latent, tokens = theirs._encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    return latent, tokens


@pytest.mark.parametrize("mask", ["published", "corrected"])
@pytest.mark.parametrize("vision_width", [24, 16])
def test_features_logits_and_captions_are_those_of_open_clip(vision_width: int, mask: str, tmp_path: Path) -> None:
    made = config(vision_width)
    theirs, state = theirs_of(made)
    theirs.text.correct_cls_mask = mask == "corrected"
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": made}))
    weights = read_weights(tmp_path)
    params, how = unflatten(dict(weights)), weights.captioners["caption"]
    model = weights.model
    if mask == "corrected":
        model = replace(model, "towers.text.pool", "cls")
    pixels, ids = inputs()
    with torch.no_grad():
        out = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long(), output_labels=False)
        # Its `generate` needs transformers below 5; greedy it asks for the likeliest token after all so far, as here.
        told = torch.full((3, 1), START)
        for _ in range(8):
            logits = theirs(None, told, *image_features(theirs, pixels), output_labels=False)["logits"][:, -1]
            told = torch.cat([told, logits.argmax(dim=1, keepdim=True)], dim=1)
    with jax.default_matmul_precision("highest"):
        encoded = MultiTower(model).apply({"params": params}, {"image": pixels, "text": ids}, normalised=True)
        images = encoded["image"].output.tokens
        decoder = caption_decoder(how, model, Compute())
        features, vocabulary = decoder.apply({"params": params["caption"]["decoder"]}, encoded["text"].output.tokens, images)
        captions = np.asarray(jax.jit(lambda p, x: generate(Captioner("caption", how, model), p, x, Search()))(params, images))
    np.testing.assert_allclose(encoded["image"].z, out["image_features"].numpy(), atol=1e-5)
    np.testing.assert_allclose(encoded["text"].z, out["text_features"].numpy(), atol=1e-5)
    logits, real = out["logits"].numpy(), np.asarray(encoded["text"].output.mask)
    have = np.asarray(features @ vocabulary)
    np.testing.assert_allclose(have[real], logits[real], atol=1e-5 * np.abs(logits).max())
    np.testing.assert_array_equal(captions, told.numpy())
    assert len({tuple(row) for row in captions.tolist()}) > 1


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    for width in (24, 16):
        made = config(width)
        _, state = theirs_of(made)
        folder = tmp_path / str(width)
        folder.mkdir()
        save_file(state, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": made}))
        weights = read_weights(folder)
        write_weights(folder / "back", "open_clip", weights.model, dict(weights), weights.captioners)
        written = json.loads((folder / "back" / "open_clip_config.json").read_text())["model_cfg"]
        again = open_clip.coca_model.CoCa(**{key: value for key, value in written.items() if key != "custom_text"})
        open_clip.load_checkpoint(again, str(folder / "back" / "open_clip_model.safetensors"), strict=True)
        for key, value in again.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_an_architecture_of_that_name_is_the_same(name: str, tmp_path: Path) -> None:
    made = json.loads((Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").read_text())
    theirs, _ = read_model(tmp_path, {"model_cfg": made})
    require_same(name, architecture(name), theirs)
    how, text = read_captioners(tmp_path, {"model_cfg": made})["caption"], theirs.towers["text"]
    assert (how.depth, how.heads) == (text.depth, text.heads)  # as None says
    assert named_captioners(name).keys() == {"caption"}


@pytest.mark.parametrize("name", ["coca_roberta-ViT-B-32", "coca_base"])
def test_captioners_of_other_parts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    made = json.loads((Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": made}))
    save_file({"visual.proj": np.zeros(1, np.float32)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=r"text_cfg\.hf_|vision_cfg\.attentional_pool"):
        read_weights(tmp_path)
