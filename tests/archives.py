"""Writes tar files, and data sets in CLIP_benchmark's layout, for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], **options: Any) -> Path:
    """A tar file of these members, in order."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def npy(values: Any) -> bytes:
    """The bytes of a .npy."""
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def write_benchmark(
    root: Path,
    images: Sequence[bytes],
    labels: Sequence[Any],
    *,
    split: str = "test",
    kind: str | None = None,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    per_shard: int = 2,
) -> str:
    """A split of webp images with, by the kind, class indices, multi-hot rows, or lists of captions; the spec of its source.

    kind None is classification without dataset_type.txt.
    """
    folder = root / split
    folder.mkdir(parents=True)
    encode = {
        "multilabel": lambda label: ("npy", npy(label)),
        "retrieval": lambda label: ("txt", "\n".join(label).encode()),
    }.get(kind or "", lambda label: ("cls", str(label).encode()))
    starts = range(0, len(images), per_shard)
    for shard, start in enumerate(starts):
        members: dict[str, bytes] = {}
        for i in range(start, min(start + per_shard, len(images))):
            extension, data = encode(labels[i])
            members |= {f"s{i:07}.webp": images[i], f"s{i:07}.{extension}": data}
        write_tar(folder / f"{shard}.tar", members)
    (folder / "nshards.txt").write_text(f"{len(starts)}\n")
    for name, lines in (
        ("dataset_type.txt", [kind] if kind else []),
        ("classnames.txt", classes),
        ("zeroshot_classification_templates.txt", templates),
    ):
        if lines:
            (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"webdataset:{folder}"
