"""Classes and labels: what is a label, which classes are candidates, who is left out."""

import numpy as np
import pytest
from eval_fakes import Listed

from jclip.config import ConfigError, Labels
from jclip.eval.labels import BROKEN, LEFT_OUT, make_classes, mean_per_class

NAMES = ("cat", "dog", "owl")


def read(labels, config=None, names=NAMES):
    source = Listed(tuple({"label": label} if label is not None else {} for label in labels), names)
    return make_classes(config or Labels(), source, "x:y").read(source, "label")


@pytest.mark.parametrize(("label", "index"), [(0, 0), (2, 2), (np.int64(1), 1), (np.array(1), 1), ("dog", 1), (b"owl", 2)])
def test_a_label_is_an_index_or_a_name(label, index):
    assert read([label]).labels.tolist() == [index]


@pytest.mark.parametrize("label", [3, -1, "wolf", "0", 1.0, True])
def test_any_other_label_is_refused_with_the_list_of_classes(label):
    with pytest.raises(ConfigError, match=r"is no label; use 0 to 2 or one of the 3 classes: cat, dog, owl; labels.field says"):
        read([label])


def test_a_long_list_of_classes_is_cut_in_the_message():
    with pytest.raises(ConfigError, match=r"one of the 100 classes: c0, .*c19, \.\.\.; labels"):
        read(["x"], names=tuple(f"c{i}" for i in range(100)))


@pytest.mark.parametrize(
    "label", ["Great White", "great_white", "\ufeffgreat white", "ｇｒｅａｔ　ｗｈｉｔｅ", "GREAT\u00a0WHITE\u200b"]
)
def test_a_name_is_known_in_any_case_and_unicode_form(label):
    assert read([label], names=("cat", "great white", "owl")).labels.tolist() == [1]


def test_names_with_accents_are_one_composed_or_not():
    assert read(["cafe\u0301", "STRASSE"], names=("caf\u00e9", "straße")).labels.tolist() == [0, 1]


def test_names_that_differ_in_case_alone_are_two_and_need_to_be_written_exactly():
    assert read(["Turkey", "turkey"], names=("turkey", "Turkey")).labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="'TURKEY' is no label"):
        read(["TURKEY"], names=("turkey", "Turkey"))


def test_indices_of_a_source_whose_names_are_written_otherwise_mean_its_names():
    source = Listed(tuple({"label": i} for i in range(3)), ("cat", "wild_dog", "fox"))
    classes = make_classes(Labels(classes=("Fox", "Wild Dog", "cat")), source, "x:y")
    assert classes.read(source, "label").labels.tolist() == [2, 1, 0]
    marks = Listed(({"label": [1, 0, 1]}, {"label": [0, 1, 0]}), source.classes)
    np.testing.assert_array_equal(
        make_classes(Labels(classes=("Fox", "Wild Dog", "cat")), marks, "x:y").read(marks, "label").several,
        [[True, False, True], [False, True, False]],
    )


def test_a_name_that_two_lists_hold_twice_matches_nothing_unless_the_lists_are_equal():
    source = Listed(({"label": 1},), ("crane", "dog", "Crane"))
    assert make_classes(Labels(classes=("Crane", "dog", "crane")), source, "x").read(source, "label").labels.tolist() == [1]
    twice = Listed(({"label": 1},), ("dog", "crane", "crane"))
    with pytest.raises(ConfigError, match="2 of the 3 classes of a source match none"):
        make_classes(Labels(classes=("crane", "dog", "crane")), twice, "x").read(twice, "label")


def test_a_name_that_two_classes_share_labels_neither():
    assert read([2], names=("crane", "dog", "crane")).labels.tolist() == [2]
    with pytest.raises(ConfigError, match="2 classes are called 'crane'"):
        read(["crane"], names=("crane", "dog", "crane"))


