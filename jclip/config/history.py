"""Files of an older jclip: the one place where old fields get their meaning, and new ones the value that keeps it."""

from collections.abc import Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

from jclip.config.errors import ConfigError

T = TypeVar("T")

FORMAT = 3
"""Format of a configuration in config.json, checkpoints and jclip.json; raised when a field gets another meaning.

1: jclip 0.1.0 until November 2026, which wrote no format.
2: the format is written.
3: `pairs`, a list, are `objectives` by name; the name of a pair is that of both sides, such as "image_text".
"""

FAMILIES = ("Contrastive", "Triplet", "SimCLR", "SimSiam", "BYOL", "NearestNeighbour", "Vocabulary")
"""Objectives of before any could begin later."""

ADDED: dict[str, Any] = {
    **{f"{family}.begin": 0.0 for family in FAMILIES},
    "Augment.blur": 0.0,
    "Augment.blur_sigma": (0.1, 2.0),
    "Augment.grayscale": 0.0,
    "Augment.jitter": (0.4, 0.4, 0.4, 0.1),
    "Augment.jitter_p": 0.0,
    "Augment.magnitude": 0.3,
    "Augment.rand_augment": 0,
    "Augment.solarize": 0.0,
    "Contrastive.decoupled": False,
    "Contrastive.extra_projections": False,
    "Data.batches": "mixed",
    "Data.broken": "replace",
    "Data.decode": "exact",
    "Data.max_pixels": 64_000_000,
    "Data.block_shards": 4,
    "Data.lanes": 8,
    "Data.optional": (),
    "Data.max_seconds": 36_000.0,
    "Data.sound_augment": {"type": "SoundAugment", "gain": (0.0, 0.0), "shift": 0.0, "invert": 0.0},
    "Data.sound_mix": {"type": "SoundMix", "p": 0.0, "beta": 10.0, "joint": " and "},
    "Data.shuffle": "full",
    "Data.sources": {},
    "Data.subset": {"type": "Subset", "keys": "", "by": "key", "where": "", "table": "", "best": None},
    "Portion.subset": {"type": "Subset", "keys": "", "by": "key", "where": "", "table": "", "best": None},
    "InitFrom.text_positions": "resample",
    "InitFrom.towers": {},
    "Labels.match": "name",
    "Model.attention": "auto",
    "Model.reduce_dtype": "bfloat16",
    "Optim.clip_update": None,
    "Optim.cooldown": "20%",
    "Optim.ema": None,
    "Optim.method": "adamw",
    "Optim.mu_dtype": "float32",
    "Optim.schedule": "cosine",
    "Config.buckets": (),
    "Config.evaluate_ema": False,
    "Config.stages": {},
    "Config.views": {},
    "Stage.weights": {},
    "Data.text_augment": {"type": "TextAugment", "synonym": 0.0, "synonyms": "", "swap": 0.0, "drop": 0.0},
    "View.same_as": None,
    "View.size": None,
    "View.stored": "",
    "View.stored_size": 512,
    "View.sound_augment": None,
    "View.text_augment": None,
    "VisionTower.queries": 257,
    "VisionTower.query_heads": 8,
    "VisionTower.query_width": None,
    "Suite.max_pixels": 64_000_000,
    "ZeroShot.groups": "",
    "ZeroShot.ks": (1, 5),
}
"""Fields that files of before they existed lack, as "Class.field", with the value that means what those files meant. A field's
default may change; its value here never does."""


STORED = {"MeshConfig": "Mesh", "TokenizerConfig": "Tokenizer"}
"""Dataclasses that bear another name in files, and in recipes of an older jclip: that of before they were renamed."""


def stored_name(cls: type) -> str:
    """Name of a dataclass in files; it never changes."""
    return STORED.get(cls.__name__, cls.__name__)


def upgrade(data: Any, at: str) -> Any:
    """A saved configuration as today's fields; the inverse of nothing, because only today's format is written.

    Raises:
        ConfigError: a later jclip wrote it.
    """
    if not isinstance(data, Mapping):
        return data
    written = data.get("format", 1)
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ConfigError(f"{at}: format {written!r} is not known; this jclip reads 1 to {FORMAT}: use a later jclip")
    data = {key: value for key, value in data.items() if key != "format"}
    if written < 3 and isinstance(data.get("pairs"), list):
        data["objectives"] = _named({**pair, "type": "Contrastive"} for pair in data.pop("pairs") if isinstance(pair, Mapping))
    return _with_added(data)


def reads_pairs(config: type[T]) -> type[T]:
    """Decorator of `Config`: recipes of before format 3 say `Config(pairs=(Pair(...), ...))`."""
    made = config.__init__

    @wraps(made)
    def init(self: T, *values: Any, pairs: Iterable[Any] | None = None, **fields: Any) -> None:
        if pairs is not None:
            if "objectives" in fields:
                raise ConfigError("config: pairs are objectives by name now; give one of them (in replace, objectives)")
            fields["objectives"] = _named(pairs)
        made(self, *values, **fields)

    config.__init__ = init  # type: ignore[method-assign, assignment]
    return config


def _named(pairs: Iterable[Any]) -> dict[str, Any]:
    named = {}
    for pair in pairs:
        if isinstance(pair, Mapping) and not {"a", "b"} <= pair.keys():
            raise ConfigError(f"config: pairs: {pair!r} does not say its two sides")
        a, b = (pair[side] if isinstance(pair, Mapping) else getattr(pair, side) for side in "ab")
        if f"{a}_{b}" in named:
            raise ConfigError(f"config: pairs: two are called {a}_{b}; give them names in objectives")
        named[f"{a}_{b}"] = pair
    return named


def _with_added(data: Any) -> Any:
    if isinstance(data, list):
        return [_with_added(value) for value in data]
    if not isinstance(data, Mapping):
        return data
    fields = {key: _with_added(value) for key, value in data.items()}
    names = {name.partition(".")[2]: value for name, value in ADDED.items() if name.partition(".")[0] == data.get("type")}
    if data.get("type") == "Data" and fields.get("sources") and fields.get("source") == "shapes:train":
        fields["source"] = ""  # it was the default, which said nothing beside sources
    return {**names, **fields}
