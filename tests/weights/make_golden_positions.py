"""Writes golden/positions.json and positions_rectangles.json. Needs open_clip and torch: python make_golden_positions.py"""

import importlib
import json
from types import SimpleNamespace
from typing import Any

from foreign import GOLDEN, number

GRIDS = ((7, 12), (12, 7), (4, 9), (9, 4), (5, 6), (3, 1))
RECTANGLES = (((3, 3), (5, 2)), ((5, 2), (3, 3)), ((4, 2), (2, 4)), ((4, 4), (8, 2)), ((6, 4), (9, 5)), ((2, 7), (2, 3)))
"""Rows and columns before and after, in three cases of as many patches."""

LENGTHS = ((20, 33), (33, 20), (7, 9), (9, 2))
"""Sizes before and after."""

WIDTH = 3


def main() -> None:
    """Writes the positions that open_clip makes of those of one size for a model of another."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("open_clip.model")
    made: dict[str, list[list[list[float]]]] = {"image": [], "text": []}
    for before, after in GRIDS:
        state = {"visual.positional_embedding": torch.from_numpy(number("positions", (1 + before**2, WIDTH)))}
        library.resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(after, after))))
        made["image"].append(state["visual.positional_embedding"].tolist())
    for before, after in LENGTHS:
        state = {"positional_embedding": torch.from_numpy(number("positions", (before, WIDTH)))}
        library.resize_text_pos_embed(state, SimpleNamespace(positional_embedding=torch.zeros(after, WIDTH)))
        made["text"].append(state["positional_embedding"].tolist())
    (GOLDEN / "positions.json").write_text(json.dumps(made) + "\n")
    (GOLDEN / "positions_rectangles.json").write_text(json.dumps(rectangles(torch)) + "\n")


def rectangles(torch: Any) -> list[list[list[float]]]:
    """Positions of patches of one grid as torch resamples them for another; open_clip takes all that it reads for squares."""
    made = []
    for before, after in RECTANGLES:
        image = torch.from_numpy(number("positions", (*before, WIDTH))).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(image, after, mode="bicubic", antialias=True, align_corners=False)
        made.append(resized[0].permute(1, 2, 0).reshape(-1, WIDTH).tolist())
    return made


if __name__ == "__main__":
    main()
