"""Metrics of captions by hand and in closed form, and the evaluator on a captioner that knows the answers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from eval_fakes import Listed

from jclip.config import Caption, Captioning, ConfigError, Model, TextTower, VisionTower
from jclip.data import get_tokenizer, open_source
from jclip.data.shapes_captions import named_objects, names_exactly
from jclip.eval import Functions, make_evaluator
from jclip.eval.captions import bleu4, cider_d, exact_match, words_of

CAT = "the cat sat on the mat"


def test_a_caption_equal_to_its_reference_has_the_best_score() -> None:
    captions, references = [CAT, "two dogs run along a beach"], [[CAT], ["two dogs run along a beach"]]
    assert bleu4(captions, references) == pytest.approx(1)
    assert cider_d(captions, references) == pytest.approx(10)
    assert exact_match(captions, references) == 1


def test_one_without_a_word_of_its_reference_has_the_worst() -> None:
    captions, references = ["some birds fly over water", "a red car"], [[CAT], ["two dogs run along a beach of sand"]]
    assert (bleu4(captions[:1], references[:1]), cider_d(captions[:1], references[:1])) == (0, 0)
    assert exact_match(captions, references) == 0


def test_bleu_by_hand() -> None:
    """Six words of seven: p1 = 6/7 with "the" counted twice at most, p2 = 5/6, p3 = 4/5, p4 = 3/4; no penalty."""
    captions, references = ["the cat sat on the mat the"], [[CAT]]
    want = (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25
    assert bleu4(captions, references) == pytest.approx(want)
    short = ["the cat sat on"]  # all right, and two words short
    assert bleu4(short, references) == pytest.approx(math.exp(1 - 6 / 4))
    nearest = [[CAT, "the cat sat", "the cat sat on a mat there"]]  # of 3 and 6 words, the one of 3 is nearer to 4
    assert bleu4(short, nearest) == pytest.approx(1)
    tie = [["the cat sat", "the cat sat on it"]]  # 3 and 5 are as near to 4: the shorter
    assert bleu4(short, tie) == pytest.approx(1)


def test_bleu_is_of_the_corpus_and_not_a_mean() -> None:
    captions, references = [CAT, "one two three four five"], [[CAT], ["one two three four six"]]
    n = [(6 + 4) / 11, (5 + 3) / 9, (4 + 2) / 7, (3 + 1) / 5]
    assert bleu4(captions, references) == pytest.approx(math.prod(n) ** 0.25)
    assert bleu4(["one two three"], [["one two three"]]) == 0  # no four words, and no smoothing


def by_definition(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D with dense vectors over all n-grams there are."""
    total = 0.0
    for n in (1, 2, 3, 4):

        def count(text: str, gram: tuple[str, ...], n: int = n) -> int:
            words = text.split()
            return sum(tuple(words[i : i + n]) == gram for i in range(len(words) - n + 1))

        texts = [*captions, *(text for several in references for text in several)]
        grams = sorted({tuple(text.split()[i : i + n]) for text in texts for i in range(len(text.split()) - n + 1)})
        having = np.array([sum(any(count(text, gram) for text in several) for several in references) for gram in grams])
        idf = np.log(len(references) / np.maximum(having, 1))
        for caption, several in zip(captions, references, strict=True):
            for text in several:
                h, r = (np.array([count(x, gram) for gram in grams]) * idf for x in (caption, text))
                norm = np.linalg.norm(h) * np.linalg.norm(r)
                cosine = np.minimum(h, r) @ r / norm if norm else 0
                gap = len(caption.split()) - len(text.split())
                total += cosine * np.exp(-(gap**2) / 72) / 4 / len(several)
    return 10 * total / len(captions)


def test_cider_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    words = ["a", "cat", "dog", "red", "on", "mat"]

    def text() -> str:
        return " ".join(rng.choice(words, size=rng.integers(2, 9)))

    captions, references = [text() for _ in range(6)], [[text() for _ in range(1 + i % 3)] for i in range(6)]
    captions[2] = references[2][0]
    assert cider_d(captions, references) == pytest.approx(by_definition(captions, references), rel=1e-9)
    assert cider_d(captions, references) > 0.5
    assert cider_d([CAT], [[CAT]]) == 0  # what all have weighs nothing


