"""Options of Hugging Face's folders: each has the effect that it has there, means nothing, or is refused by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import MODELS
from peers import peer
from PIL import Image

from jclip.config import Preprocess, TextTower, VisionTower
from jclip.data import eval_transform
from jclip.help import CONVERT
from jclip.weights import WeightsError
from jclip.weights.hugging_face import read_model
from jclip.weights.hugging_face.processor import FILE, NESTED, preprocess, read_processor

CROP = {"size": {"shortest_edge": 24}, "crop_size": 24}
SQUARE = {"size": {"height": 24, "width": 24}}
GREY = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


def config(name: str = "hugging_face", **changes: Any) -> dict[str, Any]:
    """Configuration of model `name`; `changes` by dotted path."""
    made: dict[str, Any] = json.loads(json.dumps(MODELS[name]))
    for path, value in changes.items():
        section, _, option = path.rpartition(".")
        (made[section] if section else made)[option] = value
    return made


def towers(folder: Path, made: dict[str, Any]) -> tuple[VisionTower, TextTower]:
    model, _ = read_model(folder, made)
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    return image, text


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Preprocess()),
        ({"preprocessor": CROP | GREY}, Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"processor": {"image_processor": CROP | GREY, "processor_class": "CLIPProcessor"}}, None),
        ({"processor": {"image_processor": CROP | GREY}, "preprocessor": CROP}, None),
        ({"processor": {"processor_class": "CLIPProcessor"}, "preprocessor": CROP | GREY}, None),
    ],
)
def test_settings_are_read_where_transformers_reads_them(files: Any, expected: Preprocess | None, tmp_path: Path) -> None:
    image, _ = towers(write(tmp_path, **files), config())
    assert image.preprocess == (expected or Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))


def test_a_processor_of_several_shapes_is_refused_wherever_it_is_named(tmp_path: Path) -> None:
    naflex = {"image_processor_type": "Siglip2ImageProcessor"}
    for files in ({"processor": {"image_processor": naflex}}, {"preprocessor": naflex}, {"preprocessor": SQUARE}):
        folder = write(tmp_path / next(iter(files)), **files)
        with pytest.raises(WeightsError, match="makes images of several shapes"):
            preprocess("siglip2", *read_processor(folder), 24)
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("kind", "given", "resize"),
    [
        (
            "clip",
            CROP | {"image_processor_type": "CLIPImageProcessorFast", "rescale_factor": 1 / 255, "device": None},
            "shortest",
        ),
        ("clip", CROP | {"feature_extractor_type": "CLIPFeatureExtractor", "processor_class": "CLIPProcessor"}, "shortest"),
        ("clip", {"size": 24, "crop_size": {"height": 24, "width": 24}}, "shortest"),
        ("clip", {"size": [24, 24], "crop_size": 24}, "squash"),
        ("clip", SQUARE | {"do_center_crop": False, "crop_size": None}, "squash"),
        ("clip", SQUARE | {"image_processor_type": "SiglipImageProcessor"}, "squash"),
        ("siglip", SQUARE | {"do_convert_rgb": None, "do_pad": False}, "squash"),
        ("siglip", CROP | {"do_center_crop": True}, "shortest"),
        ("siglip2", SQUARE | {"image_processor_type": "SiglipImageProcessor"}, "squash"),
    ],
)
def test_sizes_say_how_an_image_is_resized(kind: str, given: dict[str, Any], resize: str) -> None:
    how = preprocess(kind, FILE, given, 24)
    assert how.resize == resize
    clips = kind == "clip" and "Siglip" not in str(given)
    assert how.mean == (Preprocess().mean if clips else (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rescale_factor": 0.5}, r"rescale_factor is 0\.5: only 0\.0039.* is reproduced"),
        ({"image_processor_type": "BlipImageProcessor"}, "image_processor_type is 'BlipImageProcessor'; reproduced are CLIP"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "reproduced are CLIPImageProcessor, SiglipImageProcessor"),
        ({"do_pad": True}, "do_pad is True"),
        ({"do_resize": None}, "do_resize is None"),
        ({"do_convert_rgb": False}, "do_convert_rgb is False"),
        ({"crop_pct": 0.875}, r"crop_pct is 0\.875: the option is unknown"),
        ({"offset": True}, "offset is True: the option is unknown"),
        ({"image_mean": 0.5}, r"image_mean is 0\.5; it must be a list of three numbers"),
        ({"resample": 0}, "resample is 0; it must be one of 2, 3"),
        ({"resample": "bilinear"}, "resample is 'bilinear'"),
        ({"size": "24"}, "size is '24'; it must be"),
        ({"size": {"longest_edge": 24}}, "this says size {'longest_edge': 24}"),
        ({"size": {"shortest_edge": 24, "longest_edge": 48}}, "this says size"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"crop_size": 16}, "crop_size 16"),
        ({"crop_size": {"height": 24, "width": 20}}, "reproduced is a resize of the shortest edge to 24"),
        ({"size": 32}, "this says size 32"),
    ],
)
def test_settings_that_would_give_other_pixels_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        preprocess("clip", NESTED, CROP | given, 24)


def test_a_size_that_is_left_out_is_that_of_the_class() -> None:
    assert preprocess("clip", FILE, {}, 224) == Preprocess()
    with pytest.raises(WeightsError, match=r"this says size \{'shortest_edge': 224\}"):
        preprocess("clip", FILE, {}, 336)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config.qk_norm": True}, "vision_config.qk_norm is True: the option is unknown"),
        ({"text_config.use_rope": True}, "text_config.use_rope is True: the option is unknown"),
        ({"vision_config.head_dim": 7}, "vision_config.head_dim"),
        ({"quantization_config": {"bits": 8}}, r"config\.json: quantization_config is"),
        ({"vision_config.num_channels": 4}, "num_channels is 4: only 3 is reproduced"),
        ({"vision_config.pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"vision_config.image_size": [24, 24]}, r"image_size is \[24, 24\]; it must be a whole number from 1"),
        ({"vision_config.num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number from 1"),
        ({"text_config.hidden_size": "20"}, "hidden_size is '20'; it must be a whole number"),
        ({"text_config.eos_token_id": [1, 2]}, "eos_token_id is"),
        ({"vision_config": [1]}, r"vision_config is \[1\]; it must be an object"),
        ({"projection_dim": None}, "projection_dim is None"),
        ({"text_config_dict": {"qk_norm": True}}, "text_config_dict.qk_norm"),
    ],
)
def test_options_of_a_model_are_known_or_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        read_model(tmp_path, config(**changes))


def test_what_files_say_of_themselves_is_no_option(tmp_path: Path) -> None:
    said = {"transformers_version": "4.16.0", "torch_dtype": "float16", "dtype": None, "architectures": None, "max_length": 20}
    said |= {"_name_or_path": "", "id2label": {"0": "a"}, "attention_dropout": 0.1, "is_decoder": False, "pruned_heads": {}}
    sections = {part: {**MODELS["hugging_face"][part], **said} for part in ("text_config", "vision_config")}
    assert towers(tmp_path, config(**said, **sections)) == towers(tmp_path, config())


DICTS: tuple[tuple[dict[str, Any], str, int], ...] = (
    ({}, "gelu", 20),
    ({"text_config_dict": None}, "gelu", 20),
    ({"text_config_dict": {**MODELS["hugging_face"]["text_config"], "max_position_embeddings": 30}}, "quick_gelu", 30),
    ({"text_config_dict": {}}, "quick_gelu", 77),
)
"""Changes to a configuration whose text_config says gelu and 20 tokens, with what transformers makes of them."""


@pytest.mark.parametrize(("changes", "activation", "length"), DICTS)
def test_the_older_section_is_completed_by_defaults_and_counts(
    changes: dict[str, Any], activation: str, length: int, tmp_path: Path
) -> None:
    _, text = towers(tmp_path, config(**{"text_config.hidden_act": "gelu"}, **changes))
    assert (text.activation, text.context_length) == (activation, length)


def test_siglip_has_one_section_and_another_that_differs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}')
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"<pad>": 0}}}')
    same = config("hugging_face_siglip")
    assert towers(tmp_path, same | {"text_config_dict": same["text_config"]}) == towers(tmp_path, same)
    with pytest.raises(WeightsError, match="text_config_dict differs from text_config, which counts, in hidden_act; leave out"):
        read_model(tmp_path, same | {"text_config_dict": same["text_config"] | {"hidden_act": "gelu"}})


@pytest.mark.parity
@pytest.mark.parametrize("changes", [case[0] for case in DICTS])
def test_transformers_takes_the_same_section(changes: dict[str, Any], tmp_path: Path) -> None:
    transformers = peer("transformers")
    made = config(**{"text_config.hidden_act": "gelu"}, **changes)
    (tmp_path / "config.json").write_text(json.dumps(made))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    _, text = towers(tmp_path, made)
    assert (text.activation, text.context_length) == (theirs.hidden_act, theirs.max_position_embeddings)
    assert (text.width, text.depth, text.heads) == (theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads)


@pytest.mark.parity
def test_transformers_takes_the_same_settings(tmp_path: Path) -> None:
    transformers = peer("transformers")
    for kind, own in (("CLIP", CROP), ("Siglip", SQUARE)):
        saved, both = tmp_path / kind, tmp_path / f"{kind}-both"
        getattr(transformers, f"{kind}ImageProcessor")(**own, **GREY).save_pretrained(saved)
        nested = {"image_processor": json.loads((saved / FILE).read_text())}
        write(both, processor=nested, preprocessor=own | {"image_processor_type": f"{kind}ImageProcessor"})
        for folder in (saved, both):
            theirs = transformers.AutoImageProcessor.from_pretrained(folder)
            how = preprocess(kind.lower(), *read_processor(folder), 24)
            assert [list(how.mean), list(how.std)] == [list(theirs.image_mean), list(theirs.image_std)] == list(GREY.values())


def test_the_help_and_the_page_name_where_pixels_are_not_those_of_transformers() -> None:
    for said in (CONVERT, (Path(__file__).parents[2] / "docs/tutorials/weights.md").read_text()):
        assert "same pixels and token ids" in said
        assert "where the margin is 3, 7, 11, ... pixels" in said.replace("\n", " ")


@pytest.mark.parity
@pytest.mark.parametrize("margin", range(9))
def test_pixels_are_those_of_transformers_but_for_the_place_of_some_margins(margin: int, tmp_path: Path) -> None:
    """Half of a margin is rounded down, by open_clip to even: docs/tutorials/weights.md and `jclip convert --help` say so."""
    transformers = peer("transformers")
    made = transformers.CLIPImageProcessor(**CROP, do_normalize=False, do_rescale=False)
    tower, _ = towers(tmp_path, config())
    picture = np.random.default_rng(0).integers(0, 256, (24, 24 + margin, 3), np.uint8)
    theirs = np.asarray(made(Image.fromarray(picture), return_tensors="np").pixel_values[0]).transpose(1, 2, 0)
    ours = eval_transform(tower)(picture)
    start = margin // 2
    np.testing.assert_array_equal(theirs, picture[:, start : start + 24])
    shift = int(margin % 4 == 3)
    np.testing.assert_array_equal(ours, picture[:, start + shift : start + shift + 24])
