"""DataComp's text-based filtering: English captions that have the name of a class, such as those of ImageNet.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/named --recipe configs/filter_text_based.py --classes names.txt

`classes` is a text file of names, one a line. Source: Gadre et al. 2023, "DataComp: In search of the next generation of
multimodal datasets" (arXiv:2304.14108), its baselines, where the names are the synsets of ImageNet. It is MetaCLIP's balancing
without a limit: what has no name is dropped, and of no name there are too many.
"""

from jclip.config import Filter


def get_filter(classes: str = "classes.txt") -> Filter:
    return Filter(languages=("en",), balance=classes, balance_most=2**31 - 1)
