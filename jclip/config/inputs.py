"""The dataclasses that say how the inputs of towers are made; they are stored with the weights, which are only good for them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.ranges import Range

Id = Annotated[int, Range(least=0)]
Mean = Annotated[float, Range(least=0, most=1)]
Deviation = Annotated[float, Range(least=1e-3, most=10)]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of images."""

    mean: tuple[Mean, Mean, Mean] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of each RGB channel, in units of 0 to 1 (default: OpenAI CLIP)."""
    std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of each RGB channel, in units of 0 to 1 (default: OpenAI CLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of every resize, antialiased, on uint8."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """shortest: to the least size that covers the tower's, then centre crop; longest: to the largest that fits into it, then pad;
    squash: both sides to it."""
    fill: Annotated[int, Range(least=0, most=255)] = 0
    """Grey value (0 to 255) of the padding of `longest`."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenization of texts."""

    kind: Literal["clip", "sentencepiece", "hugging_face"] = "clip"
    """clip: OpenAI's byte-pair encoding, 49,408 ids; sentencepiece and hugging_face read a vocabulary from `file`."""
    file: str = ""
    """A sentencepiece model, or a tokenizer.json."""
    sha256: str = ""
    """SHA-256 of `file`, hex; a different file is refused; empty accepts any."""
    clean: Literal["none", "whitespace", "lower", "canonicalize", "siglip", "siglip2", "msclap"] = "lower"
    """whitespace: mend mojibake and HTML, single spaces; lower: also lower case; canonicalize: also no punctuation (open_clip).
    siglip, siglip2: as transformers' tokenizers of these names. msclap: a space follows, and pad_id is split off where it is a
    word ("!" of GPT-2)."""
    bos_id: Id | None = None
    """Put before the ids."""
    eos_id: Id | None = None
    """Put after the ids."""
    last_id: Id | None = None
    """Put at the last position, behind the padding (CLIPS). With one of these three, a tokenizer.json puts nothing itself."""
    pad_id: Id = 0
    """Fills what is left of context_length."""
    strip_id: Id | None = None
    """Id that is replaced by 0 in the end (CLIPA's end of text)."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        given = [name for name in ("bos_id", "eos_id", "last_id", "strip_id") if getattr(self, name) is not None]
        if self.kind == "clip" and (self.file or given or self.pad_id):
            what = ", ".join([*(["file"] if self.file else []), *given, *(["pad_id"] if self.pad_id else [])])
            yield f": kind 'clip' brings its own vocabulary and ids; leave out {what}, or use kind 'hugging_face'"
        if self.kind != "clip" and not self.file:
            yield f".file is empty; kind {self.kind!r} needs the path of a vocabulary"
        if self.kind == "clip" and self.clean not in ("lower", "canonicalize"):
            yield f".clean {self.clean!r}: kind 'clip' knows lower case only; use 'lower' or 'canonicalize'"
        owner = {"siglip": "sentencepiece", "siglip2": "hugging_face", "msclap": "hugging_face"}.get(self.clean, self.kind)
        if self.kind not in ("clip", owner):
            yield f".clean {self.clean!r} is for kind {owner!r}; with {self.kind!r} use 'none' to 'canonicalize'"
        if self.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            yield f".sha256 {self.sha256!r} is not 64 hexadecimal digits; take those of `sha256sum`"
