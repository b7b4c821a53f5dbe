"""Scaled decoding: near what exact decoding gives, the same where nothing is scaled, and blind to everything else."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jclip.config import Augment, Config, Contrastive, Data, Model, Preprocess, TextTower, View, VisionTower
from jclip.data import BadExample, Batch, eval_transform, make_run_loader, train_transform
from jclip.data.decoding import Decode, Jpeg, Open
from jclip.data.reader import make_arrays
from jclip.data.transforms import ScaledCrop

Pixels = np.ndarray


def tower(size: int | tuple[int, int], **preprocess: Any) -> VisionTower:
    return VisionTower(image_size=size, patch_size=1, preprocess=Preprocess(**preprocess))


def natural(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise whose amplitude falls with frequency as that of photographs, about f^-1.6."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    bands = np.fft.irfft2(noise * frequency**-1.6, s=(height, width))
    bands[1:] = 0.9 * bands[:1] + 0.3 * bands[1:]
    pixels = 128 + 50 * bands / bands.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 75, **options})
    return file.getvalue()


def both(data: Any, seed: int, of: VisionTower, augment: Augment | None = None) -> tuple[Pixels, Pixels]:
    """Pixels by exact and by fast decoding, of the same random stream."""
    transforms = [train_transform(of, augment or Augment(), decode=decode) for decode in ("exact", "fast")]
    exact, fast = (transform(data, np.random.default_rng(seed)) for transform in transforms)
    return exact, fast


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of their size at which JPEGs are decoded."""
    decoded: list[int] = []
    decode = Jpeg.decoded

    def counted(self: Jpeg, part: int) -> Image.Image:
        decoded.append(part)
        return decode(self, part)

    monkeypatch.setattr(Jpeg, "decoded", counted)
    return decoded


def difference(exact: Pixels, fast: Pixels) -> Pixels:
    return fast.astype(np.float64) - exact


@pytest.mark.parametrize(("size", "part"), [(224, 2), (112, 4), (56, 8), (28, 8)])
@pytest.mark.parametrize("resize", ["shortest", "longest"])
def test_fast_pixels_are_near_exact_ones(size: int, part: int, resize: str, parts: list[int]) -> None:
    for seed in range(2):
        exact, fast = both(jpeg(natural(640, 480, seed)), seed, tower(size, resize=resize, fill=128))
        error = difference(exact, fast)
        assert 0 < np.abs(error).mean() < 1.5
        assert np.abs(error).max() < 12
        assert abs(error.mean()) < 0.1
    assert parts == [part, part]


def test_fast_pixels_lie_where_exact_ones_do() -> None:
    """A shift by a pixel would show everywhere as 0.4 or 0.5 levels, the slopes of this image."""
    y, x = np.mgrid[0:480, 0:640]
    slope = Image.fromarray(np.rint(np.stack([x * 0.4, y * 0.5, 255 - x * 0.4], -1)).astype(np.uint8))
    data = jpeg(slope, quality=100, subsampling=0)
    for resize, augment in (("shortest", Augment(scale=(0.5, 1.0))), ("longest", Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)))):
        for seed in range(4):
            exact, fast = both(data, seed, tower(56, resize=resize), augment)
            inside = (slice(10, -10), slice(3, -3))  # of what is padded, the rows that are the image's
            assert np.ptp(exact[inside]) > 100
            right, down, left = difference(exact, fast)[inside].mean(axis=(0, 1))
            assert abs(right - left) / 2 < 0.1  # rounding may lift or lower both
            assert abs(down) < 0.1


def test_nothing_is_scaled_where_the_crop_has_less_than_two_pixels_for_one(parts: list[int]) -> None:
    data, whole = jpeg(natural(90, 70)), Augment(scale=(1.0, 1.0), ratio=(9 / 7, 9 / 7))
    for size, part in (((35, 45), 2), ((36, 45), 1), ((35, 46), 1), ((70, 90), 1), ((100, 100), 1)):
        exact, fast = both(data, 0, tower(size), whole)
        assert parts.pop() == part
        assert (part == 1) == np.array_equal(exact, fast)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(scale=(0.08, 1.0), flip=0.5),
        Augment(rand_augment=2, magnitude=0.5),
        Augment(jitter_p=0.8, grayscale=0.2, blur=0.5, solarize=0.2),
    ],
)
def test_what_is_drawn_does_not_depend_on_decoding(augment: Augment) -> None:
    """The same changes of nearly the same image; others would differ by tens of levels."""
    data = jpeg(natural(400, 300))
    for seed in range(6):
        states = []
        for decode in ("exact", "fast"):
            rng = np.random.default_rng(seed)
            train_transform(tower(32), augment, decode=decode)(data, rng)
            states.append(rng.bit_generator.state)
        assert states[0] == states[1]
        assert np.abs(difference(*both(data, seed, tower(32), augment))).mean() < 3


def test_all_that_is_no_jpeg_is_decoded_as_before() -> None:
    image = natural(120, 90)
    values: list[Any] = [np.asarray(image), np.asarray(image.convert("L")), image]
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        image.save(file, kind)
        values.append(file.getvalue())
    for value in values:
        np.testing.assert_array_equal(*both(value, 0, tower(20)))


def test_jpegs_of_every_kind_are_scaled_alike(parts: list[int]) -> None:
    image, exif = natural(160, 120), Image.Exif()
    exif[0x0112] = 6  # turned, which training does not look at
    kinds = [
        jpeg(image, progressive=True),
        jpeg(image, subsampling=0, restart_marker_rows=1),
        jpeg(image, exif=exif, icc_profile=b"a profile that is not looked at"),
        jpeg(image.convert("L")),
        jpeg(image.convert("CMYK")),
        jpeg(image.crop((0, 0, 157, 113))),  # sides that no part divides
    ]
    several = io.BytesIO()
    image.save(several, "MPO", save_all=True, append_images=[natural(160, 120, 1)], quality=75)
    for data in [*kinds, several.getvalue()]:
        exact, fast = both(data, 0, tower(28))
        assert parts.pop() == 4
        assert np.abs(difference(exact, fast)).mean() < 2
        assert (exact != fast).any()


