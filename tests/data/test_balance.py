"""Balancing by entries: what matches, what is drawn, and how much of each entry is left."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jclip.data import SourceError
from jclip.data.balance import Entries, balanced, draw
from jclip.data.clean import lower


@pytest.mark.parametrize(
    ("caption", "entries"),
    [
        ("A cat, on the mat.", ["cat", "on the mat", "mat"]),
        ("CAT", ["cat"]),
        ("category of cats", []),
        ("hot  dog's&amp;cat", ["cat", "hot dog"]),
        ("hot and dog", []),
        ("the mat on the", ["mat"]),
        ("cat cat cat", ["cat"]),
        ("", []),
    ],
)
def test_an_entry_matches_where_its_words_stand_one_after_the_other(caption, entries):
    listed = Entries(["cat", "Hot Dog", "on the mat", "mat", "hot dog!"])
    assert listed.names == ["cat", "hot dog", "on the mat", "mat"]  # of the same words is one
    assert sorted(listed.names[i] for i in listed.match(caption)) == sorted(entries)


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "c", "ä", "1"]), min_size=1, max_size=4).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(st.sampled_from(["a", "b", "ab", "ä", "c.", "1,", "-"]), max_size=10))
def test_matches_are_those_of_a_search_for_each_entry(names, words):
    listed, text = Entries(names), " ".join(words)
    joined = " ".join(re.findall(r"\w+", lower(text)))
    expected = [i for i, name in enumerate(listed.names) if f" {name} " in f" {joined} "]
    assert listed.match(text).tolist() == expected


def test_a_list_without_an_entry_and_an_entry_without_a_word_are_refused():
    with pytest.raises(SourceError, match="there is no entry"):
        Entries([])
    with pytest.raises(SourceError, match=r"entry 2, '\?!', has no word"):
        Entries(["cat", "?!"])


def test_common_entries_are_thinned_out_to_their_share_and_rare_ones_stay():
    n, rng = 20_000, np.random.default_rng(0)
    matches = [np.array([0] if rng.random() < 0.9 else [1], np.int32) for _ in range(n)]
    matches[5], matches[6], matches[7] = np.array([0, 2], np.int32), np.zeros(0, np.int32), np.array([2], np.int32)
    keep = balanced(matches, [f"k{i}" for i in range(n)], ["dog", "cat", "axolotl"], 1000, seed=0)
    for entry in (0, 1):
        of = np.array([matched.tolist() == [entry] for matched in matches])
        share = 1000 / of.sum()
        assert abs(keep[of].sum() - 1000) < 4 * np.sqrt(1000 * (1 - share)) + 1  # 4 sigma
    assert (keep[5], keep[6], keep[7]) == (True, False, True)


def test_draws_do_not_depend_on_order_or_on_other_examples():
    keys = [f"k{i}" for i in range(300)]
    matches = [np.array([i % 3], np.int32) for i in range(300)]
    names = ["a", "b", "c"]
    keep = dict(zip(keys, balanced(matches, keys, names, 40, seed=1), strict=True))
    order = np.random.default_rng(0).permutation(300)
    again = balanced([matches[i] for i in order], [keys[i] for i in order], names, 40, seed=1)
    assert {keys[i]: kept for i, kept in zip(order, again, strict=True)} == keep
    assert balanced(matches, keys, names, 40, seed=2).tolist() != list(keep.values())


def test_a_caption_is_kept_where_any_of_its_entries_keeps_it():
    keys, both = [f"k{i}" for i in range(500)], [np.array([0, 1], np.int32)] * 500
    keep = balanced(both, keys, ["a", "b"], 100, seed=0)
    expected = [draw(0, key, "a") < 0.2 or draw(0, key, "b") < 0.2 for key in keys]
    assert keep.tolist() == expected
    assert abs(keep.sum() - 500 * 0.36) < 4 * np.sqrt(500 * 0.36 * 0.64)  # 1 - 0.8^2: the draws of two entries are independent
