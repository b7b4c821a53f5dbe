"""Prompts of classes: templates, and texts that describe a class."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.config import Adapt, ConfigError
from jclip.data.names import NameIndex
from jclip.eval.templates import DEFAULT, read_templates
from jclip.files import read_whole


def read_prompts(
    config: Adapt, names: Sequence[str], own: Sequence[str], default: Sequence[str] = DEFAULT
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Templates, and the texts of each class: those of the templates, of the descriptions, or both.

    Args:
        config: says which.
        names: of the classes.
        own: templates that come with the data.
        default: those of nothing else.

    Raises:
        ConfigError: a template or file cannot be used.
    """
    templates = read_templates(config.templates, own, default)
    if not config.descriptions:
        return templates, tuple(fill(templates, name) for name in names)
    texts = read_by_class(config.descriptions, names)
    asked = templates if config.templates else ()
    return templates, tuple(fill(asked, name) + of_class for name, of_class in zip(names, texts, strict=True))


def fill(templates: Sequence[str], name: str) -> tuple[str, ...]:
    """Templates with the name of a class."""
    return tuple(template.replace("{}", spoken(name)) for template in templates)


def spoken(name: str) -> str:
    """The name as prompts have it: underscores are spaces, as in the published codes."""
    return name.replace("_", " ")


def read_by_class(path: str, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Texts of each class in a JSON file {"class": ["text", ...]}, whose names match without regard to case and underscores.

    Raises:
        ConfigError: it cannot be read, is of another form, or lacks a class.
    """
    try:
        found: Any = json.loads(read_whole(Path(path).expanduser()))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"adapt: {path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(_texts(texts) for texts in found.values()):
        raise ConfigError(f'adapt: {path} is no object of lists of texts, {{"class": ["text", ...]}}')
    index, keys = NameIndex(tuple(found)), list(found)
    places = [index.find(name) for name in names]
    if missing := [name for name, place in zip(names, places, strict=True) if place is None]:
        shown = ", ".join(repr(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ConfigError(f"adapt: {path} has no texts of {len(missing)} of {len(names)} classes: {shown}")
    return tuple(tuple(found[keys[place]]) for place in places if place is not None)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
