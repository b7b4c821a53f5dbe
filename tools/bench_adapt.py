"""Times Tip-Adapter on cached features, and a step of CoOp beside the same step in torch, on a tower of the same size.

    python tools/bench_adapt.py                                     100 classes, 16 shots, ViT-B-32: a minute on two idle cores
    python tools/bench_adapt.py --classes 10 --architecture ViT-tiny-test --only tip coop
    python tools/bench_adapt.py --classes 1000 --memory 1 8         memory of a device, on one and on eight: compiled, not run

Weights and features are random. Tip-Adapter is its keys, the published search of 200 x 20 pairs on 4 examples of each class, and
the head. A step of CoOp is forward, backward and update with a batch of 32 embeddings, 16 contexts, and names of two words;
torch's has the published form: prompts of all 77 tokens, put together from pieces, in float32. Each runs in a process of its own,
whose largest memory is printed; seconds are by the clock, the first step apart, and CPU seconds, of all threads, say more on a
machine that does other work at the same time. `--memory` compiles an epoch of CoOp as `jclip adapt` runs it, ahead of time and
without any array, and prints what XLA says that a device then holds.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

PARTS = ("tip", "coop", "torch")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100, help="classes (default: 100)")
    parser.add_argument("--shots", type=int, default=16, help="examples of each (default: 16)")
    parser.add_argument("--architecture", default="ViT-B-32", help="whose tower of texts (default: ViT-B-32)")
    parser.add_argument("--steps", type=int, default=3, help="steps after the first (default: 3)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which (default: all)")
    parser.add_argument("--memory", nargs="+", type=int, metavar="N", help="compile CoOp's epoch for N emulated devices instead")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_memory(options)
        return
    if options.part:
        print(json.dumps(measured({"tip": tip, "coop": coop, "torch": torch_coop}[options.part], options)))
        return
    table = Table("what", "first, seconds", "each, seconds", "each, CPU seconds", "memory, MiB")
    for part in options.only:
        done = subprocess.run([sys.executable, *sys.argv, "--part", part], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        table.add_row(part, *(f"{row[name]:.2f}" for name in ("first", "each", "cpu")), f"{row['memory']:,.0f}")
    Console().print(table)


def print_memory(options: argparse.Namespace) -> None:
    """Prints the table of `--memory`."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(options.memory)}"
    table = Table("devices", "remat", "parameters and inputs, MiB a device", "temporaries, MiB a device")
    for devices in options.memory:
        for remat in (True, False):
            held, temporary = coop_memory(options.architecture, options.classes, devices, remat=remat)
            table.add_row(str(devices), str(remat), *(f"{size / 2**20:,.0f}" for size in (held, temporary)))
    Console().print(table)


def coop_memory(architecture: str, classes: int, devices: int, *, remat: bool) -> tuple[int, int]:
    """Bytes that a device holds of arguments, and of temporaries, in an epoch of CoOp of 500 steps, with 16 contexts."""
    import jax
    import jax.numpy as jnp

    from jclip import create_model
    from jclip.adapt.contexts import layout, prompt_encoder
    from jclip.adapt.coop import make_epoch, prompt_loss
    from jclip.adapt.training import coop_optimizer
    from jclip.config import CoOp, MeshConfig, TextTower
    from jclip.sharding import make_mesh, replicated

    clip, mesh = create_model(architecture), make_mesh(MeshConfig(), jax.devices()[:devices])
    tower = clip.config.towers["text"]
    assert isinstance(tower, TextTower)
    made, optimizer = (
        layout(tower, names_of(classes), contexts_for(tower.context_length), "", "end"),
        coop_optimizer(CoOp(), 50, 500),
    )
    params = {name: tree for name, tree in jax.eval_shape(clip.init, jax.random.key(0)).items() if name.startswith("text")}
    contexts = jax.ShapeDtypeStruct((made.contexts, tower.width), jnp.float32)
    z, labels = jax.ShapeDtypeStruct((500, 32, clip.config.embed_dim), jnp.float32), jax.ShapeDtypeStruct((500, 32), jnp.int32)
    arrays = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in made.arrays())
    shapes = (
        contexts,
        jax.eval_shape(optimizer.init, contexts),
        z,
        labels,
        (params, arrays, jax.ShapeDtypeStruct((), jnp.float32)),
    )
    here = replicated(mesh)
    placed: Any = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    epoch = make_epoch(prompt_loss(prompt_encoder(clip.config, mesh, "text", remat=remat)), optimizer, mesh)
    sizes = epoch.lower(*placed).compile().memory_analysis()
    return int(sizes.argument_size_in_bytes), int(sizes.temp_size_in_bytes)


def contexts_for(length: int) -> int:
    """Contexts of prompts of so many tokens: as published, or one where they would not fit."""
    return 16 if length > 30 else 1


