"""Pictures that somebody names, for programs that look at them one by one: files, folders and globs."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jclip.data.decoding import Decode
from jclip.data.files import read_file
from jclip.data.folder import SUFFIXES, is_sound, open_folder
from jclip.data.source import BadExample, SourceError


def picture_files(names: Sequence[str | Path]) -> list[Path]:
    """The files that `names` stand for, in their order.

    A folder stands for the images in and below it, as the source `folder` has them; a name with *, ? or [ab] of which there is no
    file for all images that match, sorted, and `**` for folders at any depth. Another name is a file, whether it is there or not.

    Raises:
        SourceError: a folder has no image, or none matches.
    """
    return [path for name in names for path in _files(Path(os.path.expanduser(name)))]


def read_pictures(paths: Sequence[Path], max_pixels: int) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The bytes of files that are images of at most `max_pixels`, and of each other one why it cannot be used."""
    contents, problems = dict[Path, bytes](), dict[Path, str]()
    for path in paths:
        try:
            content = read_file(path)
            Decode(max_pixels)(content)
            contents[path] = content
        except BadExample as problem:
            problems[path] = str(problem)
    return contents, problems


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        folder = open_folder(str(path))
        if is_sound(folder.names[0]):
            raise SourceError(f"{path}: no image in it, only sounds; images end in {', '.join(SUFFIXES)}")
        yield from (path / name for name in folder.names)
    elif path.exists() or not glob.has_magic(str(path)):
        yield path
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found = [file for file in matches if file.is_file() and file.suffix.lower() in SUFFIXES]
        if not found:
            others = f"; {len(matches)} files or folders do" if matches else ""
            raise SourceError(f"{path}: no image matches{others}; images end in {', '.join(SUFFIXES)}")
        yield from found
