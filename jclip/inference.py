"""Using a trained model: `jclip.load(...)`, then `embed_image`, `embed_text`, `embed_sound` and, with a decoder, `caption`."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jclip.clip import CLIP, Params, create_model, model_objectives, objectives_of
from jclip.config import ConfigError, ImageSize, MeshConfig, TokenTower, architecture_names, check_model
from jclip.config.instead import near_names, tag_instead
from jclip.data import BadExample, Transform, detokenize, eval_transform
from jclip.data.decoding import MAX_PIXELS
from jclip.data.files import read_file
from jclip.embedding import Embedding
from jclip.encode import Encode, make_encode
from jclip.files import adapted_below, is_adapted, is_run
from jclip.sharding import make_mesh, param_shardings, replicated, to_global
from jclip.tree import flatten, unflatten

if TYPE_CHECKING:
    from jclip.adapt.saved import Adapted
    from jclip.captioning import Captioner
    from jclip.weights import Weights

log = logging.getLogger(__name__)


def load(
    path_or_name: "str | Path | Encoder",
    pretrained: str | None = None,
    *,
    step: int | None = None,
    architecture_name: str | None = None,
    image_size: ImageSize | None = None,
    context_length: int | None = None,
    tokenizer: str | Path | None = None,
    kind: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
    seed: int = 0,
    fsdp: int = 1,
) -> "Encoder":
    """A model ready to embed images and texts.

    Args:
        path_or_name: the workdir of a training run; a folder of weights as jclip, open_clip or Hugging Face write it; a weight
            file with open_clip's names; an `.npz` of big_vision; hf://ORG/NAME[@REVISION]; a model that `jclip adapt` has made;
            or the name of an architecture (random weights, which is logged). An Encoder is returned as it is.
        pretrained: a tag of open_clip's, which is refused: its weights are a repository here, hf://ORG/NAME.
        step: which checkpoint of the workdir; None means the last.
        architecture_name: of a weight file beside which no configuration lies, such as "ViT-B-32-quickgelu".
        image_size: side of the images to embed, or (height, width), where it is not the model's own: its positions are resampled.
        context_length: tokens of the texts to embed, likewise.
        tokenizer: the vocabulary that an .npz of big_vision, or an architecture such as "ViT-B-16-SigLIP", leaves out; see
            `weights.read_weights`.
        kind: as whose a folder is read that has the files of several: jclip, open_clip or hugging_face.
        preprocess: fields of `config.Preprocess` that differ from the architecture's, of a weight file alone: mean, std, ...
        seed: of the random weights.
        fsdp: over how many devices weights are sharded; a workdir brings its own.

    Raises:
        CheckpointError: the workdir holds no checkpoint.
        ConfigError: an argument has no meaning for what is loaded.
        WeightsError: weights are damaged, or are not reproduced exactly.
        FileNotFoundError: it is neither a path nor the name of an architecture.
    """
    if isinstance(path_or_name, Encoder):
        further = pretrained, step, architecture_name, image_size, context_length, tokenizer, kind, preprocess or None
        if any(given is not None for given in further) or (seed, fsdp) != (0, 1):
            raise ConfigError("load: this model is loaded already; give what it was loaded from, or leave out further arguments")
        return path_or_name
    name = str(path_or_name)
    if pretrained is not None:
        raise ConfigError(f"load: {tag_instead(name, pretrained)}")
    if name in architecture_names() and not Path(name).exists():
        if given := ", ".join(str(value) for value in (step, architecture_name, kind) if value is not None):
            raise ConfigError(f"{name} is an architecture itself; leave out {given}")
        clip = create_model(name, tokenizer=tokenizer, image_size=image_size, context_length=context_length)
        log.warning("%s is an architecture: its weights are random", name)
        return _random(clip, preprocess or {}, jax.random.key(seed), MeshConfig(fsdp=fsdp))
    # What reads checkpoints and the weights of all libraries is imported where there are some.
    from jclip.weights import local_path, read_weights

    path = Path(local_path(path_or_name, kind))
    if is_run(path):
        if architecture_name is not None or tokenizer is not None or kind is not None or preprocess or fsdp != 1:
            raise ConfigError(f"{path} is a workdir, which says its architecture, tokenizer, preprocessing and sharding itself")
        return _load_run(path, step, image_size, context_length)
    if is_adapted(path):
        if {step, architecture_name, image_size, context_length, tokenizer, kind} != {None} or preprocess:
            raise ConfigError(f"{path} is an adapted model, which says all itself; leave out further arguments")
        return _load_adapted(path, fsdp)
    if cells := adapted_below(path):
        raise ConfigError(f"{path} has {len(cells)} adapted models; give one, such as {path / cells[-1]}")
    if step is not None:
        raise ConfigError(f"{path_or_name} is no workdir: there is no step {step} of it")
    if not path.exists():
        raise FileNotFoundError(f"{path_or_name} is neither a path nor an architecture; architectures: {near_names(name)}")
    weights = read_weights(path, architecture_name, tokenizer, kind=kind, preprocess=preprocess)
    return _load_weights(weights.resized(image_size, context_length), MeshConfig(fsdp=fsdp))


def _random(clip: CLIP, preprocess: Mapping[str, Any], key: jax.Array, layout: MeshConfig) -> "Encoder":
    """A model of random weights, made where they live."""
    if preprocess:
        from jclip.weights import with_preprocess

        clip = dataclasses.replace(clip, config=with_preprocess(clip.config, preprocess))
        check_model(clip.config)
    mesh = make_mesh(layout)
    shardings = param_shardings(jax.eval_shape(clip.init, key), layout, mesh)
    return Encoder(clip.config, clip.objectives, mesh=mesh, params=jax.jit(clip.init, out_shardings=shardings)(key))


def _load_run(workdir: Path, step: int | None, image_size: ImageSize | None, context_length: int | None) -> "Encoder":
    """The model of a checkpoint, for inputs of another size if asked."""
    from jclip.runs import load_run
    from jclip.weights import resize_positions, with_sizes

    config, _, params, mesh = load_run(workdir, step)
    model = with_sizes(config.model, image_size, context_length)
    resized = unflatten(resize_positions(flatten(params), config.model, model))
    placed = jax.device_put(resized, param_shardings(resized, config.mesh, mesh))
    return Encoder(model, model_objectives(config), mesh=mesh, params=placed)


def _load_weights(weights: "Weights", layout: MeshConfig) -> "Encoder":
    """Array by array onto the devices: no second copy of the whole is ever in memory."""
    mesh = make_mesh(layout)
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in weights.shapes.items()})
    shardings = flatten(param_shardings(shapes, layout, mesh))
    params = {path: jax.device_put(array, shardings[path]) for path, array in weights}
    objectives = {**objectives_of(weights.model, weights.shapes), **weights.captioners}
    return Encoder(weights.model, objectives, mesh=mesh, params=unflatten(params))


def _load_adapted(folder: Path, fsdp: int) -> "Encoder":
    """The model that was adapted, with what was changed of it and the head.

    Raises:
        ConfigError: the folder is damaged, or the model that it names has other weights now.
    """
    from jclip.adapt.changes import with_changes
    from jclip.adapt.heads import OF_MODELS
    from jclip.adapt.saved import other_towers, read_adapted
    from jclip.checkpoint import CheckpointError

    adapted = read_adapted(folder)
    name, options = adapted.base["model"], {key: _untouched(value) for key, value in adapted.base["options"].items()}
    if fsdp != 1:  # a run brings its own, and says so
        options["fsdp"] = fsdp
    try:
        if is_adapted(name):
            raise ConfigError("it is an adapted model itself")
        encoder = load(name, **options)
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        raise ConfigError(f"{folder}: the model that was adapted, {name}, cannot be opened: {error}") from error
    weights = {tower: tower_digest(encoder.params, tower, encoder.mesh) for tower in encoder.config.towers}
    if weights != adapted.base["weights"]:
        raise ConfigError(f"{folder} was adapted from other weights than those that {name} has now; adapt it again")
    try:
        if different := other_towers(adapted.base["towers"], encoder.config):
            raise ConfigError(f"towers of {name} are others now: {'; '.join(different)}; adapt it again")
        params = with_changes(encoder.params, adapted.changed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}: {error}") from None
    if adapted.head.kind in OF_MODELS:
        from jclip.adapt.cocoop import bind

        adapted = dataclasses.replace(adapted, head=bind(adapted.head, encoder.config, params, encoder.mesh, adapted.text))
    return dataclasses.replace(encoder, params=params, adapted=adapted)


def _untouched(value: Any) -> Any:
    """An argument as it was before JSON made lists of its tuples."""
    if isinstance(value, dict):
        return {key: _untouched(inner) for key, inner in value.items()}
    return tuple(map(_untouched, value)) if isinstance(value, list) else value


def tower_digest(params: Any, tower: str, mesh: Mesh) -> str:
    """32 hexadecimal digits of the parameters of a tower and of its projection, bit by bit."""
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(flatten(params).items()):
        if path.split("/")[0] in (tower, f"{tower}_projection"):
            array = np.asarray(leaf if leaf.is_fully_addressable else whole(leaf))
            found.update(f"{path} {array.dtype} {array.shape};".encode())
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Encoder(CLIP):
    """A CLIP with its parameters; embeds what people have: images, sounds, paths and texts.

    An embedding is the projection of what a tower pools, or where it has none, as a tower alone may, the pooled output itself.
    """

    params: Params = field(repr=False)
    """Parameters, f32."""
    mesh: Mesh
    """The devices that compute."""
    adapted: "Adapted | None" = field(default=None, repr=False)
    """Classes and head of a model that `jclip adapt` has made."""
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _encode(self) -> Encode:
        return make_encode(self.config, self.mesh)

    def embed_image(self, images: Any, *, batch_size: int = 64, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """Unit vectors f32 [n, E] of images: paths, bytes of files, PIL images, u8 arrays [H, W, 3], one or many.

        Files are turned as their EXIF data say, which evaluations and training do not do; PIL images and arrays are taken as they
        are. Transparency is dropped after the resize, in which transparent pixels count for nothing.

        Raises:
            BadExample: an image cannot be read, or has more than `max_pixels`; the message says which.
        """
        return self.embed(self.image_tower, _as_list(images), batch_size=batch_size, max_pixels=max_pixels)

    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Unit vectors f32 [n, E] of texts, one or many; an empty one is a text too."""
        return self.embed(self.text_tower, [texts] if isinstance(texts, str) else texts, batch_size=batch_size)

    def embed_sound(self, sounds: Any, *, batch_size: int = 64) -> NDArray[np.float32]:
        """Unit vectors f32 [n, E] of sounds: paths, bytes of files, pairs (array [n] or [n, channels], samples a second), one or
        many. Of a longer sound than the tower hears, the part that its `Waveform.crop` says.

        Raises:
            BadExample: a sound cannot be read; the message says which.
            ConfigError: the model has no tower for sounds, or several, or the packages that decode them are missing.
        """
        pair = isinstance(sounds, tuple) and len(sounds) == 2 and isinstance(sounds[1], (int, float, np.number))
        one = pair or isinstance(sounds, (str, bytes, Path, Mapping))
        return self.embed(self.sound_tower, [sounds] if one else sounds, batch_size=batch_size)

    def embed(
        self, tower: str, inputs: Iterable[Any], *, batch_size: int = 64, max_pixels: int = MAX_PIXELS
    ) -> NDArray[np.float32]:
        """Unit vectors f32 [n, E] of the inputs of a tower."""
        return self.features(tower, inputs, batch_size=batch_size, max_pixels=max_pixels).z

    def classify(self, images: Any, *, batch_size: int = 64, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """Logits f32 [n, C] of images, which are as in `embed_image`, for the classes of an adapted model, `classes`.

        Raises:
            BadExample: an image cannot be read; the message says which.
            ConfigError: the model is not adapted, and so has no classes of its own.
        """
        adapted = self._adapted()
        features = self.features(adapted.image, _as_list(images), batch_size=batch_size, max_pixels=max_pixels)
        return self.class_logits(features)

    def class_logits(self, features: Embedding) -> NDArray[np.float32]:
        """Logits f32 [n, C] of features of n images, as `features` gives them; see `classify`."""
        from jclip.adapt.heads import Features, projected_norm

        adapted = self._adapted()
        if not len(features.z):
            return np.zeros((0, len(adapted.classes)), np.float32)
        norm = projected_norm(self.config, self.params, adapted.image, features.pooled)
        return adapted.logits(Features(features.z, norm))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of an adapted model. Raises ConfigError where there are none."""
        return self._adapted().classes

    def _adapted(self) -> "Adapted":
        if self.adapted is None:
            raise ConfigError("classify: the model has no classes of its own; compare embed_image with embed_text of prompts")
        return self.adapted

    def caption(
        self,
        images: Any,
        *,
        beams: int = 1,
        length: int | None = None,
        length_penalty: float = 1.0,
        batch_size: int = 64,
        max_pixels: int = MAX_PIXELS,
    ) -> list[str]:
        """Captions of images, which are as in `embed_image`, or of sounds; in lower case where the tokenizer is so.

        Args:
            images: one or many; of sounds a list of what `embed_sound` takes.
            beams: 1 takes the likeliest token each time; more follow as many captions at a time, and the best is taken.
            length: tokens of a caption at most, start and end of text among them; None: the model's context length.
            length_penalty: see `captioning.Search`.
            batch_size: images a batch.
            max_pixels: of an image.

        Raises:
            BadExample: an image cannot be read; the message says which.
            ConfigError: the model has nothing that writes captions, or an argument is out of range.
        """
        from jclip.captioning import Search, make_caption

        captioner, search = self.captioner(), Search(beams, length, length_penalty)
        if search not in self._compiled:
            self._compiled[search] = make_caption(captioner, self.mesh, search)
        texts: list[str] = []
        for rows in self._batches(captioner.how.image, _as_list(images), batch_size, max_pixels):
            ids = self._compiled[search](self.params, to_global({captioner.how.image: self._padded(rows, batch_size)}, self.mesh))
            texts += detokenize(captioner.text, np.asarray(ids)[: len(rows)])
        return texts

    def captioner(self) -> "Captioner":
        """The captioner.

        Raises:
            ConfigError: there is none, or several.
        """
        from jclip.captioning import Captioner

        if len(self.captioners) != 1:
            found = ", ".join(self.captioners) or "none"
            raise ConfigError(f"captions: the model has to have one decoder, of an objective Caption; it has {found}")
        ((name, how),) = self.captioners.items()
        return Captioner(name, how, self.config)

    def transform(self, tower: str, max_pixels: int = MAX_PIXELS) -> Transform:
        """Transform of a tower's inputs where a model is used: files upright, empty texts allowed."""
        return eval_transform(self.config.towers[tower], max_pixels=max_pixels, upright=True, empty_texts=True)

    def features(self, tower: str, inputs: Iterable[Any], *, batch_size: int = 64, max_pixels: int = MAX_PIXELS) -> Embedding:
        """Features of the inputs of a tower: `pooled` f32 [n, d], which linear probes read, and unit vectors `z` f32 [n, E].

        Raises:
            BadExample: an input cannot be used; the message says which.
            ConfigError: batch_size is below 1.
        """
        width = self.config.towers[tower].pooled_width
        parts = [Embedding(np.zeros((0, width), np.float32), np.zeros((0, self.config.embed_dim), np.float32))]
        for rows in self._batches(tower, inputs, batch_size, max_pixels):
            made = self.encode_rows({tower: rows}, batch_size)[tower]
            parts.append(Embedding(made.pooled[: len(rows)], made.z[: len(rows)]))
        return Embedding(*map(np.concatenate, zip(*parts, strict=True)))

    def _batches(self, tower: str, inputs: Iterable[Any], batch_size: int, max_pixels: int) -> Iterator[np.ndarray]:
        """Inputs of a tower, transformed, at most batch_size at a time."""
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be at least 1")
        transform = self.transform(tower, max_pixels)
        files = not isinstance(self.config.towers[tower], TokenTower)  # whose strings are the inputs themselves
        remaining = enumerate(inputs)
        while chunk := list(islice(remaining, batch_size)):
            yield np.stack([_transformed(transform, number, value, files) for number, value in chunk])

    def encode_rows(self, rows: dict[str, np.ndarray], batch_size: int) -> dict[str, Embedding]:
        """Embeddings of inputs that are transformed already, at most batch_size of them; the rest is padding."""
        most = max(len(x) for x in rows.values())
        padded = {name: self._padded(x, batch_size, most) for name, x in rows.items()}
        encoded = jax.device_get(self._encode(self.params, to_global(padded, self.mesh)))
        return {name: Embedding(pooled, z) for name, (pooled, z) in encoded.items()}

    def _padded(self, rows: np.ndarray, batch_size: int, most: int = 0) -> np.ndarray:
        """Rows with zeros behind them, as many as one of few sizes, because each is compiled, that holds `most` rows too."""
        size = min(batch_size, 1 << (max(most, len(rows)) - 1).bit_length())
        size = -(-size // self.mesh.size) * self.mesh.size
        return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def _as_list(values: Any) -> list[Any]:
    """One value or many, as a list; an array of one image is one value."""
    one = isinstance(values, (str, bytes, Path)) or not isinstance(values, Iterable)
    return [values] if one or (isinstance(values, np.ndarray) and values.ndim <= 3) else list(values)


def _transformed(transform: Transform, number: int, value: Any, files: bool) -> np.ndarray:
    """Input `number`, transformed; where `files` a text is the path of one. Raises BadExample that names it."""
    path = files and isinstance(value, (str, Path))
    try:
        row: np.ndarray = transform(read_file(value) if path else value)
    except BadExample as problem:
        raise BadExample(f"input {number}{f' ({value})' if path else ''}: {problem}") from None
    return row