def test_an_example_without_label_is_broken_and_others_are_left_out_if_that_is_said():
    config = Labels(others="leave_out")
    assert read(["dog", None, "wolf", 7], config).labels.tolist() == [1, BROKEN, LEFT_OUT, LEFT_OUT]
    with pytest.raises(ConfigError, match=r"1\.5 is no label"):
        read([1.5], config)


def test_a_source_without_labels_is_an_error():
    with pytest.raises(ConfigError, match=r"no example has a label: no label: fields are key; labels\.field says"):
        read([None, None])


def test_a_mask_leaves_some_classes_which_are_counted_anew():
    config = Labels(only=("owl", "0"))
    source = Listed(({"label": 0}, {"label": 1}, {"label": "owl"}), NAMES)
    classes = make_classes(config, source, "x:y")
    assert classes.candidate_names == ("cat", "owl")
    assert classes.read(source, "label").labels.tolist() == [0, LEFT_OUT, 1]
    with pytest.raises(ConfigError, match=r"labels.only has 'wolf', which is no class; classes: cat, dog, owl"):
        make_classes(Labels(only=("wolf",)), source, "x:y")


def test_several_labels_are_marks_of_every_class():
    found = read([[1, 0, 1], np.array([False, True, False]), (0, 0, 0)], Labels(only=("dog", "owl")))
    np.testing.assert_array_equal(found.several, [[False, True], [True, False], [False, False]])
    for wrong in ([[1, 0]], [[1, 0, 2]]):
        with pytest.raises(ConfigError, match="several labels are a 0 or 1 for each of the 3 classes"):
            read(wrong)
    with pytest.raises(ConfigError, match="one label in some examples and several in others"):
        read([[1, 0, 0], 1])


def test_classes_come_from_the_config_or_a_file_or_else_from_the_source(tmp_path):
    file, source = tmp_path / "names.txt", Listed((), ("b", "c"))
    file.write_text("first\n\n second \n")
    assert make_classes(Labels(classes=("a",)), source, "x:y").labels == ("a",)
    assert make_classes(Labels(), source, "x:y").names == ("b", "c")
    assert make_classes(Labels(names=(f"file:{file}",)), source, "x:y").names == ("first", "second")
    with pytest.raises(ConfigError, match=r"'x:y' has no classes of its own; set labels\.classes"):
        make_classes(Labels(), Listed(()), "x:y")
    with pytest.raises(ConfigError, match=r"labels\.names has 1 names for 2 classes"):
        make_classes(Labels(names=("a",)), source, "x:y")
    with pytest.raises(ConfigError, match=r"labels.classes names the file '.*none.txt', which does not exist"):
        make_classes(Labels(classes=(f"file:{tmp_path}/none.txt",)), source, "x:y")


def test_the_mean_of_the_classes_that_are_present():
    assert mean_per_class(np.array([True, False, True, True]), np.array([5, 5, 9, 9])) == pytest.approx((1 / 2 + 1) / 2)


def test_a_byte_order_mark_at_the_start_of_a_file_is_no_part_of_a_name(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\n")
    assert make_classes(Labels(classes=(f"file:{file}",)), Listed(()), "x:y").names == ("first", "second")


def test_that_classes_were_matched_by_position_is_part_of_the_result():
    source = Listed(({"label": 0}, {"label": "zwei"}), ("eins", "zwei"))
    assert make_classes(Labels(), source, "x").read(source, "label").by_position is False
    unlike = make_classes(Labels(classes=("one", "two")), source, "x").read(source, "label")
    assert (unlike.labels.tolist(), unlike.by_position) == ([0, 1], True)
    asked = make_classes(Labels(classes=("one", "zwei"), match="position"), source, "x").read(source, "label")
    assert (asked.labels.tolist(), asked.by_position) == ([0, 1], True)
    some = make_classes(Labels(classes=("one", "zwei")), source, "x")
    with pytest.raises(ConfigError, match="1 of the 2 classes of a source match none"):
        some.read(source, "label")
