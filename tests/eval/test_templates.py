"""Template sets: which there are, how many templates they have, and the ones of ImageNet against open_clip's."""

import pytest

from jclip.eval.templates import template_set, template_sets

SIZES = {
    "birdsnap": 1, "caltech101": 34, "cifar10": 18, "cifar100": 18, "clevr_counts": 1, "country211": 5, "dtd": 8, "eurosat": 3,
    "fer2013": 6, "fgvc_aircraft": 2, "flowers102": 1, "food101": 1, "gtsrb": 3, "hateful_memes": 1, "imagenet": 80,
    "kinetics700": 28, "kitti": 1, "mnist": 1, "pcam": 1, "pets": 1, "resisc45": 18, "simple": 7, "sst2": 1, "stanford_cars": 8,
    "stl10": 2, "sun397": 2, "ucf101": 48, "voc2007": 1, "laion_clap": 1, "msclap": 1, "transformers_clap": 1,
}  # fmt: skip


def test_every_published_set_is_there_with_its_number_of_templates():
    assert {name: len(templates) for name, templates in template_sets().items()} == SIZES


def test_every_template_names_the_class_once_and_none_is_there_twice():
    for name, templates in template_sets().items():
        assert all(template.count("{}") == 1 for template in templates), name
        assert len(set(templates)) == len(templates), name


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("imagenet", "a bad photo of a {}."),
        ("simple", "itap of a {}."),
        ("caltech101", "a embroidered {}."),
        ("cifar10", "a photo of the big {}."),
        ("country211", "a photo i took while visiting {}."),
        ("dtd", "a photo of the {} object."),
        ("eurosat", "a centered satellite photo of {}."),
        ("fer2013", "look at how {} they are."),
        ("flowers102", "a photo of a {}, a type of flower."),
        ("food101", "a photo of {}, a type of food."),
        ("gtsrb", 'a close up photo of a "{}" traffic sign.'),
        ("kinetics700", "a demonstration of a person practicing {}."),
        ("mnist", 'a photo of the number: "{}".'),
        ("pcam", "this is a photo of {}"),
        ("resisc45", "aerial view of the {}."),
        ("sst2", "a {} review of a movie."),
        ("stanford_cars", "i love my {}!"),
        ("ucf101", "a example of the person during {}."),
        ("laion_clap", "This is a sound of {}"),
        ("msclap", "this is the sound of {}"),
        ("transformers_clap", "This is a sound of {}."),
    ],
)
def test_a_set_has_its_published_wording(name, some):
    assert some in template_set(name)


def test_simple_is_a_part_of_imagenet():
    assert set(template_set("simple")) < set(template_set("imagenet"))


def test_an_unknown_set_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match=r"'imagnet' is no template set; use one of birdsnap, .*voc2007, or list your own"):
        template_set("imagnet")


@pytest.mark.parity
def test_the_sets_of_imagenet_are_those_of_open_clip():
    from peers import peer

    open_clip = peer("open_clip")
    for name, theirs in (("imagenet", open_clip.OPENAI_IMAGENET_TEMPLATES), ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES)):
        assert [template.replace("{}", "red fox") for template in template_set(name)] == [make("red fox") for make in theirs]
