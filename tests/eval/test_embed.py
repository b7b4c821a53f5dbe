"""Embedding sources and texts: every example once, in order, for any batch size and any number of hosts."""

import numpy as np
import pytest
from eval_fakes import Listed, letters, on_hosts, word_model
from hypothesis import given, settings
from hypothesis import strategies as st

from jclip.eval import embed_source, embed_texts

WORLDS = [(1, 1), (1, 4), (2, 2), (2, 6), (3, 3), (4, 8), (1, 64)]


def examples(n, broken=()):
    return tuple({"image": "broken" if i in broken else f"picture {i}", "words": f"text {i % 3}", "n": i} for i in range(n))


def embedded(source, hosts, batch_size, **options):
    def program(functions):
        extra = {"n": lambda n: n * 2**40 - 5, "words": len}
        transforms = {"image": letters, "text": letters}
        return embed_source(functions, 1.0, source, transforms, fields={"text": "words"}, extra=extra, **options)

    return on_hosts(hosts, batch_size, program)


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("part", ["z", "pooled"])
def test_every_good_example_comes_once_in_order_with_its_extras_on_every_host(hosts, batch_size, n, part):
    broken = {1, 4} & set(range(n))
    good = [i for i in range(n) if i not in broken]
    for result in embedded(Listed(examples(n, broken)), hosts, batch_size, part=part):
        for tower, texts in (("image", [f"picture {i}" for i in good]), ("text", [f"text {i % 3}" for i in good])):
            expected = getattr(word_model(1.0, {"x": np.stack([letters(t) for t in texts])})["x"], part)
            np.testing.assert_array_equal(result.features[tower], expected)
        np.testing.assert_array_equal(result.extra["n"], [i * 2**40 - 5 for i in good])
        np.testing.assert_array_equal(result.extra["words"], 6)
        assert result.extra["n"].dtype == np.int64
        assert result.broken == len(broken)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("n", [0, 3])
def test_a_source_without_one_good_example_is_an_error(hosts, n):
    with pytest.raises(ValueError, match="the source has no examples" if n == 0 else "no example of the source can be read"):
        embedded(Listed(examples(n, set(range(n)))), hosts, 4)


def test_broken_examples_are_logged(caplog):
    embedded(Listed(examples(3, {1})), 1, 2)
    assert "an example is left out: 1: it is broken" in caplog.text


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 23), st.sampled_from(WORLDS))
def test_texts_are_embedded_in_order_for_any_batch(n, world):
    texts = [f"text {i}" for i in range(n)]
    expected = word_model(1.0, {"x": np.stack([letters(t) for t in texts])})["x"].z
    for z in on_hosts(*world, lambda functions: embed_texts(functions, 1.0, texts, letters, "text")):
        np.testing.assert_array_equal(z, expected)
