"""Writes golden/*.json. Needs open_clip, transformers and torch: python make_golden.py"""

import importlib
import json
from typing import Any

import numpy as np
from foreign import GOLDEN, MODELS, TEXTS, images, number


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


def main() -> None:
    """All files."""
    torch = importlib.import_module("torch")
    save_archives(torch)
    open_clip = importlib.import_module("open_clip")
    transformers = importlib.import_module("transformers")
    for name, config in MODELS.items():
        if name.startswith("open_clip"):
            model = open_clip.model.CLIP(**config)
            length = config["text_cfg"]["context_length"]
        else:
            model = transformers.CLIPModel(transformers.CLIPConfig(**config))
            length = config["text_config"]["max_position_embeddings"]
        state = model.eval().state_dict()
        numbers = {key: number(key, tuple(value.shape)) for key, value in state.items() if "position_ids" not in key}
        model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in numbers.items()}, strict=False)
        mean = np.float32([0.48145466, 0.4578275, 0.40821073])
        std = np.float32([0.26862954, 0.26130258, 0.27577711])
        pixels = torch.from_numpy(((images(24).astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
        ids = open_clip.SimpleTokenizer(context_length=length)(list(TEXTS))
        with torch.no_grad():
            if name.startswith("open_clip"):
                image, text = model.encode_image(pixels), model.encode_text(ids)
            else:
                image, text = model.get_image_features(pixels), model.get_text_features(ids)
                image, text = getattr(image, "pooler_output", image), getattr(text, "pooler_output", text)
        content = {
            "shapes": {key: list(value.shape) for key, value in numbers.items()},
            "image": image.tolist(),
            "text": text.tolist(),
        }
        (GOLDEN / f"{name}.json").write_text(json.dumps(content) + "\n")
        print(name, len(numbers), image.std().item(), text.std().item())


if __name__ == "__main__":
    main()
