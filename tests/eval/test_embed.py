"""Embedding sources and texts: a row for every example, in order, for any batch size and any number of hosts, and the cache."""

import dataclasses
import shutil

import numpy as np
import pytest
from eval_fakes import Listed, letters, on_hosts, word_model
from hypothesis import given, settings
from hypothesis import strategies as st

from jclip.config import TextTower, TokenizerConfig, architecture
from jclip.eval import FeatureCache, cache, embed_source, embed_texts
from jclip.eval.embed import tower_facts

WORLDS = [(1, 1), (1, 4), (2, 2), (2, 6), (3, 3), (4, 8), (1, 64)]
TOWER = architecture("ViT-tiny-test").towers["image"]


@pytest.fixture(autouse=True)
def _letters(monkeypatch):
    """Every tower reads letters."""
    monkeypatch.setattr("jclip.eval.embed.eval_transform", lambda tower, **options: letters)


def examples(n, broken=()):
    return tuple({"picture": "broken" if i in broken else f"picture {i}"} for i in range(n))


def embedded(source, hosts, batch_size):
    return on_hosts(hosts, batch_size, lambda functions: embed_source(functions, 1.0, source, "image", TOWER, "picture"))


def expected(texts):
    return word_model(1.0, {"x": np.stack([letters(t) for t in texts])})["x"]


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
@pytest.mark.parametrize("n", [1, 5, 12])
def test_row_i_belongs_to_example_i_on_every_host(hosts, batch_size, n):
    broken = {1, 4} & set(range(n))
    good = [i for i in range(n) if i not in broken]
    for result in embedded(Listed(examples(n, broken)), hosts, batch_size):
        np.testing.assert_array_equal(np.flatnonzero(result.read), good)
        assert len(result.pooled) == len(result.z) == n
        want = expected([f"picture {i}" for i in good])
        np.testing.assert_array_equal(result.pooled[good], want.pooled)
        np.testing.assert_array_equal(result.z[good], want.z)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("n", [0, 3])
def test_a_source_without_one_good_example_is_an_error(hosts, n):
    with pytest.raises(ValueError, match="the source has no examples" if n == 0 else "no example of the source can be read"):
        embedded(Listed(examples(n, set(range(n)))), hosts, 4)


def test_broken_examples_are_logged_but_not_all(caplog):
    embedded(Listed(examples(10, set(range(1, 9)))), 1, 2)
    assert "an example is left out: 1: it is broken" in caplog.text
    assert caplog.text.count("left out") == 5


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 23), st.sampled_from(WORLDS))
def test_texts_are_embedded_in_order_for_any_batch_and_equal_ones_alike(n, world):
    texts = [f"text {i % 7}" for i in range(n)]
    for z, read in on_hosts(*world, lambda functions: embed_texts(functions, 1.0, texts, "text", TOWER)):
        np.testing.assert_array_equal(z, expected(texts).z)
        assert read.all()


def test_a_broken_text_is_said_and_spoils_no_other(caplog):
    ((z, read),) = on_hosts(1, 2, lambda functions: embed_texts(functions, 1.0, ["a", "broken", "b", "broken"], "text", TOWER))
    assert read.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(z[[0, 2]], expected(["a", "b"]).z)
    assert caplog.text.count("a text is left out: it is broken") == 1
    with pytest.raises(ValueError, match="none of 1 texts can be read"):
        on_hosts(1, 2, lambda functions: embed_texts(functions, 1.0, ["broken"], "text", TOWER))


class Counting:
    """The word model, and how many batches it was given."""

    def __init__(self):
        self.batches = 0

    def __call__(self, params, arrays):
        self.batches += 1
        return word_model(params, arrays)


