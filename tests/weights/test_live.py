"""The towers beside open_clip's own, in the same process: every native configuration, its depth cut to two."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jclip.config import VisionTower
from jclip.models import MultiTower
from jclip.tree import unflatten
from jclip.weights import WeightsError, read_weights, write_weights

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

CONFIGS = sorted(Path(open_clip.__file__).parent.glob("model_configs/*.json"))


def native_vit(config: dict[str, Any]) -> bool:
    """Whether both towers are open_clip's own transformers, and it is no captioner."""
    foreign = {"timm_model_name", "hf_model_name"} & (config["vision_cfg"].keys() | config["text_cfg"].keys())
    return not foreign and "multimodal_cfg" not in config and isinstance(config["vision_cfg"]["layers"], int)


NATIVE = {path.stem: config for path in CONFIGS if native_vit(config := json.loads(path.read_text()))}
REFUSED = ("CLIPA", "worldwide", "ViT-M-16-alt")
"""What is not reproduced yet, and must be refused: other tokenizers and poolings, and layer scale."""


@pytest.mark.parametrize("name", NATIVE)
def test_features_and_logits_are_those_of_open_clip(name: str, tmp_path: Path) -> None:
    config = NATIVE[name]
    config = {**config, **{part: {**config[part], "layers": 2} for part in ("vision_cfg", "text_cfg")}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    theirs = kind(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    if any(part in name for part in REFUSED):
        with pytest.raises(WeightsError):
            read_weights(tmp_path)
        return
    weights = read_weights(tmp_path)
    params = unflatten(dict(weights))

    tower = weights.model.towers["image"]
    assert isinstance(tower, VisionTower)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, tower.image_size, tower.image_size, 3)).astype(np.float32)
    length = config["text_cfg"].get("context_length", 77)
    ids = rng.integers(1, 49406, (3, length)).astype(np.int32)
    for row, end in zip(ids, (length - 1, 5, 1), strict=True):
        row[0], row[end], row[end + 1 :] = 49406, 49407, 0
    with torch.no_grad():
        image = theirs.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
        text = theirs.encode_text(torch.from_numpy(ids).long()).numpy()
        logits = theirs.get_logits(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long())[0]
    with jax.default_matmul_precision("highest"):
        ours = MultiTower(weights.model).apply({"params": params}, {"image": pixels, "text": ids})
    for tower_name, features in (("image", image), ("text", text)):
        raw = np.asarray(ours[tower_name].output.pooled) @ params[f"{tower_name}_projection"]["kernel"]
        np.testing.assert_allclose(raw, features, atol=1e-5 * max(1, np.abs(features).max()))
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        np.testing.assert_allclose(ours[tower_name].z, unit, atol=1e-5)
    scale = np.exp(params["image_text"]["logit_scale"])
    np.testing.assert_allclose(scale * np.asarray(ours["image"].z) @ np.asarray(ours["text"].z).T, logits.numpy(), atol=1e-4)

    write_weights(tmp_path / "back", "open_clip", weights.model, params)
    again = kind(**json.loads((tmp_path / "back" / "open_clip_config.json").read_text())["model_cfg"])
    open_clip.load_checkpoint(again, str(tmp_path / "back" / "open_clip_model.safetensors"), strict=True)
    for key, value in again.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)
