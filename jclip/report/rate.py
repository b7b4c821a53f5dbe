"""`jclip data --rate`: pictures a second of a source, as text or as JSON."""

import dataclasses
import importlib.util
import json

from rich.console import Console
from rich.progress import Progress

from jclip.config import ConfigError, Subset
from jclip.data import Source, open_part, source_name
from jclip.data.rate import as_text, measure


def main(
    source: str | Source,
    *,
    subset: Subset = Subset(),
    image: str = "image",
    size: int | tuple[int, int] = 224,
    workers: int = 0,
    seconds: float = 5.0,
    as_json: bool = False,
) -> None:
    """Prints pictures a second of a source; see `jclip.data.rate.Rates`.

    Args:
        source: what names a source, a folder of images, or a Source.
        subset: the part of the source that is measured.
        image: field of an example that holds its picture.
        size: of what a tower sees, a side or height and width.
        workers: as data.workers.
        seconds: of each measurement.
        as_json: print one JSON object instead of text.

    Raises:
        ConfigError: a number is out of range.
        SourceError: the source cannot be opened, or none of its pictures can be read.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or workers < 0 or not 0 < seconds < 3600:
        raise ConfigError(f"data: --size {size} and --seconds {seconds} must be above 0, --workers {workers} at least 0")
    examples = open_part(source, subset, "data")
    with Progress(console=Console(emoji=False, stderr=True), transient=True) as progress:
        tasks = {}

        def tick(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        found = measure(
            examples, source_name(source), image=image, size=(height, width), workers=workers, seconds=seconds, tick=tick
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    print(as_text(found))
    if importlib.util.find_spec("numba") is None:
        print("numba is not installed; pip install 'jclip[fast]' has pictures resized in a third of the time, to the same bits")
