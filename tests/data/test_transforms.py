"""Transforms: pixels against open_clip's, crops against torchvision's, and images that should never be decoded."""

import itertools
import json
import pickle
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from peers import peer
from PIL import Image

from jclip.config import Augment, Preprocess, TextTower, VisionTower
from jclip.data import BadExample, eval_transform, train_transform
from jclip.data.transforms import Decode, Flip, PadToShape, RandomResizedCrop, Resize, Tokenize

GOLDEN = Path(__file__).parent / "golden"


def tower(size: int | tuple[int, int] = 14, **preprocess: object) -> VisionTower:
    return VisionTower(image_size=size, patch_size=1, preprocess=Preprocess(**preprocess))  # type: ignore[arg-type]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def test_eval_pixels_equal_the_fixed_ones_of_open_clip_bit_for_bit() -> None:
    golden = np.load(GOLDEN / "preprocess.npz")
    cases = [name for name in golden if not name.endswith("/png")]
    assert len(cases) > 300
    for case in cases:
        name, resize, interpolation = case.split("/")
        if name.startswith("I;16"):  # clipped to white there, and scaled here: see below
            continue
        transform = eval_transform(tower(resize=resize, interpolation=interpolation, fill=90))
        np.testing.assert_array_equal(transform(golden[f"{name}/png"].tobytes()), golden[case], err_msg=case)


def test_eval_pixels_of_rectangles_equal_the_fixed_ones_of_open_clip_bit_for_bit() -> None:
    golden, images = np.load(GOLDEN / "rectangles.npz"), np.load(GOLDEN / "preprocess.npz")
    assert len(golden.files) > 80
    for case in golden:
        of_tower, mode, of_image, resize = case.split("/")
        height, width = map(int, of_tower.split("x"))
        data = images[f"{mode}-{of_image}/png"].tobytes()
        pixels = eval_transform(tower((height, width), resize=resize, fill=90))(data)
        np.testing.assert_array_equal(pixels, golden[case], err_msg=case, strict=True)


@pytest.mark.parity
def test_eval_pixels_of_rectangles_equal_those_of_the_installed_open_clip() -> None:
    peer("open_clip")
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    for i, size in itertools.product(range(40), ((32, 20), (20, 32), (7, 96))):
        width, height = (int(n) for n in rng.integers(1, (8, 100, 300, 2000)[i % 4] + 1, 2))
        image = noise(width, height, i).convert(("RGB", "RGBA", "L")[i % 3])
        for resize in ("shortest", "longest", "squash"):
            if resize == "longest" and round(min(size[0] / height, size[1] / width) * min(width, height)) == 0:
                continue  # open_clip fails on these
            for interpolation in ("bicubic", "bilinear")[: 1 if resize == "shortest" else 2]:  # there it takes bicubic always
                expected = image
                steps = image_transform(size, is_train=False, resize_mode=resize, interpolation=interpolation, fill_color=7)
                for step in steps.transforms[:-2]:
                    expected = step(expected)
                pixels = eval_transform(tower(size, resize=resize, interpolation=interpolation, fill=7))(image)
                name = f"{width}x{height} to {size} {resize} {interpolation}"
                np.testing.assert_array_equal(pixels, np.asarray(expected), err_msg=name)


@pytest.mark.parity
def test_eval_pixels_equal_those_of_the_installed_open_clip() -> None:
    peer("open_clip")
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    modes = ("RGB", "L", "LA", "P", "RGBA", "CMYK", "1")
    compared = set()
    for i in range(200):
        top = (8, 100, 100, 300, 2000)[i % 5]
        width, height = (int(n) for n in rng.integers(1, top + 1, 2))
        mode = modes[i % len(modes)]
        image = noise(width, height, i).convert(mode)
        data = encoded(image, "JPEG") if mode == "CMYK" or (mode == "L" and i % 2) else encoded(image)
        assert Image.open(BytesIO(data)).mode == mode
        for resize, interpolation in itertools.product(("shortest", "longest", "squash"), ("bicubic", "bilinear")):
            if resize == "longest" and round(32 * min(width, height) / max(width, height)) == 0:
                continue  # open_clip fails on these
            how = {"interpolation": interpolation, "fill_color": 7}
            expected = Image.open(BytesIO(data))
            for step in image_transform(32, is_train=False, resize_mode=resize, **how).transforms[:-2]:
                expected = step(expected)
            pixels = eval_transform(tower(32, resize=resize, interpolation=interpolation, fill=7))(data)
            name = f"{mode} {width}x{height} {resize} {interpolation}"
            np.testing.assert_array_equal(pixels, np.asarray(expected), err_msg=name)
            compared.add((mode, resize, interpolation))
    assert len(compared) == len(modes) * 6


