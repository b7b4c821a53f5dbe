"""A tower alone, as transformers keeps it, gives the features that the whole model has, and says what needs the other one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from foreign import MODELS, TEXTS, arrays, end_id, golden, ids, images
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_cli import exit_status
from test_weights import write_tokenizer
from tiny import tiny_config

import jclip
from jclip.config import ConfigError, InitFrom, TextTower, VisionTower, replace
from jclip.init_from import start_from
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.tree import flatten, unflatten
from jclip.weights import WeightsError, read_weights, write_weights

SECTIONS = {"image": "vision", "text": "text"}
PROJECTIONS = {"image": "visual_projection.weight", "text": "text_projection.weight"}
CASES = [(name, tower) for name in ("hugging_face", "hugging_face_siglip") for tower in SECTIONS]
CLIP = [("hugging_face", tower) for tower in SECTIONS]


def write_tower(folder: Path, name: str, tower: str, *, projected: bool = True, bare: bool = False, **changes: Any) -> Path:
    """A folder of one tower of the whole model `name`, its numbers the same; `bare`: as transformers 5 names them."""
    part = SECTIONS[tower]
    kind = MODELS[name]["model_type"]
    config = {**MODELS[name][f"{part}_config"], "model_type": f"{kind}_{part}_model", "projection_dim": 24}
    if kind == "siglip":
        del config["projection_dim"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    tensors = {key: array for key, array in arrays(name).items() if key.startswith(f"{part}_model.")}
    if bare:
        tensors = {key.removeprefix(f"{part}_model."): array for key, array in tensors.items()}
    if projected and kind == "clip":
        tensors[PROJECTIONS[tower]] = arrays(name)[PROJECTIONS[tower]]
    save_file(tensors, folder / "model.safetensors")
    if tower == "text":
        write_tokenizer(name, folder)
    elif kind == "siglip":
        size = {"height": 24, "width": 24}
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "SiglipImageProcessor", "size": size})
        )
    return folder


def encoded(encoder: Any, name: str, tower: str) -> Any:
    """Features of the images or texts of the golden file of model `name`."""
    if tower == "image":
        return encoder.features("image", list(images(24)))
    if end_id(name) is None:
        return encoder.features("text", TEXTS)
    return encoder.encode_rows({"text": ids(name)}, 3)["text"]


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "tower"), CASES)
def test_its_embeddings_are_those_of_the_whole_model(name: str, tower: str, bare: bool, tmp_path: Path) -> None:
    encoder = jclip.load(write_tower(tmp_path / "w", name, tower, bare=bare))
    assert list(encoder.config.towers) == [tower]
    np.testing.assert_allclose(encoded(encoder, name, tower).z[:3], unit(golden(name)[tower]), atol=1e-6)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "tower"), CLIP)
def test_without_projection_it_embeds_by_what_is_pooled(name: str, tower: str, bare: bool, tmp_path: Path) -> None:
    encoder = jclip.load(write_tower(tmp_path / "w", name, tower, projected=False, bare=bare))
    config = encoder.config.towers[tower]
    assert (config.projection, encoder.config.embed_dim) == ("none", config.width)
    pooled, z = encoded(encoder, name, tower)
    projected = pooled.astype(np.float64) @ arrays(name)[PROJECTIONS[tower]].T
    np.testing.assert_allclose(projected, golden(name)[tower], atol=1e-6 * np.abs(golden(name)[tower]).max())
    np.testing.assert_allclose(z, unit(pooled), atol=1e-6)
    params = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(encoder.params[tower]).items()}
    tree: dict[str, Any] = unflatten(params)
    for i, row in enumerate(pooled):
        if isinstance(config, VisionTower):
            expected, _ = reference.vision(tree, images(24)[i], config)
        else:
            expected, _ = reference.text(tree, encoder.transform("text")(TEXTS[i]), config)
        np.testing.assert_allclose(row, expected, atol=1e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize(("name", "tower"), CASES)
def test_it_goes_to_jclip_and_back_bit_for_bit(name: str, tower: str, projected: bool, tmp_path: Path) -> None:
    source = write_tower(tmp_path / "theirs", name, tower, projected=projected)
    assert exit_status(["convert", str(source), str(tmp_path / "ours")]) == 0
    assert exit_status(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hugging_face"]) == 0
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key, strict=True)
    models = [read_weights(tmp_path / folder).model for folder in ("theirs", "ours", "back")]
    if tower == "text":
        models = [replace(model, "towers.text.tokenizer.file", "") for model in models]
    assert models[0] == models[1] == models[2]
    kind, part = MODELS[name]["model_type"], SECTIONS[tower].capitalize()
    ending = "WithProjection" if projected and kind == "clip" else ""
    named = {"clip": "CLIP", "siglip": "Siglip"}[kind] + f"{part}Model{ending}"
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [named]


def test_a_projection_that_is_promised_and_missing_is_refused(tmp_path: Path) -> None:
    said = {"architectures": ["CLIPVisionModelWithProjection"]}
    with pytest.raises(WeightsError, match=r"missing visual_projection\.weight$"):
        read_weights(write_tower(tmp_path / "w", "hugging_face", "image", projected=False, **said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, r"config\.json: qk_norm is True: the option is unknown"),
        ({"vision_config": {}}, r"vision_config is \{\}: the option is unknown"),
        ({"image_size": [24, 16]}, r"image_size is \[24, 16\]; it must be a whole number"),
        ({"projection_dim": None}, r"projection_dim is None; it must be"),
        (
            {"model_type": "siglip2_vision_model"},
            r"reproduced are clip, siglip, siglip2, .*clip_vision_model, siglip_vision_model",
        ),
        ({"model_type": "clip_text_model"}, r"clip_text_model|image_size is 24: the option is unknown"),
        ({"projection_dim": 23}, r"visual_projection\.weight is \[24, 36\], which makes image_projection/kernel"),
    ],
)
def test_options_are_known_or_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read_weights(write_tower(tmp_path / "w", "hugging_face", "image", **changes))


def test_siglip_without_its_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="vision_use_head is False: only True is reproduced"):
        read_weights(write_tower(tmp_path / "w", "hugging_face_siglip", "image", vision_use_head=False))


def test_commands_use_an_image_tower_and_say_where_texts_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tower(tmp_path / "w", "hugging_face", "image", projected=False))
    (tmp_path / "photos").mkdir()
    Image.fromarray(images(24)[0]).save(tmp_path / "photos" / "a.png")
    assert exit_status(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["towers"].keys() == {"image"}
    assert (facts["embed_dim"], facts["towers"]["image"]["projection"]) == (36, "none")
    assert exit_status(["embed", model, str(tmp_path / "photos"), "--out", str(tmp_path / "out")]) == 0
    row = jclip.load(model).embed_image(list(images(24))[:1])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "image.npy"), row, atol=1e-6)
    capsys.readouterr()

    evals = "{'r': Retrieval('shapes:val?size=16&length=8')}"
    suite = f"from jclip.config import Retrieval, Suite\ndef get_suite():\n    return Suite({evals})\n"
    (tmp_path / "suite.py").write_text(suite)
    needs = {
        "the model has no tower for texts, which this needs; it has image alone": [
            *("classify", str(tmp_path / "photos" / "a.png"), "--model", model, "--labels", "a", "b")
        ],
        "evals.r: there is no tower 'text'; towers: image": ["eval", model, "--suite", str(tmp_path / "suite.py"), "--no-cache"],
        "the model has no tower 'text'; towers: image": [
            *("embed", model, str(tmp_path / "photos"), "--out", str(tmp_path / "x"), "--towers", "text")
        ],
        "open_clip has models of an image and a text tower; this one has image": [
            *("convert", model, str(tmp_path / "y"), "--to", "open_clip")
        ],
    }
    for message, command in needs.items():
        assert exit_status(command) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["chinese_clip", "altclip"])
def test_the_pixels_of_other_libraries_are_said(kind: str, tmp_path: Path) -> None:
    alone = write_tower(tmp_path / "alone", "hugging_face", "image", model_type=f"{kind}_vision_model")
    with pytest.raises(WeightsError, match="this model's pixels need not be those of CLIP; put it there"):
        read_weights(alone)
    class_name = {"chinese_clip": "ChineseCLIPFeatureExtractor", "altclip": "CLIPFeatureExtractor"}[kind]
    how = {"feature_extractor_type": class_name, "size": {"height": 24, "width": 24}, "do_center_crop": False}
    (alone / "preprocessor_config.json").write_text(json.dumps(how))
    encoder = jclip.load(alone)
    assert encoder.config.towers["image"].preprocess.resize == "squash"
    np.testing.assert_allclose(encoded(encoder, "hugging_face", "image").z, unit(golden("hugging_face")["image"]), atol=1e-6)
    with pytest.raises(WeightsError, match=f"give the folder of the whole model, of type '{kind}'"):
        read_weights(write_tower(tmp_path / "text", "hugging_face", "image", model_type=f"{kind}_text_model"))


def test_a_size_that_versions_of_transformers_take_for_another_is_refused(tmp_path: Path) -> None:
    for i, how in enumerate(({"size": 24, "do_center_crop": False}, {"do_resize": True})):
        folder = write_tower(tmp_path / str(i), "hugging_face", "image", model_type="chinese_clip_vision_model")
        settings = {"image_processor_type": "ChineseCLIPImageProcessor", **how}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        with pytest.raises(WeightsError, match="reproduced is a resize of the shortest edge to 24 and a centre crop, or"):
            read_weights(folder)


def test_a_text_tower_embeds_texts_and_no_images(tmp_path: Path) -> None:
    encoder = jclip.load(write_tower(tmp_path / "w", "hugging_face", "text"))
    assert encoder.embed_text(TEXTS).shape == (3, 24)
    with pytest.raises(ConfigError, match="the model has no tower for images, which this needs; it has text alone"):
        encoder.embed_image(list(images(24)))
    assert encoder.embed_text([]).shape == (0, 24)


def test_other_sizes_are_resampled_as_those_of_a_whole_model(tmp_path: Path) -> None:
    encoder = jclip.load(write_tower(tmp_path / "w", "hugging_face", "image"), image_size=(40, 24))
    assert encoder.params["image"]["pos_embed"].shape == (16, 36)
    with pytest.raises(ConfigError, match="context_length 9: the model has no tower with one; towers: image"):
        jclip.load(tmp_path / "w", context_length=9)


def test_a_new_text_tower_learns_from_an_image_tower_alone(tmp_path: Path) -> None:
    """The start of LiT: the image tower without a projection, and a new projection beside it."""
    folder = write_tower(tmp_path / "w", "hugging_face", "image", projected=False)
    weights = read_weights(folder)
    image = replace(weights.model.towers["image"], "projection", "linear")
    text = TextTower(context_length=16, width=32, depth=1, heads=2)
    rules = ((r"image/.*", "load"), (r".*", "scratch"))
    config = tiny_config(**{"model.towers": {"image": image, "text": text}, "model.embed_dim": 16})
    config = replace(config, "init_from", InitFrom(str(folder), rules=rules))  # type: ignore[arg-type]
    mesh = make_mesh(config.mesh)
    state, said = start_from(config.init_from, make_program(config, mesh, warmup_steps=1, total_steps=9))
    params = flatten(state.params)
    for path, array in weights:
        np.testing.assert_array_equal(params[path], array, err_msg=path)
    assert params["image_projection/kernel"].shape == (36, 16)
    assert "come from" in said
    towers = {"image": weights.model.towers["image"], "text": text}
    whole = replace(replace(config, "init_from.rules", ((r".*", "load"),)), "model.towers", towers)
    whole = replace(whole, "model.embed_dim", 36)
    with pytest.raises(ConfigError, match=r"missing text/.*let a rule say 'scratch' for what is to be new"):
        start_from(whole.init_from, make_program(whole, mesh, warmup_steps=1, total_steps=9))


def test_a_tower_that_transformers_has_not_is_refused(tmp_path: Path) -> None:
    weights = read_weights(write_tower(tmp_path / "w", "hugging_face", "image"))
    for field, value, message in (
        ("towers.image.image_size", (24, 16), "take square images"),
        (
            "towers.image.projection",
            "affine",
            r"CLIPVisionModelWithProjection cannot .* image.projection is 'affine', not 'linear'",
        ),
        ("towers.image.pool", "map", r"SiglipVisionModel cannot compute this model: .*image.pre_norm is True, not False"),
    ):
        model = replace(weights.model, field, value)
        model = replace(model, "towers.image.preprocess.resize", "squash")
        with pytest.raises(WeightsError, match=message):
            write_weights(tmp_path / "out", "hugging_face", model, dict(weights))
    assert not (tmp_path / "out").exists()
