"""Mixtures of two sounds: what is heard, what their text says, and that a batch is a function of its step."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jclip.config import (
    Config,
    ConfigError,
    Contrastive,
    Data,
    HtsatTower,
    Mel,
    Model,
    SoundAugment,
    SoundMix,
    SpectrogramTower,
    TextTower,
    VisionTower,
    Waveform,
    check,
    from_json,
    to_json,
)
from jclip.data import BadExample, make_run_loader
from jclip.data.source import SourceError
from jclip.data.tokenizer import get_tokenizer

pytest.importorskip("soundfile", reason="the extra sound is not installed")
pytest.importorskip("soxr", reason="the extra sound is not installed")

RATE, COUNT = 1000, 12
SOUND = SpectrogramTower(
    Waveform(RATE, 0.3, "pad", dtype="float32"),
    Mel(n_fft=64, window=64, hop=30, mels=8, fmax=500.0),
    patch_size=4,
    width=16,
    depth=1,
    heads=1,
)
TEXT = TextTower(context_length=16, width=16, depth=1, heads=1)


class Waves:
    """Sound i is constant: 2 ** -(i + 1), so that a mixture tells its parts and their shares; its text is a letter."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise BadExample("sound is damaged")
        wave = np.full(400, level(index), np.float32)
        return {"key": str(index), "sound": (wave, RATE), "text": "abcdefghijkl"[index]}

    def fingerprint(self) -> str:
        return "waves"


def level(index: int) -> float:
    return float(2.0 ** -(index + 1))


def config(mix: SoundMix, sound: SpectrogramTower | HtsatTower = SOUND, **data: Any) -> Config:
    how = Data("shapes:train", sound_mix=mix, **data)
    return Config(Model({"sound": sound, "text": TEXT}, 8), how, objectives={"sound_text": Contrastive("sound", "text")},
                  evals={}, batch_size=8, duration="4")  # fmt: skip


def batches(how: Config, count: int, source: Any = None, **place: Any) -> list[Any]:
    with make_run_loader(how, source or Waves(), **place) as loader:
        return [next(loader) for _ in range(count)]


def test_a_mixture_is_the_weighted_sum_of_two_sounds_and_both_texts() -> None:
    tokenize = get_tokenizer(TEXT.tokenizer)
    shares, pairs = list[float](), list[tuple[int, int]]()
    for batch in batches(config(SoundMix(1.0)), 40):
        for key, wave, ids in zip(batch.keys, batch.arrays["sound"], batch.arrays["text"], strict=True):
            a, b = map(int, key.split(" + "))
            np.testing.assert_array_equal(ids, tokenize(f"{'abcdefghijkl'[a]} and {'abcdefghijkl'[b]}", 16))
            assert wave.shape == (300,)
            assert np.ptp(wave) == 0
            pairs.append((a, b))
            if a != b:
                shares.append((float(wave[0]) - level(b)) / (level(a) - level(b)))
    assert len(set(pairs)) > 100  # of 144
    assert {a for a, _ in pairs} == {b for _, b in pairs} == set(range(COUNT))
    # Beta(10, 10): mean 1/2, variance 1 / (4 * 21)
    np.testing.assert_allclose(np.mean(shares), 0.5, atol=0.03)
    np.testing.assert_allclose(np.var(shares), 1 / 84, rtol=0.3)


