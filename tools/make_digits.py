"""Writes scikit-learn's 1,797 handwritten digits as folders of pictures: train, val and test, a folder a class.

    python tools/make_digits.py data/digits
    jclip adapt MODEL --recipe configs/adapt_small.py --source data/digits/train --val data/digits/val --test data/digits/test ...

Dark on white, 32 x 32 pixels, in the order of the data: of each five the first two are for training, the third for validation,
and the others for the test. The classes are the words zero to nine.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROLES = ("train", "train", "val", "test", "test")


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to; made where it is missing")
    folder: Path = parser.parse_args().folder
    digits = load_digits()
    for i, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):  # levels f64 [8, 8], 0 to 16
        place = folder / ROLES[i % len(ROLES)] / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = (255 - levels / 16 * 255).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).convert("RGB").save(place / f"{i:04}.png")


if __name__ == "__main__":
    main()
