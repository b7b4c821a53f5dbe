"""Writes golden/*.json, all or those named. Needs open_clip, transformers and torch: python make_golden.py [NAME ...]"""

import importlib
import json
import sys
from typing import Any

import numpy as np
from foreign import GOLDEN, MODELS, TEXTS, TINY_TIMM, end_id, ids, image_size, images, number


def save_archives(torch: Any) -> None:
    """The same few tensors as a state dict, and as a TorchScript module in half precision, as OpenAI published its models."""
    inner = torch.nn.Module()
    outer = torch.nn.Module()
    for module, name in ((inner, "inner"), (outer, "outer")):
        for leaf, shape in (("weight", (3, 4)), ("bias", (4,)), ("scalar", ())):
            module.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(np.asarray(number(f"{name}.{leaf}", shape)))))
    outer.add_module("inner", inner)
    outer.register_buffer("steps", torch.tensor(7))
    state = outer.state_dict()
    state["turned"] = state["weight"].T  # not contiguous, and shares its numbers
    state["brain"] = state["weight"].to(torch.bfloat16)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, GOLDEN / "state_dict.pt")
    outer.forward = lambda x: x
    torch.jit.save(torch.jit.trace(outer.half(), torch.zeros(1), check_trace=False), str(GOLDEN / "torchscript.pt"))


def tell_timm() -> None:
    """Lets timm make the tiny model by its name, as it makes SigLIP's."""
    timm = importlib.import_module("timm")

    def make(**kwargs: Any) -> Any:
        sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3, "mlp_ratio": 3.25}
        kwargs = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool")}
        return timm.models.VisionTransformer(**sizes, class_token=False, **kwargs)

    importlib.import_module("timm.models._registry")._model_entrypoints[TINY_TIMM] = make


def make_model(name: str, config: dict[str, Any], open_clip: Any, transformers: Any) -> tuple[Any, int]:
    """The model, and the length of its texts."""
    if name.startswith("open_clip"):
        kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
        return kind(**{k: v for k, v in config.items() if k != "custom_text"}), config["text_cfg"]["context_length"]
    kind = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[config["model_type"]]
    made = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
    return made, config["text_config"]["max_position_embeddings"]


def features(name: str, model: Any, pixels: Any, words: Any, torch: Any) -> tuple[Any, Any]:
    """Features of images and of texts, before normalisation."""
    if name.startswith("open_clip"):
        return model.encode_image(pixels), model.encode_text(words)
    if name == "hugging_face_siglip2":  # which takes patches, a mask of those that are real, and how many a side
        patches = pixels.permute(0, 2, 3, 1).reshape(3, 3, 8, 3, 8, 3).transpose(2, 3).reshape(3, 9, -1)
        real, sides = torch.ones(3, 9, dtype=torch.int32), torch.full((3, 2), 3)
        image = model.get_image_features(patches, pixel_attention_mask=real, spatial_shapes=sides)
    else:
        image = model.get_image_features(pixels)
    text = model.get_text_features(words)
    return getattr(image, "pooler_output", image), getattr(text, "pooler_output", text)


def main() -> None:
    """All files, or those of some models."""
    torch, names = importlib.import_module("torch"), sys.argv[1:]
    if not names:
        save_archives(torch)
    open_clip = importlib.import_module("open_clip")
    transformers = importlib.import_module("transformers")
    tell_timm()
    for name, config in MODELS.items():
        if names and name not in names:
            continue
        model, length = make_model(name, config, open_clip, transformers)
        state = model.eval().state_dict()
        others = ("position_ids", "num_batches_tracked")
        numbers = {key: number(key, tuple(value.shape)) for key, value in state.items() if not key.endswith(others)}
        model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in numbers.items()}, strict=False)
        mean = np.float32([0.48145466, 0.4578275, 0.40821073])
        std = np.float32([0.26862954, 0.26130258, 0.27577711])
        if name.startswith("hugging_face_siglip"):
            mean = std = np.float32([0.5, 0.5, 0.5])
        rows = (images(*image_size(name)).astype(np.float32) / 255 - mean) / std
        pixels = torch.from_numpy(rows.transpose(0, 3, 1, 2).copy())
        words = open_clip.SimpleTokenizer(context_length=length)(list(TEXTS))
        if end_id(name) is not None:
            words = torch.from_numpy(ids(name)).long()
        with torch.no_grad():
            image, text = features(name, model, pixels, words, torch)
        content = {
            "shapes": {key: list(value.shape) for key, value in numbers.items()},
            "image": image.tolist(),
            "text": text.tolist(),
        }
        (GOLDEN / f"{name}.json").write_text(json.dumps(content) + "\n")
        print(name, len(numbers), image.std().item(), text.std().item())


if __name__ == "__main__":
    main()
