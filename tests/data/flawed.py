"""A source in memory whose examples are broken in different ways."""

from typing import Any

import numpy as np

from jclip.data import BadExample


class Flawed:
    """Twenty examples, of which those in `broken` are broken in different ways."""

    classes = ()
    templates = ()

    def __init__(self, broken: set[int], length: int = 20) -> None:
        self.broken = broken
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"key": f"k{index}", "image": np.full((8, 8, 3), index % 256, np.uint8), "text": "a cat", "label": index}
        if index in self.broken:
            match index % 4:
                case 0:
                    raise BadExample("gone")
                case 1:
                    example["image"] = b"\xff\xd8\xff rubbish"
                case 2:
                    del example["text"]
                case 3:
                    example["text"] = " "
        return example

    def fingerprint(self) -> str:
        return f"{self.length} {sorted(self.broken)}"
