"""DataComp's basic filtering: English captions of more than two words and five characters, images of 200 pixels and more.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/basic --recipe configs/filter_basic.py

Source: Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets" (arXiv:2304.14108), its baselines.
Sizes are those in the pool's metadata, which img2dataset writes: the pictures themselves may have been made smaller.
There the language is found by fastText or cld3, here by langid, which differs on short captions. No model, and no GPU; some
thousands of captions a second and core.
"""

from jclip.config import Filter, Subset

WHERE = (
    "words(text) > 2 and len(text) > 5"
    " and min(json.original_width, json.original_height) >= 200"
    " and max(json.original_width, json.original_height) <= 3 * min(json.original_width, json.original_height)"
)


def get_filter() -> Filter:
    return Filter(Subset(where=WHERE), languages=("en",))