def test_a_large_jpeg_is_refused_before_it_is_decoded_and_a_long_one_padded(parts: list[int]) -> None:
    data = jpeg(natural(100, 50))
    assert train_transform(tower(8), Augment(), max_pixels=5000, decode="fast")(data, np.random.default_rng(0)).shape == (8, 8, 3)
    parts.clear()
    with pytest.raises(BadExample, match="100 x 50 pixels, more than 4999"):
        train_transform(tower(8), Augment(), max_pixels=4999, decode="fast")(data, np.random.default_rng(0))
    assert not parts
    long = jpeg(Image.new("RGB", (5000, 40), "red"))  # the square around it is too large: padded as with exact decoding
    np.testing.assert_array_equal(*both(long, 0, tower(30, resize="longest")))


def test_broken_jpegs_are_found_with_the_same_errors() -> None:
    rng, data, seen = np.random.default_rng(0), jpeg(natural(160, 120)), set()
    for progressive in (False, True):
        data = jpeg(natural(160, 120), progressive=progressive)
        for i in range(150):
            broken = bytearray(data[: None if i % 2 else int(rng.integers(len(data)))])
            for place in rng.integers(0, len(broken), 0 if i % 4 == 0 else rng.integers(1, 6)):
                broken[place] = int(rng.integers(256))
            errors = []
            for decode in ("exact", "fast"):
                stream = np.random.default_rng(0)
                try:
                    train_transform(tower(14), Augment(), decode=decode)(bytes(broken), stream)
                    errors.append("")
                except BadExample as error:
                    errors.append(str(error))
                    assert stream.bit_generator.state == np.random.default_rng(0).bit_generator.state
            assert errors[0] == errors[1]
            seen.add(errors[0][:30])
    assert len(seen) > 2


def test_evaluations_decode_exactly() -> None:
    assert eval_transform(tower(14)).transforms[0] == Decode()
    first, crop = train_transform(tower(14), Augment(), decode="fast").transforms[:2]
    assert first == Open(Decode())
    assert isinstance(crop, ScaledCrop)


class Photographs:
    """JPEGs with captions, of which one in five is cut short."""

    def __init__(self) -> None:
        self.data = [jpeg(natural(96 + i, 80, i))[: 800 if i % 5 == 3 else None] for i in range(15)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"key": f"k{index}", "image": self.data[index], "text": ("a cat", "a dog")}

    def fingerprint(self) -> str:
        return "photographs"


VIEWS = {"image@2": View("image", augment=Augment(scale=(0.1, 0.6))), "image@3": View("image", size=8, same_as="image")}
OBJECTIVES = {name: Contrastive(name, "text") for name in ("image", "image@2", "image@3")}
CONFIG = Config(
    model=Model(towers={"text": TextTower(context_length=8), "image": VisionTower(image_size=16, patch_size=4)}),
    data=Data(source="photographs", decode="fast", augment=Augment(scale=(0.3, 1.0))),
    views=VIEWS,
    objectives=OBJECTIVES,
    batch_size=6,
)


def batches(config: Config, count: int = 6) -> list[Batch]:
    with make_run_loader(config, Photographs()) as loader:
        return [next(loader) for _ in range(count)]


def test_batches_by_fast_decoding_have_the_examples_of_exact_ones_and_depend_on_no_worker_and_no_other_view() -> None:
    fast = batches(CONFIG)
    exact = batches(replace(CONFIG, data=replace(CONFIG.data, decode="exact")))
    in_workers = batches(replace(CONFIG, data=replace(CONFIG.data, workers=1)))
    alone = batches(replace(CONFIG, views={}, objectives={"image": OBJECTIVES["image"]}))
    assert sum(len(batch.problems) for batch in fast) > 4
    for a, b, c, d in zip(fast, exact, in_workers, alone, strict=True):
        assert (a.keys, a.problems) == (b.keys, b.problems) == (c.keys, c.problems) == (d.keys, d.problems)
        np.testing.assert_array_equal(a.arrays["text"], b.arrays["text"])
        np.testing.assert_array_equal(a.arrays["image"], d.arrays["image"])
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], c.arrays[name])
            assert np.abs(a.arrays[name].astype(np.int32) - b.arrays[name]).mean() < 5
    assert any((a.arrays["image"] != b.arrays["image"]).any() for a, b in zip(fast, exact, strict=True))


def test_views_of_an_example_decode_it_once_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[int, int]] = []
    load = Decode.load

    def counted(self: Decode, image: Any) -> Image.Image:
        if self.max_pixels == 6400:  # threads of an earlier test may still decode
            loads.append(image.size)
        return load(self, image)

    monkeypatch.setattr(Decode, "load", counted)
    areas = {"image": 1.0, "image@2": 0.92, "image@3": 0.05, "image@4": 1.0, "image@5": 0.9}
    augments = {name: Augment(scale=(area, area), ratio=(1.0, 1.0)) for name, area in areas.items()}
    transforms = {name: train_transform(tower(10), augment, max_pixels=6400, decode="fast") for name, augment in augments.items()}
    example = {"key": "k", "image": jpeg(natural(80, 80))}
    make_arrays(transforms, example, dict.fromkeys(transforms, "image"), np.random.default_rng(0))
    assert loads == [(10, 10), (20, 20), (80, 80)]
