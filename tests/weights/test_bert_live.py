"""Text towers of BERT's kind beside transformers' own, in the same process: tiny random models."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from bert_tiny import CONFIGS, PROCESSOR, TEXT, write_model, write_roberta, write_words
from encoding import encoder
from peers import peer
from safetensors.numpy import load_file

from jclip.config import BertTower, Model, TokenizerConfig, hf_text
from jclip.config.architectures import HF_TEXTS
from jclip.data import get_tokenizer
from jclip.models import MultiTower
from jclip.tree import flatten, unflatten
from jclip.weights import read_weights, write_weights
from jclip.weights.bert_names import bert_rules
from jclip.weights.layout import to_ours

pytestmark = pytest.mark.parity
torch, transformers = peer("torch"), peer("transformers")

TOWERS = {
    "Bert": {"max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0},
    "Roberta": {"max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 3},
    "XLMRoberta": {"max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 1},
}


def randomised(model: Any) -> Any:
    """The model with numbers that training might leave."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value += (0.1 if value.ndim < 2 else 0.05) * torch.randn(value.shape)
        for module in model.modules():  # what loads such a model makes it so again
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model.eval()


def texts(pad: int) -> tuple[np.ndarray, Any]:
    """Ids i32 [4, 18] of texts of 1 to 18 tokens, and the mask that tells their padding."""
    ids = np.random.default_rng(0).integers(5, 60, (4, 18)).astype(np.int32)
    for row, length in zip(ids, (18, 5, 1, 9), strict=True):
        row[length:] = pad
    return ids, torch.from_numpy((ids != pad).astype(np.int64))


@pytest.mark.parametrize("pool", ["pooler", "first", "mean"])
@pytest.mark.parametrize("kind", TOWERS)
def test_towers_are_those_of_transformers(kind: str, pool: Any) -> None:
    config = getattr(transformers, f"{kind}Config")(**TEXT, **TOWERS[kind])
    model = randomised(getattr(transformers, f"{kind}Model")(config))
    tower = BertTower(
        18,
        60,
        24,
        2,
        3,
        40 / 24,
        "gelu",
        config.max_position_embeddings,
        "zero" if kind == "Bert" else "pad_id",
        config.type_vocab_size,
        pool=pool,
        norm_eps=1e-5,
        projection="none",
        tokenizer=TokenizerConfig("hugging_face", "x", clean="none", pad_id=config.pad_token_id),
    )
    whole = Model({"text": tower}, 24)
    shapes = jax.eval_shape(lambda: MultiTower(whole).init(jax.random.key(0), {"text": np.zeros((1, 18), np.int32)}))["params"]
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    params = unflatten(dict(to_ours(bert_rules(tower, "text", ""), arrays, {k: x.shape for k, x in flatten(shapes).items()})))
    ids, mask = texts(config.pad_token_id)
    with torch.no_grad():
        output = model(torch.from_numpy(ids).long(), attention_mask=mask)
    with jax.default_matmul_precision("highest"):
        ours = encoder(whole)({"params": params}, {"text": ids})["text"].output
    tokens = output.last_hidden_state
    expected = {
        "pooler": output.pooler_output,
        "first": tokens[:, 0],
        "mean": (tokens * mask[..., None]).sum(1) / mask.sum(1)[:, None],
    }
    np.testing.assert_allclose(ours.pooled, expected[pool].numpy(), atol=1e-5)
    np.testing.assert_allclose(np.where(mask[..., None], ours.tokens, 0), tokens.numpy() * mask[..., None].numpy(), atol=1e-5)


MODELS = {"chinese_clip": "ChineseCLIP", "altclip": "AltCLIP"}


def saved(kind: str, folder: Path) -> Any:
    """A model made and saved by its owner, with a tokenizer."""
    made = {part: CONFIGS[kind][f"{part}_config"] for part in ("text", "vision")}
    config = getattr(transformers, f"{MODELS[kind]}Config")(
        text_config=made["text"], vision_config=made["vision"], projection_dim=20
    )
    model = randomised(getattr(transformers, f"{MODELS[kind]}Model")(config))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (write_words if kind == "chinese_clip" else write_roberta)(folder)
    return model


