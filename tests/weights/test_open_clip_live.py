"""The towers beside open_clip's own, in the same process: every configuration of its CLIP models, their depth cut to two."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoding import encoder
from foreign import write_vocabulary
from peers import peer
from safetensors.numpy import save_file

from jclip import losses
from jclip.config import ResNetTower, VisionTower, architecture, replace
from jclip.tree import flatten, unflatten
from jclip.weights import read_weights, write_weights
from jclip.weights.layout import to_ours
from jclip.weights.open_clip import read_model, scales
from jclip.weights.open_clip.timm import TIMM
from jclip.weights.same import require_same

pytestmark = pytest.mark.parity
open_clip, timm, torch = peer("open_clip"), peer("timm"), peer("torch")

CONFIGS = sorted(Path(open_clip.__file__).parent.glob("model_configs/*.json"))


def reproduced(config: dict[str, Any]) -> bool:
    """True where its towers are open_clip's transformers or ResNets, or SigLIP's: no captioner, no other library's."""
    foreign = "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config
    return not foreign and "siglip" in config["vision_cfg"].get("timm_model_name", "siglip")


ALL = {path.stem: config for path in CONFIGS if reproduced(config := json.loads(path.read_text()))}
B32: dict[str, Any] = ALL["ViT-B-32-quickgelu"]
RECTANGLE = {"rectangle": {**B32, "vision_cfg": {**B32["vision_cfg"], "image_size": [96, 64]}}}
FAMILIES = ("ViT-B-32-quickgelu", "ViT-B-16-SigLIP2", "RN50", "ViT-L-14-CLIPA", "ViT-M-16-alt", "ViT-L-14-worldwide")


@dataclasses.dataclass
class Both:
    """A model of open_clip's with random numbers, and ours with the same."""

    theirs: Any
    state: dict[str, np.ndarray]
    weights: Any
    params: dict[str, Any]
    pixels: np.ndarray
    ids: np.ndarray

    @property
    def inputs(self) -> tuple[Any, Any]:
        """Pixels and ids as open_clip takes them."""
        return torch.from_numpy(self.pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(self.ids).long()


def make(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    """Theirs with two blocks a tower, or two a stage, and 2,000 words where the tokenizer is none of CLIP's."""
    config = json.loads(json.dumps((ALL | RECTANGLE)[name]))
    vision, text = config["vision_cfg"], config["text_cfg"]
    text["layers"] = 2
    if "timm_model_name" in vision:
        create, tower = timm.create_model, TIMM[vision["timm_model_name"]]
        monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: create(*args, **kwargs, depth=2))
        monkeypatch.setitem(TIMM, vision["timm_model_name"], dataclasses.replace(tower, depth=2))
    else:
        vision["layers"] = 2 if isinstance(vision["layers"], int) else [min(2, count) for count in vision["layers"]]
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = 2000
        write_vocabulary(folder, 2000)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    theirs = build(config)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # otherwise zero, or one and zero, and nothing would be compared
            for array, low in ((module.running_mean, -0.1), (module.running_var, 0.5), (module.weight, 0.2)):
                torch.nn.init.uniform_(array, low, low + 1)
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            if value.ndim < 2 and not key.startswith("logit"):
                value += 0.1 * torch.randn(value.shape)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    weights = read_weights(folder)
    tower = weights.model.towers["image"]
    assert isinstance(tower, (VisionTower, ResNetTower))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, *tower.size, 3)).astype(np.float32)
    return Both(theirs, state, weights, unflatten(dict(weights)), pixels, some_ids(text, rng))


def build(config: dict[str, Any]) -> Any:
    kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    return kind(**{key: value for key, value in config.items() if key != "custom_text"}).eval()