def test_words_are_in_lower_case_without_punctuation() -> None:
    assert words_of("A dog's ball, on-side: don't!") == ["a", "dog's", "ball", "on", "side", "don't"]
    assert exact_match(["a dog , a cat"], [["A dog, a cat."]]) == 1


SCENE = [{"colour": "red", "shape": "cross", "r": 0.17}, {"colour": "blue", "shape": "star", "r": 0.3}]


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a red cross and a blue star", True),
        ("an image with a blue star, a crimson plus sign", True),
        ("two shapes : a blue star and a small red cross", True),
        ("a blue star left of a red cross", True),
        ("a red cross", False),
        ("a red cross and a blue star and a blue star", False),
        ("a blue cross and a red star", False),
        ("a big red cross and a blue star", False),
        ("a red cross and something blue", False),
        ("a red cross and a blue star and a pink moon", False),
        ("red cross blue star", False),
        ("", False),
    ],
)
def test_a_caption_names_exactly_the_objects_of_a_scene_or_not(caption: str, right: bool) -> None:
    assert names_exactly(caption, SCENE) == right


def test_all_complete_captions_of_shapes_are_read_and_are_of_the_same_images() -> None:
    complete, plain = open_source("shapes:train?size=8&captions=complete"), open_source("shapes:train?size=8")
    for i in range(400):
        example = complete[i]
        assert names_exactly(example["text"], example["objects"]), example["text"]
        np.testing.assert_array_equal(example["image"], plain[i]["image"])
    assert named_objects("an image with a big turquoise rhombus") == [("big", "cyan", "diamond")]


TOWERS = {"image": VisionTower(image_size=8, patch_size=8, width=8, depth=1, heads=1), "text": TextTower(context_length=24)}
MODEL = Model(TOWERS, embed_dim=8)


def knowing(texts: Sequence[str]) -> Functions:
    """Writes the next of these captions for each row, in batches of four."""
    remaining = iter([*texts, *[""] * 4])

    def caption(config: Captioning, params: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
        return get_tokenizer(TextTower().tokenizer)([next(remaining) for _ in rows["image"]], 24)

    return Functions(lambda params, rows: {}, 4, caption=caption, captioners={"caption": Caption()})


def test_the_evaluator_reads_several_references_and_leaves_out_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    examples = (
        {"image": image, "captions": ("a cat on a mat", "one cat")},
        {"image": b"broken", "captions": ("a dog in the sun",)},
        {"image": image, "captions": ("a bird over the sea",)},
        {"image": image, "captions": ()},
        {"image": image, "captions": ("a red car in a street",)},
    )
    told = ["one cat", "x", "a bird over the sea", "y", "a blue car in a street"]
    evaluator = make_evaluator(Captioning("listed"), MODEL, knowing(told), lambda spec: Listed(examples))
    result = evaluator.run(None, details=True)
    used = [0, 2, 4]
    references = [list(examples[i]["captions"]) for i in used]
    assert result.counts == {"examples": 3, "captions": 4, "broken": 2}
    assert result.metrics == pytest.approx(
        {
            "bleu4": bleu4([told[i] for i in used], references),
            "cider": cider_d([told[i] for i in used], references),
            "exact_match": 2 / 3,
        }
    )
    assert result.details["captions"][0] == ["0", "one cat", "a cat on a mat"]


def test_of_scenes_the_objects_are_counted() -> None:
    source = open_source("shapes:val?size=8&length=6&captions=complete")
    told = [source[i]["text"] for i in range(6)]
    told[1], told[4] = "a circle", told[4].replace("a", "the", 1)
    result = make_evaluator(Captioning("shapes:val?size=8&length=6&captions=complete"), MODEL, knowing(told)).run(None)
    assert result.metrics["exact_objects"] == pytest.approx(4 / 6)


def test_a_model_that_writes_nothing_is_an_error() -> None:
    nothing = Functions(lambda params, rows: {}, 4)
    with pytest.raises(ConfigError, match="nothing writes captions of the towers 'image' and 'text'"):
        make_evaluator(Captioning("shapes:val"), MODEL, nothing)
