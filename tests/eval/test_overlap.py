"""Overlap of test and training data: ids, contents, and what is said where nothing can be compared."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eval_fakes import Listed, on_hosts

from jclip.config import ConfigError, Overlap, Suite, architecture, check_suite
from jclip.data import SourceError
from jclip.eval import make_evaluator
from jclip.eval.overlap import content_digest, meet, recording_id

MODEL = architecture("ViT-tiny-test")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1234", "1234"), (1234, "1234"), (np.int64(7), "7"), (" 12 ", "12"), ("a/b/12.tar.gz", "12"), ("12_a.flac", "12_a"),
        ("https://freesound.org/people/a/sounds/1234/", "1234"), ("", None), ("/", None), (".wav", None), (None, None),
        (True, None), (1.5, None), (b"12", None),
    ],
)  # fmt: skip
def test_an_id_is_what_is_left_of_hosts_folders_and_endings(value: Any, expected: str | None) -> None:
    assert recording_id(value) == expected


def test_contents_are_equal_where_all_bytes_types_and_shapes_are() -> None:
    a = np.arange(6, dtype=np.int16)
    same = [content_digest(x) for x in (a, a.copy(), (a, 16000), np.arange(12, dtype=np.int16)[::2] // 2)]
    others = [content_digest(x) for x in (a.reshape(2, 3), a.astype(np.int32), a + 1, a.tobytes(), b"", "text")]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)
    assert content_digest("text") == content_digest(b"text")
    assert content_digest(3) is content_digest(None) is None


def test_what_both_have_is_found_and_what_says_nothing_counted() -> None:
    met = meet(["a", None, "b", "a"], iter(["x", "a", None, None, "a"]))
    assert (met.found.tolist(), met.unknown, met.train, met.train_unknown) == ([True, False, False, True], 1, 5, 2)


def run(
    config: Overlap, sources: dict[str, Listed], trained_on: Any = None, hosts: int = 1
) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers and details of the first host, which have to be those of all."""

    def program(functions: Any) -> Any:
        evaluator = make_evaluator(config, MODEL, replace(functions, trained_on=trained_on), sources.__getitem__)
        result = evaluator.run(1.0, details=True)
        return result.metrics | result.counts, result.details, evaluator.config.train

    first, *others = on_hosts(hosts, hosts, program)
    assert all(other == first for other in others)
    return first[0], first[1]


def listed(*rows: tuple[Any, Any]) -> Listed:
    """Examples of an id and a picture; a part that is None is missing."""
    return Listed(
        tuple({name: value for name, value in zip(("id", "image"), row, strict=True) if value is not None} for row in rows)
    )


TEST = listed(("1", b"a"), ("2", b"b"), (None, b"c"), ("4", None))


def test_an_example_is_found_by_its_id_or_by_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    train = listed(("f/1.wav", b"x"), (None, b"c"), ("9", None))
    for hosts in (1, 2):
        found, shown = run(Overlap("s", "t", by="id"), {"s": TEST, "t": train}, hosts=hosts)
    assert found == {
        "overlap": 0.5, "examples": 4, "train_examples": 3, "checked": 1,
        "by_id": 1, "without_id": 1, "train_without_id": 1, "by_contents": 1, "without_contents": 1, "train_without_contents": 1,
    }  # fmt: skip
    assert shown["found"] == ["0", "2"]
    assert shown["table"]["rows"] == [["id", 2, 1], ["contents", 2, 1]]
    assert "2 of its 4 examples are in the training data t, such as 0, 2: numbers on it are not of unseen examples" in caplog.text


def test_ids_alone_are_compared_where_the_training_data_are_a_list_of_them(caplog: pytest.LogCaptureFixture) -> None:
    ids = Listed(({"number": 2}, {"number": 3}))
    with caplog.at_level(logging.INFO):
        found, _ = run(Overlap("s", "t", by="id", train_by="number"), {"s": TEST, "t": ids})
    assert (found["overlap"], found["by_id"], found["by_contents"], found["train_without_contents"]) == (0.25, 1, 0, 2)
    assert "compared by id with t; data of weights that it began from" in caplog.text


def test_where_nothing_can_be_compared_there_is_no_number(caplog: pytest.LogCaptureFixture) -> None:
    ids = Listed(({"number": 2},))
    found, _ = run(Overlap("s", "t", by="id"), {"s": TEST, "t": ids})
    assert ("overlap" in found, found["checked"]) == (False, 0)
    assert "NOT CHECKED: not both test and training examples have an id, in 'id' and 'id' or an input for 'image'" in caplog.text


def test_the_data_of_the_model_s_run_are_the_training_data_where_none_are_named(caplog: pytest.LogCaptureFixture) -> None:
    found, _ = run(Overlap("s"), {"s": TEST}, ("its data", lambda: listed((None, b"b"))))
    assert found["overlap"] == 0.25

    def gone() -> Listed:
        raise SourceError("there is no such folder")

    for trained_on in (None, ("its data", gone)):
        found, _ = run(Overlap("s"), {"s": TEST}, trained_on)
        assert found == {"examples": 4, "checked": 0}
    assert "what the model was trained on cannot be opened: there is no such folder" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Overlap("s", contents=False), "nothing is compared; give by"),
        (Overlap("s", train_by="id"), "train_by 'id': no field of the test set is compared with it; give by"),
        (Overlap("s", by="a{"), "by"),
        (Overlap("s", tower="sound"), "there is no tower 'sound'"),
    ],
)
def test_contradictions_are_reported(config: Overlap, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_suite(Suite({"o": config}), MODEL)
