"""Pictures, or sounds, that somebody names, for programs that look at them one by one: files, folders and globs."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from jclip.data.decoding import Decode
from jclip.data.files import read_file
from jclip.data.folder import SOUNDS, SUFFIXES, is_sound, open_folder
from jclip.data.sounds import sound_facts
from jclip.data.source import BadExample, SourceError


def example_files(names: Sequence[str | Path]) -> tuple[list[Path], Literal["image", "sound"]]:
    """The files that `names` stand for, in their order, and what they are: all images, or by their names all sounds.

    A folder stands for those in and below it, as the source `folder` has them; a name with *, ? or [ab] of which there is no file
    for all that match, sorted, and `**` for folders at any depth. Another name is a file, whether it is there or not.

    Raises:
        SourceError: a folder has neither, none matches, or there are both.
    """
    paths = [path for name in names for path in _files(Path(os.path.expanduser(name)), (*SUFFIXES, *SOUNDS))]
    sounds = [path for path in paths if is_sound(path.name)]
    if not sounds:
        return paths, "image"
    if len(sounds) < len(paths):
        image = next(path for path in paths if not is_sound(path.name))
        both = f"{len(paths) - len(sounds):,} images and {len(sounds):,} sounds, such as {image} and {sounds[0]}"
        raise SourceError(f"{both}: one call takes one of both; name them by patterns, such as '**/*{sounds[0].suffix}'")
    return paths, "sound"


def read_sounds(paths: Sequence[Path]) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The bytes of files that are sounds, and of each other one why it cannot be used."""
    contents, problems = dict[Path, bytes](), dict[Path, str]()
    for path in paths:
        try:
            content = read_file(path)
            sound_facts(content)
            contents[path] = content
        except BadExample as problem:
            problems[path] = str(problem)
    return contents, problems


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


def _files(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files of a name; of folders and globs those that end in one of `suffixes`."""
    endings = f"images end in {', '.join(SUFFIXES)}" + (f", sounds in {', '.join(SOUNDS)}" if suffixes != SUFFIXES else "")
    if path.is_dir():
        folder = open_folder(str(path))
        if is_sound(folder.names[0]) and suffixes == SUFFIXES:
            raise SourceError(f"{path}: no image in it, only sounds; {endings}")
        yield from (path / name for name in folder.names)
        if suffixes != SUFFIXES and not is_sound(folder.names[0]):
            yield from (path / name for name in folder.sounds.values())
            yield from (path / name for name in folder.alone)
    elif path.exists() or not glob.has_magic(str(path)):
        yield path
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found = [file for file in matches if file.is_file() and file.suffix.lower() in suffixes]
        if not found:
            others = f"; {len(matches)} files or folders do" if matches else ""
            what = "image" if suffixes == SUFFIXES else "image or sound"
            raise SourceError(f"{path}: no {what} matches{others}; {endings}")
        yield from found
