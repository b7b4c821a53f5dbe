"""ESC-50 and audio-text retrieval, for any model with a tower of sounds and one of texts.

    jclip eval runs/clap --suite configs/suite_sound.py --root data/ESC-50-master --json sound.json
    jclip eval hf://ORG/NAME --suite configs/suite_sound.py --train "csv:data/freesound.csv" --train-by id
    jclip eval runs/clap --suite configs/suite_sound.py --captioned "csv:data/test.csv?sound={youtube_id}.wav&captions=rows"

esc50 is zero-shot over all folds, with their mean; probe/1 to probe/5 are the set's own protocol, a classifier that is fitted on
four folds and tested on the fifth, for each. overlap looks for the test clips in the training data, by the numbers of their
recordings at Freesound and byte by byte, and says so where it finds some, or where nothing says what the training data are. Data
to try: `python tools/make_sounds.py data/sounds` makes a set of this layout.
"""

from jclip.config import Evaluation, FewShot, LinearProbe, Overlap, Retrieval, Suite, ZeroShot

FOLDS = (1, 2, 3, 4, 5)


def get_suite(
    root: str = "data/ESC-50-master",
    train: str = "",
    train_by: str = "",
    captioned: str = "",
    templates: tuple[str, ...] = (),
    tower: str = "sound",
) -> Suite:
    """The suite.

    Args:
        root: folder of the set, with meta/esc50.csv and audio/.
        train: what the model was trained on: a source, or a table of ids; none: what its run says, as far as there is one.
        train_by: field of `train` with ids of Freesound, or names of files that are such ids; none: src_file.
        captioned: sounds with one or several texts.
        templates: prompts, with {} for the class, set:NAME (laion_clap, msclap, transformers_clap) or file:PATH.
        tower: of the sounds.
    """
    whole = f"esc50:{root}"

    def folds(*chosen: int) -> str:
        return f"{whole}?folds={','.join(map(str, chosen))}"

    evals: dict[str, Evaluation] = {
        "overlap": Overlap(whole, train, tower, by="src_file", train_by=train_by),
        "esc50": ZeroShot(whole, templates=templates, image=tower, ks=(1, 5, 10), groups="fold"),
        "few_shot": FewShot(folds(*FOLDS[:-1]), folds(FOLDS[-1]), tower=tower),
    }
    for fold in FOLDS:
        others = folds(*(other for other in FOLDS if other != fold))
        evals[f"probe/{fold}"] = LinearProbe(others, folds(fold), "ridge", tower=tower)
    if captioned:
        evals["retrieval"] = Retrieval(captioned, a=tower)
    return Suite(evals)
