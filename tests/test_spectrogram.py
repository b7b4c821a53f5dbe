"""The tower of spectrograms: its patches, its options, and one result on every mesh."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import multiply_adds

import jclip
from jclip.config import (
    IMAGEBIND_MEL,
    IMAGEBIND_WAVEFORM,
    Config,
    ConfigError,
    Contrastive,
    Mel,
    MeshConfig,
    Model,
    SpecAugment,
    SpectrogramTower,
    TextTower,
    VisionTower,
    Waveform,
    check,
    check_model,
    from_json,
    to_json,
)
from jclip.models import Compute, SpectrogramTransformer, VisionTransformer, log_mel, tower_flops
from jclip.models.spectrogram import overlapping_patches
from jclip.models.towers import output_tokens
from jclip.sharding import make_mesh, to_global
from jclip.state import new_params
from jclip.step import make_loss_and_grads

SMALL = SpectrogramTower(
    Waveform(8000, 0.25),
    Mel(n_fft=256, window=256, hop=100, mels=20, fmin=50.0, fmax=4000.0, mean=-30.0, std=20.0),
    patch_size=(8, 6),
    stride=(4, 5),
    width=32,
    depth=2,
    heads=4,
)
TEXT = TextTower(context_length=8, width=32, depth=1, heads=2)


def sounds(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, (count, SMALL.waveform.samples)).astype(np.int16)


def model(**fields: Any) -> Model:
    return Model({"sound": dataclasses.replace(SMALL, **fields), "text": TEXT}, 16)


@pytest.mark.parametrize(("size", "stride"), [((8, 6), (4, 5)), ((8, 6), (8, 6)), ((4, 4), (4, 4)), ((5, 3), (2, 7))])
def test_patches_are_cut_out_one_by_one(size: tuple[int, int], stride: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 20, 21)).astype(np.float32)
    right = [
        [
            one[top : top + size[0], left : left + size[1]].ravel()
            for top in range(0, 20 - size[0] + 1, stride[0])
            for left in range(0, 21 - size[1] + 1, stride[1])
        ]
        for one in x
    ]
    np.testing.assert_array_equal(overlapping_patches(jnp.asarray(x), size, stride), np.array(right))


def test_the_grid_of_imagebind_has_12_by_19_patches() -> None:
    tower = SpectrogramTower(IMAGEBIND_WAVEFORM, IMAGEBIND_MEL, patch_size=16, stride=10)
    assert tower.grid == (12, 19)
    assert output_tokens(tower) == 229
    assert SpectrogramTower().grid == (4, 62)


def test_it_is_the_vision_transformer_on_patches_of_the_spectrogram() -> None:
    """The 12 values of a frame are one patch; an image whose patches of 2 x 2 pixels hold the same gives the same output."""
    mel = dataclasses.replace(SMALL.mel, mels=12)
    tower = dataclasses.replace(SMALL, mel=mel, patch_size=(12, 1), stride=None, depth=1)
    module = SpectrogramTransformer(tower)
    waves = jnp.asarray(sounds(3))
    params = jax.jit(module.init)(jax.random.key(1), waves)
    images = log_mel(waves / 32767, mel, 8000).reshape(3, 21, 2, 2, 3).swapaxes(1, 2).reshape(3, 2, 42, 3)
    vit = VisionTransformer(VisionTower(image_size=(2, 42), patch_size=2, width=32, depth=1, heads=4))
    found, right = jax.jit(module.apply)(params, waves), jax.jit(partial(vit.apply, normalised=True))(params, images)
    np.testing.assert_allclose(found.pooled, right.pooled, atol=1e-5)
    np.testing.assert_allclose(found.tokens, right.tokens, atol=1e-5)


MORE = [pytest.param(pool, marks=pytest.mark.slow) for pool in ("avg", "map")]


@pytest.mark.parametrize("pool", ["cls", *MORE])
def test_every_pooling_gives_unit_vectors_and_finite_gradients_at_silence(pool: str) -> None:
    clip = jclip.create_model(model(pool=pool, depth=1, layer_scale=0.1, norm_after_pool=pool == "avg"))
    params = jax.jit(clip.init)(jax.random.key(0))
    waves = jnp.asarray(sounds(2)).at[0].set(0) / 32767

    @jax.jit
    def first_numbers(params: Any, waves: Any) -> Any:
        z = clip.encode(params, "sound", waves)
        return z[:, 0].sum(), z

    (_, z), (to_params, to_waves) = jax.jit(jax.value_and_grad(first_numbers, (0, 1), has_aux=True))(params, waves)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(to_params))
    assert np.isfinite(to_waves).all()
    assert not to_waves[0].any()
    assert to_waves[1].any()


def loss_and_gradients(config: Config, data: int, fsdp: int) -> tuple[float, Any]:
    config = dataclasses.replace(config, mesh=MeshConfig(data, fsdp))
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp])
    ids = np.random.default_rng(2).integers(1, 400, (8, 8)).astype(np.int32)
    batch = to_global({"sound": sounds(8), "text": ids}, mesh)
    params = new_params(config, jax.random.key(5))
    loss, _, gradients, _ = jax.jit(make_loss_and_grads(config, mesh))(params, batch, jax.random.key(6))
    return float(loss), jax.device_get(gradients)


MASKED = Config(
    model=model(depth=1, spec_augment=SpecAugment(time_masks=2, time_width=5, mel_masks=2, mel_width=4), patch_dropout=0.3),
    objectives={"sound_text": Contrastive("sound", "text")},
    batch_size=8,
    eval_batch_size=8,
)


@pytest.fixture(scope="module")
def one_device() -> tuple[float, Any]:
    return loss_and_gradients(MASKED, 1, 1)


@pytest.mark.parametrize(
    ("data", "fsdp", "parts"),
    [(4, 2, 1), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((2, 1, 1), (1, 1, 2), (8, 1, 1)))],
)
def test_loss_and_gradients_are_the_same_on_every_mesh_masks_and_dropped_patches_too(
    one_device: tuple[float, Any], data: int, fsdp: int, parts: int
) -> None:
    loss, gradients = loss_and_gradients(dataclasses.replace(MASKED, accumulate=parts), data, fsdp)
    assert loss == pytest.approx(one_device[0], abs=2e-6)
    for one, two in zip(jax.tree.leaves(one_device[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5 * max(1.0, float(np.abs(one).max())))


def test_masks_change_what_is_trained_and_nothing_else() -> None:
    tower = dataclasses.replace(SMALL, depth=1, spec_augment=SpecAugment(time_masks=3, time_width=10))
    masked, plain = SpectrogramTransformer(tower), SpectrogramTransformer(dataclasses.replace(SMALL, depth=1))
    waves, key = jnp.asarray(sounds(2)), jax.random.key(3)
    params = jax.jit(masked.init)(jax.random.key(0), waves)
    right = jax.jit(plain.apply)(params, waves).pooled
    np.testing.assert_array_equal(jax.jit(masked.apply)(params, waves).pooled, right)
    np.testing.assert_allclose(
        jax.jit(plain.apply)(params, waves / np.float32(32767)).pooled, right, atol=1e-5
    )  # int16, as floats
    trained = jax.jit(partial(masked.apply, rows=jnp.arange(2)))(params, waves, rngs={"dropout": key})
    assert np.abs(trained.pooled - right).max() > 1e-3


@pytest.mark.parametrize("pool", ["cls", *MORE[1:]])
def test_operations_counted_by_hand_are_those_of_the_program(pool: str) -> None:
    tower = dataclasses.replace(SMALL, width=96, heads=4, pool=pool)
    module = SpectrogramTransformer(tower, Compute(scan=True))
    x = jax.ShapeDtypeStruct((1, tower.waveform.samples), jnp.int16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(module.apply)(params, x)
    fft = tower.mel.frames_of(2000) * round(2.5 * 256 * math.log2(256))
    assert 2 * multiply_adds(traced.jaxpr) + fft == pytest.approx(tower_flops(tower), rel=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mel": Mel()}, "towers.sound.mel.fmax 14000.0 is above half of the sample rate 8000; use 4000 at most"),
        ({"mel": dataclasses.replace(SMALL.mel, window=300)}, "mel.window 300 is longer than n_fft 256; use 256 at most"),
        ({"mel": dataclasses.replace(SMALL.mel, pre_emphasis=0.97)}, "pre_emphasis 0.97 is of framing='kaldi'"),
        ({"mel": dataclasses.replace(SMALL.mel, scale="kaldi")}, "Kaldi's filters have none; use norm='none'"),
        ({"mel": dataclasses.replace(SMALL.mel, fmin=4000.0)}, "mel.fmin 4000.0 is not below fmax 4000.0"),
        ({"patch_size": 40, "stride": None}, "patch_size 40 is larger than the spectrogram, 20 mels and 21 frames"),
        ({"stride": (4, 4)}, r"stride \(4, 4\) is a square; use 4"),
        ({"waveform": Waveform(8000, 0.01)}, "are 80 samples; the spectrogram needs 129"),
        ({"waveform": Waveform(400_000, 3600.0)}, "1,440,000,000 samples; use 1 to 67,108,864"),
        ({"heads": 5}, "heads 5 does not divide width 32"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(model(**fields))


def test_a_configuration_with_sounds_is_saved_and_read_and_checked() -> None:
    config = Config(model=model(), objectives={"sound_text": Contrastive("sound", "text")})
    check(config)
    assert from_json(to_json(config)) == config
    other = jclip.config.View("sound", augment=jclip.config.Augment(flip=0.5))
    with pytest.raises(ConfigError, match="sound is a tower of sounds; use sound_augment"):
        check(dataclasses.replace(config, views={"sound@2": other}))
    other = jclip.config.View("text", sound_augment=jclip.config.SoundAugment(shift=0.5))
    with pytest.raises(ConfigError, match="text is no tower of sounds"):
        check(dataclasses.replace(config, views={"text@2": other}))


def test_taps_see_its_blocks() -> None:
    clip = jclip.create_model(model(depth=1))
    find = jax.jit(partial(clip.taps, tower="sound", blocks=(-1,), attention=True))
    (tap,) = find(jax.jit(clip.init)(jax.random.key(0)), inputs=sounds(2)).values()
    assert tap.tokens.shape == (2, 1 + math.prod(SMALL.grid), 32)
    np.testing.assert_allclose(tap.attention.sum(axis=-1), 1, atol=1e-5)