def test_features_are_computed_once_for_equal_weights_data_and_preprocessing(tmp_path):
    source, texts, weights = Listed(examples(5)), ["a", "b"], {"image": "w1", "text": "w1"}

    def run(tower=TOWER, source=source, texts=texts, field="picture"):
        model = Counting()
        cache = {"cache": FeatureCache(tmp_path), "weights": weights.__getitem__}

        def program(functions):
            functions = functions.__class__(**{**vars(functions), **cache})
            image = embed_source(functions, 1.0, source, "image", tower, field)
            return image, embed_texts(functions, 1.0, texts, "text", tower)

        ((image, text),) = on_hosts(1, 4, program, model)
        np.testing.assert_array_equal(image.z, expected([e[field] for e in source.examples]).z)
        np.testing.assert_array_equal(text.z, expected(texts).z)
        return model.batches

    assert run() == 3  # two batches of pictures, one of texts
    assert run() == 0
    assert run(texts=["a", "c"]) == 1
    assert run(source=Listed((*examples(4), {"picture": "other"}))) == 2
    assert run(source=Listed(tuple({**e, "also": e["picture"]} for e in examples(5))), field="also") == 2
    assert run(tower=dataclasses.replace(TOWER, preprocess=dataclasses.replace(TOWER.preprocess, interpolation="bilinear"))) == 3
    weights["text"] = "w2"  # the other tower's features stay
    assert run() == 1
    for file in tmp_path.glob("*.npz"):  # cut short, as by a full disk
        file.write_bytes(file.read_bytes()[:100])
    assert run() == 3
    assert run() == 0


def test_hosts_agree_on_what_is_cached(tmp_path):
    source = Listed(examples(6))

    def run(hosts):
        def program(functions):
            folder = tmp_path / ("first" if functions.host == 0 else "others")  # no shared disk, and only the first has features
            functions = functions.__class__(**{**vars(functions), "cache": FeatureCache(folder), "weights": lambda tower: "w"})
            return embed_source(functions, 1.0, source, "image", TOWER, "picture")

        return on_hosts(hosts, 6, program)

    run(1)
    for result in (*run(2), *run(2)):
        np.testing.assert_array_equal(result.z, expected([f"picture {i}" for i in range(6)]).z)


def test_each_fact_by_itself_is_part_of_the_name_that_features_are_kept_under(tmp_path, monkeypatch):
    """Field, order of the texts, and the bytes of the vocabulary; the others are above."""
    source = Listed(tuple({"picture": f"picture {i}", "also": f"other {i}"} for i in range(5)))

    def run(field="picture", texts=("a", "b")):
        model = Counting()

        def program(functions):
            functions = dataclasses.replace(functions, cache=FeatureCache(tmp_path / "cache"), weights=lambda tower: "w")
            image = embed_source(functions, 1.0, source, "image", TOWER, field)
            return image, embed_texts(functions, 1.0, texts, "text", TOWER)

        ((image, text),) = on_hosts(1, 4, program, model)
        np.testing.assert_array_equal(image.z, expected([e[field] for e in source.examples]).z)
        np.testing.assert_array_equal(text.z, expected(texts).z)
        return model.batches

    assert [run(), run(field="also"), run(texts=("b", "a")), run()] == [3, 2, 1, 0]

    vocabulary = tmp_path / "vocabulary.json"
    tower = TextTower(tokenizer=TokenizerConfig("hugging_face", str(vocabulary)))
    found = []
    for content in (b"one", b"two"):
        vocabulary.write_bytes(content)
        found.append(tower_facts(tower))
    assert found[0] != found[1]


def test_the_code_is_part_of_the_name_and_what_another_file_holds_is_not_taken(tmp_path, monkeypatch):
    kept, facts = FeatureCache(tmp_path), [{"weights": "a"}, {"weights": "b"}]
    kept.save(facts[0], {"z": np.arange(3)})
    (file,) = tmp_path.iterdir()
    shutil.copy(file, tmp_path / f"{cache.digest(facts[1])}.npz")  # as if two names were one digest
    np.testing.assert_array_equal(kept.load(facts[0])["z"], np.arange(3))
    assert kept.load(facts[1]) is None
    monkeypatch.setattr(cache, "code_digest", lambda package: "other code")
    cache._program.cache_clear()
    try:
        assert kept.load(facts[0]) is None
    finally:
        monkeypatch.undo()
        cache._program.cache_clear()
    assert kept.load(facts[0]) is not None
