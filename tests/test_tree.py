"""Paths and rules."""

import pytest

from jclip.tree import flatten, match_rules, unflatten

TREE = {"image": {"blocks": {"kernel": 1, "bias": 2}}, "logit_scale": 3}


def test_flatten_gives_readable_paths_and_unflatten_inverts_it() -> None:
    flat = flatten(TREE)
    assert flat == {"image/blocks/kernel": 1, "image/blocks/bias": 2, "logit_scale": 3}
    assert unflatten(flat) == TREE


def test_the_first_rule_that_matches_the_whole_path_counts() -> None:
    rules = ((r".*/bias", "a"), (r"image/.*", "b"), (r"logit", "never: not the whole path"), (r".*", "c"))
    assert match_rules(TREE, rules) == {"image": {"blocks": {"kernel": "b", "bias": "a"}}, "logit_scale": "c"}


def test_an_uncovered_parameter_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no rule covers parameter logit_scale"):
        match_rules(TREE, ((r"image/.*", 0),))
