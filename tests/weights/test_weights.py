"""Weights of other libraries give the numbers that these libraries compute, go back bit for bit, or are refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from foreign import (
    GOLDEN,
    MODELS,
    TEXTS,
    TINY_TIMM,
    arrays,
    end_id,
    golden,
    ids,
    image_size,
    images,
    number,
    write_vocabulary,
)
from safetensors.numpy import load_file, save_file
from test_cli import exit_status

import jclip
from jclip.config import ConfigError, ResNetTower, architecture, architecture_names, replace
from jclip.weights import WeightsError, open_clip, read_weights, write_weights
from jclip.weights.layout import to_theirs
from jclip.weights.open_clip.timm import TIMM

NAMES = {
    "open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "hugging_face": ("config.json", "model.safetensors"),
}


def owner(name: str) -> str:
    return "open_clip" if name.startswith("open_clip") else "hugging_face"


def write_tokenizer(name: str, folder: Path) -> None:
    """Writes a tokenizer beside the weights of model `name`, where it has another than CLIP's."""
    if name == "hugging_face_siglip2":
        shutil.copy(GOLDEN.parents[1] / "data" / "golden" / "tokenizers" / "gemma.json", folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Siglip2Tokenizer", "padding_side": "right"}')
    elif end_id(name) is not None:
        write_vocabulary(folder)


@pytest.fixture(autouse=True)
def _tiny_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's name of the tiny model with SigLIP's towers, as make_golden.py tells it to timm."""
    tower = dataclasses.replace(TIMM["vit_base_patch16_siglip_224"], image_size=24, patch_size=8, width=36, depth=2, heads=3)
    monkeypatch.setitem(TIMM, TINY_TIMM, dataclasses.replace(tower, mlp_ratio=3.25))


def write_folder(folder: Path, name: str, **changes: Any) -> Path:
    """A folder as the owner of model `name` writes it; `changes` by dotted path into the configuration."""
    config = json.loads(json.dumps(MODELS[name]))
    for path, value in changes.items():
        *parents, last = path.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    config_file, weight_file = NAMES[owner(name)]
    folder.mkdir(parents=True)
    write_tokenizer(name, folder)
    (folder / config_file).write_text(json.dumps({"model_cfg": config} if name.startswith("open_clip") else config))
    save_file(arrays(name), folder / weight_file)
    return folder


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_library_the_weights_come_from(name: str, tmp_path: Path) -> None:
    model = jclip.load(write_folder(tmp_path / name, name))
    np.testing.assert_allclose(model.embed_image(list(images(*image_size(name)))), unit(golden(name)["image"]), atol=1e-6)
    texts = model.embed_text(TEXTS) if end_id(name) is None else model.encode_rows({"text": ids(name)}, 4)["text"].z[:3]
    np.testing.assert_allclose(texts, unit(golden(name)["text"]), atol=1e-6)
    assert model.params["image_text"]["logit_scale"] == 3.0


@pytest.mark.parametrize("name", MODELS)
def test_weights_go_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    to = owner(name)
    source = write_folder(tmp_path / "theirs", name)
    assert exit_status(["convert", str(source), str(tmp_path / "ours")]) == 0
    assert exit_status(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", to]) == 0
    before, after = arrays(name), load_file(tmp_path / "back" / NAMES[to][1])
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key, strict=True)  # of the same shape and type as well
    models = [read_weights(tmp_path / folder).model for folder in ("back", "theirs", "ours")]
    assert without_paths(models[0]) == without_paths(models[1]) == without_paths(models[2])


def without_paths(model: Any) -> Any:
    return replace(model, "towers.text.tokenizer.file", "")


@pytest.mark.parametrize(("name", "to"), [("open_clip", "hugging_face"), ("hugging_face", "open_clip")])
def test_a_model_moves_from_one_library_to_another(name: str, to: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "moved", to, *parts(write_folder(tmp_path / "from", name, **SAME_ACTIVATION.get(name, {}))))
    assert load_file(tmp_path / "moved" / NAMES[to][1]).keys() == arrays(to).keys()
    moved, before = jclip.load(tmp_path / "moved"), jclip.load(tmp_path / "from")
    np.testing.assert_array_equal(moved.embed_image(list(images(24))), before.embed_image(list(images(24))))
    np.testing.assert_array_equal(moved.embed_text(TEXTS), before.embed_text(TEXTS))


SAME_ACTIVATION = {"hugging_face": {"vision_config.hidden_act": "gelu", "text_config.hidden_act": "gelu"}}


def parts(folder: Path) -> tuple[Any, dict[str, Any]]:
    weights = read_weights(folder)
    return weights.model, dict(weights)


def test_a_sharded_load_leaves_no_device_with_the_whole(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "open_clip", **{"embed_dim": 24})
    whole, sharded = jclip.load(folder), jclip.load(folder, fsdp=4)
    table = sharded.params["text"]["token_embed"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(49408 // 4, 20)}
    np.testing.assert_allclose(sharded.embed_text(TEXTS), whole.embed_text(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("open_clip", {"vision_cfg.ls_init_value": 1e-4}, "missing visual.transformer.resblocks.0.ls_1.gamma"),
        ("open_clip", {"vision_cfg.qk_norm": True}, "qk_norm is True"),
        ("open_clip", {"vision_cfg.act_kwargs": {"approximate": "fast"}}, "act_kwargs is"),
        ("open_clip", {"vision_cfg.no_ln_pre": True}, "unknown visual.ln_pre.weight"),
        ("open_clip", {"vision_cfg.pool_type": "none"}, "pool_type is 'none'"),
        ("open_clip", {"text_cfg.hf_tokenizer_name": "bert-base-uncased"}, "hf_tokenizer_name"),
        ("open_clip", {"text_cfg.pool_type": "eos", "text_cfg.eos_id": 7}, "eot_id 7 is not the end of text"),
        ("open_clip", {"vision_cfg.timm_model_name": "vit_x"}, "timm_model_name"),
        ("open_clip", {"vision_cfg.new_option": 3}, "vision_cfg.new_option is 3: the option is unknown"),
        ("hugging_face", {"model_type": "blip"}, "'blip'"),
        ("hugging_face", {"text_config.hidden_act": "swish"}, "'swish'"),
        ("hugging_face", {"text_config.eos_token_id": 7}, "eot_id 7 is not the end of text"),
        ("open_clip", {"vision_cfg.layers": 3}, "missing visual.transformer.resblocks.2"),
        ("open_clip", {"vision_cfg.layers": 1}, "unknown visual.transformer.resblocks.1"),
        ("open_clip", {"embed_dim": 25}, r"visual.proj is \[36, 24\]"),
    ],
)
def test_what_is_not_reproduced_is_refused_by_name(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((WeightsError, ConfigError), match=message):
        jclip.load(write_folder(tmp_path / "m", name, **changes))


def test_a_wrong_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises((WeightsError, ConfigError), match="vocab_size 1000"):
        jclip.load(write_folder(tmp_path / "m", "open_clip", **{"text_cfg.vocab_size": 1000}))


@pytest.mark.parametrize(
    ("name", "changes", "scalar", "message"),
    [
        ("open_clip", {}, "logit_scale", "missing logit_scale$"),
        ("open_clip", {}, "logit_bias", "unknown logit_bias$"),
        ("open_clip", {"init_logit_bias": -10}, "", "missing logit_bias$"),
        ("open_clip_siglip", {}, "logit_bias", "missing logit_bias$"),
        ("hugging_face", {}, "logit_bias", "unknown logit_bias$"),
        ("hugging_face_siglip", {}, "logit_bias", "missing logit_bias$"),
        ("hugging_face_siglip2", {}, "logit_scale", "missing logit_scale$"),
    ],
)
def test_the_configuration_says_which_scalars_there_are(
    name: str, changes: dict[str, Any], scalar: str, message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "m", name, **changes)
    file = folder / NAMES[owner(name)][1]
    weights = load_file(file)
    if weights.pop(scalar, None) is None and scalar:
        weights[scalar] = np.zeros((), np.float32)
    save_file(weights, file)
    with pytest.raises(WeightsError, match=message):
        next(iter(read_weights(folder)))


def test_an_architectures_name_says_whether_a_file_has_a_bias(tmp_path: Path) -> None:
    model = architecture("ViT-tiny-test")
    params = {path: number(path, shape) for path, shape in jclip.weights.tower_shapes(model).items()}
    params |= {path: np.zeros((), np.float32) for path in ("image_text/logit_scale", "image_text/logit_bias")}
    save_file(to_theirs(open_clip.rules(model, params), params), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"architecture: unknown logit_bias$"):
        next(iter(read_weights(tmp_path / "w.safetensors", "ViT-tiny-test")))
    for name in architecture_names():
        assert ("image_text/logit_bias" in open_clip.scales(architecture(name))) == ("SigLIP" in name)


def test_our_own_folder_lists_the_scalars_of_its_objectives(tmp_path: Path) -> None:
    model = architecture("ViT-tiny-test")
    scales = {f"image_text/{leaf}": np.zeros((), np.float32) for leaf in ("logit_scale", "logit_bias")}
    params = {path: number(path, shape) for path, shape in jclip.weights.tower_shapes(model).items()} | scales
    write_weights(tmp_path / "w", "jclip", model, params)
    assert dict(read_weights(tmp_path / "w")).keys() == params.keys()
    file = tmp_path / "w" / "jclip.json"
    config = json.loads(file.read_text())
    for given, message in (
        (["image_text/logit_scale"], "unknown image_text/logit_bias"),
        ([*scales, "text_image/logit_scale"], "missing text_image/logit_scale"),
        (["bogus/logit_bias"], r"scales is \['bogus/logit_bias'\]; allowed .* image_text/logit_scale"),
        ("image_text/logit_scale", "allowed is a list"),
    ):
        file.write_text(json.dumps(config | {"scales": given}))
        with pytest.raises(WeightsError, match=message):
            next(iter(read_weights(tmp_path / "w")))
    file.write_text(json.dumps({"model": config["model"]}))
    with pytest.raises(WeightsError, match="has no scales"):
        read_weights(tmp_path / "w")


def test_a_missing_tensor_a_cut_file_and_no_file_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "open_clip")
    file = folder / NAMES["open_clip"][1]
    weights = arrays("open_clip")
    del weights["ln_final.bias"]
    save_file(weights, file)
    with pytest.raises(WeightsError, match=r"missing ln_final.bias$"):
        jclip.load(folder)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="cut short"):
        jclip.load(folder)
    file.write_bytes(b"not weights at all, whatever the name says")
    with pytest.raises(WeightsError, match="no safetensors file"):
        jclip.load(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=r"none of open_clip_model\.safetensors"):
        jclip.load(folder)


def test_a_weight_file_alone_needs_the_name_of_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(arrays("open_clip"), path)
    with pytest.raises(WeightsError, match="one of ViT-tiny-test"):
        jclip.load(path)
    with pytest.raises(WeightsError, match="do not fit the architecture"):
        jclip.load(path, architecture_name="ViT-B-32-quickgelu")
    assert exit_status(["convert", str(path), str(tmp_path / "out"), "--architecture", "ViT-B-32"]) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "m", "hugging_face", **{"vision_config.hidden_act": "gelu"})
    (tmp_path / "taken").mkdir()
    assert exit_status(["convert", str(source), str(tmp_path / "taken")]) == 1
    assert exit_status(["convert", str(source), str(tmp_path / "out"), "--to", "open_clip"]) == 1  # two activations
    assert {path.name for path in tmp_path.iterdir()} == {"m", "taken"}
    with pytest.raises(WeightsError, match=r"config\.json says the architecture; leave out ViT-B-32"):
        jclip.load(source, architecture_name="ViT-B-32")


def test_all_that_another_library_cannot_compute_is_named(tmp_path: Path) -> None:
    model = architecture("ViT-tiny-test")
    for path, value in (("image.stem", (4,)), ("image.positions", "sincos"), ("image.pool", "avg"), ("text.causal", False)):
        model = replace(model, f"towers.{path}", value)
    for to, more in (("open_clip", r"class_token is False"), ("hugging_face", r"image.pool is 'avg'.*text.causal is False")):
        with pytest.raises(WeightsError, match=rf"image.positions is 'sincos', not 'learned'.*{more}") as error:
            write_weights(tmp_path / "out", to, model, {})
        assert "image.stem is (4,), not ()" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_images_that_are_not_square_are_refused_where_a_library_has_none(tmp_path: Path) -> None:
    model = replace(architecture("ViT-tiny-test"), "towers.image.image_size", (32, 16))
    with pytest.raises(WeightsError, match=r"Hugging Face's models take square images, and this one's are of \(32, 16\) pixels"):
        write_weights(tmp_path / "out", "hugging_face", model, {})
    resnet = replace(model, "towers.image", ResNetTower((32, 64), (1, 1, 1, 1), stem_width=4, heads=2))
    with pytest.raises(WeightsError, match=r"image_size is \[32, 64\]; the ResNets of open_clip take squares alone"):
        write_weights(tmp_path / "out", "open_clip", resnet, {})
    assert not list(tmp_path.iterdir())


def test_only_one_objective_is_written_for_others_and_any_for_ourselves(tmp_path: Path) -> None:
    model = jclip.load("ViT-tiny-test")
    params = dict(jax.device_get(model.params))
    params["text_image"] = params.pop("image_text")
    write_weights(tmp_path / "ours", "jclip", model.config, params)
    assert "text_image/logit_scale" in read_weights(tmp_path / "ours").shapes
    for to in ("open_clip", "hugging_face"):
        with pytest.raises(WeightsError, match="has one objective, image_text; this model has text_image/logit_scale"):
            write_weights(tmp_path / "theirs", to, model.config, params)


def test_a_model_of_other_towers_comes_back(tmp_path: Path) -> None:
    model = architecture("ViT-tiny-test")
    model = dataclasses.replace(model, towers={"photo": model.towers["image"], "caption": model.towers["text"]})
    params = {path: number(path, shape) for path, shape in jclip.weights.tower_shapes(model).items()}
    write_weights(tmp_path / "w", "jclip", model, params | {"photo_caption/logit_scale": number("logit_scale", ())})
    assert jclip.load(tmp_path / "w").embed("caption", TEXTS).shape == (3, 16)
    with pytest.raises(WeightsError, match="image and a text tower; this one has photo, caption"):
        write_weights(tmp_path / "x", "open_clip", model, params)


def test_arguments_without_meaning_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "m", "open_clip")
    with pytest.raises(ConfigError, match="no step 3"):
        jclip.load(folder, step=3)
    assert exit_status(["convert", str(folder), str(tmp_path / "x"), "--step", "3"]) == 1
    assert "leave out --step" in capsys.readouterr().err
    assert exit_status(["info", "ViT-B-32", "--architecture", "ViT-B-16"]) == 1
    assert "leave out --architecture" in capsys.readouterr().err
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
    with pytest.raises(WeightsError, match="has no embed_dim"):
        jclip.load(folder)


def test_what_is_written_can_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    model = jclip.load("ViT-tiny-test")
    write_weights(tmp_path / "out", "jclip", model.config, jax.device_get(model.params))
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


OPENAI_MISSING = {
    **{
        name: rf"part\.safetensors: .* do not determine their architecture: missing {name}$"
        for name in ("token_embedding.weight", "positional_embedding", "text_projection")
    },
    "visual.conv1.weight": r"missing visual\.conv1\.weight$",
    "visual.positional_embedding": r"missing visual\.positional_embedding$",
    "visual.proj": r"the weights do not fit the architecture: missing visual\.proj$",
}


def test_files_of_openai_tell_their_architecture_by_their_shapes(tmp_path: Path) -> None:
    model = replace(architecture("ViT-B-32"), "embed_dim", 24)
    for tower, sizes in (("image", {"width": 128, "depth": 2, "heads": 2}), ("text", {"width": 64, "depth": 1, "heads": 1})):
        for field, value in {**sizes, "activation": "quick_gelu"}.items():
            model = replace(model, f"towers.{tower}.{field}", value)
    shapes = dict(jclip.weights.tower_shapes(model)) | {"image_text/logit_scale": ()}
    theirs = to_theirs(open_clip.rules(model, shapes), {path: number(path, shape) for path, shape in shapes.items()})
    theirs |= {
        name: np.asarray(value) for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408))
    }
    save_file(theirs, tmp_path / "published.safetensors")
    assert read_weights(tmp_path / "published.safetensors").model == model
    for name, message in OPENAI_MISSING.items():
        save_file({key: array for key, array in theirs.items() if key != name}, tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match=message):
            next(iter(read_weights(tmp_path / "part.safetensors")))
    with pytest.raises(WeightsError, match=r"of another model than ViT-B-32: .*image.activation is 'gelu', not 'quick_gelu'"):
        read_weights(tmp_path / "published.safetensors", "ViT-B-32")


def test_a_folder_with_the_files_of_two_libraries_is_read_as_either(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "both", "hugging_face", **SAME_ACTIVATION["hugging_face"])
    shutil.copytree(write_folder(tmp_path / "other", "open_clip"), folder, dirs_exist_ok=True)
    for kind in ("open_clip", "hugging_face"):
        assert read_weights(folder, kind=kind).format == kind
        assert exit_status(["convert", str(folder), str(tmp_path / kind), "--from", kind]) == 0
    with pytest.raises(WeightsError, match=r"holds none of checkpoints/, jclip\.json; .*--architecture"):
        read_weights(folder, kind="jclip")
    with pytest.raises(WeightsError, match="no folder, so there is nothing to choose; leave out open_clip"):
        read_weights(folder / "model.safetensors", kind="open_clip")


def test_a_trained_run_is_exported(tmp_path: Path) -> None:
    model = jclip.load("ViT-tiny-test")
    params = jax.device_get(model.params)
    write_weights(tmp_path / "ours", "jclip", model.config, params)
    write_weights(tmp_path / "theirs", "open_clip", model.config, params)
    for folder in ("ours", "theirs"):
        np.testing.assert_array_equal(jclip.load(tmp_path / folder).embed_text(TEXTS), model.embed_text(TEXTS))
    shutil.rmtree(tmp_path / "theirs")
