"""DataComp's image-based filtering and CLIP score: what both keep, by which DataComp-1B was made.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/best --recipe configs/filter_image_based_and_clip_score.py

Source: Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets" (arXiv:2304.14108), its baselines;
see configs/filter_image_based.py. The 30% are those of the whole pool, so that all of it is embedded.
"""

from jclip.config import Filter, Subset


def get_filter() -> Filter:
    return Filter(
        Subset(where="words(text) > 2 and len(text) > 5"),
        languages=("en",),
        model="hf://openai/clip-vit-large-patch14",
        like=("tfds:imagenet2012:train",),
        clusters=100_000,
        score_best=0.3,
        score_among="source",
    )
