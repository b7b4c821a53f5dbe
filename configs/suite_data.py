"""Evaluations of data of one's own, chosen by options alone, for any model.

    jclip eval runs/mine --suite configs/suite_data.py --labelled "folder:DIR?labels=folders" --templates "a photo of a {}."
    jclip eval MODEL --suite configs/suite_data.py --labelled "webdataset:ROOT/test" --train "webdataset:ROOT/train"
    jclip eval MODEL --suite configs/suite_data.py --captioned "csv:FILE?captions=rows" --json results.json

Labelled examples are classified by prompts, and where there are some to train on, by a linear probe and by their neighbours, too;
captioned ones are retrieved, both ways. Other evaluations, and options of these, are a copy of this file away.
"""

from jclip.config import ConfigError, Evaluation, LinearProbe, NearestNeighbours, Retrieval, Suite, ZeroShot


def get_suite(labelled: str = "", train: str = "", captioned: str = "", templates: tuple[str, ...] = ()) -> Suite:
    """The suite.

    Args:
        labelled: examples with labels, to test on.
        train: examples with the same labels, to fit on.
        captioned: examples with an image and one or several texts.
        templates: prompts, with {} for the class, set:NAME or file:PATH; none: the source's own, or "a photo of a {}.".
    """
    if not (labelled or captioned) or (train and not labelled):
        raise ConfigError("give --labelled SOURCE, perhaps with --train SOURCE, or --captioned SOURCE, or all of them")
    evals: dict[str, Evaluation] = {}
    if labelled:
        evals["zero_shot"] = ZeroShot(labelled, templates=templates)
    if train:
        evals |= {"probe": LinearProbe(train, labelled), "neighbours": NearestNeighbours(train, labelled)}
    if captioned:
        evals["retrieval"] = Retrieval(captioned)
    return Suite(evals)
