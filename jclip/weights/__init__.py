"""Weights of other libraries, in and out: what is loaded is reproduced to the last digit, or refused."""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jclip.config import Caption, ImageSize, ImageTower, Model, architecture, architecture_names, check_model
from jclip.config.instead import instead_of
from jclip.files import is_bucket
from jclip.tree import flatten
from jclip.weights import big_vision, clap_files, hub, hugging_face, imagebind, jclip_format, open_clip
from jclip.weights.errors import WeightsError, errors_of
from jclip.weights.io.files import Lazy, open_tensors, read_json, write_safetensors
from jclip.weights.layout import BIAS, SCALE, Rule, names_of, require_fit, to_ours, to_theirs
from jclip.weights.open_clip import openai
from jclip.weights.positions import extend_positions, resize_positions, with_sizes
from jclip.weights.prefixes import without_prefix
from jclip.weights.same import require_same
from jclip.weights.shapes import caption_shapes, tower_shapes
from jclip.weights.texts.vocabularies import named_model

__all__ = [
    "FORMATS",
    "Format",
    "Rule",
    "Weights",
    "WeightsError",
    "extend_positions",
    "local_path",
    "named_model",
    "read_weights",
    "resize_positions",
    "tower_shapes",
    "with_preprocess",
    "with_sizes",
    "write_weights",
]


class Format(Protocol):
    """A library whose folders are read and written: a module, or an object, with these names."""

    @property
    def CONFIG(self) -> str:
        """File that describes the model, by which a folder is known."""

    @property
    def FILES(self) -> tuple[str, ...]:
        """Files of arrays that are read, the first of which is written."""

    @property
    def MARK(self) -> str:
        """Regex of a name that only this library's arrays have, where a folder has files of several."""

    @property
    def BUFFERS(self) -> str:
        """Regex of arrays that are no parameters."""

    def read_model(self, folder: Path, config: Mapping[str, Any], names: Iterable[str], /) -> tuple[Model, tuple[str, ...]]:
        """The model, and the paths of its objectives' scales, of a description and the names of arrays."""

    def read_captioners(self, folder: Path, config: Mapping[str, Any], /) -> dict[str, Caption]:
        """Captioners by the name of their parameters."""

    def opened(self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy], /) -> dict[str, Lazy]:
        """The arrays that belong to the model."""

    def rules(self, model: Model, paths: Collection[str], names: Collection[str] | None = None) -> list[Rule]:
        """Places in the library's arrays of each of our parameters; see `layout.Rule`."""

    def write_config(
        self, model: Model, folder: Path, scales: Sequence[str], captioners: Mapping[str, Caption], /
    ) -> Collection[str]:
        """Writes the description, and what it names; returns the names of the captioners that it has.

        Raises:
            WeightsError: the library has no such model.
        """

    def finish(self, folder: Path, arrays: Mapping[str, NDArray[Any]], /) -> None:
        """Writes what depends on the arrays."""


FORMATS: dict[str, Format] = {"jclip": jclip_format, "open_clip": open_clip, "hugging_face": hugging_face}
"""The libraries whose folders are read and written, by name. A row of your own is one of them."""


def local_path(path: str | Path, kind: str | None = None) -> str | Path:
    """The folder in the cache that an address has been fetched to: hf://ORG/NAME[@REVISION], or that of a run in a bucket, s3://
    or gs://; of a path, ~ is the home.

    Args:
        path: an address, also hf://ORG/NAME/FOLDER, or anything else.
        kind: whose weights of a repository are fetched, as in `read_weights`.

    Raises:
        WeightsError: the repository is neither cached nor within reach, the bucket holds no run or cannot be read, the package
            that reads it is not installed, or there is nothing at the path and it is a name that other libraries would take, or
            the name of a file.
    """
    if is_bucket(path):
        from jclip.bucket import local_run

        try:
            return local_run(str(path))
        except (OSError, ImportError) as error:
            raise WeightsError(f"{path}: {error}") from error
    if not hub.is_address(path):
        place = os.path.expanduser(path)
        if not os.path.exists(place) and (instead := instead_of(str(place))):
            raise WeightsError(f"{path}: {instead}")
        return place
    files = {module.CONFIG: module.FILES for key, module in FORMATS.items() if kind in (None, key)}
    return hub.fetch(str(path), files, jclip_format.vocabularies, _model_folder)


