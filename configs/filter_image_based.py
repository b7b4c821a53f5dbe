"""DataComp's image-based filtering: English captions of more than two words and five characters, images of ImageNet's kinds.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/image_based --recipe configs/filter_image_based.py

What the captions leave is divided into 100,000 clusters by the image embeddings of OpenAI's ViT-L/14, and a cluster is kept that
is the nearest to any image of `like`. Source: Gadre et al. 2023, "DataComp: In search of the next generation of multimodal
datasets" (arXiv:2304.14108), its baselines, with the training set of ImageNet-1k, as here, or ImageNet-21k: --like. There the
language is found by fastText, here by langid, which differs on short captions, and the clusters by Faiss.
"""

from jclip.config import Filter, Subset


def get_filter() -> Filter:
    return Filter(
        Subset(where="words(text) > 2 and len(text) > 5"),
        languages=("en",),
        model="hf://openai/clip-vit-large-patch14",
        like=("tfds:imagenet2012:train",),
        clusters=100_000,
    )
