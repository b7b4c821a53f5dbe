"""The source `tfds`: a prepared TensorFlow Dataset, read at random without TensorFlow."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jclip.data.fingerprint import combine, file_digests
from jclip.data.source import BadExample, LazyExample, SourceError, decode_text, split_options


class Tfds:
    """One split of a data set; the fields of its examples are its features, and "key", which is "NAME:SPLIT:INDEX".

    Images stay encoded, texts become str, whole numbers int. The first feature of audio is "sound" too: a pair of its samples and
    their rate. `classes` are the names of the feature "label".
    """

    templates: tuple[str, ...] = ()

    def __init__(
        self,
        spec: str,
        records: Any,
        classes: tuple[str, ...],
        texts: frozenset[str],
        files: "Files",
        rates: Mapping[str, int | None],
    ) -> None:
        name, _, split = spec.partition("?")[0].partition(":")
        self.classes = classes
        self._spec = spec
        self._name = f"{name}:{split}"
        self._records = records
        self._texts = texts
        self._files = files
        self._rates = rates

    def __reduce__(self) -> tuple[Callable[[str], "Tfds"], tuple[str]]:
        """Another process opens the data set itself: its builder cannot always be pickled."""
        return open_tfds, (self._spec,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"tfds:{self._name} has no example {index}; it has {len(self)}")
        record: Mapping[str, Any] = self._records[index]
        readers: dict[str, Callable[[], Any]] = {
            name: partial(_plain, value, name in self._texts) for name, value in record.items() if name != "key"
        }
        if self._rates and "sound" not in readers:
            audio, rate = next(iter(self._rates.items()))
            return LazyExample(f"{self._name}:{index}", readers, {"sound": partial(_sound, record[audio], rate, audio)})
        return LazyExample(f"{self._name}:{index}", readers)

    def fingerprint(self) -> str:
        """See Source: over the split's files and which part of each is used, and the names of the data set, split and classes."""
        used = [f"{skip} {take}" for _, skip, take in self._files.parts]
        digests = file_digests([path for path, _, _ in self._files.parts])
        return combine("tfds", self._files.full_name, self._name, *used, *digests, *sorted(self._texts), "", *self.classes)


class Files(NamedTuple):
    """Files of the examples of a split."""

    full_name: str
    """Name of the data set, with its version: cifar10/3.0.2."""
    parts: tuple[tuple[str, int, int], ...]
    """(path, how many examples to skip, how many to take; -1 for the rest) of each file, in order."""


def _plain(value: Any, is_text: bool) -> Any:
    """A feature's value as jclip has it: str for text, int for a whole number, other arrays and bytes unchanged."""
    if isinstance(value, bytes) and is_text:
        return decode_text(value)
    if isinstance(value, np.integer) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iu"):
        return int(value)
    return value


def _sound(value: Any, rate: int | None, feature: str) -> Any:
    """A feature of audio as a sound: encoded bytes, or samples with their rate."""
    if isinstance(value, bytes):
        return value
    if rate is None:
        raise BadExample(f"the data set does not say the sample rate of its feature {feature}")
    return np.asarray(value), rate


def open_tfds(spec: str) -> Tfds:
    """Opens "NAME[/CONFIG]:SPLIT[?data_dir=FOLDER]"; SPLIT may be a part, such as train[:90%].

    Raises:
        SourceError: the package is missing, the data set is not prepared in a format with random access, or has no such split.
    """
    at = f"source 'tfds:{spec}'"
    path, options = split_options(spec, ("data_dir",))
    name, _, split = path.partition(":")
    if not name or not split:
        raise SourceError(f"{at}: name the data set and the split, as in tfds:cifar10:test")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise SourceError(f'{at}: tensorflow_datasets cannot be imported ({error}); pip install "jclip[tfds]"') from None
    prepare = f"python -m tensorflow_datasets.scripts.cli.main build {name} --file_format=array_record"
    try:
        builder: Any = tfds.builder(name, data_dir=options.get("data_dir"))
    except Exception as error:  # tfds raises errors of its own, KeyError and ValueError for unknown names and configs
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{at}: there is no data set {name!r} in {options.get('data_dir', 'the default folder')}: {first}"
        ) from None
    features, splits = builder.info.features, builder.info.splits
    if not splits:
        raise SourceError(f"{at}: {name} is not prepared in {builder.data_dir}; run {prepare}, or add ?data_dir=FOLDER")
    images = {key for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
    try:
        decoders = {key: tfds.decode.SkipDecoding() for key in images}
        records = builder.as_data_source(split=split, decoders=decoders or None)
        length = len(records)
    except NotImplementedError:
        raise SourceError(f"{at}: the files in {builder.data_dir} have no random access; prepare it again: {prepare}") from None
    except ValueError as error:
        raise SourceError(f"{at}: there is no split {split!r}: {error}; splits: {', '.join(splits)}") from None
    if not length:
        raise SourceError(f"{at}: the split {split!r} is empty; splits: {', '.join(splits)}")
    label = dict(features.items()).get("label")
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) and label.names else ()
    texts = frozenset(key for key, feature in features.items() if isinstance(feature, tfds.features.Text))
    parts = tuple((str(part.filename), part.skip, part.take) for part in splits[split].file_instructions)
    audio = {key: feature for key, feature in features.items() if isinstance(feature, tfds.features.Audio)}
    rates = {key: getattr(feature, "sample_rate", None) for key, feature in audio.items()}
    return Tfds(spec, records, classes, texts, Files(builder.info.full_name, parts), rates)
