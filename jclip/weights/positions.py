"""Learned positions of one size made those of another, so that a tower takes larger images or longer texts, as open_clip does."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jclip.config import (
    BertTower,
    ConfigError,
    ImageSize,
    ImageTower,
    Model,
    ResNetTower,
    TextTower,
    TokenTower,
    Tower,
    as_image_size,
    check_model,
    replace,
)
from jclip.models.text import class_tokens as text_class_tokens
from jclip.models.vit import PatchTower, class_tokens
from jclip.weights.errors import WeightsError


def with_sizes(model: Model, image_size: ImageSize | None = None, context_length: int | None = None) -> Model:
    """The same model for images (a side, or height and width) and texts of another size; None leaves a size as it is.

    Raises:
        ConfigError: it has no tower of that kind, or the tower cannot have that size.
    """
    if image_size is None and context_length is None:
        return model
    for size, field, kinds in (
        (as_image_size(image_size), "image_size", (ImageTower,)),
        (context_length, "context_length", (TokenTower,)),
    ):
        names = [name for name, tower in model.towers.items() if isinstance(tower, kinds)]
        if size is not None and not names:
            raise ConfigError(f"{field} {size}: the model has no tower with one; towers: {', '.join(model.towers)}")
        for name in names if size is not None else ():
            model = replace(model, f"towers.{name}.{field}", size)
    check_model(model)
    return model


def resize_positions(params: Mapping[str, Any], source: Model, target: Model) -> dict[str, Any]:
    """Parameters of `source`, by path, with the positions that `target` needs; all others are passed on as they are.

    The positions of patches are resampled as an image: cubic (a = -0.5), antialiased. Their rows and columns are those of the
    models: as many positions may be another grid. The positions of a text are interpolated linearly between their centres,
    without antialiasing. Those of class tokens stay. Sincos positions are no parameters.

    Args:
        params: arrays by path; those of towers that only one of the models has are passed on too, and a tower of which there are
            none may be another one.
        source: the model they are of.
        target: the model they are for; its towers may differ in image_size and context_length, and those of sounds in seconds.

    Raises:
        WeightsError: a tower of that name is of another kind, or its tokens are not comparable.
    """
    resized = dict(params)
    for name in sorted({path.partition("/")[0] for path in params} & source.towers.keys() & target.towers.keys()):
        before, after = source.towers[name], target.towers[name]
        _check(name, before, after)
        path = f"{name}/pool/pos_embed" if isinstance(before, ResNetTower) else f"{name}/pos_embed"
        if path not in params or isinstance(after, BertTower):  # which has more positions than tokens
            continue
        if isinstance(after, TextTower):
            resized[path] = _resize_line(params[path], text_class_tokens(after), after.context_length)
            continue
        # `_check` has found them to be of one kind. Those of kinds from elsewhere stay as they are.
        if isinstance(before, PatchTower | ResNetTower) and isinstance(after, PatchTower | ResNetTower):
            extra = class_tokens(after) if isinstance(after, PatchTower) else 1
            resized[path] = _resize_grid(params[path], extra, before.grid, after.grid)
    return resized


def extend_positions(positions: Any, new: Any, tower: TextTower) -> Any:
    """Positions of a text tower of another length, f32 [l, width]: the first ones as they are, behind their end those of `new`.

    Args:
        positions: those that there are.
        new: what the tower begins with, for its context_length.
        tower: whose class token, if it has one, keeps its position.
    """
    extra = text_class_tokens(tower)
    line, last = np.split(np.asarray(positions), [len(positions) - extra])
    rest = np.asarray(new)[len(line) : len(new) - extra]
    return np.concatenate([line[: len(new) - extra], rest, last])


def _resize_grid(positions: Any, extra: int, before: tuple[int, int], after: tuple[int, int]) -> Any:
    """[extra + rows * columns, width] of one grid -> of another."""
    if before == after:
        return positions
    width = positions.shape[1]
    resized = _resample(np.reshape(positions[extra:], (*before, width)), (*after, width), "cubic", antialias=True)
    return np.concatenate([positions[:extra], resized.reshape(-1, width)])


def _resize_line(positions: Any, extra: int, length: int) -> Any:
    """[any + extra, width] -> [length + extra, width]."""
    if len(positions) == length + extra:
        return positions
    line, last = np.split(np.asarray(positions), [len(positions) - extra])
    return np.concatenate([_resample(line, (length, line.shape[1]), "linear", antialias=False), last])


def _resample(x: Any, shape: tuple[int, ...], method: str, *, antialias: bool) -> Any:
    """f32 `x` on a grid of another shape; weights that would fall outside are shared among the others."""
    if x.shape == shape:
        return x
    return np.asarray(jax.image.resize(np.asarray(x, np.float32), shape, method, antialias=antialias))


def _check(name: str, before: Tower, after: Tower) -> None:
    fields = ("width", "patch_size", "positions", "max_positions", "stride", "mel") if type(before) is type(after) else ()
    other = [field for field in fields if getattr(before, field, None) != getattr(after, field, None)]
    if isinstance(before, PatchTower) and isinstance(after, PatchTower) and class_tokens(before) != class_tokens(after):
        other.append("class_token")
    if isinstance(before, TextTower) and isinstance(after, TextTower) and text_class_tokens(before) != text_class_tokens(after):
        other.append("pool")
    if type(before) is not type(after):
        raise WeightsError(f"{name}: the weights are of a {type(before).__name__}, the model has a {type(after).__name__}")
    if other:
        raise WeightsError(
            f"{name}: positions fit towers that differ in image_size and context_length alone; also different: "
            + ", ".join(f"{f} ({_value(before, f)}, not {_value(after, f)})" for f in other)
        )


def _value(tower: Tower, field: str) -> Any:
    return class_tokens(tower) if field == "class_token" and isinstance(tower, PatchTower) else getattr(tower, field)
