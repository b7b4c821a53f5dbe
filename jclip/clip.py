"""A model as pure functions of its parameters: what `jclip.create_model` makes, and what `jclip.load` returns with parameters."""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from jclip.config import (
    Caption,
    Config,
    ConfigError,
    Contrastive,
    ImageSize,
    ImageTower,
    Model,
    MultiView,
    SoundTower,
    TokenTower,
    check_model,
)
from jclip.data import eval_transform, get_tokenizer
from jclip.data.decoding import MAX_PIXELS
from jclip.data.files import read_file
from jclip.models import Backend, Encoded, MultiTower, Tap, Taps, depth_of
from jclip.models.pixels import normalise

Params = dict[str, "Array | Params"]
"""Parameters, nested by name: of each tower, its projection, and what stands between towers, such as image_text/logit_scale."""


@dataclass(frozen=True)
class CLIP:
    """Named towers that map into one embedding space, without parameters: these are an argument of its methods.

    Methods that take `params` are pure functions of arrays. They run under jit, grad, vmap and shard_map, and under a mesh of
    yours: shard the parameters as you like, and the inputs on their first axis.

        model = jclip.create_model("ViT-B-32")
        params = model.init(jax.random.key(0))
        z = jax.jit(model.encode_image)(params, pixels)
    """

    config: Model
    """The towers, with their preprocessing and tokenizers."""
    objectives: Mapping[str, Contrastive | Caption] = field(default_factory=dict)
    """Objectives with parameters beside the towers, by name: a logit scale between two towers, or a captioner."""
    mesh: Mesh | None = None
    """Devices over which rows of a batch are split. Without it, and with more than one device, attention is XLA's own: kernels of
    accelerators must be told which rows a device has."""

    def init(self, key: Array) -> Params:
        """Random parameters, f32. Under jit with `out_shardings` no device holds more than its share."""
        from jclip.state import new_params  # and with it all objectives, which whoever has parameters does not need

        return new_params(Config(model=self.config, objectives=self.objectives), key)

    def apply(
        self,
        params: Params,
        batch: Mapping[str, Any],
        *,
        train: bool = False,
        key: Array | None = None,
        normalised: bool = False,
    ) -> dict[str, Encoded]:
        """The whole output of the towers that `batch` has inputs of.

        Args:
            params: of the model.
            batch: inputs by tower: images u8 [b, H, W, 3], token ids i32 [b, L], or, of a text tower, the tuple of input
                embeddings f32 [b, L, d] and the indices i32 [b] of the ends of the texts.
            train: whether dropout and patch dropout take place; row i of `key`'s randomness is that of row i of the batch, whose
                inputs then have as many rows each.
            key: random key, which `train` needs.
            normalised: whether images are floats, as `normalise` makes them, instead of u8.

        Returns:
            By tower `z`, f32 [b, E] unit vectors, and `output`: `pooled` [b, d], `tokens` [b, l, d] and `mask` bool [b, l].

        Raises:
            ConfigError: there is no such tower, or no key where one is needed.
            ValueError: an input has another shape or type, or, in training, another number of rows.
        """
        if unknown := [name for name in batch if name not in self.config.towers]:
            raise ConfigError(f"apply: there is no tower {unknown[0]!r}; towers: {', '.join(self.config.towers)}")
        if train and key is None:
            raise ConfigError("apply: training needs a key for what it drops; give key=jax.random.key(...), a new one each step")
        more: dict[str, Any] = {"normalised": normalised}
        if train:
            more |= {"rows": jnp.arange(_common_rows(batch)), "rngs": {"dropout": key}}
        encoded: dict[str, Encoded] = self._towers.apply({"params": params}, batch, **more)
        return encoded

    def encode(self, params: Params, tower: str, inputs: Any, *, normalised: bool = False) -> Array:
        """Unit vectors f32 [b, E] of the inputs of a tower; see `apply`."""
        if not all(hasattr(x, "dtype") for x in (inputs if isinstance(inputs, tuple) else (inputs,))):
            raise TypeError(f"encode: {tower} is given {_named(inputs)} and needs an array; {self._way_to(tower)}")
        return self.apply(params, {tower: inputs}, normalised=normalised)[tower].z

    def _way_to(self, tower: str) -> str:
        """Advice on how the array of a tower is made."""
        match self.config.towers.get(tower):
            case ImageTower():
                return "stack what `preprocess` gives of each image, or let jclip.load(...).embed_image do all"
            case TokenTower():
                return "give it what `tokenize` makes of texts, or let jclip.load(...).embed_text do all"
            case _:
                return "jclip.load(...).embed does all"

    def taps(
        self,
        params: Params,
        tower: str,
        inputs: Any,
        *,
        blocks: Iterable[int],
        attention: bool = False,
        normalised: bool = False,
    ) -> dict[int, Tap]:
        """Intermediate tokens of a tower of transformer blocks, and its attention: for probes of layers, dense heads, pictures.

        Args:
            params: of the model.
            tower: its name.
            inputs: of the tower; see `apply`.
            blocks: indices of blocks, from 0 on; negative ones count from the end.
            attention: whether attention weights are asked for as well; of large inputs they are large.
            normalised: as in `apply`.

        Returns:
            By index as given: `tokens` [b, l, d] after the block, before any norm; `attention` f32 [b, heads, l, l], or None. Of
            an image the class token, where there is one, comes first, then patches in row-major order.

        Raises:
            ConfigError: there is no such tower or block, or the tower is of no transformer blocks.
            ValueError: an input has another shape or type.
        """
        places = self._places(tower, blocks)
        how = Taps(tuple(sorted(set(places.values()))), attention)
        _, kept = self._towers.clone(taps=how).apply({"params": params}, {tower: inputs}, normalised=normalised, mutable=["taps"])
        found = dict(zip(how.blocks, kept["taps"][tower]["blocks"], strict=True))
        return {block: found[place] for block, place in places.items()}

    def _places(self, tower: str, blocks: Iterable[int]) -> dict[int, int]:
        """Indices from 0 on, by index as given."""
        if tower not in self.config.towers:
            raise ConfigError(f"taps: there is no tower {tower!r}; towers: {', '.join(self.config.towers)}")
        depth = depth_of(self.config.towers[tower])
        if not depth:
            kind = type(self.config.towers[tower]).__name__
            raise ConfigError(f"taps: {kind} {tower!r} has no transformer blocks; `apply` gives its tokens")
        if isinstance(blocks, int):
            raise ConfigError(f"taps: blocks {blocks} is one index; give several, such as ({blocks},)")
        asked = [operator.index(block) for block in blocks]
        if beyond := [block for block in asked if not -depth <= block < depth]:
            raise ConfigError(f"taps: tower {tower!r} has no block {beyond[0]}; use 0 to {depth - 1}, or -{depth} to -1")
        return {block: block % depth for block in asked}

    def encode_image(self, params: Params, pixels: Any, *, normalised: bool = False) -> Array:
        """Unit vectors f32 [b, E] of images u8 [b, H, W, 3], or of floats that are `normalised`."""
        return self.encode(params, self.image_tower, pixels, normalised=normalised)

    def encode_sound(self, params: Params, waves: Any) -> Array:
        """Unit vectors f32 [b, E] of waveforms [b, samples], int16 of which 32767 is 1.0, or floats of -1 to 1."""
        return self.encode(params, self.sound_tower, waves)

    def encode_text(self, params: Params, ids: Any) -> Array:
        """Unit vectors f32 [b, E] of token ids i32 [b, L], as `tokenize` makes them."""
        return self.encode(params, self.text_tower, ids)

    def logits(self, params: Params, za: Array, zb: Array, *, pair: str | None = None) -> Array:
        """Logits f32 [n, m] of unit vectors [n, E] and [m, E]: scale * za zb^T, and SigLIP's bias.

        Args:
            params: of the model.
            za: of one tower.
            zb: of the other.
            pair: name of both, such as "image_text", of a model with several.

        Raises:
            ConfigError: there is no such pair, or several and no name.
        """
        products = jnp.einsum("ne,me->nm", za, zb, preferred_element_type=jnp.float32, precision="highest")
        bias: Any = self._scale(params, pair).get("logit_bias", 0.0)
        return self.logit_scale(params, pair=pair) * products + bias

    def logit_scale(self, params: Params, *, pair: str | None = None) -> Array:
        """The factor f32 [] on cosines; see `logits`."""
        learned: Any = self._scale(params, pair)["logit_scale"]
        return jnp.exp(learned)

    def _scale(self, params: Params, pair: str | None) -> Params:
        pairs = [name for name, how in self.objectives.items() if isinstance(how, Contrastive)]
        if (pair is None and len(pairs) != 1) or (pair is not None and pair not in pairs):
            raise ConfigError(f"logits: give the pair, one of {', '.join(pairs) or 'none: the model has no logit scale'}")
        own: Any = params[pair or pairs[0]]
        return own

    def preprocess(self, image: Any, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """u8 [H, W, 3] of an image as the image tower wants it: a path, bytes of a file, a PIL image, or an array u8 [h, w, 3].

        Files are turned as their EXIF data say.

        Raises:
            BadExample: it is no image, or has more than `max_pixels`.
        """
        transform = eval_transform(self.config.towers[self.image_tower], max_pixels=max_pixels, upright=True)
        return np.asarray(transform(read_file(image) if isinstance(image, (str, Path)) else image))

    def normalise(self, pixels: Any) -> Array:
        """f32 [..., H, W, 3] of pixels 0 to 255, u8 or float: what towers compute with. Gradients reach the pixels through it."""
        tower = self.config.towers[self.image_tower]
        assert isinstance(tower, ImageTower)
        return normalise(jnp.asarray(pixels), tower.preprocess)

    def tokenize(self, texts: str | Sequence[str]) -> NDArray[np.int32]:
        """Token ids i32 [n, L] of texts, cut or padded to the text tower's context_length; of one text, [1, L]."""
        tower = self.config.towers[self.text_tower]
        assert isinstance(tower, TokenTower)
        return get_tokenizer(tower.tokenizer)([texts] if isinstance(texts, str) else list(texts), tower.context_length)

    @property
    def image_tower(self) -> str:
        """Name of the only tower of images. Raises ConfigError where there is none, or several."""
        return self._only("images", ImageTower)

    @property
    def sound_tower(self) -> str:
        """Name of the only tower of sounds. Raises ConfigError where there is none, or several."""
        return self._only("sounds", SoundTower)

    @property
    def text_tower(self) -> str:
        """Name of the only tower of texts. Raises ConfigError where there is none, or several."""
        return self._only("texts", TokenTower)

    @property
    def captioners(self) -> dict[str, Caption]:
        """Captioners by the name of their parameters."""
        return {name: how for name, how in self.objectives.items() if isinstance(how, Caption)}

    @cached_property
    def _towers(self) -> MultiTower:
        if self.mesh is not None:
            return MultiTower(self.config, backend=Backend.of(self.mesh, self.config.attention))
        device = Mesh(np.array(jax.devices()[:1]), ("data",))
        attention = self.config.attention if jax.device_count() == 1 else "plain"
        return MultiTower(self.config, backend=Backend.of(device, attention)._replace(mesh=None))

    def _only(self, what: str, kind: type) -> str:
        names = [name for name, tower in self.config.towers.items() if isinstance(tower, kind)]
        if not names:
            towers = ", ".join(self.config.towers)
            raise ConfigError(f"the model has no tower for {what}, which this needs; it has {towers} alone")
        if len(names) > 1:
            raise ConfigError(f"the model has {len(names)} towers for {what} ({', '.join(names)}); name one, as in encode")
        return names[0]


def create_model(
    name_or_config: str | Model | Config,
    *,
    tokenizer: str | Path | None = None,
    image_size: ImageSize | None = None,
    context_length: int | None = None,
    mesh: Mesh | None = None,
) -> CLIP:
    """A model without parameters: `init` makes them.

    Args:
        name_or_config: name of an architecture (`jclip.list_models`), which has the logit scale of its kind (and SigLIP's bias);
            a Model, whose towers "image" and "text" get a softmax scale; or a Config, which brings its own scales and captioners.
        tokenizer: the vocabulary that an architecture such as "ViT-B-16-SigLIP" leaves out.
        image_size: side of the images, or (height, width), where it is not the architecture's own.
        context_length: tokens of a text, likewise.
        mesh: the devices that compute; see `CLIP.mesh`.

    Raises:
        ConfigError: no architecture has that name, or the towers contradict themselves.
        WeightsError: the vocabulary is missing or of another kind.
    """
    if tokenizer is not None and not isinstance(name_or_config, str):
        raise ConfigError("create_model: towers say their tokenizer themselves; leave out tokenizer")
    if isinstance(name_or_config, Config):
        config, objectives = name_or_config.model, model_objectives(name_or_config)
    elif isinstance(name_or_config, Model):
        config = name_or_config
        objectives = {"image_text": Contrastive()} if {"image", "text"} <= config.towers.keys() else {}
    else:
        from jclip.weights import named_model, open_clip  # readers of all formats

        config = named_model(name_or_config, tokenizer)
        objectives = {**objectives_of(config, open_clip.scales(config)), **open_clip.named_captioners(name_or_config)}
    if (image_size, context_length) != (None, None):
        from jclip.weights import with_sizes

        config = with_sizes(config, image_size, context_length)
    check_model(config)
    return CLIP(config, objectives, mesh)


def objectives_of(model: Model, scales: Iterable[str]) -> dict[str, Contrastive | Caption]:
    """The objectives whose logit scales and biases have these paths, such as "image_text/logit_scale"."""
    paths, objectives = set(scales), dict[str, Contrastive | Caption]()
    for a, b in itertools.permutations(model.towers, 2):
        if f"{a}_{b}/logit_scale" in paths:
            objectives[f"{a}_{b}"] = Contrastive(a, b, "sigmoid" if f"{a}_{b}/logit_bias" in paths else "softmax")
    return objectives


def model_objectives(config: Config) -> dict[str, Contrastive | Caption]:
    """The objectives of a run whose parameters belong to its model: logit scales, and what writes captions."""
    pairs: dict[str, Contrastive | Caption] = {}
    for both, name in config.scales().items():
        how = config.objectives[name]
        if isinstance(how, MultiView):
            pairs[both] = Contrastive(how.a[0], how.b[0], logit_scale=how.logit_scale)
        elif isinstance(how, Contrastive):
            pairs[both] = Contrastive(how.a, how.b, how.loss, logit_scale=how.logit_scale, logit_bias=how.logit_bias)
    return {**pairs, **config.captioners()}


def _common_rows(batch: Mapping[str, Any]) -> int:
    """Number of examples of a batch, which is the first axis of all its arrays. Raises ValueError where these differ."""
    shapes = {name: [np.shape(leaf) for leaf in jax.tree.leaves(inputs)] for name, inputs in batch.items()}
    rows = {shape[0] if shape else None for arrays in shapes.values() for shape in arrays}
    count = rows.pop() if len(rows) == 1 else None
    if count is None:
        found = "; ".join(f"{name} {' and '.join(map(str, arrays))}" for name, arrays in shapes.items()) or "none"
        raise ValueError(f"apply: training wants as many rows of each input, those of the same examples; got {found}")
    return count


def _named(value: Any) -> str:
    """The type of a value, of a list with that of what is in it."""
    inner = f" of {type(value[0]).__name__}" if isinstance(value, (list, tuple)) and value else ""
    return f"a {type(value).__name__}{inner}"