def features(model: Any, images: np.ndarray, ids: np.ndarray, mask: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        image = model.get_image_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), return_dict=True).pooler_output
        text = model.get_text_features(torch.from_numpy(ids).long(), attention_mask=mask, return_dict=True).pooler_output
    return {"image": image.numpy(), "text": text.numpy()}


@pytest.mark.parametrize("kind", MODELS)
def test_whole_models_are_those_of_transformers_both_ways(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path / "theirs")
    pad = CONFIGS[kind]["text_config"]["pad_token_id"]
    ids, mask = texts(pad)
    images = np.random.default_rng(1).normal(size=(4, 24, 24, 3)).astype(np.float32)
    expected = features(model, images, ids, mask)
    weights = read_weights(tmp_path / "theirs").resized(context_length=18)
    assert set(weights.model.towers) == {"image", "text"}
    params = unflatten(dict(weights))
    with jax.default_matmul_precision("highest"):
        ours = encoder(weights.model)({"params": params}, {"image": images, "text": ids}, normalised=True)
    for name, theirs in expected.items():
        np.testing.assert_allclose(ours[name].z, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(params["image_text"]["logit_scale"], model.logit_scale.detach().numpy())
    write_weights(tmp_path / "back", "hugging_face", weights.model, dict(weights))
    again, report = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for name, theirs in features(again.eval(), images, ids, mask).items():
        np.testing.assert_array_equal(theirs, expected[name])


def test_a_vocabulary_of_words_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "w", "chinese_clip")
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    said = ["A dog, barking!", "猫barks", "Läut", "unknown [SEP] word3", "", "a" * 300, "word0 " * 40]
    made = theirs(said, padding="max_length", truncation=True, max_length=20)["input_ids"]
    tower = read_weights(folder).model.towers["text"]
    assert isinstance(tower, BertTower)
    np.testing.assert_array_equal(get_tokenizer(tower.tokenizer)(said, 20), made)


def open_clip_model(folder: Path, pool: str, projection: str) -> tuple[Any, dict[str, Any]]:
    """A model of open_clip's with a tiny XLM-R, and its configuration; transformers finds the text tower in `folder`."""
    open_clip = peer("open_clip")
    kind = transformers.XLMRobertaConfig(**TEXT, **TOWERS["XLMRoberta"])
    kind.save_pretrained(folder / "named")
    vision = {"image_size": 24, "layers": 1, "width": 36, "head_width": 12, "patch_size": 8}
    text = {"hf_model_name": str(folder / "named"), "hf_tokenizer_name": "words", "context_length": 18}
    text |= {"hf_pooler_type": pool, "hf_proj_type": projection, "hf_model_pretrained": False}
    model = randomised(open_clip.CustomTextCLIP(20, vision, text))
    return model, {"model_cfg": {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text, "custom_text": True}}


@pytest.mark.parametrize("projection", ["mlp", "linear"])
@pytest.mark.parametrize("pool", ["mean_pooler", "cls_last_hidden_state_pooler"])
def test_texts_that_open_clip_takes_from_transformers_are_its_own(
    pool: str, projection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = open_clip_model(tmp_path, pool, projection)
    tiny = dataclasses.replace(hf_text("xlm-roberta-base", "mean"), vocab_size=60, width=24, depth=2, heads=3, mlp_ratio=40 / 24)
    monkeypatch.setitem(HF_TEXTS, str(tmp_path / "named"), dataclasses.replace(tiny, max_positions=24))
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    write_roberta(folder, "XLMRobertaTokenizer")
    weights = read_weights(folder)
    ids, _ = texts(1)
    with torch.no_grad():
        expected = model.encode_text(torch.from_numpy(ids).long(), normalize=True).numpy()
    with jax.default_matmul_precision("highest"):
        ours = encoder(weights.model)({"params": unflatten(dict(weights))}, {"text": ids})["text"].z
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    write_weights(tmp_path / "back", "open_clip", weights.model, dict(weights))
    again = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    unused = {f"text.transformer.pooler.dense.{leaf}" for leaf in ("weight", "bias")}
    named = {name: value for name, value in model.state_dict().items() if name in again}
    assert {*model.state_dict()} - {*again} <= unused
    for name, value in named.items():
        np.testing.assert_array_equal(again[name], value.numpy(), err_msg=name)
    assert dataclasses.replace(read_weights(tmp_path / "back").model, towers={}) == dataclasses.replace(weights.model, towers={})