@dataclass(frozen=True)
class Weights:
    """Content of a folder or file of weights; nothing of it is in memory yet."""

    model: Model
    """Architecture, with preprocessing and tokenizer."""
    format: str
    """One of FORMATS, or big_vision, imagebind, laion_clap or msclap, which are read alone."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of our parameters, by path."""
    _rules: list[Rule]
    _tensors: Mapping[str, Lazy]
    _resized_from: "Weights | None" = None
    captioners: Mapping[str, Caption] = field(default_factory=dict)
    """Captioners by the name of their parameters."""

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Our parameters one by one, each with its path: read, and put in our order, when it is asked for."""
        if self._resized_from is None:
            yield from to_ours(self._rules, self._tensors, self.shapes)
            return
        for path, array in self._resized_from:
            yield from resize_positions({path: array}, self._resized_from.model, self.model).items()

    def resized(self, image_size: ImageSize | None = None, context_length: int | None = None) -> "Weights":
        """The same weights for images and texts of another size; see `resize_positions`. Raises as `with_sizes` does."""
        model = with_sizes(self.model, image_size, context_length)
        if model == self.model:
            return self
        return replace(self, model=model, shapes={**self.shapes, **tower_shapes(model)}, _resized_from=self)


def read_weights(
    path: str | Path,
    name: str | None = None,
    tokenizer: str | Path | None = None,
    *,
    kind: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Weights:
    """Opens a folder of one of FORMATS, a file with the names of open_clip, ImageBind or a CLAP, or an .npz of big_vision.

    Args:
        path: of the folder or file.
        name: of an architecture in the table, for a file beside which no configuration lies (OpenAI's own need none);
            "-quickgelu" at its end gives both towers that activation.
        tokenizer: the vocabulary that the source leaves out: a sentencepiece model of an .npz of big_vision, that or a
            tokenizer.json of an architecture whose tokenizer is not CLIP's own, such as "ViT-B-16-SigLIP", and the tokenizer.json
            of a LAION-CLAP or MS-CLAP.
        kind: which of FORMATS a folder is read as; None: the first of them that it has.
        preprocess: fields of `config.Preprocess` in which the pixels that a weight file was trained on differ from those of the
            architecture `name`, such as mean and std.

    Raises:
        WeightsError: it is none, or is damaged, has an option that jclip does not reproduce, or arrays that do not fit its
            architecture: missing, unknown, or of another shape; all are listed.
        ConfigError: its architecture contradicts itself.
    """
    path = Path(path)
    if path.suffix == ".npz":
        if unused := [*(preprocess or ()), *([kind] if kind else [])]:
            raise WeightsError(
                f"{path}: the architecture of an .npz says its pixels, and it is no folder; leave out {', '.join(unused)}"
            )
        return _read_big_vision(path, name, tokenizer)
    if path.is_dir():
        path = _model_folder(path)
    tensors: Mapping[str, Lazy] = {} if path.is_dir() else open_tensors(path)
    if imagebind.is_imagebind(tensors):
        if unused := [str(word) for word in (name, tokenizer, kind, *(preprocess or ())) if word]:
            raise WeightsError(f"{path}: holds ImageBind's weights, which are of one model; leave out {', '.join(unused)}")
        return _read_imagebind(path, tensors)
    if kind is not None and not path.is_dir():
        raise WeightsError(f"{path} is no folder, so there is nothing to choose; leave out {kind}")
    if clap_files.is_clap(tensors):
        if unused := [*(preprocess or ()), *([name] if name else [])]:
            raise WeightsError(f"{path}: a CLAP, which says its architecture and sees no pixels; leave out {', '.join(unused)}")
        return _read_clap(path, tensors, tokenizer)
    key, model, scales, tensors, captioners = (
        _open_folder(path, name, tokenizer, kind) if path.is_dir() else _open_file(path, tensors, name, tokenizer)
    )
    if preprocess:
        if name is None:
            raise WeightsError(f"{path}: says its preprocessing itself; leave out {', '.join(preprocess)}")
        model = with_preprocess(model, preprocess)
    check_model(model)
    return _fitting(path, _Opened(key, model, scales, tensors, captioners))


def _fitting(path: Path, opened: "_Opened") -> Weights:
    """Weights of what was opened, if its arrays are those of its architecture."""
    key, model, scales, tensors, captioners = opened
    module, shapes = FORMATS[key], tower_shapes(model) | dict.fromkeys(scales, ()) | caption_shapes(model, captioners)
    tensors = without_prefix(path, tensors, lambda names: names_of(module.rules(model, shapes, names=names), shapes))
    tensors = {n: array for n, array in tensors.items() if not re.fullmatch(module.BUFFERS, n)}
    rules = module.rules(model, shapes, names=tensors)
    with errors_of(path):
        require_fit(rules, tensors, shapes)
    return Weights(model, key, shapes, rules, tensors, captioners=captioners)


class _Opened(NamedTuple):
    """Key of FORMATS, model, paths of the objectives' scales, arrays, and captioners."""

    key: str
    model: Model
    scales: tuple[str, ...]
    tensors: Mapping[str, Lazy]
    captioners: Mapping[str, Caption] = {}


def _open_folder(path: Path, name: str | None, tokenizer: str | Path | None, kind: str | None) -> _Opened:
    if tokenizer is not None:
        raise WeightsError(f"{path}: says its tokenizer itself; leave out {tokenizer}")
    name_of = {module.CONFIG: key for key, module in FORMATS.items() if kind in (None, key)}
    found = [file for file in name_of if (path / file).is_file()]
    if not found:
        raise WeightsError(
            f"{path}: no folder of weights, nor of a training run; it holds none of checkpoints/, {', '.join(name_of)}; "
            "of a weight file alone, give the file, with --architecture (architecture_name)"
        )
    if name is not None:
        raise WeightsError(f"{path}: {found[0]} says the architecture; leave out {name}")
    key, tensors = _described(path, {file: name_of[file] for file in found})
    module = FORMATS[key]
    config = read_json(path / module.CONFIG)
    try:
        model, scales = module.read_model(path, config, tensors)
        captioners = module.read_captioners(path, config)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:  # a value of an odd type
        raise WeightsError(f"{path}: {module.CONFIG} or what it names is damaged: {type(error).__name__}: {error}") from error
    return _Opened(key, model, scales, module.opened(path, config, tensors), captioners)


def _described(path: Path, keys: Mapping[str, str]) -> tuple[str, dict[str, Lazy]]:
    """The first configuration in a folder that the names in one of its weight files fit: its key, and the arrays.

    Args:
        path: the folder.
        keys: of FORMATS, by the name of each configuration that is there.
    """
    files = [(key, file) for key in keys.values() for file in FORMATS[key].FILES if (path / file).is_file()]
    for key, file in files:
        tensors = open_tensors(path / file)
        if len({key for key, _ in files}) == 1 or any(re.fullmatch(FORMATS[key].MARK, name) for name in tensors):
            return key, tensors
    if files:
        raise WeightsError(f"{path}: the names in {files[0][1]} are those of none of {', '.join(keys)}")
    wanted = dict.fromkeys(file for key in keys.values() for file in FORMATS[key].FILES)
    raise WeightsError(f"{path}: has {' and '.join(keys)}, but none of {', '.join(wanted)}")


def _model_folder(path: Path) -> Path:
    """The folder of the model in one of sentence-transformers, whose modules.json names it; any other as it is."""
    listed = path / "modules.json"
    if not listed.is_file() or any((path / module.CONFIG).is_file() for module in FORMATS.values()):
        return path
    try:
        modules = json.loads(listed.read_text(encoding="utf-8"))
        names = [module["path"] for module in modules if str(module["type"]).endswith(".CLIPModel")]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{listed}: no list of modules, or damaged: {type(error).__name__}: {error}") from None
    if len(names) != 1 or not isinstance(names[0], str) or Path(names[0]).name != names[0]:
        raise WeightsError(f"{listed}: names {len(names)} folders of a CLIPModel; give the folder of the model itself")
    return path / names[0]


def _open_file(path: Path, tensors: Mapping[str, Lazy], name: str | None, tokenizer: str | Path | None) -> _Opened:
    """Content of a file alone, whose names must be open_clip's."""
    marks = [n for n in tensors if n.rpartition(".")[2] == "input_resolution"]
    if len(marks) == 1:
        tensors = without_prefix(path, tensors, lambda names: {"input_resolution", *openai.OPENAI})
    if "input_resolution" in tensors:  # which OpenAI's files hold, and no others
        if tokenizer is not None:
            raise WeightsError(f"{path}: holds OpenAI's weights, which have CLIP's own tokenizer; leave out {tokenizer}")
        try:
            model = openai.openai_model({n: array.shape for n, array in tensors.items()})
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        if name is not None:
            require_same(f"{path} holds OpenAI's weights, of another model than {name}", architecture(name), model)
        return _Opened("open_clip", model, (SCALE,), tensors)
    if name is not None:
        model = named_model(name, tokenizer)
        return _Opened("open_clip", model, open_clip.scales(model), tensors, open_clip.named_captioners(name))
    raise WeightsError(
        f"{path}: a file does not say its architecture; give the folder with its configuration, or --architecture "
        f"(architecture_name): one of {', '.join(architecture_names())}"
    )


def _read_clap(path: Path, tensors: Mapping[str, Lazy], tokenizer: str | Path | None) -> Weights:
    key, model, rules, arrays = clap_files.open_clap(path, tensors, tokenizer)
    check_model(model)
    shapes = tower_shapes(model) | {clap_files.SOUND_SCALE: ()}
    with errors_of(path):
        require_fit(rules, arrays, shapes)
    return Weights(model, key, shapes, rules, arrays)


def _read_big_vision(path: Path, name: str | None, tokenizer: str | Path | None) -> Weights:
    if name is not None:
        raise WeightsError(f"{path}: its shapes say the architecture; leave out {name}")
    model, rules, tensors = big_vision.open_model(path, tokenizer)
    check_model(model)
    shapes = tower_shapes(model) | dict.fromkeys((SCALE, BIAS) if "text" in model.towers else (), ())
    with errors_of(path):
        require_fit(rules, tensors, shapes)
    return Weights(model, "big_vision", shapes, rules, tensors)


def _read_imagebind(path: Path, tensors: Mapping[str, Lazy]) -> Weights:
    model, scales = imagebind.open_model({name: array.shape for name, array in tensors.items()})
    check_model(model)
    shapes = tower_shapes(model) | dict.fromkeys(scales, ())
    rules = imagebind.rules(model, shapes)
    kept = {name: array for name, array in tensors.items() if name != imagebind.BUFFER}
    with errors_of(path):
        require_fit(rules, kept, shapes)
    return Weights(model, "imagebind", shapes, rules, kept)


def write_weights(
    folder: str | Path, to: str, model: Model, params: Mapping[str, Any], captioners: Mapping[str, Caption] | None = None
) -> None:
    """Writes parameters (nested, or by path) as a folder of one of FORMATS; it appears whole or not at all.

    Those of `captioners` are written too where the format has such a model: jclip's always, open_clip's with the towers of CoCa.

    Raises:
        WeightsError: the folder exists already, or that library has no such model.
    """
    folder, module, flat, captioners = Path(folder), FORMATS[to], flatten(params), dict(captioners or {})
    if folder.exists():
        raise WeightsError(f"{folder} exists already; give a folder that does not")
    scales = tuple(path for path in flat if path.endswith(("/logit_scale", "/logit_bias")))
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}-{os.getpid()}"
    draft.mkdir()
    try:
        kept = module.write_config(model, draft, scales, captioners)
        flat = {path: leaf for path, leaf in flat.items() if path.partition("/")[0] not in captioners.keys() - kept}
        arrays = to_theirs(module.rules(model, flat), flat)
        write_safetensors(draft / module.FILES[0], arrays)
        module.finish(draft, arrays)
        shutil.copymode(draft / module.CONFIG, draft / module.FILES[0])
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def with_preprocess(model: Model, changes: Mapping[str, Any]) -> Model:
    """The model whose images become pixels in another way: `changes` are fields of `config.Preprocess`."""
    towers = {
        key: replace(tower, preprocess=replace(tower.preprocess, **changes)) if isinstance(tower, ImageTower) else tower
        for key, tower in model.towers.items()
    }
    return replace(model, towers=towers)