def test_a_crop_of_a_huge_resize_equals_the_crop_after_it_within_rounding() -> None:
    for (width, height), (rows, columns) in itertools.product(
        ((400, 3), (3, 401), (1, 77), (2000, 3)), ((16, 16), (12, 20), (24, 16))
    ):
        y, x = np.mgrid[0:height, 0:width]
        smooth = 128 + 60 * np.sin(x / 3) + 60 * np.cos(y / 2)  # no overshoot to clip, which depends on the order of the passes
        image = Image.fromarray(np.repeat(smooth.astype(np.uint8)[:, :, None], 3, 2))
        whole = Resize((rows, columns))(image)
        left, top = round((whole.width - columns) / 2), round((whole.height - rows) / 2)
        expected = np.asarray(whole.crop((left, top, left + columns, top + rows)), np.int32)
        assert np.ptp(expected) > 2
        resize = Resize((rows, columns), max_pixels=rows * columns + 16)
        np.testing.assert_allclose(np.asarray(resize(image), np.int32), expected, atol=2, strict=True)


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (2, 3)])
@pytest.mark.parametrize("side", [(224, 224), (96, 40), (8, 1000)])
def test_extreme_shapes_give_pixels_of_the_towers_size(resize: str, size: tuple[int, int], side: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (255, 0, 0)))
    pixels = eval_transform(tower(side, resize=resize))(data)
    assert pixels.shape == (*side, 3)
    assert pixels.dtype == np.uint8
    pixels = train_transform(tower(side, resize=resize), Augment())(data, np.random.default_rng(0))
    assert pixels.shape == (*side, 3)


def test_arrays_and_their_png_give_the_same_pixels() -> None:
    image = noise(30, 20)
    transform = eval_transform(tower())
    np.testing.assert_array_equal(transform(np.asarray(image)), transform(encoded(image)))
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(transform(grey), transform(grey[:, :, None]))


def test_exif_rotation_is_not_applied_and_an_animation_gives_its_first_frame() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert Decode()(encoded(noise(8, 4), "JPEG", exif=exif)).size == (8, 4)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(eval_transform(tower(4))(gif), np.asarray(frames[0]))


def test_a_transparent_palette_gives_no_warning() -> None:
    data = np.load(GOLDEN / "preprocess.npz")["P-transparent-37x23/png"].tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = eval_transform(tower())(data)
    assert pixels.shape == (tower().image_size, tower().image_size, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes that are no JPEG"),
        (b"<html>404</html>", "no JPEG, PNG, WEBP, GIF, BMP"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "cannot be decoded"),
        (encoded(noise(40, 40), "JPEG")[:900], "truncated"),
        (encoded(noise(40, 40))[:900], "cannot be decoded"),
        (encoded(noise(40, 40), "WEBP")[:300], "cannot be decoded"),
        (encoded(noise(8, 8)).replace(b"IDAT", b"IDAT\x00", 1), "cannot be decoded"),
        (encoded(noise(8, 8))[:-20] + bytes(20), "cannot be decoded"),
        (png(header(0, 0), (b"IDAT", b""), (b"IEND", b"")), "image"),
        (encoded(noise(8, 8), "TGA"), "no JPEG, PNG, WEBP, GIF, BMP"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "pixels that are not finite"),
        ("a path", "image is a str"),
        (None, "image is a NoneType"),
        (np.zeros((4, 4, 3), np.float32), r"float32\[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"uint8\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0"),
    ],
)
def test_what_is_no_image_is_a_bad_example(data: object, reason: str) -> None:
    with pytest.raises(BadExample, match=reason):
        eval_transform(tower())(data)


def test_wrong_checksums_of_png_pixels_are_found() -> None:
    data = bytearray(encoded(noise(8, 8)))
    end = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 : data.index(b"IDAT")])[0]
    data[end] ^= 1  # the first byte of the checksum: the pixels are whole
    with pytest.raises(BadExample, match="cannot be decoded"):
        Decode()(bytes(data))


