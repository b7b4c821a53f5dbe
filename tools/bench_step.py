"""Times the training step of jclip beside open_clip's, data excluded: two processes that take turns on the same machine.

    python tools/bench_step.py                                     jclip alone
    python tools/bench_step.py --peer-python ../peer/bin/python    beside open_clip, installed in another environment
    python tools/bench_step.py --peer-python ... --rounds 3        a whole process at a time: each is alone in memory

Each step is forward, loss, backward and AdamW in f32 on fixed inputs. A pair is one step of each, one after the other; the table
gives the medians of the times, and the median of the pairs' ratios, which a noisy machine disturbs least. With `--rounds` a pair
is the median step of a process of each, one after the other, for two at once disturb each other's memory. A ratio below 1 means
that jclip is faster.

Measured on two cores of an EPYC (Zen 5) that did nothing else, --rounds 3: the clipart model took 2.85 s, and open_clip's 4.19
s (0.68), ViT-B/32 at batch 16 2.35 and 3.96 s (0.59), open_clip 3.3.0 on torch 2.13.0. On a slow virtual Xeon these were 7.3
and 7.7 s (0.93; 1.02), 7.3 and 7.1 s (1.03; 0.97): there torch's library makes 115 to 165 GFLOP/s of these products of
matrices, XLA's 75 to 130.

Memory costs both on such a machine, where a page fault takes 2 to 3 microseconds: XLA gives its temporary memory, 2.6 GB, back
after every step and takes it anew. The allocator can be set to keep it, at the price of twice the memory:
MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 makes both up to a seventh faster. Huge pages
(GLIBC_TUNABLES=glibc.malloc.hugetlb=1) made a step of jclip between a third faster and a tenth slower, as the kernel found
memory in one piece or not.
"""

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from turns import Worker, median_ratio, serve, take_rounds, take_turns


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batch."""

    batch: int
    image_size: int
    patch_size: int
    vision: tuple[int, int]
    """Width and depth; heads of 64."""
    context_length: int
    text: tuple[int, int]
    embed_dim: int


SHAPES = {
    "clipart": Shape(256, 64, 8, (256, 6), 32, (256, 4), 256),
    "ViT-B-32": Shape(16, 224, 32, (768, 12), 77, (512, 12), 512),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="which models (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before that, compilation included (default: 2)")
    parser.add_argument("--rounds", type=int, metavar="N", help="so many whole processes of each, one at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the peer (default: all)")
    parser.add_argument("--peer-python", metavar="PYTHON", help="a Python with torch and open_clip")
    parser.add_argument("--peer-import", metavar="MODULE", help="a module the peer imports first")
    parser.add_argument("--worker", choices=["jclip", "open_clip"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        shape = SHAPES[options.models[0]]
        serve(jclip_step(shape) if options.worker == "jclip" else open_clip_step(shape, options.threads, options.peer_import))
        return
    table = Table("model", "jclip s/step", "open_clip s/step", "ratio of medians", "median of ratios")
    for model in options.models:
        command = [__file__, "--models", model, "--threads", str(options.threads), "--worker"]
        starts = [partial(Worker, sys.executable, *command, "jclip")]
        if options.peer_python:
            first = ["--peer-import", options.peer_import] if options.peer_import else []
            starts.append(partial(Worker, options.peer_python, *command, "open_clip", *first))
        timing = {"warmup": options.warmup, "steps": options.steps, "title": model}
        if options.rounds:
            ours, *others = take_rounds(starts, rounds=options.rounds, **timing)
        else:
            ours, *others = take_turns([start() for start in starts], **timing)
        row = [model, f"{statistics.median(ours):.3f}"]
        for theirs in others:
            ratio = statistics.median(ours) / statistics.median(theirs)
            row += [f"{statistics.median(theirs):.3f}", f"{ratio:.2f}", f"{median_ratio(ours, theirs):.2f}"]
        table.add_row(*row)
    Console().print(table)


def jclip_step(shape: Shape) -> Callable[[], None]:
    """A step of the real train step, waited for."""
    import jax
    import numpy as np

    from jclip.config import Config, MeshConfig, Model, Optim, TextTower, VisionTower
    from jclip.program import make_program
    from jclip.sharding import make_mesh, to_global

    width, depth = shape.vision
    text_width, text_depth = shape.text
    vision = VisionTower(shape.image_size, shape.patch_size, width, depth, width // 64)
    text = TextTower(shape.context_length, width=text_width, depth=text_depth, heads=text_width // 64)
    config = Config(
        Model({"image": vision, "text": text}, shape.embed_dim), optim=Optim(weight_decay=0.1), batch_size=shape.batch
    )
    mesh = make_mesh(MeshConfig())
    program = make_program(config, mesh, warmup_steps=60, total_steps=1000)
    rng = np.random.default_rng(0)
    size, length = shape.image_size, shape.context_length
    rows: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (shape.batch, size, size, 3)).astype(np.uint8),
        "text": rng.integers(1, 49408, (shape.batch, length)).astype(np.int32),
    }
    batch = to_global(rows, mesh)
    state: Any = program.init()

    def step() -> None:
        nonlocal state
        state, _ = program.train_step(state, batch)
        jax.block_until_ready(state)

    return step


def open_clip_step(shape: Shape, threads: int, first: str | None) -> Callable[[], None]:
    """The same with open_clip's model and loss, and torch's AdamW."""
    import importlib

    if first:
        importlib.import_module(first)
    torch = importlib.import_module("torch")
    CLIP = importlib.import_module("open_clip.model").CLIP
    loss_fn = importlib.import_module("open_clip.loss").ClipLoss()
    torch.set_num_threads(threads)
    width, depth = shape.vision
    text_width, text_depth = shape.text
    vision = {"image_size": shape.image_size, "patch_size": shape.patch_size, "width": width, "layers": depth, "head_width": 64}
    text = {"context_length": shape.context_length, "vocab_size": 49408, "width": text_width}
    model = CLIP(shape.embed_dim, vision, {**text, "heads": text_width // 64, "layers": text_depth})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    images = torch.randn(shape.batch, 3, shape.image_size, shape.image_size)
    texts = torch.randint(1, 49408, (shape.batch, shape.context_length))

    def step() -> None:
        image, caption, scale = model(images, texts)[:3]
        loss = loss_fn(image, caption, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
