"""The training steps that docs/speed.md gives times of, as a recipe: any architecture in bfloat16, and nothing else of note.

    jclip compile tools/speed_recipe.py --architecture-name ViT-B-16-SigLIP --topology v5e:2x2 --batch-size 1024

They are compiled, never trained: sources, rates and lengths are the defaults. SigLIP's architectures have its sigmoid loss, the
others the softmax.
"""

from typing import Literal

from jclip.config import Config, Contrastive, TextTower, architecture, replace_each


def get_config(architecture_name: str = "ViT-B-32") -> Config:
    """The step of an architecture, a loop over blocks that keep nothing; --model.remat and --model.scan change that."""
    model = architecture(architecture_name)
    text = model.towers["text"]
    if isinstance(text, TextTower) and text.tokenizer.kind != "clip":  # a vocabulary is named, and nobody reads it
        model = replace_each(model, {"towers.text.tokenizer.file": "vocabulary"})
    loss: Literal["sigmoid", "softmax"] = "sigmoid" if "SigLIP" in architecture_name else "softmax"
    return Config(
        model=replace_each(model, {"dtype": "bfloat16", "scan": True, "remat": "nothing_saveable"}),
        objectives={"image_text": Contrastive(loss=loss, dtype="bfloat16", block=1024)},
        batch_size=1024,
        eval_batch_size=1024,
        duration="1000",
    )