@pytest.mark.parametrize("size", [(8001, 8000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    # The pixels are missing, so decoding them would give another error.
    with pytest.raises(BadExample, match=r"pixels|cannot be decoded: DecompressionBomb|too large"):
        Decode()(png(header(*size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")))


def test_text_and_profile_bombs_in_a_png_are_refused() -> None:
    bomb = zlib.compress(bytes(200_000_000))
    for kind, start in ((b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0")):
        data = png(header(1, 1), (kind, start + bomb), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b""))
        with pytest.raises(BadExample):
            Decode()(data)


def test_crops_fall_back_as_torchvisions_do() -> None:
    for row in json.loads((GOLDEN / "crops.json").read_text()):
        crop = RandomResizedCrop((8, 8), scale=(5.0, 6.0)).sample(*row["size"], np.random.default_rng(0))
        assert list(crop) == row["crop"], row


def test_crops_have_the_area_and_shape_asked_for() -> None:
    crop, rng = RandomResizedCrop((8, 8), scale=(0.2, 0.6), ratio=(0.5, 2.0)), np.random.default_rng(0)
    samples = np.array([crop.sample(1000, 1000, rng) for _ in range(2000)])
    left, top, width, height = samples.T
    assert ((left >= 0) & (top >= 0) & (left + width <= 1000) & (top + height <= 1000)).all()
    area, ratio = width * height / 1e6, np.log(width / height)
    assert area.min() > 0.199
    assert area.max() < 0.601
    assert abs(area.mean() - 0.4) < 0.01  # uniform
    assert abs(ratio.mean()) < 0.03
    assert abs(ratio.std() - 2 * np.log(2) / np.sqrt(12)) < 0.02  # uniform in the logarithm
    assert abs((left / np.maximum(1, 1000 - width)).mean() - 0.5) < 0.02


def test_the_whole_image_is_cropped_at_scale_one() -> None:
    image = noise(16, 16)
    pixels = train_transform(tower(16), Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)))(encoded(image), np.random.default_rng(0))
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_training_pads_to_a_square_first_where_evaluation_pads() -> None:
    image = Image.new("RGB", (40, 10), (200, 0, 0))
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    config = tower(40, resize="longest", fill=255)
    pixels = train_transform(config, whole)(encoded(image), np.random.default_rng(0))
    np.testing.assert_array_equal(pixels, eval_transform(config)(encoded(image)))
    np.testing.assert_array_equal(pixels[:15], 255)
    np.testing.assert_array_equal(pixels[15:25], np.broadcast_to((200, 0, 0), (10, 40, 3)))
    assert PadToShape((9, 9), 0, max_side=50)(noise(400, 100)).size == (50, 50)


def test_training_pads_to_the_shape_of_a_rectangle_and_crops_relative_to_it() -> None:
    image = Image.new("RGB", (40, 10), (200, 0, 0))
    config = tower((60, 20), resize="longest", fill=255)
    pixels = train_transform(config, Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)))(encoded(image), np.random.default_rng(0))
    canvas = Image.new("RGB", (40, 120), (255, 255, 255))
    canvas.paste(image, (0, 55))
    np.testing.assert_array_equal(pixels, np.asarray(canvas.resize((20, 60), Image.Resampling.BICUBIC)))
    assert PadToShape((60, 20), 0)(noise(3, 7)).size == (3, 9)
    assert PadToShape((20, 60), 0, max_side=50)(noise(400, 100)).size == (50, 17)
    assert PadToShape((20, 60), 0, max_side=50)(noise(100, 400)).size == (51, 17)


def test_training_crops_a_rectangle_by_the_ratio_in_pixels_of_the_image() -> None:
    """The crop is square, and the resize makes it a rectangle, as with torchvision's RandomResizedCrop in open_clip."""
    image = noise(30, 30)
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for resize in ("shortest", "squash"):
        pixels = train_transform(tower((8, 20), resize=resize), whole)(encoded(image), np.random.default_rng(0))
        np.testing.assert_array_equal(pixels, np.asarray(image.resize((20, 8), Image.Resampling.BICUBIC)))


def test_flips_happen_with_their_probability_and_mirror() -> None:
    image, rng = noise(6, 5), np.random.default_rng(0)
    flipped = [np.array_equal(np.asarray(Flip(0.3)(image, rng)), np.asarray(image)[:, ::-1]) for _ in range(2000)]
    assert abs(np.mean(flipped) - 0.3) < 0.04
    assert np.array_equal(np.asarray(Flip(0.0)(image, rng)), np.asarray(image))


def test_training_is_a_function_of_the_value_and_the_random_stream() -> None:
    transform = train_transform(tower(16), Augment(scale=(0.3, 1.0), flip=0.5))
    data = encoded(noise(50, 40))
    first, same, other = (transform(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    with pytest.raises(ValueError, match="give it an rng"):
        transform(data)


def test_transforms_can_be_pickled_and_compared() -> None:
    for transform in (train_transform(tower(), Augment()), eval_transform(TextTower())):
        assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "caption is empty"),
        (" \t\r\n\u3000", "caption is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (7, "caption is a int"),
        (None, "caption is a NoneType"),
        ({"a": "b"}, "caption is a dict"),
        ([None, " "], "there is no caption"),
        ("a" * 1_000_001, "1000001 characters"),
    ],
)
def test_what_is_no_caption_is_a_bad_example(value: object, reason: str) -> None:
    with pytest.raises(BadExample, match=reason):
        Tokenize()(value)


def test_captions_in_bytes_are_utf8() -> None:
    np.testing.assert_array_equal(Tokenize()("café".encode()), Tokenize()("café"))


def test_an_empty_caption_is_a_text_where_a_model_is_used() -> None:
    start, end = 49406, 49407  # of CLIP's vocabulary
    for text in ("", "  \n"):
        ids = eval_transform(TextTower(), empty_texts=True)(text)
        np.testing.assert_array_equal(ids, [start, end] + [0] * 75)


def test_of_several_captions_training_draws_each_and_evaluation_takes_the_first() -> None:
    captions = ("a cat", "a dog", "an owl")
    each = [Tokenize()(text) for text in captions]
    np.testing.assert_array_equal(eval_transform(TextTower())(captions), each[0])
    draw = train_transform(TextTower(), Augment())
    drawn = [draw(captions, np.random.default_rng(seed)).tolist() for seed in range(300)]
    counts = [drawn.count(ids.tolist()) for ids in each]
    assert sum(counts) == 300
    assert min(counts) > 70
    with pytest.raises(BadExample, match="no caption"):
        Tokenize()(())


def grey(data: bytes) -> list[int]:
    """The pixels of the first row, which have to be grey."""
    size = Image.open(BytesIO(data)).size
    pixels = eval_transform(tower(size[0], resize="squash"))(data)
    assert (pixels == pixels[:, :, :1]).all()
    return [int(value) for value in pixels[0, :, 0]]


def test_sixteen_bits_are_scaled_by_their_full_range_and_never_clipped() -> None:
    ramp = np.array([0, 1, 128, 129, 256, 257, 4095, 32767, 65534, 65535], np.uint16)
    expected = [0, 0, 0, 1, 1, 1, 16, 127, 255, 255]  # of v / 257, rounded
    for order in ("<u2", ">u2"):
        image = Image.fromarray(np.broadcast_to(ramp, (10, 10)).astype(order))
        for kind in ("PNG", "TIFF") if order == "<u2" else ("TIFF",):
            assert grey(encoded(image, kind)) == expected
    whole = train_transform(tower(10), Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    assert whole(encoded(image, "TIFF"), np.random.default_rng(0))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 257, 65535], np.int32), [0, 1, 255]),  # as 16 bits
        (np.array([0, 1, 255], np.int32), [0, 0, 1]),
        (np.array([0, 2**30, 2**31 - 1], np.int32), [0, 127, 255]),  # by the pixels' own range
        (np.array([-100, 0, 100], np.int32), [0, 128, 255]),
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.0, 7.0, 255.0], np.float32), [0, 7, 255]),
        (np.array([0.0, 2570.0, 65535.0], np.float32), [0, 10, 255]),
        (np.array([-1.0, 0.0, 3.0], np.float32), [0, 64, 255]),
        (np.array([1e6, 1e6, 1e6], np.float32), [0, 0, 0]),
    ],
)
def test_pixels_of_32_bits_are_scaled(values: np.ndarray, expected: list[int]) -> None:
    image = Image.fromarray(np.broadcast_to(values, (3, 3)).copy())
    near = [expected, [value + (value == 127) for value in expected], [value - (value == 128) for value in expected]]  # of halves
    assert np.asarray(Decode()(image))[0].tolist() in near
    assert np.asarray(Decode()(encoded(image, "TIFF")))[0].tolist() in near


