"""Parts of HTS-AT and CNN14 against independent computations: stretching, folding, windows, fusion, counts of operations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from products import multiply_adds
from test_models import as_f64, params_like

from jclip.config import (
    Cnn14Tower,
    ConfigError,
    HtsatTower,
    Mel,
    Model,
    SpecAugment,
    Tower,
    Waveform,
    check_model,
    from_json,
    to_saved,
)
from jclip.data import eval_transform
from jclip.models import output_tokens, tower_flops
from jclip.models.cnn14 import Cnn14
from jclip.models.compute import Compute
from jclip.models.flops import mel_flops
from jclip.models.htsat import Fusion, Htsat, apart, cubic_matrix, fold, relative_positions, stretch
from jclip.models.kept_norm import KeptNorm
from jclip.models.long_sounds import parts_of, shrunk

WAVE = Waveform(8000, 1.0, dtype="float32")
MEL = Mel(n_fft=256, window=256, hop=80, mels=16, fmax=3500.0)
HTSAT = HtsatTower(WAVE, MEL, 64, 4, 12, (2, 1), (2, 4), 4)
FUSED = dataclasses.replace(HTSAT, fused_seconds=2.5)
CNN = Cnn14Tower(WAVE, MEL, (4, 6, 8))


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(0.1 * rng.normal(size=n)).astype(np.float32) for n in lengths]


def positive(init: Any, *inputs: Any) -> Any:
    """Random parameters of which none is negative, as variances are not."""
    return jax.tree.map(np.abs, params_like(init, *inputs))


def test_stretching_is_cubic_convolution_between_the_ends() -> None:
    """Keys 1981 with a = -0.75: an exact interpolation of straight lines inside, and of the samples themselves."""
    matrix = cubic_matrix(11, 31)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix[::3], np.eye(11), atol=1e-6)

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    for row, place in enumerate(np.arange(31) / 3):
        expected = np.zeros(11)
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            expected[min(max(tap, 0), 10)] += kernel(place - tap)
        np.testing.assert_allclose(matrix[row], expected, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(2, 1, 11, 3)).astype(np.float32)
    np.testing.assert_allclose(stretch(jnp.asarray(x), 31)[1, 0], matrix @ x[1, 0], atol=1e-6)
    assert stretch(x, 11) is x


def test_folding_puts_parts_of_the_time_below_each_other() -> None:
    x = np.arange(2 * 12 * 3).reshape(1, 2, 12, 3)
    folded = fold(x, 4)
    assert folded.shape == (1, 2, 12, 3)
    for part in range(4):
        for mel in range(3):
            np.testing.assert_array_equal(folded[0, 1, part * 3 + mel], x[0, 1, part * 3 : part * 3 + 3, mel])


def test_relative_positions_are_those_of_queries_and_keys() -> None:
    table = relative_positions(3)
    for query in range(9):
        for key in range(9):
            down, right = query // 3 - key // 3, query % 3 - key % 3
            assert table[query, key] == (down + 2) * 5 + right + 2


def test_shifted_windows_keep_strangers_apart() -> None:
    side, size, shift = 8, 4, 2
    masks = apart(side, size, shift)
    places = np.arange(side * side).reshape(side, side)
    rolled = np.roll(places, (-shift, -shift), (0, 1))
    for window in range(4):
        rows, columns = window // 2 * size, window % 2 * size
        inside = rolled[rows : rows + size, columns : columns + size].reshape(-1)
        for a, first in enumerate(inside):
            for b, second in enumerate(inside):
                far = abs(first // side - second // side) >= size or abs(first % side - second % side) >= size
                assert (masks[window, a, b] == -100) == far


def test_kept_statistics_are_given_and_never_trained() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    module = KeptNorm()
    params = positive(module.init, x)
    p = as_f64(params)
    expected = (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)
    grads = jax.grad(lambda params: (module.apply({"params": params}, x) ** 2).sum())(params)
    assert not np.any(grads["mean"])
    assert not np.any(grads["var"])
    assert np.all(grads["scale"] != 0)


def test_fusion_weighs_both_by_what_it_sees_of_them() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 1, 2, 3, 8)).astype(np.float32)
    module = Fusion(2, Compute())
    params = positive(module.init, x, y)
    p = as_f64(params)

    def norm(q: Any, x: np.ndarray) -> np.ndarray:
        return np.asarray((x - q["mean"]) / np.sqrt(q["var"] + 1e-5) * q["scale"] + q["bias"])

    def seen(x: np.ndarray, name: str) -> np.ndarray:
        x = np.maximum(norm(p[f"{name}_norm1"], x @ p[f"{name}_fc1"]["kernel"] + p[f"{name}_fc1"]["bias"]), 0)
        return norm(p[f"{name}_norm2"], x @ p[f"{name}_fc2"]["kernel"] + p[f"{name}_fc2"]["bias"])

    both = (x + y).astype(np.float64)
    w = 1 / (1 + np.exp(-seen(both, "local") - seen(both.mean(axis=(1, 2), keepdims=True), "global")))
    np.testing.assert_allclose(module.apply({"params": params}, x, y), 2 * x * w + 2 * y * (1 - w), atol=1e-5)


@pytest.mark.parametrize("frames", [10, 11, 12, 13, 20, 29, 30])
def test_parts_are_the_middles_of_the_thirds(frames: int) -> None:
    logs = np.random.default_rng(0).normal(size=(1, 30, 2)).astype(np.float32)
    parts, longer = parts_of(jnp.asarray(logs), jnp.asarray([frames]), 10)
    assert bool(longer[0]) == (frames > 10)
    thirds = np.array_split(np.arange(frames - 10 + 1), 3)
    for part, places in zip(parts[0, 1:], thirds, strict=True):
        start = places[len(places) // 2] if len(places) else 0
        np.testing.assert_array_equal(part, logs[0, start : start + 10])
    places = np.clip((np.arange(10) + 0.5) * frames / 10 - 0.5, 0, frames - 1)
    expected = np.stack([np.interp(places, np.arange(frames), logs[0, :frames, mel]) for mel in range(2)], axis=1)
    np.testing.assert_allclose(parts[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(shrunk(jnp.asarray(logs[0]), jnp.asarray(frames), 10), expected, atol=1e-5)


def heard(tower: Tower, *sounds: np.ndarray) -> np.ndarray:
    transform = eval_transform(tower)
    return np.stack([transform((sound, 8000)) for sound in sounds])


def test_a_long_sound_is_always_the_same_and_not_its_beginning() -> None:
    """The references draw the parts, or the crop, at random: there a long sound has another embedding each time."""
    tower = Htsat(FUSED)
    long, other = noise(17_000, 17_000)
    changed = long.copy()
    changed[12_000:] = other[12_000:]
    rows = heard(FUSED, long, long, changed, long[:8000], long[:8100])
    params = positive(tower.init, rows[:1])
    pooled = np.asarray(jax.jit(tower.apply)({"params": params}, rows).pooled)
    assert np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[0], pooled[1])
    assert np.abs(pooled[0] - pooled[2]).max() > 1e-3
    assert np.abs(pooled[0] - pooled[3]).max() > 1e-3
    plain = Htsat(HTSAT)
    rest = {key: value for key, value in params["patch_embed"].items() if key not in ("fusion", "parts")}
    without = jax.jit(plain.apply)({"params": {**params, "patch_embed": rest}}, heard(HTSAT, long[:8000]))
    np.testing.assert_allclose(pooled[3], without.pooled[0], atol=1e-4)


def test_the_input_of_fusion_tells_the_length_and_reflects_the_end() -> None:
    (long,) = noise(9000)
    row = heard(FUSED, long)[0]
    assert row.shape == FUSED.input()[0] == (20_000 + 128 + 1,)
    assert row[-1] == 9000
    np.testing.assert_array_equal(row[:9000], long)
    np.testing.assert_array_equal(row[9000:9128], long[-129:-1][::-1])
    assert not row[9128:-1].any()
    short = heard(FUSED, long[:3000])[0]
    assert short[-1] == 8000
    np.testing.assert_array_equal(short[:6000], np.tile(long[:3000], 2))
    rounded = heard(dataclasses.replace(FUSED, waveform=dataclasses.replace(WAVE, dtype="int16")), long)[0]
    np.testing.assert_allclose(rounded[:9000] * 32767, np.trunc(long * np.float32(32767)), atol=1e-2)
    with pytest.raises(ValueError, match=r"is not \[b, 20129\], as fusion takes it"):
        Htsat(FUSED).init(jax.random.key(0), np.zeros((1, 8000), np.float32))


@pytest.mark.parametrize("tower", [HTSAT, FUSED, CNN], ids=["htsat", "fused", "cnn14"])
def test_operations_and_tokens_are_those_of_the_program(tower: Any) -> None:
    module = {HtsatTower: Htsat, Cnn14Tower: Cnn14}[type(tower)](tower)
    rows = heard(tower, *noise(8000, 12_000))
    params = positive(module.init, rows)
    traced = jax.make_jaxpr(lambda params, rows: module.apply({"params": params}, rows).pooled)(params, rows)
    program, _ = dce_jaxpr(traced.jaxpr, [True])
    samples = rows.shape[1] - 1 if tower is FUSED else 8000
    # Of the spectrogram the product with the filters is a product, the Fourier transform none.
    frames = MEL.frames_of(samples)
    seen = tower_flops(tower) - mel_flops(MEL, samples) + 2 * frames * 129 * 16
    assert 2 * multiply_adds(program) == pytest.approx(2 * seen, rel=0.01)
    output = jax.eval_shape(lambda: module.apply({"params": params}, rows))
    assert output.tokens.shape == (2, output_tokens(tower), tower.width)


@pytest.mark.parametrize("tower", [HTSAT, CNN], ids=["htsat", "cnn14"])
def test_masks_depend_on_the_row_alone_and_are_of_training(tower: Any) -> None:
    masked = dataclasses.replace(tower, spec_augment=SpecAugment(2, 20, 1, 4))
    module = {HtsatTower: Htsat, Cnn14Tower: Cnn14}[type(tower)](masked)
    rows = heard(tower, *noise(8000, 8000, 8000))
    params, rngs = positive(module.init, rows), {"dropout": jax.random.key(1)}
    run = jax.jit(lambda rows, index: module.apply({"params": params}, rows, rows=index, rngs=rngs).pooled)
    whole = run(rows, jnp.arange(3))
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(run(rows[1:], jnp.arange(1, 3)), whole[1:], rtol=1e-5, atol=1e-5)
    assert not np.allclose(whole, module.apply({"params": params}, rows).pooled, rtol=1e-3)


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        (HTSAT, {"spec_size": 60}, "spec_size 60 is not divisible by mel.mels 16"),
        (HTSAT, {"spec_size": 32}, "spec_size 32 holds 64 frames, not 101; shorten"),
        (HTSAT, {"heads": (2,)}, "give as many as depths"),
        (HTSAT, {"heads": (5, 4)}, "heads 5 does not divide width 12 of stage 1"),
        (HTSAT, {"window": 5}, "spec_size 64 is not divisible by 40, patches and windows of the last stage"),
        (FUSED, {"fused_seconds": 1.0}, "waveform.seconds 1.0 are as many"),
        (FUSED, {"fused_seconds": 3000.0}, "use 2097 at most"),
        (FUSED, {"fusion_ratio": 13}, "leaves nothing of stem_width 12"),
        (CNN, {"channels": ()}, "channels is empty"),
        (CNN, {"channels": (2,) * 6}, "6 blocks leave nothing of 101 frames and 16 mels; use 5 blocks at most"),
        (CNN, {"mel": dataclasses.replace(MEL, fmax=5000.0)}, "above half of the sample rate"),
    ],
)
def test_contradictions_are_reported(tower: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(Model({"sound": dataclasses.replace(tower, **changes)}, 8))


def test_they_are_saved_and_read_again() -> None:
    model = Model({"sound": FUSED, "other": CNN}, 16)
    check_model(model)
    assert from_json(to_saved(model), Model) == model
