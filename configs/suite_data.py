"""Evaluations of data of one's own, chosen by options alone, for any model.

    jclip eval runs/mine --suite configs/suite_data.py --labelled "folder:DIR?labels=folders" --templates "a photo of a {}."
    jclip eval MODEL --suite configs/suite_data.py --labelled "webdataset:ROOT/test" --train "webdataset:ROOT/train"
    jclip eval MODEL --suite configs/suite_data.py --labelled "csv:FILE" --classes cat dog "polar bear"
    jclip eval MODEL --suite configs/suite_data.py --captioned "csv:FILE?captions=rows" --json results.json

Labelled examples are classified by prompts, and where there are some to train on, by a linear probe and by their neighbours, too;
captioned ones are retrieved, both ways. Other evaluations, and options of these, are a copy of this file away.
"""

from jclip.config import ConfigError, Evaluation, Labels, LinearProbe, NearestNeighbours, Retrieval, Suite, ZeroShot


def get_suite(
    labelled: str = "",
    train: str = "",
    captioned: str = "",
    templates: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
) -> Suite:
    """The suite.

    Args:
        labelled: examples with labels, to test on.
        train: examples with the same labels, to fit on.
        captioned: examples with an image and one or several texts.
        templates: prompts, with {} for the class, set:NAME or file:PATH; none: the source's own, or "a photo of a {}.".
        classes: those of the labels, in their order, where the source does not name them; file:PATH: a line for each.
        names: of the classes in prompts, in the same order, where these are others.
    """
    if not (labelled or captioned) or (train and not labelled):
        raise ConfigError("give --labelled SOURCE, perhaps with --train SOURCE, or --captioned SOURCE, or all of them")
    labels = Labels(classes=classes, names=names)
    evals: dict[str, Evaluation] = {}
    if labelled:
        evals["zero_shot"] = ZeroShot(labelled, labels, templates=templates)
    if train:
        evals |= {
            "probe": LinearProbe(train, labelled, labels=labels),
            "neighbours": NearestNeighbours(train, labelled, labels=labels),
        }
    if captioned:
        evals["retrieval"] = Retrieval(captioned)
    return Suite(evals)