def measured(make: Callable[[argparse.Namespace], Callable[[], object]], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the first run and of each that follows, and the memory of this process at its largest."""
    run = make(options)
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    began, used = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
        run()
    each, cpu = (time.perf_counter() - began) / options.steps, (time.process_time() - used) / options.steps
    return {"first": first, "each": each, "cpu": cpu, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def names_of(classes: int) -> tuple[str, ...]:
    """Names of two words."""
    colours = ("red", "green", "blue", "white", "black", "pink", "grey", "brown", "gold", "silver")
    things = ("dog", "cat", "bird", "horse", "house", "tree", "car", "boat", "chair", "lamp")
    kinds = ("", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")
    return tuple(f"{colours[i % 10]} {things[i // 10 % 10]}{kinds[i // 100]}" for i in range(classes))


def unit(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random unit vectors f32."""
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def tip(options: argparse.Namespace) -> Callable[[], object]:
    """Tip-Adapter's search, of cached features."""
    from jclip.adapt.heads import Features, Head, scalar
    from jclip.adapt.task import LabelledFeatures
    from jclip.adapt.tip import mean_keys, searched
    from jclip.config import TipAdapter

    classes, n = options.classes, options.classes * options.shots
    views = Features(unit((10, n, 512), 0), np.ones((10, n), np.float32))
    selection = LabelledFeatures(
        Features(unit((4 * classes, 512), 1), np.ones(4 * classes, np.float32)), np.repeat(np.arange(classes), 4)
    )

    def run() -> object:
        arrays = {
            "classifier": unit((classes, 512), 2),
            "keys": mean_keys(views),
            "values": np.eye(classes, dtype=np.float32)[np.repeat(np.arange(classes), options.shots)],
            **{"alpha": scalar(1.17), "beta": scalar(1.0), "scale": scalar(100.0)},
        }
        return searched(TipAdapter(), Head("cache", arrays), selection, 0)

    return run


def coop(options: argparse.Namespace) -> Callable[[], object]:
    """A step of CoOp, as jclip takes it."""
    import jax
    import jax.numpy as jnp
    import optax

    from jclip import create_model
    from jclip.adapt.contexts import first_contexts, layout, prompt_encoder
    from jclip.adapt.heads import linear
    from jclip.adapt.training import coop_optimizer, cross_entropy
    from jclip.config import CoOp, MeshConfig, TextTower
    from jclip.sharding import make_mesh

    clip = create_model(options.architecture)
    tower = clip.config.towers["text"]
    assert isinstance(tower, TextTower)
    params = {name: tree for name, tree in clip.init(jax.random.key(0)).items() if name.startswith("text")}
    made = layout(tower, names_of(options.classes), contexts_for(tower.context_length), "", "end")
    encode = prompt_encoder(clip.config, make_mesh(MeshConfig()), "text", remat=True)
    optimizer = coop_optimizer(CoOp(), 200, 50)
    z, labels = jnp.asarray(unit((32, clip.config.embed_dim), 0)), jnp.arange(32) % options.classes
    ids, gather, eot = map(jnp.asarray, made.arrays())
    contexts = jnp.asarray(first_contexts(np.zeros(0), tower, "", (made.contexts, tower.width), 0))
    state: Any = optimizer.init(contexts)

    def loss(contexts: Any, params: Any) -> Any:
        return cross_entropy(linear(z, labels, encode(params, contexts, (ids, gather, eot)), jnp.float32(100.0)), labels)

    @jax.jit
    def step(contexts: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(contexts, params), state, contexts)
        return optax.apply_updates(contexts, updates), state

    def run() -> object:
        nonlocal contexts, state
        contexts, state = jax.block_until_ready(step(contexts, state, params))
        return contexts

    return run


def torch_coop(options: argparse.Namespace) -> Callable[[], object]:
    """The same step in torch, prompts put together from pieces as in the published code, through torch's own transformer."""
    from jclip.config import TextTower, architecture
    from jclip.data import get_tokenizer

    torch = importlib.import_module("torch")
    model = architecture(options.architecture)
    tower = model.towers["text"]
    assert isinstance(tower, TextTower)
    width, length = tower.width, tower.context_length
    block = torch.nn.TransformerEncoderLayer(
        width, tower.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    transformer = torch.nn.TransformerEncoder(block, tower.depth, torch.nn.LayerNorm(width)).requires_grad_(False)
    table, projection = torch.nn.Embedding(tower.vocab_size, width), torch.randn(width, model.embed_dim) * width**-0.5
    positions, mask = 0.01 * torch.randn(length, width), torch.full((length, length), float("-inf")).triu(1)
    count = contexts_for(length)
    prompts = [" ".join(["X"] * count) + f" {name}." for name in names_of(options.classes)]
    ids = torch.from_numpy(get_tokenizer(tower.tokenizer)(prompts, length)).long()
    embedded = table(ids).detach()
    prefix, suffix = embedded[:, :1], embedded[:, 1 + count :]
    contexts = torch.nn.Parameter(0.02 * torch.randn(count, width))
    optimizer = torch.optim.SGD([contexts], lr=0.002, momentum=0.9, weight_decay=5e-4)
    z, labels = torch.from_numpy(unit((32, model.embed_dim), 0)), torch.arange(32) % options.classes
    ends = ids.argmax(dim=-1)

    def run() -> object:
        own = contexts[None].expand(len(ids), -1, -1)
        x = torch.cat([prefix, own, suffix], dim=1) + positions
        x = transformer(x, mask=mask)
        texts = x[torch.arange(len(x)), ends] @ projection
        texts = texts / texts.norm(dim=-1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(100.0 * z @ texts.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


if __name__ == "__main__":
    main()
