"""Paths and rules."""

import pytest

from jclip.config import ConfigError
from jclip.tree import flatten, match_rules, require_used, unflatten

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


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((("img/.*", 0), (".*", 1)), r"mesh\.rules: 'img/\.\*' matches no parameter; paths are like image/blocks/kernel"),
        (((".*", 1), ("image/.*", 0)), r"mesh\.rules: 'image/\.\*' decides on nothing"),
        ((("image/.*", 1), (".*/bias", 0), (".*", 2)), r"'\.\*/bias' decides on nothing: earlier rules match all that it does"),
        (((".*", 1), (".*", 0), ("logit_scale", 3)), r"'\.\*' decides on nothing"),
    ],
    ids=["misspelt", "behind all", "behind some", "twice"],
)
def test_a_rule_that_decides_on_no_parameter_is_refused_by_name(rules: tuple[tuple[str, int], ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_used(TREE, rules, "mesh.rules")


def test_a_last_rule_for_the_rest_may_find_nothing_left() -> None:
    require_used(TREE, (("image/.*", 0), ("logit_scale", 1), (".*", 2)), "optim.lr_rules")