def test_some_examples_are_mixed_and_the_others_are_what_they_are() -> None:
    rows = [(key, wave) for batch in batches(config(SoundMix(0.5)), 50)
            for key, wave in zip(batch.keys, batch.arrays["sound"], strict=True)]  # fmt: skip
    alone = [(int(key), wave) for key, wave in rows if "+" not in key]
    assert 150 < len(alone) < 250
    for index, wave in alone:
        np.testing.assert_array_equal(wave, np.float32(level(index)))
    order = [key.split(" + ")[0] for key, _ in rows]
    assert order == [key for batch in batches(config(SoundMix()), 50) for key in batch.keys]  # every example in its turn


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_what_exceeds_full_scale_is_clipped_after_the_sounds_are_mixed(dtype: str) -> None:
    sound = dataclasses.replace(SOUND, waveform=dataclasses.replace(SOUND.waveform, dtype=dtype))
    how = config(SoundMix(1.0), sound, sound_augment=SoundAugment(gain=(20.0, 20.0)))  # times 10
    heard = {batch.arrays["sound"].dtype.name: batch.arrays["sound"] for batch in batches(how, 5)}
    assert heard.keys() == {dtype}
    if dtype == "int16":
        assert heard[dtype].max() == 32767
    else:
        assert heard[dtype].max() > 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_step_on_any_hosts_from_any_start(workers: int) -> None:
    how = config(SoundMix(0.5), sound_augment=SoundAugment((-6.0, 6.0), 0.2, 0.5), workers=workers)
    whole = batches(how, 4)
    later = batches(how, 2, start=2)
    halves = [batches(how, 4, host=host, hosts=2) for host in range(2)]
    for view in ("sound", "text"):
        for step in range(4):
            both = np.concatenate([half[step].arrays[view] for half in halves])
            np.testing.assert_array_equal(both, whole[step].arrays[view])
        for one, two in zip(whole[2:], later, strict=True):
            np.testing.assert_array_equal(one.arrays[view], two.arrays[view])
    assert [batch.keys for batch in whole[2:]] == [batch.keys for batch in later]


def test_a_broken_part_of_a_mixture_is_counted_and_replaced() -> None:
    found = batches(config(SoundMix(1.0)), 20, Waves(broken=(3, 7)))
    parts = [part for batch in found for key in batch.keys for part in key.split(" + ")]
    assert not {"3", "7"} & set(parts)
    said = [problem for batch in found for problem in batch.problems]
    assert {*said} == {"example 3: sound is damaged", "example 7: sound is damaged"}
    assert len(said) > 20  # 2 of 12 in both parts
    with pytest.raises(SourceError, match=r"100 examples in a row, \d+ different ones?, are broken"):
        batches(config(SoundMix(1.0)), 1, Waves(broken=tuple(range(COUNT))))


def test_what_cannot_be_mixed_is_refused() -> None:
    image = VisionTower(image_size=16, patch_size=8, width=16, depth=1, heads=1)
    three = Model({"sound": SOUND, "text": TEXT, "image": image}, 8)
    with_images = dataclasses.replace(
        config(SoundMix(0.5)), model=three,
        objectives={"sound_text": Contrastive("sound", "text"), "image_text": Contrastive("image", "text")},
    )  # fmt: skip
    long = HtsatTower(Waveform(RATE, 0.3), Mel(n_fft=64, window=64, hop=30, mels=8, fmax=500.0), 32, 2, 8, (1,), (1,), 4,
                      fused_seconds=0.5)  # fmt: skip
    wrong = {
        "'image' is neither": with_images,
        "an example that lacks text cannot be mixed": config(SoundMix(0.5), optional=("text",)),
        "are fused by 'sound'": config(SoundMix(0.5), long),
        "no objective reads a sound": dataclasses.replace(
            with_images, model=Model({"text": TEXT, "image": image}, 8), objectives={"image_text": Contrastive()}
        ),
        "data.sound_mix.beta": config(SoundMix(0.5, 0.0)),
    }
    for message, how in wrong.items():
        with pytest.raises(ConfigError, match=message):
            check(how)
    check(dataclasses.replace(with_images, data=Data("shapes:train")))


def test_a_run_of_before_there_were_mixtures_has_none() -> None:
    how = config(SoundMix())
    saved = to_json(how)
    assert from_json(saved) == how
    old = {**saved, "data": {name: value for name, value in saved["data"].items() if name != "sound_mix"}}
    assert from_json(old) == how
