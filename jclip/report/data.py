"""`jclip data`: what a source holds, as text, as JSON, or as a page with pictures."""

import base64
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.config import ConfigError, Subset
from jclip.data import Source, find, open_part, source_name
from jclip.data.addresses import shown
from jclip.data.caches import write_atomically
from jclip.data.decoding import Decode
from jclip.data.fields import check_fields
from jclip.data.survey import Look, as_text, first_usable, outline, survey
from jclip.data.transforms import ToRgb
from jclip.eval.previews import sound_preview

PICTURES = 24
"""Examples on the page."""

SIDE = 160
"""Pixels of the longer side of a picture on the page."""


def main(
    source: str | Source,
    *,
    subset: Subset = Subset(),
    html: str | Path | None = None,
    as_json: bool = False,
    context_length: int = 77,
    most: int = 2000,
    image: str = "image",
    text: str = "text",
    sound: str = "sound",
) -> None:
    """Prints what a source holds; see `jclip.data.survey.Survey`.

    Args:
        source: what names a source, a folder of images or sounds, or a Source.
        subset: the part of the source that is looked at.
        html: a page to write as well, with pictures; of sounds their spectrograms, and players.
        as_json: print one JSON object instead of text.
        context_length: tokens of a caption that count.
        most: how many examples are read, spread evenly.
        image: field of an example that holds its image; an expression, as in data.fields.
        text: field that holds its caption.
        sound: field that holds its sound.

    Raises:
        ConfigError: a number is below 1, a field is no expression, or the extra of the page is missing.
        SourceError: the source cannot be opened.
    """
    if most < 1 or context_length < 1:
        raise ConfigError(f"data: --most {most} and --context-length {context_length} must be at least 1")
    fields = {"image": image, "sound": sound, "text": text}
    check_fields(fields, "data")
    examples = open_part(source, subset, "data")
    found, looks = survey(examples, fields, context_length=context_length, most=most)
    of_sounds = found.sounds > 0 and not found.images
    seen = {name: field for name, field in fields.items() if name != ("image" if of_sounds else "sound")}
    lines = [as_text(found, context_length), *outline(examples, seen)[1:]]
    print(json.dumps(dataclasses.asdict(found)) if as_json else "\n".join(lines))
    if html is not None:
        page = _page(
            source_name(source), "\n".join(lines), [_picture(examples, look, fields) for look in first_usable(looks, PICTURES)]
        )
        write_atomically(Path(html), lambda path: path.write_text(page, encoding="utf-8", newline="\n"))


def _picture(source: Source, look: Look, fields: Mapping[str, str]) -> dict[str, str]:
    """An example: its image, or else the spectrogram of its sound; and its sound where it has one."""
    example, shown = source[look.index], {"key": look.key, "text": look.text[:300]}
    heard = None if look.sound is None else sound_preview(find(example, fields["sound"]).value)
    src = thumbnail(find(example, fields["image"]).value) if look.format or heard is None else heard.image
    return {**shown, "src": src, "sound": "" if heard is None else heard.sound}


def thumbnail(image: Any) -> str:
    """A data URL of an image, encoded or u8[H, W, 3], made small. Raises BadExample where it is none."""
    small = ToRgb()(Decode()(image))
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _page(spec: str, text: str, pictures: list[dict[str, str]]) -> str:
    try:
        from jclip.report.template import fill
    except ImportError as error:
        raise ConfigError('data: jinja2 is not installed; pip install "jclip[report]"') from error
    return fill("data.html", spec=shown(spec), text=text, pictures=pictures)
