"""Augmentation of texts: what each change does, how often, and that it is a function of the place in the run."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from jclip.config import ConfigError, Contrastive, TextAugment, View, check
from jclip.data import make_run_loader, train_transform
from jclip.data.text_augmentations import ChangeWords, read_synonyms
from jclip.data.tokenizer import get_tokenizer

TEXT = "a red circle left of a blue square, and one more"


def changed(how: TextAugment, text: str = TEXT, count: int = 2000) -> list[list[str]]:
    return [ChangeWords(how)(text, np.random.default_rng(i)).split() for i in range(count)]


def test_each_word_is_left_out_as_often_as_asked_and_the_others_keep_their_order() -> None:
    results, words = changed(TextAugment(drop=0.3)), TEXT.split()
    assert np.mean([len(result) for result in results]) == pytest.approx(0.7 * len(words), rel=0.03)
    for result in results:
        rest = iter(words)
        assert result
        assert all(word in rest for word in result)


def test_one_word_stays_and_it_may_be_any() -> None:
    results = changed(TextAugment(drop=1.0), "one two three")
    assert {len(result) for result in results} == {1}
    counts = Counter(result[0] for result in results)
    assert counts.keys() == {"one", "two", "three"}
    assert max(counts.values()) < 800


def test_swapped_words_are_the_same_words() -> None:
    results, words = changed(TextAugment(swap=0.2)), TEXT.split()
    assert all(sorted(result) == sorted(words) for result in results)
    moved = np.mean([sum(a != b for a, b in zip(result, words, strict=True)) for result in results])
    assert 1.5 < moved < 2 * 0.2 * len(words)


def test_synonyms_are_of_the_word_s_group_and_keep_case_and_punctuation(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("\ufeffcircle, Disc,  round   thing\n\nsquare,box\nbox, crate\n", encoding="utf-8")
    assert read_synonyms(str(file)) == {
        "circle": ("disc", "round thing"),
        "disc": ("circle", "round thing"),
        "round thing": ("circle", "disc"),
        "square": ("box",),
        "box": ("square", "crate"),
        "crate": ("box",),
    }
    results = changed(TextAugment(synonym=0.5, synonyms=str(file)), 'Circle (square), "other"')
    counts = Counter(" ".join(result) for result in results)
    assert counts.keys() == {
        f'{first} ({second}), "other"' for first in ("Circle", "Disc", "Round thing") for second in ("square", "box")
    }
    assert counts['Circle (square), "other"'] == pytest.approx(500, rel=0.15)
    assert counts['Disc (box), "other"'] == pytest.approx(250, rel=0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"s\.txt cannot be read: No such file"),
        (b"\xff\xfe", r"s\.txt cannot be read: it is not UTF-8"),
        (b"circle, disc\nsquare,\n", r"s\.txt, line 2: 'square,' has no synonym"),
    ],
)
def test_a_file_of_synonyms_that_cannot_be_used_is_refused_before_the_first_batch(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "s.txt"
    if content is not None:
        file.write_bytes(content)
    config = tiny_config(**{"data.text_augment": TextAugment(synonym=0.1, synonyms=str(file))})
    with pytest.raises(ConfigError, match=message):
        make_run_loader(config)


def test_a_view_of_texts_is_changed_by_itself_and_the_same_in_workers_and_on_hosts() -> None:
    config = tiny_config(
        views={"text@2": View("text", text_augment=TextAugment(swap=0.5, drop=0.3))},
        objectives={"one": Contrastive(), "two": Contrastive("image", "text@2")},
    )
    with make_run_loader(tiny_config()) as plain, make_run_loader(config) as loader:
        before, batch = next(plain).arrays, next(loader).arrays
    for name in ("image", "text"):
        np.testing.assert_array_equal(before[name], batch[name])
    assert (batch["text@2"] != batch["text"]).any(axis=1).sum() > 8
    with make_run_loader(config) as again, make_run_loader(config, host=1, hosts=2) as other:
        np.testing.assert_array_equal(next(again).arrays["text@2"], batch["text@2"])
        np.testing.assert_array_equal(next(other).arrays["text@2"], batch["text@2"][8:])


def test_the_words_are_changed_before_they_are_ids() -> None:
    tower = tiny_config().model.towers["text"]
    how = TextAugment(drop=1.0)
    (tokenize,) = train_transform(tower, tiny_config().data.augment, how).transforms
    want = get_tokenizer(tower.tokenizer)("word", tower.context_length)
    np.testing.assert_array_equal(tokenize("word word word", np.random.default_rng(0)), want)
    with pytest.raises(ValueError, match="rng"):
        tokenize("word word word")


@pytest.mark.parametrize(
    ("view", "how", "message"),
    [
        (View("image", text_augment=TextAugment(drop=0.1)), None, r"views\.image@2\.text_augment: image is no text tower"),
        (None, TextAugment(synonym=0.1), r"synonym 0\.1 and synonyms '' go together"),
        (None, TextAugment(synonyms="x"), r"synonym 0\.0 and synonyms 'x' go together"),
    ],
)
def test_what_cannot_be_is_an_error(view: View | None, how: TextAugment | None, message: str) -> None:
    config = tiny_config(**{"data.text_augment": how or TextAugment()})
    if view is not None:
        config = dataclasses.replace(config, views={"image@2": view}, objectives={"x": Contrastive("image@2", "text")})
    with pytest.raises(ConfigError, match=message):
        check(config)
