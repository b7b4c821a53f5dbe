"""Our losses beside those of x-clip, lightly and pytorch-metric-learning, of the same arrays: values and gradients."""

import numpy as np
import pytest
from peer_losses import CASES, GOLDEN, Arrays, ours, theirs


def assert_same(case: str, value: float, slopes: Arrays) -> None:
    """Asserts that another library's loss and gradients are ours, to 1e-5."""
    own, own_slopes = ours(case)
    assert own == pytest.approx(value, rel=1e-5)
    assert own_slopes.keys() == slopes.keys()
    for name, slope in slopes.items():
        np.testing.assert_allclose(own_slopes[name], slope, rtol=0, atol=1e-5 * max(np.abs(slope).max(), 1e-2), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_the_one_that_another_library_gave(case: str) -> None:
    """golden/losses.npz is written by make_golden_losses.py."""
    with np.load(GOLDEN) as golden:
        slopes = {name.split(":")[1]: golden[name] for name in golden.files if name.startswith(f"{case}:") and name[-1] != ":"}
        assert_same(case, float(golden[f"{case}:"]), slopes)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_the_one_that_another_library_gives(case: str) -> None:
    assert_same(case, *theirs(case))
