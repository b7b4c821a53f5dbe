"""DataComp's image-based filtering: English captions of more than two words and five letters, images of ImageNet's kinds.

    jclip filter "webdataset:/data/datacomp/*.tar" /data/image_based --recipe configs/filter_image_based.py

`like` is a source of images that show what is wanted. What the captions leave is divided into 100,000 clusters by the image
embeddings of OpenAI's ViT-L/14, and a cluster is kept that is the nearest of any image of `like`. Source: Gadre et al. 2023,
"DataComp: In search of the next generation of multimodal datasets" (arXiv:2304.14108), its baselines, with ImageNet-1k's training
set or ImageNet-21k. There the language is found by fastText, here by langid, which differs on short captions, and the clusters by
Faiss.
"""

from jclip.config import Filter, Subset


def get_filter(like: str = "tfds:imagenet2012:train") -> Filter:
    captions, model = Subset(where="words(text) > 2 and len(text) > 5"), "hf://openai/clip-vit-large-patch14"
    return Filter(captions, languages=("en",), model=model, like=(like,), clusters=100_000)
