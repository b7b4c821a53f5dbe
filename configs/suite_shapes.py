"""Every protocol on drawn scenes, without a download: strengths and weaknesses of a model of `configs/quickstart.py`.

    jclip eval runs/quickstart --suite configs/suite_shapes.py --json shapes.json
    jclip report shapes.json

CLIP's known weaknesses are measured beside its strengths: combinations of words that it has never seen together (heldout), how
many things there are (counting, all drawn as small as two or three are in training) and where they are to each other
(left_right). Chance is 1/56 for zero_shot, 1/64 for heldout, 1/3 for counting and 1/2 for left_right.
"""

from jclip.config import Choice, FewShot, LinearProbe, NearestNeighbours, Retrieval, Suite, ZeroShot

PROMPTS = ("a {}", "there is a {}", "a picture of a {}")


def get_suite(size: int = 32, length: int = 2000) -> Suite:
    """The suite; size is the side of the images in pixels, as in training, and length the number of test images."""
    test, train = (f"shapes:test?size={size}&classes=seen&length={n}" for n in (length, f"{2 * length}&seed=1"))
    return Suite(
        {
            "zero_shot": ZeroShot(test, templates=PROMPTS),
            "heldout": ZeroShot(f"shapes:heldout?size={size}&length={length}", templates=PROMPTS),
            "retrieval": Retrieval(f"shapes:val?size={size}&length={length}"),
            "probe": LinearProbe(train, test, "ridge"),
            "few_shot": FewShot(train, test),
            "neighbours": NearestNeighbours(train, test),
            "counting": Choice(f"shapes:counting?size={size}"),
            "left_right": Choice(f"shapes:left_right?size={size}"),
        }
    )
