"""Sounds: encoded bytes to waveforms, and the sources that have them."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jclip.config import SoundAugment, SpectrogramTower, Waveform
from jclip.data import BadExample, SourceError, eval_transform, lookup, open_source, train_transform
from jclip.data.fingerprint import sample_fingerprint
from jclip.data.samples import with_sounds
from jclip.data.sounds import ChangeSound, DecodeSound, FitSound

soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")
soxr = pytest.importorskip("soxr", reason="the extra sound is not installed")

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
]


def wave(seconds: float, rate: int = 48000, channels: int = 1, seed: int = 0) -> np.ndarray:
    n = round(seconds * rate)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(n) / rate)
    noise = 0.05 * np.random.default_rng(seed).standard_normal((n, channels))
    return (tone[:, None] + noise).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 48000, kind: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def how(**fields: Any) -> Waveform:
    return Waveform(**{"sample_rate": 48000, "seconds": 0.5, "short": "pad", "dtype": "float32", **fields})


class Draw:
    """An rng whose one number is known."""

    def __init__(self, number: float) -> None:
        self.random = lambda: number


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_every_format_is_read_by_its_content_and_only_where_it_is_needed(kind: str, subtype: str | None) -> None:
    data = encoded(wave(2), 48000, kind, subtype)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    found = DecodeSound(how(crop="middle"))(data)
    np.testing.assert_allclose(found, whole[36000:60000], atol=1e-6)
    np.testing.assert_allclose(DecodeSound(how())(data), whole[:24000], atol=1e-6)
    last = DecodeSound(how(), random=True)(data, Draw(1 - 1e-9))
    np.testing.assert_allclose(last, whole[-24000:], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000, 192000])
def test_a_part_is_resampled_as_the_whole_would_be(rate: int) -> None:
    samples = wave(3, rate)
    whole = soxr.resample(samples[:, 0], rate, 48000, quality="HQ")
    for number in (0.0, 0.3141, 0.99999):
        found = DecodeSound(how(), random=True)((samples, rate), Draw(number))
        first = int(number * (len(whole) - 24000 + 1))
        np.testing.assert_allclose(found, whole[first : first + 24000], atol=2e-6)
    np.testing.assert_allclose(DecodeSound(how(seconds=5.0))((samples, rate)), whole, atol=2e-6)


def test_channels_become_one() -> None:
    samples = wave(0.1, channels=8)
    for kind in ("mean", "first"):
        right = samples.mean(axis=1) if kind == "mean" else samples[:, 0]
        found = DecodeSound(how(channels=kind))(encoded(samples, subtype="FLOAT"))
        np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize(
    ("short", "right"),
    [("pad", [1, 2, 3, 0, 0, 0, 0, 0]), ("repeat_pad", [1, 2, 3, 1, 2, 3, 0, 0]), ("repeat", [1, 2, 3, 1, 2, 3, 1, 2])],
)
def test_short_sounds_are_padded_or_repeated(short: str, right: list[int]) -> None:
    fit = FitSound(Waveform(1000, 0.008, short))  # type: ignore[arg-type]
    np.testing.assert_array_equal(fit(np.array([1, 2, 3], np.float32)), right)
    exact = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(fit(exact), exact)


def test_arrays_are_sounds_with_their_rate_and_integers_are_scaled_by_their_range() -> None:
    decode = DecodeSound(how())
    x = np.array([0.5, -0.5, 0.25], np.float32)
    mapping = {"array": x, "sampling_rate": 48000, "path": "x.wav"}
    for value in ((x, 48000), (x[:, None], np.int64(48000)), mapping, ((x * 2**15).astype(np.int16), 48000),
                  ((x * 2**15).astype(np.int64), 48000), ((x * 2**31).astype(np.int32), 48000),
                  ((x * 128 + 128).astype(np.uint8), 48000)):  # fmt: skip
        np.testing.assert_allclose(decode(value), x)


def test_int16_is_what_laion_clap_makes_of_floats() -> None:
    tower = SpectrogramTower(Waveform(8000, 1.0, "pad"), width=24, depth=1, heads=2)
    x = np.linspace(-1.2, 1.2, 8000, dtype=np.float32)
    found = eval_transform(tower)((x, 8000))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, (np.clip(x, -1, 1) * np.float32(32767)).astype(np.int16))
    assert found.min() == -32767
    assert found[np.abs(x) * 32767 < 1].tolist() == [0] * int((np.abs(x) * 32767 < 1).sum())


GOOD = wave(0.2)


def without_last_page(subtype: str) -> bytes:
    """An OGG of 20 s that is cut exactly where its last page begins."""
    data = encoded(wave(20), kind="OGG", subtype=subtype)
    assert data.count(b"OggS") > 4
    return data[: data.rindex(b"OggS")]


BROKEN = {
    "no text at all": ("hello", "sound is a str, not the bytes"),
    "an array without a rate": (GOOD, "nothing says its rate"),
    "a rate that is none": ((GOOD, 0), "has 0 samples a second"),
    "a rate between two": ((GOOD, 44100.5), "which is no whole number"),
    "an image of numbers": ((np.zeros((2, 3, 4)), 8000), r"float64\[2, 3, 4\], not \[n\]"),
    "integers of nobody knows how many bits": ((np.array([70000]), 8000), "beyond 16 bits"),
    "nothing": (b"", "cannot be decoded"),
    "a picture": (b"\x89PNG\r\n" + bytes(200), "cannot be decoded"),
    "no samples": (encoded(GOOD[:0]), "no samples|cannot be decoded"),
    "no samples in an array": ((GOOD[:0], 8000), "no samples"),
    "nan": (encoded(np.where(np.arange(9600)[:, None] == 77, np.nan, GOOD), subtype="FLOAT"), "not finite"),
    "infinite": ((np.array([0, np.inf]), 8000), "not finite"),
    "half a wav": (encoded(GOOD)[:9000], "cut short: 8956 of 19200 bytes"),
    "the header of a wav": (encoded(GOOD)[:30], "cut short|cannot be decoded"),
    "half a flac": (encoded(GOOD, kind="FLAC")[:6000], "cannot be decoded"),
    "half an ogg": (encoded(wave(2), kind="OGG", subtype="VORBIS")[:9000], "cut short|no samples|cannot be decoded"),
    "an ogg without its end": (encoded(wave(2), kind="OGG", subtype="VORBIS")[:-50], "its last page is not whole"),
    "an ogg cut between pages": (without_last_page("VORBIS"), "does not end the stream"),
    "an opus cut between pages": (without_last_page("OPUS"), "does not end the stream"),
    "half an mp3": (encoded(GOOD, kind="MP3", subtype=None)[:1500], "cut short or damaged: it ends after"),
    "another format": (encoded(GOOD, kind="NIST"), "is a NIST file, not one of WAV, "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sounds_say_why(name: str) -> None:
    value, message = BROKEN[name]
    with pytest.raises(BadExample, match=message):
        DecodeSound(how())(value)


def test_what_would_be_heard_as_something_else_is_refused() -> None:
    both = wave(1, channels=2)
    with pytest.raises(BadExample, match=r"sound is \[2, 48000\], \[channels, n\] it seems; give its transpose"):
        DecodeSound(how())((both.T, 48000))
    with pytest.raises(BadExample, match="inf samples a second, which is no whole number"):
        DecodeSound(how())((both, float("inf")))
    flac = bytearray(encoded(both, kind="FLAC"))
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])  # the length, 36 bits, that an encoder to a pipe leaves open
    with pytest.raises(BadExample, match="sound does not say its length"):
        DecodeSound(how())(bytes(flac))
    for kind in ("AIFF", "AU", "W64", "RF64"):  # of which libsndfile reads half a file, and says nothing
        with pytest.raises(BadExample, match=f"sound is a {kind} file, not one of WAV"):
            DecodeSound(how())(encoded(both, kind=kind))
    behind_a_tag = b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10) + encoded(both)
    np.testing.assert_array_equal(DecodeSound(how())(behind_a_tag), DecodeSound(how())(encoded(both)))


def test_a_wav_from_a_pipe_knows_no_length_and_is_whole() -> None:
    data = bytearray(encoded(GOOD))
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    assert len(DecodeSound(how())(bytes(data))) == len(GOOD)


def test_long_sounds_are_refused_before_they_are_decoded_and_others_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(np.zeros((8000 * 700, 1), np.float32), 8000)
    with pytest.raises(BadExample, match="sound has 700 seconds, more than 600"):
        DecodeSound(how(), max_seconds=600)(data)
    read, most = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, n=-1, *more, **kw: (most.append(n), read(self, n, *more, **kw))[1]
    )
    DecodeSound(how(), random=True)(data, Draw(0.5))
    assert 4000 <= most[0] < 6000


def test_training_crops_at_random_by_the_rng_alone_and_evaluation_does_not() -> None:
    tower = SpectrogramTower(how(), width=24, depth=1, heads=2)
    value = (wave(3), 48000)
    train = train_transform(tower, augment=None)  # type: ignore[arg-type]
    one, two, same = (train(value, np.random.default_rng(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(eval_transform(tower)(value), value[0][:24000, 0])


def test_gain_shift_and_sign_change_what_they_say() -> None:
    x = wave(0.1)[:, 0]
    for seed in range(20):
        louder = ChangeSound(SoundAugment(gain=(6.0, 6.0)))(x, np.random.default_rng(seed))
        np.testing.assert_allclose(louder, x * 10**0.3, rtol=1e-6)
        moved = ChangeSound(SoundAugment(shift=0.25))(x, np.random.default_rng(seed))
        place = next(s for s in range(-1200, 1201) if np.array_equal(np.roll(x, s), moved))
        assert abs(place) <= 1200
        np.testing.assert_array_equal(ChangeSound(SoundAugment(invert=1.0))(x, np.random.default_rng(seed)), -x)
    signs = [ChangeSound(SoundAugment(invert=0.3))(x, np.random.default_rng(seed))[7] * x[7] < 0 for seed in range(300)]
    assert 60 < sum(signs) < 120


def tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return f"webdataset:{path}"


def test_shards_have_sounds_beside_the_fields_that_they_had(tmp_path: Path) -> None:
    source = open_source(
        tar(
            tmp_path / "a.tar",
            {
                "1.flac": b"f",
                "1.json": b"{}",
                "2.jpg": b"j",
                "2.wav": b"w",
                "2.mp3": b"m",
                "2.txt": b"t",
                "3.sound": b"s",
                "3.wav": b"w",
                "4.jpg": b"j",
            },
        )
    )
    assert [source[i].get("sound") if "sound" in source[i] else None for i in range(4)] == [b"f", b"w", b"s", None]
    assert source[1]["image"] == b"j"
    assert [source[1][name] for name in ("wav", "mp3")] == [b"w", b"m"]  # as they were
    assert "image" not in source[0]
    assert source.fields == {"flac json sound": 1, "image mp3 sound text wav": 1, "sound wav": 1, "image": 1}


def test_the_cheap_fingerprint_of_shards_is_that_of_before_there_were_sounds(tmp_path: Path) -> None:
    source = open_source(tar(tmp_path / "a.tar", {"1.jpg": b"j", "1.wav": b"w", "1.txt": b"t"}))
    plain = [{"key": "a.tar:1", "image": b"j", "wav": b"w", "text": "t"}]
    assert dict(source[0]) == plain[0]
    assert source[0]["sound"] == b"w"
    assert sample_fingerprint(source) == sample_fingerprint(plain)  # type: ignore[arg-type]


def test_fields_that_are_counted_in_an_index_of_before_have_their_sounds() -> None:
    assert with_sounds({"text wav": 3, "image text": 2, "...": 1}) == {"sound text wav": 3, "image text": 2, "...": 1}


def test_folders_have_sounds_beside_images_or_alone(tmp_path: Path) -> None:
    names = ("a.wav", "a.txt", "b/c.FLAC", "b/d.mp3")
    (tmp_path / "b").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(f"folder:{tmp_path}")
    assert [source[i]["key"] for i in range(len(source))] == ["a.wav", "b/c.FLAC", "b/d.mp3"]
    assert source[0]["sound"] == b"a.wav"
    assert source[0]["text"] == "a.txt"
    assert "image" not in source[0]
    before = source.fingerprint()
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    source = open_source(f"folder:{tmp_path}")
    assert [source[i]["key"] for i in range(len(source))] == ["a.jpg"]
    assert (source[0]["image"], source[0]["sound"]) == (b"a picture", b"a.wav")
    assert source.left_out == {"sounds without an image of their name beside them": 2}
    assert source.fingerprint() != before
    with_sound = source.fingerprint()
    (tmp_path / "a.wav").write_bytes(b"another")
    assert open_source(f"folder:{tmp_path}").fingerprint() != with_sound


def test_tables_have_sounds_by_path_and_by_bytes(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    import pyarrow.parquet as pq

    (tmp_path / "x.wav").write_bytes(b"bytes of x")
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["audio", "text"], ["x.wav", "a dog"], ["../y.wav", "out"], ["z.wav", "none"]])
    source = open_source(f"csv:{tmp_path}/t.csv")
    assert source[0]["sound"] == b"bytes of x"
    assert source[0]["audio"] == "x.wav"
    for row, message in ((1, "lies outside"), (2, "sound 'z.wav': file cannot be read")):
        with pytest.raises(BadExample, match=message):
            lookup(source[row], "sound")
    before = source.fingerprint()
    (tmp_path / "x.wav").write_bytes(b"other bytes")
    assert open_source(f"csv:{tmp_path}/t.csv").fingerprint() != before
    (tmp_path / "t.jsonl").write_text(json.dumps({"file_name": "x.wav", "caption": "a dog"}) + "\n")
    named = open_source(f"jsonl:{tmp_path}/t.jsonl?sound=file_name")
    assert named[0]["sound"] == b"other bytes"
    assert "image" not in named[0]
    audio = pa.array([{"bytes": b"inside", "path": "x.wav"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"audio": audio, "text": ["a dog"]}), tmp_path / "t.parquet")
    assert open_source(f"parquet:{tmp_path}/t.parquet")[0]["sound"] == b"inside"
    with pytest.raises(SourceError, match="there is no column 'noise'"):
        open_source(f"csv:{tmp_path}/t.csv?sound=noise")


def test_a_column_that_is_only_called_sound_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("audio,key\na dog barks,1\n")
    assert open_source(f"csv:{tmp_path}/a.csv")[0]["audio"] == "a dog barks"
    assert open_source(f"csv:{tmp_path}/a.csv")[0]["sound"] == "a dog barks"
    with pytest.raises(BadExample, match="file cannot be read"):
        open_source(f"csv:{tmp_path}/a.csv?sound=audio")[0]["sound"]


def test_the_fingerprint_of_a_table_is_also_that_of_sounds_whose_names_are_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [7], "text": ["a"]}), tmp_path / "a.parquet")
    spec = f"parquet:{tmp_path}/a.parquet?sound=Y{{id}}.wav"
    found = []
    for seed in (0, 1):
        (tmp_path / "Y7.wav").write_bytes(encoded(wave(0.1, seed=seed)))
        found.append(open_source(spec).fingerprint())
    assert found[0] != found[1]


def test_a_table_without_sounds_keeps_its_fingerprint(tmp_path: Path) -> None:
    """The fingerprint of this file before there were sounds."""
    (tmp_path / "t.csv").write_text("filepath,title\nx.jpg,a dog\n")
    (tmp_path / "x.jpg").write_bytes(b"jpeg")
    assert open_source(f"csv:{tmp_path}/t.csv").fingerprint() == "13c30ae6281fa16e322c9f0d4d9e5ebd"
