"""`jclip convert`: weights of any library, or of a training run, as another library's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from jclip.config import Caption, ConfigError, ImageSize
from jclip.files import is_adapted, is_bucket, is_run
from jclip.inference import Encoder, load
from jclip.runs import load_run
from jclip.tree import flatten
from jclip.weights import local_path, read_weights, resize_positions, with_sizes, write_weights


def main(
    source: str | Path,
    folder: str | Path,
    *,
    to: str = "jclip",
    architecture_name: str | None = None,
    step: int | None = None,
    image_size: ImageSize | None = None,
    context_length: int | None = None,
    tokenizer: str | Path | None = None,
    kind: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder` in the format `to` (see `weights.FORMATS`).

    Args:
        source: the workdir of a training run, an adapted model whose towers have changed, or what `weights.read_weights` opens,
            also as hf://ORG/NAME[@REVISION].
        folder: is made; must not exist.
        architecture_name: of the architecture, where the source does not say it.
        step: which checkpoint of a workdir; None means the last.
        image_size: side of the images that the written model takes, or (height, width), to which its positions are resampled;
            None: the same.
        context_length: tokens of the texts that it takes, likewise.
        tokenizer: the vocabulary that the source leaves out; see `weights.read_weights`.
        kind: which of `weights.FORMATS` a folder is read as; None: the first that it has.
        preprocess: fields of `config.Preprocess` that a weight file needs; see `weights.read_weights`.
    """
    say = Console(emoji=False, stderr=True, highlight=False)
    captioners: Mapping[str, Caption]
    params: Mapping[str, Any]
    source = local_path(source) if is_bucket(source) else source
    if is_adapted(source):
        given = (architecture_name, step, image_size, context_length, tokenizer, kind)
        if any(value is not None for value in given) or preprocess:
            raise ConfigError(f"{source} is an adapted model, which says all itself; leave out further arguments")
        encoder = _adapted_towers(source)
        model, params, captioners, came_from = encoder.config, flatten(encoder.params), encoder.captioners, "adapted"
    elif is_run(source):
        if (architecture_name, tokenizer, kind) != (None, None, None) or preprocess:
            raise ConfigError(
                f"{source} is a workdir, which says all itself; leave out --architecture, --tokenizer, --from and pixels"
            )
        config, step, params, _ = load_run(source, step)
        captioners = config.captioners()
        model, came_from = with_sizes(config.model, image_size, context_length), f"step {step:,} of a training run"
        params = resize_positions(flatten(params), config.model, model)
    else:
        if step is not None:
            raise ConfigError(f"{source} is no workdir; leave out --step")
        path = local_path(source, kind)
        weights = read_weights(path, architecture_name, tokenizer, kind=kind, preprocess=preprocess)
        weights = weights.resized(image_size, context_length)
        arrays = track(weights, f"reading {source}", total=len(weights.shapes), console=say)
        model, params, came_from, captioners = weights.model, dict(arrays), weights.format, weights.captioners
    write_weights(folder, to, model, params, captioners)
    say.print(f"{source} ({came_from}) is now {folder} ({to})")
    if is_adapted(source):
        say.print("Its classifier stays behind: weights have no place for it, and classes of the new model are what prompts say")


def _adapted_towers(source: str | Path) -> Encoder:
    """An adapted model, if its adaptation is one of towers."""
    encoder = load(source)
    if encoder.adapted is None or not encoder.adapted.changed:
        base = "" if encoder.adapted is None else encoder.adapted.base["model"]
        raise ConfigError(f"{source}: nothing of its towers was adapted, and a head has no place in weights; convert {base}")
    return encoder