def test_exif_rotation_is_applied_where_that_is_asked_for() -> None:
    pixels = np.asarray(noise(8, 4))
    turns = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
    exif = Image.Exif()
    for orientation, expected in turns.items():
        exif[0x0112] = orientation
        image = Decode(upright=True)(encoded(noise(8, 4), exif=exif))
        np.testing.assert_array_equal(np.asarray(image), expected)
    whole = encoded(noise(8, 4), "JPEG", exif=exif)
    damaged = whole.replace(b"Exif\0\0MM", b"Exif\0\0MX").replace(b"Exif\0\0II", b"Exif\0\0IX")
    assert damaged != whole
    assert Decode(upright=True)(damaged).size == (8, 4)


def test_larger_images_are_read_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(Image.new("1", (100, 50)))
    with pytest.raises(BadExample, match="4999"):
        Decode(4999)(data)
    assert Decode(5000)(data).size == (100, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert eval_transform(tower(8), max_pixels=5000)(data).shape == (8, 8, 3)
    assert train_transform(tower(8), Augment(), max_pixels=5000)(data, np.random.default_rng(0)).shape == (8, 8, 3)
    with pytest.raises(BadExample, match="more than 4999"):
        train_transform(tower(8), Augment(), max_pixels=4999)(data, np.random.default_rng(0))


def torchvisions_crop(width: int, height: int, how: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width, height: the first try of torchvision's RandomResizedCrop.get_params, which has to fit."""
    area = width * height * rng.uniform(*how.scale)
    ratio = np.exp(rng.uniform(np.log(how.ratio[0]), np.log(how.ratio[1])))
    w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    assert 0 < w <= width
    assert 0 < h <= height
    top = int(rng.integers(0, height - h + 1))
    return int(rng.integers(0, width - w + 1)), top, w, h


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_training_with_every_option_off_its_default(resize: str, interpolation: str) -> None:
    how = Augment(scale=(0.2, 0.3), ratio=(1.1, 1.4), flip=1.0)
    image = noise(60, 40)
    transform = train_transform(tower(16, resize=resize, interpolation=interpolation, fill=77), how)
    for seed in range(20):
        pixels = np.asarray(image)
        if resize == "longest":
            pixels = np.pad(pixels, ((10, 10), (0, 0), (0, 0)), constant_values=77)
        left, top, w, h = torchvisions_crop(pixels.shape[1], pixels.shape[0], how, np.random.default_rng(seed))
        crop = Image.fromarray(pixels[top : top + h, left : left + w])
        expected = np.asarray(crop.resize((16, 16), getattr(Image.Resampling, interpolation.upper())))[:, ::-1]
        np.testing.assert_array_equal(transform(encoded(image), np.random.default_rng(seed)), expected)


def test_crops_reach_every_row_and_column() -> None:
    crop, rng = RandomResizedCrop((8, 8), scale=(0.24, 0.26), ratio=(1.0, 1.0)), np.random.default_rng(0)
    samples = [crop.sample(10, 10, rng) for _ in range(500)]
    assert {(w, h) for _, _, w, h in samples} == {(5, 5)}
    assert {left for left, *_ in samples} == {top for _, top, *_ in samples} == set(range(6))


def test_mutated_images_are_pixels_or_bad_examples() -> None:
    """A small share of the 5,000 that were tried."""
    rng = np.random.default_rng(0)
    image, transform = noise(20, 16), eval_transform(tower(8), upright=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encoded(image, "JPEG", exif=exif), encoded(image), encoded(image, "WEBP"), encoded(image.convert("P"), "GIF"),
        encoded(image, "BMP"), encoded(image, "TIFF", compression="tiff_lzw"), encoded(image, "AVIF"),
        encoded(Image.fromarray(rng.integers(0, 2**16, (16, 20), np.uint16))),
        encoded(Image.fromarray(rng.normal(size=(16, 20)).astype(np.float32)), "TIFF"),
    ]  # fmt: skip
    used = 0
    for number in range(300):
        data = bytearray(seeds[number % len(seeds)])
        for place in rng.integers(0, min(len(data), 400) if number % 2 else len(data), rng.integers(1, 5)):
            data[place] = int(rng.integers(256))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on what it reads in spite of them
                pixels = transform(bytes(data[: None if number % 3 else int(rng.integers(len(data)))]))
        except BadExample:
            continue
        assert pixels.shape == (8, 8, 3)
        used += 1
    assert 20 < used < 280
