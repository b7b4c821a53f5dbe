"""Files of sounds that are cut short where libsndfile does not say so: it takes what is there."""

from jclip.data.source import BadExample

UNKNOWN = 0x7FFF0000
"""Sizes from here on, and 0, stand in the header of a WAV that was written to a pipe: nobody knew them."""


def whole_file(data: bytes, kind: str) -> None:
    """Raises BadExample where the bytes of a file end before it says. in MP3 and FLAC that shows when they are decoded."""
    if kind in ("WAV", "WAVEX"):
        _whole_wav(data)
    elif kind == "OGG":
        _whole_ogg(data)


def _whole_wav(data: bytes) -> None:
    start = max(0, min(at for at in (data.find(b"RIFF"), data.find(b"RIFX"), len(data)) if at >= 0))  # behind a tag, such as ID3
    order = "big" if data[start : start + 4] == b"RIFX" else "little"
    place = start + 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)  # type: ignore[arg-type]
        place += 8
        if data[place - 8 : place - 4] == b"data":
            if 0 < size < UNKNOWN and place + size > len(data):
                raise BadExample(f"sound is cut short: {len(data) - place} of {size} bytes of samples are there")
            return
        place += size + size % 2
    raise BadExample("sound is cut short: it ends before its samples")


def _whole_ogg(data: bytes) -> None:
    """The last page: a header of 27 bytes, as many lengths as its last byte says, and so many bytes together; the third bit of
    byte 5 says that it ends the stream (RFC 3533, section 6)."""
    place = data.rfind(b"OggS")
    lengths = data[place + 27 : place + 27 + data[place + 26]] if place + 27 <= len(data) else b""
    if place + 27 > len(data) or len(lengths) < data[place + 26] or place + 27 + len(lengths) + sum(lengths) > len(data):
        raise BadExample("sound is cut short: its last page is not whole")
    if not data[place + 5] & 4:
        raise BadExample("sound is cut short: its last page does not end the stream")
