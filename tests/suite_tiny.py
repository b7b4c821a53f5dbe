"""A suite of every evaluation, on drawn shapes."""

from typing import Literal

from jclip.config import Choice, LinearProbe, NearestNeighbours, Retrieval, Robustness, Suite, ZeroShot


def get_suite(length: int = 24, template: str = "a {}", protocol: Literal["logistic", "ridge"] = "ridge") -> Suite:
    """length: examples of a source."""
    train, test = f"shapes:test?size=16&length={8 * length}&seed=1", f"shapes:test?size=16&length={length}"
    return Suite(
        {
            "zero_shot": ZeroShot(test, templates=(template,)),
            "retrieval": Retrieval(f"shapes:val?size=16&length={length}"),
            "probe": LinearProbe(train, test, protocol),
            "neighbours": NearestNeighbours(train, test, k=5),
            "robustness": Robustness(train, test, {"heldout": f"shapes:heldout?size=16&length={length}"}, l2=1.0),
            "counting": Choice(f"shapes:counting?size=16&length={length}"),
        },
        batch_size=16,
    )
