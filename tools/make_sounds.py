"""Makes a set of synthesised sounds in ESC-50's layout: 50 classes, 40 clips each, 5 folds."""

import argparse
import csv
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

HELP = """\
Makes a set of synthesised sounds in the layout of ESC-50, for `esc50:OUT`: to try and to test what hears sounds, where no real
ones are at hand.

A class is one of ten timbres at one of five pitches, such as low_chirp. Clips of a class differ in pitch (by 8%), loudness,
onset, length, repetition and noise. As in ESC-50 each class has 40 clips of 5 s, eight in each of five folds, and both takes of a
recording are in the same fold. The same options give the same bytes.
"""

PITCHES = {"very_low": 110.0, "low": 220.0, "middle": 440.0, "high": 880.0, "very_high": 1760.0}
"""Pitches by name, in Hz."""

FOLDS = 5

TAKES = "AB"
"""Takes of a recording."""

Samples = NDArray[np.float64]

Timbre = Callable[[Samples, float, np.random.Generator], Samples]
"""(seconds since the onset, Hz, randomness) -> samples of about -1 to 1."""


def _sine(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * t)


def _sawtooth(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return sum((np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 9)), np.zeros_like(t)) * (2 / np.pi)


def _square(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return sum((np.sin(2 * np.pi * k * pitch * t) / k for k in (1, 3, 5, 7)), np.zeros_like(t)) * (4 / np.pi)


def _chirp(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * (0.75 * t + 0.5 * t**2 / max(t[-1], 1e-6) * 0.5))  # from 3/4 of the pitch to 5/4


def _falling_chirp(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * (1.25 * t - 0.5 * t**2 / max(t[-1], 1e-6) * 0.5))


def _noise(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    carrier = np.exp(2j * np.pi * pitch * t)
    slow = rng.standard_normal((2, len(t)))
    width = max(3, round(len(t) / max(t[-1], 1e-6) / (0.25 * pitch)))  # samples of the average: a band of a quarter of the pitch
    low = [np.convolve(one, np.ones(width) / np.sqrt(width), "same") for one in slow]
    return np.real((low[0] + 1j * low[1]) * carrier) / 2


def _tremolo(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 9 * t))


def _vibrato(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * t + 0.12 * pitch / 6 * np.sin(2 * np.pi * 6 * t))


def _bell(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    partials = ((1.0, 1.0), (2.76, 0.6), (5.4, 0.3))
    rings = (a * np.sin(2 * np.pi * k * pitch * t) * np.exp(-3 * k**0.5 * t) for k, a in partials)
    return sum(rings, np.zeros_like(t))


def _clicks(t: Samples, pitch: float, rng: np.random.Generator) -> Samples:
    return np.sin(2 * np.pi * pitch * t) * np.exp(-60 * (t % 0.125))


TIMBRES: dict[str, Timbre] = {
    "sine": _sine,
    "sawtooth": _sawtooth,
    "square": _square,
    "chirp": _chirp,
    "falling_chirp": _falling_chirp,
    "noise": _noise,
    "tremolo": _tremolo,
    "vibrato": _vibrato,
    "bell": _bell,
    "clicks": _clicks,
}
"""Timbres by name."""

CLASSES = tuple(f"{pitch}_{timbre}" for timbre in TIMBRES for pitch in PITCHES)
"""Names of the classes, in the order of their targets."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for meta/esc50.csv and audio/*.wav; made if there is none")
    parser.add_argument("--rate", type=int, default=16_000, help="samples a second (default 16000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip (default 5)")
    parser.add_argument("--clips", type=int, default=40, help="clips of a class, a multiple of 10 (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (default 0)")
    options = parser.parse_args(arguments)
    if options.rate < 2000 or not 0.2 <= options.seconds <= 60:
        print("make_sounds: --rate must be at least 2000, and --seconds from 0.2 to 60", file=sys.stderr)
        return 2
    if options.clips < 1 or options.clips % (FOLDS * len(TAKES)):
        print(f"make_sounds: --clips must be a multiple of {FOLDS * len(TAKES)}", file=sys.stderr)
        return 2
    make(options.out, options.rate, options.seconds, options.clips, options.seed)
    print(f"wrote {len(CLASSES) * options.clips:,} clips of {len(CLASSES)} classes in {FOLDS} folds to {options.out}")
    return 0


def make(out: Path, rate: int, seconds: float, clips: int, seed: int) -> None:
    """Writes the set.

    Args:
        out: folder.
        rate: samples a second.
        seconds: of a clip.
        clips: of a class.
        seed: of all that is random.
    """
    (out / "audio").mkdir(parents=True, exist_ok=True)
    (out / "meta").mkdir(exist_ok=True)
    rows = []
    for target, name in enumerate(track(CLASSES, "synthesising")):
        for clip in range(clips):
            recording, take = divmod(clip, len(TAKES))
            fold, source = 1 + recording % FOLDS, 100_000 + target * clips + recording
            file = f"{fold}-{source}-{TAKES[take]}-{target}.wav"
            samples = synthesise(target, rate, seconds, np.random.default_rng([seed, target, recording]), take)
            write_wav(out / "audio" / file, samples, rate)
            rows.append([file, fold, target, name, target < 10, source, TAKES[take]])
    with (out / "meta" / "esc50.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows(sorted(rows))


def synthesise(target: int, rate: int, seconds: float, rng: np.random.Generator, take: int) -> Samples:
    """Samples [n], -1 to 1, of a clip of a class: a recording is `rng`, and its takes differ in onset and noise."""
    timbre, pitch = list(TIMBRES.values())[target // len(PITCHES)], list(PITCHES.values())[target % len(PITCHES)]
    pitch *= 2 ** rng.uniform(-0.11, 0.11)
    loudness, length, every = 10 ** rng.uniform(-1, -0.1), rng.uniform(0.5, 0.9), rng.uniform(1.0, 1.6)
    other = np.random.default_rng([take, *rng.integers(2**31, size=2)])
    samples = np.zeros(round(rate * seconds))
    onset = other.uniform(0, 0.3) * min(1.0, seconds)
    while onset < seconds - 0.05:
        first = round(onset * rate)
        count = min(round(length * rate), len(samples) - first)
        t = np.arange(count) / rate
        ends = np.minimum(1, np.minimum(t, t[-1] - t) / 0.01)  # 10 ms up and down
        samples[first : first + count] = timbre(t, pitch, other) * ends
        onset += every
    noise = 10 ** other.uniform(-2.5, -1.7) * other.standard_normal(len(samples))
    return np.clip(0.7 * loudness * (samples + noise), -1, 1)


def write_wav(path: Path, samples: Samples, rate: int) -> None:
    """One channel of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    sys.exit(main())
