"""Writes this folder's files with open_clip, torchvision and Pillow: `python tests/data/golden/make.py`.

preprocess.npz   images of odd sizes and modes as PNG bytes, and their pixels after open_clip's evaluation transform
rectangles.npz   the same of a few images, for towers of 20 by 12 and 12 by 20 pixels
tokens.json      texts, and their ids from open_clip's SimpleTokenizer with context lengths 77 and 16
crops.json       sizes, and the crop that torchvision's RandomResizedCrop falls back to where none fits
"""

import itertools
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import RandomResizedCrop

HERE = Path(__file__).parent
SIZE = 14
SIZES = ((37, 23), (23, 38), (14, 14), (15, 90), (9, 7), (61, 3), (1, 1), (17, 14))
MODES = ("RGB", "L", "LA", "P", "P-transparent", "RGBA", "1", "I;16")

# fmt: off
TEXTS = [
    "a photo of a cat.", "", " ", "A", "a red circle and a blue square", "Electric lighter, tools, fire", "hello " * 40,
    "source o, icon, lemon theme icon, mimetypes, icons", "SVG Gradient Collection by Alan Horkan, 2004, special",
    "drapeau français, europe", "Großbritannien, STRASSE", "dépêche", "de\u0301pe\u0302che", "ＦＵＬＬ　ＷＩＤＴＨ", "schÃ¶n",
    "日本語のキャプション", "Привет, мир", "नमस्ते दुनिया", "مرحبا", "שלום", "한국어", "ไทย", "Ελληνικά ΣΊΣΥΦΟΣ", "İstanbul ıssız",
    "🙂🙃",
    "👩‍👩‍👧‍👦 family", "🇫🇷 flag", "e\u0301\u0302\u0303\u0304", "a\u200bb\u200cc\ufeffd", "\u202eright to left",
    "tab\tand\r\nline\n\nbreak", "nul\x00in\x00side", "\x00", "bell\x07 esc\x1b[31mred", "\x1c\x1d\x85\u2028\u2029",
    "\u3000wide space\u3000", "it's we're I'll they'd you've I'm don't", "IT'S", "''''s", "'re", "rock 'n' roll",
    "“smart” ‘quotes’ – dashes — …", "&lt;b&gt;bold&lt;/b&gt;", "&amp;amp;", "&amp;lt;", "&#233;&eacute;", "fish &amp; chips",
    "100% 3.14 1,000 2nd 4x4 ½ ² Ⅷ ①", "<start_of_text>", "a<end_of_text>b", "!!<end_of_text>", "<|endoftext|>",
    "<end_of_text><end_of_text>", "</w>", "the</w>cat", "a" * 500, "ab1" * 200, "!" * 300, "word" * 60,
    "pneumonoultramicroscopicsilicovolcanoconiosis", "https://a.example/b?c=d&e=f#g", "ﬁne ﬂour", "ǅ ǈ ß ẞ ſ",
    "\ud7ff\ue000\uffff", "\U0010ffff\U0001f9ff", "x²+y³=z", "C++ C# .NET node.js", "snake_case camelCase",
]
# fmt: on


def picture(width: int, height: int, mode: str) -> Image.Image:
    """A smooth, then busy pattern: exact integer arithmetic, every band its own."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [((x * (5 + 3 * b) + y * (7 - 2 * b) + (x * y * (b + 1)) // 3) % 256).astype(np.uint8) for b in range(4)]
    rgba = Image.fromarray(np.stack(bands, -1))
    match mode:
        case "I;16":
            return Image.fromarray((bands[0].astype(np.uint16) * 257 + bands[1]).astype(np.uint16))
        case "P" | "P-transparent":
            image = rgba.convert("RGB").quantize(16, dither=Image.Dither.NONE)
            if mode == "P-transparent":
                image.info["transparency"] = bytes(range(0, 256, 16))
            return image
    return rgba.convert(mode)


def preprocess() -> None:
    arrays: dict[str, np.ndarray] = {}
    for mode in MODES:
        for width, height in SIZES:
            file = BytesIO()
            picture(width, height, mode).save(file, "PNG")
            name = f"{mode}-{width}x{height}"
            arrays[f"{name}/png"] = np.frombuffer(file.getvalue(), np.uint8)
            for resize in ("shortest", "longest", "squash"):
                for interpolation in ("bicubic", "bilinear"):
                    if resize == "longest" and width * SIZE // max(width, height) * height == 0:
                        continue  # open_clip rounds a side to zero and fails
                    options = {"resize_mode": resize, "interpolation": interpolation, "fill_color": 90}
                    transform = image_transform(SIZE, is_train=False, **options)
                    image = Image.open(BytesIO(file.getvalue()))
                    for step in transform.transforms[:-2]:  # without ToTensor and Normalize
                        image = step(image)
                    arrays[f"{name}/{resize}/{interpolation}"] = np.asarray(image)
    np.savez_compressed(HERE / "preprocess.npz", **arrays)


def rectangles() -> None:
    arrays: dict[str, np.ndarray] = {}
    for size, mode, (width, height) in itertools.product(((20, 12), (12, 20)), ("RGB", "LA"), SIZES):
        for resize in ("shortest", "longest", "squash"):
            if resize == "longest" and round(min(size[1] / width, size[0] / height) * min(width, height)) == 0:
                continue  # open_clip rounds a side to zero and fails
            image = picture(width, height, mode)
            for step in image_transform(size, is_train=False, resize_mode=resize, fill_color=90).transforms[:-2]:
                image = step(image)
            arrays[f"{size[0]}x{size[1]}/{mode}/{width}x{height}/{resize}"] = np.asarray(image)
    np.savez_compressed(HERE / "rectangles.npz", **arrays)


def tokens() -> None:
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    rows = [
        {"text": text, **{str(length): tokenizer(text, context_length=length)[0].tolist() for length in (77, 16)}}
        for text in TEXTS
    ]
    (HERE / "tokens.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def crops() -> None:
    rows = []
    for width, height in ((1, 1), (1, 100), (100, 1), (3, 2000), (2000, 3), (17, 40), (40, 17)):
        # A scale beyond the image never fits, so this is the fallback.
        top, left, h, w = RandomResizedCrop.get_params(torch.zeros(3, height, width), [5.0, 6.0], [3 / 4, 4 / 3])
        rows.append({"size": [width, height], "crop": [left, top, w, h]})
    (HERE / "crops.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    preprocess()
    rectangles()
    tokens()
    crops()
