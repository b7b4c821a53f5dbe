"""Intermediate tokens and attention of blocks, against what the whole tower makes of them and against numpy in f64."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jclip
from jclip import CLIP, ConfigError
from jclip.config import Model, ResNetTower, TextTower, VisionTower
from jclip.models import Backend, MultiTower, Tap, Taps

DEPTH = 4
IMAGE = VisionTower(image_size=16, patch_size=4, width=24, depth=DEPTH, heads=3)
TEXT = TextTower(context_length=9, width=16, depth=DEPTH, heads=2)
IDS = np.array([[49406, 5, 7, 49407, 0, 0, 0, 0, 0], [49406, 3, 1, 4, 1, 5, 9, 2, 49407], [49406, 49407, 0, 0, 0, 0, 0, 0, 0]])
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
INPUTS: dict[str, Any] = {"image": PIXELS, "text": IDS.astype(np.int32)}
ALL = range(DEPTH)


def clip(scan: bool = False, image: Any = IMAGE, text: TextTower = TEXT, **options: Any) -> CLIP:
    return jclip.create_model(Model({"image": image, "text": text}, embed_dim=8, scan=scan, **options))


@pytest.fixture(scope="module")
def params() -> Any:
    """Large random ones, that attention may have something to choose between."""
    shapes = jax.eval_shape(clip().init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda like: (0.3 * rng.normal(size=like.shape)).astype(np.float32), shapes)


def tapped(model: CLIP, params: Any, tower: str, blocks: Iterable[int], attention: bool = True) -> dict[int, Tap]:
    """Taps under jit, which here is faster than operation by operation."""

    def taps(params: Any, inputs: Any) -> list[Tap]:
        return list(model.taps(params, tower, inputs, blocks=blocks, attention=attention).values())

    return dict(zip(blocks, jax.jit(taps)(params, INPUTS[tower]), strict=True))


def norm(x: Any, params: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return np.asarray(x * params["scale"] + params["bias"])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_last_tap_normed_pooled_and_projected_is_the_embedding(tower: str, scan: bool, params: Any) -> None:
    model = clip(scan)
    last = norm(tapped(model, params, tower, (-1,), attention=False)[-1].tokens, params[tower]["norm"])
    z = last[np.arange(3), 0 if tower == "image" else IDS.argmax(1)] @ params[f"{tower}_projection"]["kernel"]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    encoded = jax.jit(model.apply)(params, {tower: INPUTS[tower]})[tower]
    np.testing.assert_allclose(encoded.z, z, atol=1e-5)
    np.testing.assert_allclose(encoded.output.tokens, last, atol=2e-5)


def attention_by_hand(x: Any, params: Any, heads: int, visible: np.ndarray) -> np.ndarray:
    """Vaswani et al. 2017, equation 1, of the normed tokens."""
    y = norm(x, params["norm1"])
    q, k = (y @ np.asarray(params["attn"][n]["kernel"], np.float64) + params["attn"][n]["bias"] for n in "qk")
    q, k = (z.reshape(*z.shape[:2], heads, -1) for z in (q, k))
    logits = np.einsum("bnhd,blhd->bhnl", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * visible
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_attention_is_that_of_the_tokens_before_the_block(tower: str, masked: bool, scan: bool, params: Any) -> None:
    """Masked: a text tower of whose padding nothing is seen, and where order is no matter."""
    text = dataclasses.replace(TEXT, causal=not masked, mask_padding=masked)
    taps = tapped(clip(scan, text=text), params, tower, (1, 2))
    length = taps[1].tokens.shape[1]
    visible = np.ones((1, 1, length, length))
    if tower == "text":
        real = np.arange(length) <= IDS.argmax(1)[:, None]
        visible = real[:, None, None, :] * visible if masked else np.tri(length)[None, None]
    block = jax.tree.map(lambda leaf: leaf[2], params[tower]["blocks"])
    expected = attention_by_hand(taps[1].tokens, block, {"image": 3, "text": 2}[tower], visible)
    weights = taps[2].attention
    assert weights is not None
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert not np.asarray(weights)[~np.broadcast_to(visible > 0, weights.shape)].any()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_loop_and_unrolled_blocks_with_any_remat_tap_the_same(tower: str, params: Any) -> None:
    whole = tapped(clip(), params, tower, ALL)
    assert all((whole[a].tokens != whole[b].tokens).any() for a in ALL for b in range(a))
    for model, blocks in ((clip(True), ALL), (clip(True, remat=("q", "out")), (3, 0)), (clip(remat="dots_saveable"), (-2, 2))):
        for block, tap in tapped(model, params, tower, blocks).items():
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), tap, whole[block % DEPTH])
    eager = clip().taps(params, tower, INPUTS[tower], blocks=(2, -DEPTH))
    assert list(eager) == [2, -DEPTH]
    np.testing.assert_allclose(eager[2].tokens, whole[2].tokens, atol=2e-5)
    assert eager[2].attention is None


@pytest.mark.parametrize("scan", [False, True])
def test_taps_go_through_jit_grad_vmap_and_shard_map(scan: bool, params: Any) -> None:
    model = clip(scan)

    def tap(params: Any, pixels: Any) -> Any:
        found = model.taps(params, "image", pixels, blocks=(1, -1), attention=True)
        return found[1], found[-1]

    def close(a: Any, b: Any) -> None:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), a, b)

    plain = tap(params, PIXELS)
    close(jax.jit(tap)(params, PIXELS), plain)
    close(jax.vmap(lambda one: jax.tree.map(lambda leaf: leaf[0], tap(params, one[None])))(PIXELS), plain)
    mesh = jax.make_mesh((3,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])
    rows = PartitionSpec("rows")
    mapped = jax.shard_map(tap, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)
    close(jax.jit(mapped)(params, PIXELS), plain)

    def entropy(params: Any) -> Any:  # of block 1: what lies behind has no gradient, what lies before has
        weights = model.taps(params, "image", PIXELS, blocks=(1,), attention=True)[1].attention
        assert weights is not None
        return -(weights * jnp.log(weights + 1e-9)).sum()

    gradient = jax.jit(jax.grad(entropy))(params)["image"]["blocks"]["attn"]["q"]["kernel"]
    assert [bool(part.any()) for part in gradient] == [True, True, False, False]


def test_what_load_returns_is_tapped_with_sharded_parameters() -> None:
    split = jclip.load("ViT-tiny-test", fsdp=2)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.params))
    ids = split.tokenize([f"text {i}" for i in range(8)])

    def last(model: CLIP, params: Any) -> Tap:
        return jax.jit(lambda params: model.taps(params, "text", ids, blocks=(-1,), attention=True)[-1])(params)

    whole = last(jclip.create_model("ViT-tiny-test"), jax.device_get(split.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), last(split, split.params), whole)


def test_a_token_that_only_a_gpu_wants_is_not_shown() -> None:
    """The 17 tokens of the image are 18 for cuDNN; heads of 4 numbers then take the plain form, which runs here too."""
    model = Model({"image": dataclasses.replace(IMAGE, width=12)}, embed_dim=8, dtype="bfloat16")
    params = jax.jit(jclip.create_model(model).init)(jax.random.key(0))

    def tap(backend: Backend) -> Tap:
        towers = MultiTower(model, backend=backend, taps=Taps((2,), True))
        _, kept = jax.jit(lambda pixels: towers.apply({"params": params}, {"image": pixels}, mutable=["taps"]))(PIXELS)
        (found,) = kept["taps"]["image"]["blocks"]
        return found

    there, here = tap(Backend("gpu", True)), tap(Backend())
    assert (there.tokens.shape, there.attention.shape) == ((3, 17, 12), (3, 3, 17, 17))
    assert (there.tokens.dtype, there.attention.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(there.tokens.astype(jnp.float32), here.tokens.astype(jnp.float32), atol=0.05)
    np.testing.assert_allclose(there.attention.sum(-1), 1, atol=1e-6)


def test_nothing_is_left_where_no_taps_are_asked(params: Any) -> None:
    towers = MultiTower(clip().config)
    for mutable in (["taps", "attention"], True):
        _, kept = jax.eval_shape(lambda mutable=mutable: towers.apply({"params": params}, {"image": PIXELS}, mutable=mutable))
        assert not {"taps", "attention"} & set(kept)
    assert set(jax.eval_shape(towers.init, jax.random.key(0), INPUTS)) == {"params"}


@pytest.mark.parametrize(
    ("tower", "blocks", "message"),
    [
        ("picture", (0,), "taps: there is no tower 'picture'; towers: image, text"),
        ("text", (0, DEPTH), "taps: tower 'text' has no block 4; use 0 to 3, or -4 to -1"),
        ("text", (-DEPTH - 1,), "taps: tower 'text' has no block -5; use 0 to 3, or -4 to -1"),
        ("image", (0,), "taps: ResNetTower 'image' has no transformer blocks; `apply` gives its tokens"),
    ],
)
def test_towers_and_blocks_that_are_not_there_are_refused(tower: str, blocks: tuple[int, ...], message: str) -> None:
    model = clip(image=ResNetTower(image_size=32, stem_width=4, heads=4))
    with pytest.raises(ConfigError) as error:
        model.taps({}, tower, INPUTS.get(tower), blocks=blocks)
    assert str(error.value) == message
