"""Opening sources by name, and finding fields in examples."""

import pickle
import subprocess
import sys

import pytest

from jclip.data import BadExample, SourceError, lookup, open_source
from jclip.data.source import LazyExample, split_options


@pytest.mark.parametrize("spec", ["", "shapes", "train.tar", "s3:bucket", "/data/x-{00..09}.tar"])
def test_an_unknown_scheme_lists_the_schemes_with_examples(spec: str) -> None:
    with pytest.raises(SourceError, match=r"shapes:train.*webdataset:/data.*tfds:cifar10:test"):
        open_source(spec)


def test_a_dotted_path_descends() -> None:
    example = {"key": "k", "json": {"title": "t", "deep": {"er": 3}}, "depth.png": b"d"}
    assert lookup(example, "key") == "k"
    assert lookup(example, "json.title") == "t"
    assert lookup(example, "json.deep.er") == 3
    assert lookup(example, "depth.png") == b"d"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("txt", "no txt: fields are key, json"),
        ("json.x", r"no json\.x: fields of json are title"),
        ("json.title.x", r"no json\.title\.x: fields of json\.title are none, it is a str"),
        ("", "no : fields are"),
    ],
)
def test_a_missing_field_lists_those_there_are(path: str, message: str) -> None:
    with pytest.raises(BadExample, match=message):
        lookup({"key": "k", "json": {"title": "t"}}, path)


def test_a_lazy_example_reads_only_what_is_asked_for() -> None:
    def broken() -> None:
        raise BadExample("broken")

    example = LazyExample("k", {"good": lambda: 1, "bad": broken})
    assert list(example) == ["key", "good", "bad"]
    assert len(example) == 3
    assert (lookup(example, "key"), lookup(example, "good")) == ("k", 1)
    assert "bad" in example
    with pytest.raises(BadExample, match="broken"):
        lookup(example, "bad")
    with pytest.raises(BadExample, match="no worse: fields are key, good, bad"):
        lookup(example, "worse")


def test_options_are_strict() -> None:
    assert split_options("a?x=1&y=%26b", ("x", "y")) == ("a", {"x": "1", "y": "&b"})
    for spec, message in (("a?z=1", "use x, y"), ("a?x", "x=VALUE"), ("a?x=", "x=VALUE"), ("a?x=1&x=2", "given twice")):
        with pytest.raises(SourceError, match=message):
            split_options(spec, ("x", "y"))


@pytest.mark.parametrize("spec", ["shapes:train?size=16"])
def test_sources_can_be_pickled(spec: str) -> None:
    source = open_source(spec)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source)
    assert copy[3]["text"] == source[3]["text"]


def test_importing_the_room_imports_nothing_heavy() -> None:
    code = "import sys, jclip.data; print([m for m in ('jax', 'grain', 'ftfy', 'instant_clip_tokenizer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
