"""The towers beside Hugging Face's own, in the same process: tiny random models of odd widths and numbers of heads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoding import encoder
from foreign import HUGGING_FACE, MODELS
from peers import peer
from test_weights import write_tokenizer

from jclip.tree import unflatten
from jclip.weights import read_weights, write_weights

pytestmark = pytest.mark.parity
torch, transformers = peer("torch"), peer("transformers")

KINDS = {"hugging_face": "CLIP", "hugging_face_siglip": "Siglip", "hugging_face_siglip2": "Siglip2"}
DEPTH = 3


def make(name: str, folder: Path) -> Any:
    """A model with random numbers, saved by its owner."""
    config = json.loads(json.dumps(MODELS[name]))
    for part in ("vision_config", "text_config"):
        config[part]["num_hidden_layers"] = DEPTH
    torch.manual_seed(0)
    kind = KINDS[name]
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    with torch.no_grad():
        for value in model.parameters():  # their initialisation leaves many at zero or one
            value += (0.1 if value.ndim < 2 else 0.02) * torch.randn(value.shape)
    model.save_pretrained(folder)
    write_tokenizer(name, folder)
    return model


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images f32, and ids of which one row fills the context."""
    rng = np.random.default_rng(0)
    size = MODELS[name]["text_config"]["vocab_size"]
    words = rng.integers(3, size - 2, (3, 20)).astype(np.int32)
    end = size - 1 if name == "hugging_face" else 1
    for row, last in zip(words, (19, 5, 1), strict=True):
        row[last], row[last + 1 :] = end, 0
    return rng.normal(size=(3, 24, 24, 3)).astype(np.float32), words


def run(name: str, model: Any, images: np.ndarray, words: np.ndarray) -> tuple[Any, Any]:
    """Outputs of transformers for images and for texts: features after projection, and hidden states of every layer."""
    pixels: dict[str, Any] = {"pixel_values": torch.from_numpy(images.transpose(0, 3, 1, 2).copy())}
    if name == "hugging_face_siglip2":
        patches = images.reshape(3, 3, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 9, 192)
        pixels = {"pixel_values": torch.from_numpy(patches), "pixel_attention_mask": torch.ones(3, 9, dtype=torch.int32)}
        pixels["spatial_shapes"] = torch.full((3, 2), 3)
    with torch.no_grad():
        image = model.get_image_features(**pixels, output_hidden_states=True, return_dict=True)
        text = model.get_text_features(torch.from_numpy(words).long(), output_hidden_states=True, return_dict=True)
    return image, text


@pytest.mark.parametrize("name", KINDS)
def test_features_and_hidden_states_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, (images, words) = make(name, tmp_path), inputs(name)
    theirs = dict(zip(("image", "text"), run(name, model, images, words), strict=True))
    norms = {"image": model.vision_model.post_layernorm, "text": model.text_model.final_layer_norm}
    weights = read_weights(tmp_path)
    params = unflatten(dict(weights))
    batch = {"image": images, "text": words}
    for depth in range(1, DEPTH + 1):  # the same towers, cut after so many blocks
        towers = {key: dataclasses.replace(tower, depth=depth) for key, tower in weights.model.towers.items()}
        cut = {**params}
        for key in towers:
            cut[key] = params[key] | {"blocks": jax.tree.map(lambda x: x[:depth], params[key]["blocks"])}  # noqa: B023
        with jax.default_matmul_precision("highest"):
            ours = encoder(dataclasses.replace(weights.model, towers=towers))({"params": cut}, batch, normalised=True)
        for key, output in theirs.items():
            with torch.no_grad():
                tokens = norms[key](output.hidden_states[depth]).numpy()
            np.testing.assert_allclose(ours[key].output.tokens, tokens, atol=1e-5, err_msg=f"{key}, block {depth}")
    for key, output in theirs.items():
        features = output.pooler_output.numpy()
        projection = params.get(f"{key}_projection", {"kernel": np.eye(features.shape[1])})
        raw = np.asarray(ours[key].output.pooled) @ projection["kernel"] + projection.get("bias", 0)
        np.testing.assert_allclose(raw, features, atol=1e-5)
        np.testing.assert_allclose(ours[key].z, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_their_library_loads_what_is_written_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model, (images, words) = make(name, tmp_path / "theirs"), inputs(name)
    weights = read_weights(tmp_path / "theirs")
    write_weights(tmp_path / "back", "hugging_face", weights.model, dict(weights))
    again, report = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for before, after in zip(run(name, model, images, words), run(name, again.eval(), images, words), strict=True):
        assert torch.equal(before.pooler_output, after.pooler_output)


ALONE = [(name, part, ending) for name in KINDS for part in ("Vision", "Text") for ending in ("", "WithProjection")]
ALONE = [
    (name, part, ending) for name, part, ending in ALONE if name == "hugging_face" or (name.endswith("siglip") and not ending)
]


@pytest.mark.parametrize(("name", "part", "ending"), ALONE)
def test_a_tower_alone_pools_and_projects_as_in_transformers(name: str, part: str, ending: str, tmp_path: Path) -> None:
    """The model is made by its owner, read here, written here, and read by its owner again."""
    kind = getattr(transformers, f"{KINDS[name]}{part}Model{ending}")
    section = json.loads(json.dumps(MODELS[name][f"{part.lower()}_config"]))
    torch.manual_seed(0)
    made = kind(kind.config_class(**section, **({"projection_dim": 24} if KINDS[name] == "CLIP" else {}))).eval()
    with torch.no_grad():
        for value in made.parameters():
            value += (0.1 if value.ndim < 2 else 0.02) * torch.randn(value.shape)
    made.save_pretrained(tmp_path / "theirs")
    write_tokenizer(name, tmp_path / "theirs")
    images, words = inputs(name)
    tower = "image" if part == "Vision" else "text"
    theirs = {"image": torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), "text": torch.from_numpy(words).long()}[tower]
    with torch.no_grad():
        output = made(theirs)
    pooled = output.pooler_output if not ending else (output.image_embeds if part == "Vision" else output.text_embeds)
    expected = pooled.numpy()

    weights = read_weights(tmp_path / "theirs")
    params = unflatten(dict(weights))
    with jax.default_matmul_precision("highest"):
        ours = encoder(weights.model)({"params": params}, {tower: {"image": images, "text": words}[tower]}, normalised=True)[
            tower
        ]
    projection = params.get(f"{tower}_projection", {"kernel": np.eye(expected.shape[1])})
    raw = np.asarray(ours.output.pooled) @ projection["kernel"] + projection.get("bias", 0)
    np.testing.assert_allclose(raw, expected, atol=1e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(ours.z, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)

    write_weights(tmp_path / "back", "hugging_face", weights.model, dict(weights))
    again, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    for key, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_an_end_of_text_by_its_id_is_that_of_transformers(tmp_path: Path) -> None:
    assert HUGGING_FACE["text_config"].get("eos_token_id", 49407) == 49407
    model = make("hugging_face", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2  # the first files of OpenAI's models; it stands for the largest id
    (tmp_path / "config.json").write_text(json.dumps(config))
    images, words = inputs("hugging_face")
    old = type(model).from_pretrained(tmp_path).eval()
    weights = read_weights(tmp_path)
    with jax.default_matmul_precision("highest"):
        ours = encoder(weights.model)({"params": unflatten(dict(weights))}, {"text": words})["text"].z
    features = run("hugging_face", old, images, words)[1].pooler_output.numpy()
    np.testing.assert_allclose(ours, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5)
