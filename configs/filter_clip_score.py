"""DataComp's filtering by CLIP score: the 30% of the pool with the highest cosines of OpenAI's ViT-L/14.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/clip_score --recipe configs/filter_clip_score.py

Source: Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets" (arXiv:2304.14108), where this is
one of the baselines, "CLIP score (L/14 30%)". Another model or share: --model, --score-best.
"""

from jclip.config import Filter


def get_filter() -> Filter:
    return Filter(model="hf://openai/clip-vit-large-patch14", score_best=0.3)
