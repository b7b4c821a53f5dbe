"""The sounds of drawn scenes: what is heard is what is drawn, and nothing else of an example has changed."""

import hashlib

import numpy as np
import pytest

from jclip.data import open_source
from jclip.data.fingerprint import sample_fingerprint
from jclip.data.shapes_drawing import COLOURS, SHAPES
from jclip.data.shapes_sounds import DETUNE, LENGTH, PITCHES, RATE, sound, tone


def spectrum(wave: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave))))


def test_a_circle_is_a_sine_whose_pitch_is_its_colour() -> None:
    for i, colour in enumerate(COLOURS):
        (wave, rate) = sound([{"shape": "circle", "colour": colour, "r": 0.4}], np.random.default_rng(i))
        peak = spectrum(wave).argmax() * rate / LENGTH
        assert peak == pytest.approx(PITCHES[colour], rel=DETUNE, abs=rate / LENGTH)
        assert min(PITCHES, key=lambda name: abs(np.log(PITCHES[name] / peak))) == colour


def test_every_timbre_is_another_and_is_known_by_one_pitch_from_any_other() -> None:
    """A square has odd harmonics, a star all, a triangle a fifth; envelopes tell the others."""
    waves = {shape: tone(shape, 400.0, 0.3) for shape in SHAPES}
    level = {shape: 20 * np.log10(spectrum(wave) + 1e-9) for shape, wave in waves.items()}

    def has(shape: str, hertz: float) -> bool:
        return bool(level[shape][round(hertz * LENGTH / RATE)] > level[shape].max() - 25)

    assert [shape for shape in SHAPES if has(shape, 1200)] == ["square", "star", "diamond"]
    assert [shape for shape in SHAPES if has(shape, 800)] == ["star", "diamond"]
    assert [shape for shape in SHAPES if has(shape, 600)] == ["triangle"]
    halves = {shape: (np.square(wave[: LENGTH // 2]).sum() / np.square(wave).sum()) for shape, wave in waves.items()}
    assert halves["diamond"] > 0.9
    assert halves["crescent"] < 0.1
    around = {shape: (level[shape][150:250] > level[shape].max() - 25).sum() for shape in SHAPES}  # 300 to 500 Hz
    assert around["ring"] > around["cross"] > around["circle"]  # vibrato is wider than tremolo, and that than a sine
    assert len({hashlib.sha256(wave.tobytes()).hexdigest() for wave in waves.values()}) == len(SHAPES)
    assert all(np.abs(wave).max() == pytest.approx(1) for wave in waves.values())


def test_larger_objects_are_louder_and_scenes_are_the_sum_of_their_objects() -> None:
    items = [{"shape": "square", "colour": "red", "r": 0.2}, {"shape": "ring", "colour": "blue", "r": 0.3}]
    level = {r: np.abs(sound([{**items[0], "r": r}], np.random.default_rng(0))[0]).max() for r in (0.16, 0.3, 0.46)}
    assert level[0.16] < level[0.3] < level[0.46] < 1
    both = spectrum(sound(items, np.random.default_rng(3))[0])
    for colour in ("red", "blue"):
        low, high = (round(PITCHES[colour] * factor * LENGTH / RATE) for factor in (0.9, 1.1))
        assert both[low : high + 1].max() > 0.2 * both.max()


def test_sounds_are_a_function_of_seed_split_and_index_and_belong_to_the_picture() -> None:
    source = open_source("shapes:train?size=16")
    wave, rate = source[7]["sound"]
    assert (wave.shape, wave.dtype, rate) == ((LENGTH,), np.float32, RATE)
    np.testing.assert_array_equal(source[7]["sound"][0], wave)
    for other in (source[8], open_source("shapes:train?size=16&seed=1")[7], open_source("shapes:val?size=16")[7]):
        assert not np.array_equal(other["sound"][0], wave)
    np.testing.assert_array_equal(open_source("shapes:train?size=32")[7]["sound"][0], wave)


def test_examples_and_their_cheap_fingerprint_are_those_of_before_there_were_sounds() -> None:
    example = open_source("shapes:train?size=16")[5]
    assert list(example) == ["key", "image", "text", "label", "objects"]
    assert "sound" in example
    np.testing.assert_array_equal(example["image"], example["image"])
    assert sample_fingerprint(open_source("shapes:train?size=16&length=200")) == "a20a01ce39be5e64daa02b7024b0fcec"
