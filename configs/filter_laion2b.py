"""LAION-2B's filtering as DataComp repeats it: English captions whose cosine by OpenAI's ViT-B/32 is at least 0.28.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/laion2b --recipe configs/filter_laion2b.py

Source: Schuhmann et al. 2022, "LAION-5B" (arXiv:2210.08402), and Gadre et al. 2023, "DataComp: In search of the next generation
of multimodal datasets" (arXiv:2304.14108), its baselines. There the language is found by cld3, here by langid, which differs on
short captions.
"""

from jclip.config import Filter


def get_filter() -> Filter:
    return Filter(languages=("en",), model="hf://openai/clip-vit-base-patch32", score_least=0.28)
