"""The configuration that the tests train: two tiny towers on drawn shapes with everything on; and the flags of processes."""

import dataclasses
import os
import re
from typing import Any

from jclip.config import Augment, Checkpoint, Config, Data, Optim, Retrieval, ZeroShot, architecture
from jclip.config import replace as replace_path


def tiny_config(**changes: Any) -> Config:
    """12 steps of batch 16; `changes` by dotted path, as on the command line: {"optim.lr": 1e-2}."""
    model = architecture("ViT-tiny-test")
    image = dataclasses.replace(model.towers["image"], stem=(8,), patch_dropout=0.25)
    model = dataclasses.replace(model, towers={**model.towers, "image": image})
    config = Config(
        model=model,
        data=Data(source="shapes:train?size=16&length=200", augment=Augment(scale=(0.5, 1.0), flip=0.5)),
        optim=Optim(lr=1e-2, warmup="3", clip_norm=1.0),
        evals={
            "seen": ZeroShot("shapes:test?size=16&length=50", templates=("a {}",), every="6"),
            "pairs": Retrieval("shapes:val?size=16&length=50"),
        },
        checkpoint=Checkpoint(every="4", keep=2, best="seen/top1"),
        batch_size=16,
        eval_batch_size=16,
        duration="12",
        log_every=1,
    )
    for path, value in changes.items():
        config = replace_path(config, path, value)
    return config


def flags_for(devices: int) -> str:
    """The tests' own XLA_FLAGS for so many devices: what they have compiled, a process that they start need not."""
    return re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
