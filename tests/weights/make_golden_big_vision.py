"""Writes golden/big_vision.json. Needs open_clip, timm and torch: python make_golden_big_vision.py"""

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from foreign import GOLDEN, images, number

WIDTH, HEADS, DEPTH, HIDDEN, PATCH, GRID, LENGTH, VOCABULARY = 36, 3, 2, 117, 8, 3, 16, 32_000


def ids() -> np.ndarray:
    """Three texts i32 [3, LENGTH]: one that ends, one that is cut, and one of nothing."""
    ids = np.random.default_rng(3).integers(2, VOCABULARY, (3, LENGTH)).astype(np.int32)
    ids[0, 5:], ids[2] = 1, 1
    return ids


def attention(prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of attention, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value"):
        shapes |= {f"{prefix}{name}/kernel": (WIDTH, HEADS, WIDTH // HEADS), f"{prefix}{name}/bias": (HEADS, WIDTH // HEADS)}
    return shapes | {f"{prefix}out/kernel": (HEADS, WIDTH // HEADS, WIDTH), f"{prefix}out/bias": (WIDTH,)}


def block(prefix: str, attention_name: str, norm2: str | None, mlp: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a block, by name; norm2 None: of the attention pooling, which has one norm alone."""
    shapes = attention(f"{prefix}{attention_name}/")
    for norm in ("LayerNorm_0", *([norm2] if norm2 else [])):
        shapes |= {f"{prefix}{norm}/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    shapes |= {f"{prefix}{mlp}/Dense_0/kernel": (WIDTH, HIDDEN), f"{prefix}{mlp}/Dense_0/bias": (HIDDEN,)}
    return shapes | {f"{prefix}{mlp}/Dense_1/kernel": (HIDDEN, WIDTH), f"{prefix}{mlp}/Dense_1/bias": (WIDTH,)}


def transformer(prefix: str, parts: tuple[str, str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a stack of blocks and the norm after them, by name."""
    shapes = {f"{prefix}encoder_norm/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    for i in range(DEPTH):
        shapes |= block(f"{prefix}encoderblock_{i}/", *parts)
    return shapes


PARTS = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
FIRST_PARTS = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


def siglip() -> dict[str, np.ndarray]:
    """All arrays of a SigLIP, as big_vision names them."""
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,), "pos_embedding": (1, GRID**2, WIDTH)}
    shapes |= transformer("Transformer/", PARTS)
    shapes |= {"MAPHead_0/probe": (1, 1, WIDTH)} | block("MAPHead_0/", PARTS[0], None, PARTS[2])
    shapes = {f"img/{name}": shape for name, shape in shapes.items()} | transformer("txt/Encoder_0/", PARTS)
    shapes |= {"txt/Embed_0/embedding": (VOCABULARY, WIDTH), "txt/pos_embedding": (1, LENGTH, WIDTH)}
    shapes |= {"txt/head/kernel": (WIDTH, WIDTH), "txt/head/bias": (WIDTH,), "t": (1,), "b": (1,)}
    return {f"params/{name}": filled(name, shape) for name, shape in shapes.items()}


def classifier(*, first: bool) -> dict[str, np.ndarray]:
    """All arrays of an image classifier with a class token; `first`: as the first ViTs have them."""
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,), "cls": (1, 1, WIDTH)}
    shapes |= {"head/kernel": (WIDTH, 10), "head/bias": (10,)}
    shapes |= transformer("Transformer/", FIRST_PARTS if first else PARTS)
    table = "Transformer/posembed_input/pos_embedding" if first else "pos_embedding"
    shapes[table] = (1, GRID**2 + first, WIDTH)
    return {("" if first else "params/") + name: filled(name, shape) for name, shape in shapes.items()}


def filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name; scales of norms are near 1, as in foreign.number the weights of norms."""
    if name == "t":
        return np.full(shape, 2.5, np.float32)
    array = number(name, shape)
    rows = np.prod(shape[1:]) / max(1, np.prod(shape[:-1])) if len(shape) > 1 and "out/" not in name else 1
    return np.asarray(array * np.float32(rows**0.5) + np.float32(name.endswith("scale")), np.float32)


def theirs(timm: Any, open_clip: Any) -> Any:
    """open_clip's SigLIP of those sizes, with the activation that big_vision has."""
    sizes = {"img_size": PATCH * GRID, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    options = {"mlp_ratio": HIDDEN / WIDTH, "class_token": False, "act_layer": "gelu_tanh"}

    def vit_tiny_for_tests(**kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith(("pretrained", "cache_dir"))}
        return timm.models.VisionTransformer(**sizes, **options, **kwargs)

    vit_tiny_for_tests.__module__ = "timm.models.vision_transformer"
    timm.models.register_model(vit_tiny_for_tests)
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": DEPTH}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text |= {"mlp_ratio": HIDDEN / WIDTH, "act_kwargs": {"approximate": "tanh"}}
    vision = {"image_size": PATCH * GRID, "timm_model_name": "vit_tiny_for_tests", "timm_pool": "map", "timm_proj": "none"}
    return open_clip.model.CustomTextCLIP(WIDTH, vision, text, init_logit_bias=-10).eval()


def features(torch: Any, model: Any, path: Path) -> dict[str, Any]:
    """Results of open_clip for a file: image and text features before normalisation, scale and bias of the logits."""
    importlib.import_module("open_clip.convert").load_big_vision_weights(model, str(path))
    pixels = torch.from_numpy((images(PATCH * GRID).astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(torch.from_numpy(ids()).long())
    scale, bias = model.logit_scale.item(), model.logit_bias.item()
    return {"image": image.tolist(), "text": text.tolist(), "logit_scale": scale, "logit_bias": bias}


def main() -> None:
    """The file."""
    torch, timm, open_clip = (importlib.import_module(name) for name in ("torch", "timm", "open_clip"))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "siglip.npz", **siglip())
        made = features(torch, theirs(timm, open_clip), Path(folder) / "siglip.npz")
        made["classifier"] = {}
        for first in (False, True):
            options = {"img_size": PATCH * GRID, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
            options |= {"mlp_ratio": HIDDEN / WIDTH, "act_layer": "gelu_tanh", "num_classes": 10, "no_embed_class": not first}
            vit = timm.models.VisionTransformer(**options).eval()
            np.savez(Path(folder) / "vit.npz", **classifier(first=first))
            vit.load_pretrained(str(Path(folder) / "vit.npz"))
            pixels = torch.from_numpy((images(PATCH * GRID).astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2).copy())
            with torch.no_grad():
                pooled = vit.forward_head(vit.forward_features(pixels), pre_logits=True)
            made["classifier"]["first" if first else "since"] = pooled.tolist()
    (GOLDEN / "big_vision.json").write_text(json.dumps(made) + "\n")
    print({key: np.std(value) for key, value in made.items() if key in ("image", "text")})


if __name__ == "__main__":
    main()
