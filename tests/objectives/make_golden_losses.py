"""Writes golden/losses.npz with the extra `parity`: PYTHONPATH=.:tests python tests/objectives/make_golden_losses.py"""

import numpy as np
from peer_losses import CASES, GOLDEN, theirs


def main() -> None:
    """The value and the gradients of every case."""
    made = {}
    for case in CASES:
        value, slopes = theirs(case)
        made |= {f"{case}:": np.float32(value)} | {f"{case}:{name}": slope for name, slope in slopes.items()}
    np.savez_compressed(GOLDEN, **made)


if __name__ == "__main__":
    main()
