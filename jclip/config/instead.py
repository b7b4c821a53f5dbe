"""Names of models as other libraries write them, or misspelt, and what to write here."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from jclip.config.architectures import architecture_names

FILES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
"""Endings of weight files."""

HUB = r"(?:hf[-_]hub:|https?://huggingface\.co/)([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/.*|/)?"
"""Repository of the Hugging Face hub as open_clip and timm, or browsers, name it."""

SHOWN = 10
"""Files of a folder that are named."""


def instead_of(name: str) -> str:
    """Words that say what to write in place of a name of which there is no file or folder; "" where nothing is known of it."""
    if match := re.fullmatch(HUB, name):
        return f"here the address of a repository is hf://{match[1]}"
    if "://" in name:
        return "only hf://, and runs at s3:// and gs://, are fetched; mount the bucket or copy the files, and give their path"
    if name.startswith("local-dir:"):
        return f"here a folder has no scheme: {name.removeprefix('local-dir:')}"
    if (base := name.replace("/", "-")) != name and base in architecture_names():
        return f"the architecture is {base}, which has random weights; OpenAI's are hf://openai/clip-vit-base-patch32, for one"
    if Path(name).suffix in FILES:
        folder = os.path.dirname(name) or "."
        if not os.path.isdir(folder):
            return f"there is no such file; there is no folder {folder}"
        return f"there is no such file; weight files in {folder}: {_some(folder, FILES) or 'none'}"
    folder = os.path.dirname(name)
    if folder and os.path.isdir(folder):
        return f"there is no such file or folder; {folder} has {_some(folder) or 'nothing in it'}"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return f"there is no folder {folder}; the address of a repository on the Hugging Face hub is hf://{name}"
    return ""


def _some(folder: str, endings: str | tuple[str, ...] = "") -> str:
    """The names of the first files in a folder with these endings; "" where there are none, or they cannot be listed."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(endings))
    except OSError:
        return ""
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])


def near_names(name: str) -> str:
    """The architectures whose names are nearest, or some, and where all of them stand."""
    spelt = {known.lower(): known for known in architecture_names()}
    near = get_close_matches(name.lower().replace("_", "-"), spelt, 3) or ("vit-b-32", "vit-l-14", "vit-b-16-siglip")
    return f"{', '.join(spelt[one] for one in near)}, ... (all: jclip info, jclip.list_models())"


def tag_instead(name: str, tag: str) -> str:
    """Words that say what to write in place of an architecture and one of open_clip's tags of weights."""
    return (
        f"{tag!r} is a tag of open_clip; here its weights are a repository, load('hf://ORG/NAME'), which "
        f"open_clip.get_pretrained_cfg({name!r}, {tag!r})['hf_hub'] names"
    )
