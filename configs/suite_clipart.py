"""Every protocol on one small data set, the val shard of `configs/clipart.py`, for a model of that recipe.

    jclip eval runs/clipart --suite configs/suite_clipart.py --root data/clipart --json clipart.json
    jclip report clipart.json

Classes are the 76 categories of which the train shards have at least 20 pictures: the folders in which the library keeps them
(suite_clipart.txt). Pictures of other folders are left out, and counted. Folders overlap ("food" and "food/fruit"), so an
accuracy here is lower than what it would be among classes that a person would distinguish.
"""

from pathlib import Path

from jclip.config import FewShot, Labels, LinearProbe, NearestNeighbours, Retrieval, Suite, ZeroShot

CATEGORIES = tuple(Path(__file__).with_suffix(".txt").read_text().split())


def get_suite(root: str = "data/clipart") -> Suite:
    """The suite; root is the folder of the shards."""
    train, val = f"webdataset:{root}/clipart-train-{{00000..00005}}.tar", f"webdataset:{root}/clipart-val-00000.tar"
    labels = Labels("json.category", CATEGORIES, names=tuple(map(words, CATEGORIES)), others="leave_out")
    return Suite(
        {
            "zero_shot": ZeroShot(val, labels, templates=("{}", "{} clipart", "a picture of {}")),
            "retrieval": Retrieval(val),
            "probe_openai": LinearProbe(train, val, "openai", labels=labels),
            "probe_clip_benchmark": LinearProbe(train, val, "clip_benchmark", labels=labels),
            "few_shot": FewShot(train, val, labels=labels),
            "neighbours": NearestNeighbours(train, val, labels=labels),
        }
    )


def words(category: str) -> str:
    """The words of a category in a prompt: "signs_and_symbols/flags/asia" is "asia flags signs and symbols"."""
    return " ".join(reversed(category.split("/"))).replace("_", " ").replace("-", " ")
