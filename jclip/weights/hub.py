"""Weights by an address on the Hugging Face hub, hf://ORG/NAME: fetched into its cache, or found there without a network."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jclip.weights.errors import WeightsError
from jclip.weights.hugging_face.processor import FILES as PROCESSOR_FILES
from jclip.weights.io.files import read_index
from jclip.weights.texts.tokenizers import FILES as TOKENIZER_FILES

PREFIX = "hf://"

SMALL = ("jclip.json", "open_clip_config.json", "config.json", "modules.json", "*.index.json", *PROCESSOR_FILES, *TOKENIZER_FILES)
"""Files of a repository that say the architecture, preprocessing and tokenizer of its weights, and where these are."""


def is_address(path: str | Path) -> bool:
    """True for an address on the hub."""
    return str(path).startswith(PREFIX)


def fetch(
    address: str,
    files: Mapping[str, Sequence[str]],
    beside: Callable[[Path], Sequence[str]],
    model_folder: Callable[[Path], Path] = lambda folder: folder,
) -> Path:
    """The folder of the cache that holds a repository's configuration and weights, and nothing else that is large.

    Args:
        address: hf://ORG/NAME, or with folders in it hf://ORG/NAME/FOLDER; then @REVISION: a branch, a tag or a commit.
        files: by the name of each configuration that is understood, the files that its weights may be in, the preferred first; a
            later one is fetched only where none before it is there.
        beside: names of the other files that the configuration in a folder names.
        model_folder: the folder of the model in one that says so; any other as it is.

    Raises:
        WeightsError: the address is none, huggingface_hub is not installed, or the repository is neither cached nor within reach.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)((?:/[\w.-]*[\w-][\w.-]*)*)/?(?:@([\w./-]+))?", address)
    if match is None:
        raise WeightsError(f"{address}: no address on the hub; use hf://ORG/NAME, or hf://ORG/NAME@REVISION")
    inside = match[2].lstrip("/")
    root = _snapshot(address, match[1], match[3], _within(inside, SMALL))
    commit = root.name  # so that all files are of one, should a branch move meanwhile
    folder = model_folder(root / inside)
    if folder != root / inside:
        inside = folder.relative_to(root).as_posix()
        _snapshot(address, match[1], commit, _within(inside, SMALL))

    def more(names: Sequence[str]) -> None:
        _snapshot(address, match[1], commit, _within(inside, names))

    if others := beside(folder):
        more(others)
    for name in (name for config, names in files.items() if (folder / config).is_file() for name in names):
        if not name.endswith(".index.json"):
            more([name])
        elif (folder / name).is_file():
            more(sorted(set(read_index(folder / name).values())))
        if (folder / name).is_file():
            break
    return folder


def _within(folder: str, names: Sequence[str]) -> list[str]:
    """Names of files in a folder of a repository, "" at its top."""
    return [f"{folder}/{name}" if folder else name for name in names]


def _snapshot(address: str, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetches the files of a repository that match."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise WeightsError(f"{address}: needs the package huggingface_hub; pip install 'jclip[hub]'") from None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"{address}: neither in the cache nor within reach ({type(error).__name__}: {reason}); check the name, the network "
            "and HF_HUB_OFFLINE, or give a folder that you have fetched yourself"
        ) from None