def some_ids(text: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Three texts, one of which fills the context, as the tokenizer of the model makes them."""
    length, size = text.get("context_length", 77), text.get("vocab_size", 49408)
    end = {"argmax": size - 1, "eos": text.get("eos_id", 2), "last": 1}[text.get("pool_type", "argmax")]
    ids = rng.integers(3, size - 2, (3, length)).astype(np.int32)
    for row, last in zip(ids, (length - 1, 5, 1), strict=True):
        row[last], row[last + 1 :] = end, 0
    return ids


EACH = [pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.exhaustive) for name in ALL]


@pytest.mark.parametrize("name", [*EACH, *RECTANGLE])
def test_features_and_logits_are_those_of_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = make(name, tmp_path, monkeypatch)
    image, text = both.inputs
    with torch.no_grad():
        expected = {"image": both.theirs.encode_image(image).numpy(), "text": both.theirs.encode_text(text).numpy()}
        logits = both.theirs.get_logits(image, text)[0].numpy()
    with jax.default_matmul_precision("highest"):
        ours = encoder(both.weights.model)({"params": both.params}, {"image": both.pixels, "text": both.ids}, normalised=True)
    for tower, features in expected.items():
        projection = both.params.get(f"{tower}_projection", {"kernel": np.eye(features.shape[1])})
        raw = np.asarray(ours[tower].output.pooled) @ projection["kernel"] + projection.get("bias", 0)
        np.testing.assert_allclose(raw, features, atol=1e-5 * max(1, np.abs(features).max()))
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        np.testing.assert_allclose(ours[tower].z, unit, atol=1e-5)
    scale, bias = np.exp(both.params["image_text"]["logit_scale"]), both.params["image_text"].get("logit_bias", 0)
    np.testing.assert_allclose(scale * np.asarray(ours["image"].z) @ np.asarray(ours["text"].z).T + bias, logits, atol=1e-4)

    write_weights(tmp_path / "back", "open_clip", both.weights.model, both.params)
    again = build(json.loads((tmp_path / "back" / "open_clip_config.json").read_text())["model_cfg"])
    open_clip.load_checkpoint(again, str(tmp_path / "back" / "open_clip_model.safetensors"), strict=True)
    for key, value in again.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), both.state[key], err_msg=key)


@pytest.mark.parametrize("name", ALL)
def test_an_architecture_of_that_name_is_the_same(name: str, tmp_path: Path) -> None:
    config = json.loads(json.dumps(ALL[name]))
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        config["text_cfg"].pop(key, None)
    (theirs, objective), ours = read_model(tmp_path, {"model_cfg": config}), architecture(name)
    for field, tower in (("preprocess", "image"), ("tokenizer", "text")):  # which these files leave to others
        theirs = replace(theirs, f"towers.{tower}.{field}", getattr(ours.towers[tower], field))
    require_same(name, ours, theirs)
    assert objective == scales(ours)
    assert ours.embed_dim == theirs.embed_dim


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if i < 2 else pytest.mark.exhaustive) for i, n in enumerate(FAMILIES)])
def test_gradients_are_those_of_open_clip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = make(name, tmp_path, monkeypatch)
    sigmoid = "logit_bias" in both.state
    image, text = both.theirs(*both.inputs)[:2]
    loss = open_clip.loss.SigLipLoss() if sigmoid else open_clip.loss.ClipLoss()
    bias = (both.theirs.logit_bias,) if sigmoid else ()
    loss(image, text, both.theirs.logit_scale.exp(), *bias).backward()
    theirs = {key: np.zeros(value.shape, np.float32) for key, value in both.state.items() if "num_batches" not in key}
    theirs |= {key: value.grad.numpy() for key, value in both.theirs.named_parameters()}
    expected = dict(to_ours(both.weights._rules, theirs, both.weights.shapes))

    def loss_fn(params: Any) -> Any:
        encoded = encoder(both.weights.model)({"params": params}, {"image": both.pixels, "text": both.ids}, normalised=True)
        scale, bias = jax.numpy.exp(params["image_text"]["logit_scale"]), params["image_text"].get("logit_bias")
        return losses.contrastive(encoded["image"].z, encoded["text"].z, scale, bias, kind="sigmoid" if sigmoid else "softmax")

    with jax.default_matmul_precision("highest"):
        ours = flatten(jax.grad(loss_fn)(both.params))
    for path, gradient in expected.items():
        # The gradient of the scale is a difference of terms as large as the scale: 14 in f32.
        floor = 0.1 if path.endswith("logit_scale") else 1e-3
        np.testing.assert_allclose(ours[path], gradient, atol=1e-4 * max(floor, np.abs(gradient).max()), err_msg=path)
