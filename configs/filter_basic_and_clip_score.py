"""DataComp's basic filtering and CLIP score: what both keep, which is their intersection.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/both --recipe configs/filter_basic_and_clip_score.py

Source: Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets" (arXiv:2304.14108), its baselines.
The 30% are those of the whole pool, so that all of it is embedded; with --score-among kept what basic filtering keeps alone is
embedded, and 30% of that kept.
"""

from jclip.config import Filter, Subset

WHERE = (
    "words(text) > 2 and len(text) > 5"
    " and min(json.original_width, json.original_height) >= 200"
    " and max(json.original_width, json.original_height) <= 3 * min(json.original_width, json.original_height)"
)


def get_filter() -> Filter:
    model = "hf://openai/clip-vit-large-patch14"
    return Filter(Subset(where=WHERE), languages=("en",), model=model, score_best=0.3, score_among="source")
