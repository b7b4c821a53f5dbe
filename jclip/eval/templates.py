"""The prompt template sets that the literature reports, by data set; `{}` stands for the name of the class."""

import functools
import importlib.resources
import json
from collections.abc import Sequence

from jclip.config import ConfigError
from jclip.eval.labels import read_entries

DEFAULT = ("a photo of a {}.",)

OF_SOUNDS = ("This is a sound of {}.",)
"""Prompts of sounds, where none are given."""


@functools.cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """Every set by its name.

    "imagenet" is the 80 templates and "simple" the subset of 7 of OpenAI's notebook on prompt engineering for ImageNet; both are
    used for ImageNet's shifted sets too. The others are those of Radford et al. 2021, published in data/prompts.md of the
    repository openai/CLIP, with their spelling ("a origami {}."). "kitti" has the bare class, which is a sentence there, and
    "fer2013" is used with several names a class.
    """
    text = importlib.resources.files("jclip.eval").joinpath("templates.json").read_text(encoding="utf-8")
    return {name: tuple(templates) for name, templates in json.loads(text).items()}


def template_set(name: str) -> tuple[str, ...]:
    """The templates of a data set, such as "cifar10"; see `template_sets`.

    Raises:
        ConfigError: there is no set of that name.
    """
    sets = template_sets()
    if name not in sets:
        raise ConfigError(f"templates: {name!r} is no template set; use one of {', '.join(sorted(sets))}, or list your own")
    return sets[name]


def read_templates(given: Sequence[str], own: Sequence[str] = (), default: Sequence[str] = DEFAULT) -> tuple[str, ...]:
    """The prompts of a config: "set:NAME" stands for a set, "file:PATH" for the lines of a file, in which {c} is the class too.

    Args:
        given: as in the config.
        own: those of the source, which are used where none are given; and where it has none, `default`.
        default: those of nothing else.

    Raises:
        ConfigError: there is no such set or file, or a template has no {} where the class name goes.
    """
    found: list[str] = []
    for entry in read_entries(given or own or default, "templates"):
        found += template_set(entry.removeprefix("set:")) if entry.startswith("set:") else [entry.replace("{c}", "{}")]
    for template in found:
        if "{}" not in template:
            raise ConfigError(f"evaluation: the template {template!r} has no {{}} where the class name goes")
    return tuple(found)
