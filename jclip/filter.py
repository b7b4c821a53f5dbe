"""`jclip filter`: which examples of a source are worth training on, and by which rule each other one is dropped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from jclip.config import ConfigError, Filter, Subset, check_filter, differences, to_json
from jclip.data import Source, SourceError, open_part, source_name
from jclip.data.balance import balanced
from jclip.data.caches import write_atomically
from jclip.data.findings import RULES, Findings, read_entries, read_findings, table_of
from jclip.data.fingerprint import combine, file_digests, sample_fingerprint
from jclip.data.language import known_languages
from jclip.data.subset import SelectedExamples, highest
from jclip.embed import Job
from jclip.embed_blocks import StoppedByUser, is_shared, share, with_own_devices
from jclip.eval.clusters import centres_of
from jclip.eval.duplicates import as_near, nearest_before, nearest_of
from jclip.facts import between_hosts, listed
from jclip.files import read_whole
from jclip.inference import Encoder, load, tower_digest
from jclip.processes import Refused, gather_texts, is_first, leave_together, together
from jclip.report.filter import render
from jclip.results import describe_machine

FORMAT = "jclip filter 1"

ADDED, ADDED_RULES = ("like",), ("unlike",)
"""Entries of filter.json, and rules in its counts, that an older jclip did not write."""

IMAGES_A_CLUSTER = 100
"""Images that a cluster has on average, where no number of clusters is given; there are MOST_CLUSTERS at most."""

MOST_CLUSTERS = 100_000

SCORED_AT_A_TIME = 2**14
"""Rows of images and captions whose cosines are taken at once."""


def main(source: str | Source, out: str | Path, rules: Filter) -> Path:
    """Asks the rules of every example, and writes which are kept.

    Writes out/kept.jsonl (a key a line, a JSON string), which data.subset.keys reads; out/table.parquet (extra: tables), a row
    for each example with all that is known of it and the rule that dropped it; out/index.html (extra: report); out/embeddings/,
    where a rule asks for any; and out/filter.json, with the rules, how many each has dropped, and versions. The same call again
    goes on where it was stopped. Several processes make the embeddings together, each with its own devices, and the first
    writes; every one has to call it, with `out` on storage that all see.

    Args:
        source: what names a source, a folder of images, or a Source.
        out: folder to write to; made where it is missing.
        rules: what is kept.

    Returns:
        The file of keys.

    Raises:
        ConfigError: the rules contradict each other, the model lacks a tower, or `out` holds the result of other rules, of
            another model or source.
        SourceError: a source or file cannot be read, or nothing is kept.
        Refused: another process cannot take part, or the processes differ in data, rules or model.
        SystemExit: status 130, after Ctrl-C; embeddings that are done are kept.
    """
    check_filter(rules)
    console, out = Console(emoji=False, stderr=True, highlight=False, markup=False, quiet=not is_first()), Path(out)
    if unknown := {*rules.languages} - known_languages() if rules.languages else set():
        raise ConfigError(f"filter: --languages {', '.join(sorted(unknown))}: known are {', '.join(sorted(known_languages()))}")
    spec = source_name(source)
    with leave_together((ConfigError, SourceError, Refused, StoppedByUser)):
        named = (source, *rules.like, *rules.against)
        examples, *others = together(lambda: [open_part(one, Subset(), "filter") for one in named])
        like, against = others[: len(rules.like)], others[len(rules.like) :]
        encoder = together(lambda: with_own_devices(_load(rules))) if rules.embeds else None
        facts = together(lambda: _facts(examples, like, against, rules, encoder))
        _compare(facts)
        record = _open_record(out, spec, facts)
        if not record.done:
            try:
                found = _ask(out, spec, examples, like, against, rules, encoder, console)
                together(lambda: _write(out, spec, examples, against, found, console) if is_first() else None)
            except (KeyboardInterrupt, StoppedByUser):
                console.print(f"stopped; the same command goes on from what is in {out}", soft_wrap=True)
                raise SystemExit(130) from None
            record.finish(found)
    console.print("\n".join(record.lines()), soft_wrap=True)
    if not record.done["kept"]:
        raise SourceError(f"filter: nothing of {spec} is kept; {out / 'filter.json'} says why")
    return out / "kept.jsonl"


def _compare(facts: Mapping[str, Any]) -> None:
    """Raises Refused where the processes would filter other data, by other rules, or with another model."""
    records = [json.loads(text) for text in gather_texts(json.dumps(facts))]
    if lines := between_hosts([f"process {i}" for i in range(len(records))], records):
        raise Refused(f"filter: the processes differ:\n  {listed(lines)}")


def _open_record(out: Path, spec: str, facts: Mapping[str, Any]) -> "FilterFile":
    """The record, which the first process makes and the others read."""
    first = together(lambda: FilterFile(out, spec, facts) if is_first() else None)

    def read() -> FilterFile:
        if not (out / "filter.json").exists():
            raise ConfigError(f"filter: {out} lacks the filter.json of process 0: it has to be on storage that all hosts see")
        return first or FilterFile(out, spec, facts, writes=False)

    return together(read)


class FilterFile:
    """The file filter.json, which says of what a folder is the result, and how many examples each rule has dropped."""

    def __init__(self, out: Path, spec: str, facts: Mapping[str, Any], *, writes: bool = True) -> None:
        self.writes = writes
        """False: another process writes it."""
        self.path, self.spec, self.facts = out / "filter.json", spec, dict(facts)
        self.done: dict[str, Any] = {}
        """Counts, once all is written; {} before."""
        self.notes: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()
        elif others := [path.name for path in out.iterdir() if path.name in ("kept.jsonl", "table.parquet", "embeddings")]:
            raise ConfigError(f"filter: {out} has {others[0]}, and no filter.json that says of what; give another folder")
        if not (out / "kept.jsonl").exists():
            self.done = {}
        if not self.done:
            self._save({})

    def _read(self) -> None:
        try:
            known = json.loads(read_whole(self.path))
            if known["format"] != FORMAT:
                raise ValueError(f"its format is {known['format']!r}, and this jclip reads {FORMAT!r}")
            facts = {name: known.get(name, []) if name in ADDED else known[name] for name in self.facts}
            facts["rules"] = {**to_json(Filter()), **known["rules"]}  # it may be of a jclip that had fewer
            self.done, self.notes = dict(known["counts"]), [str(line) for line in known["notes"]]
            self.done = {**dict.fromkeys(ADDED_RULES, 0), **self.done} if self.done else {}
            if self.done and (self.done.keys() != {"kept", *RULES} or sum(self.done.values()) != known["examples"]):
                raise ValueError("its counts are not those of the rules")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"filter: {self.path} is damaged ({error}); give another folder, or empty it") from None
        if different := differences(facts, json.loads(json.dumps(self.facts))):
            raise ConfigError(f"filter: {self.path.parent} is of something else: {'; '.join(different)}; give another folder")

    def finish(self, found: Findings) -> None:
        """Adds the counts: what makes the folder whole."""
        self.done, self.notes = found.counts(), found.notes
        self._save({"reasons": dict(found.reasons.most_common(20))})

    def _save(self, more: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        content = {"format": FORMAT, "source": self.spec, **self.facts, "counts": self.done, "notes": self.notes, **more}
        text = json.dumps({**content, **describe_machine()}, indent=1)
        write_atomically(self.path, lambda part: part.write_text(text + "\n", encoding="ascii"))

    def lines(self) -> list[str]:
        """The result for people: how many are kept, how many each rule has dropped, and notes."""
        total, kept = sum(self.done.values()), self.done["kept"]
        dropped = [f"{self.done[rule]:,} are dropped: {rule}" for rule in RULES if self.done[rule]]
        return [f"{kept:,} of {total:,} examples are kept ({kept / max(1, total):.1%})", *dropped, *self.notes]


def _load(rules: Filter) -> Encoder:
    encoder = load(rules.model)
    for tower in ("image", "text") if rules.scores else ("image",):
        if tower not in encoder.config.towers:
            raise ConfigError(f"filter: the model has no tower {tower!r}; towers: {', '.join(encoder.config.towers)}")
    return encoder


def _facts(
    source: Source, like: Sequence[Source], against: Sequence[Source], rules: Filter, encoder: Encoder | None
) -> dict[str, Any]:
    """All that the result depends on."""
    towers = sorted(encoder.config.towers) if encoder is not None else []
    digests = [tower_digest(encoder.params, tower, encoder.mesh) for tower in towers] if encoder is not None else []
    files = [path for path in (rules.subset.keys, rules.subset.table, rules.balance) if path]
    return {
        "rules": to_json(rules),
        "examples": len(source),
        "data": sample_fingerprint(source),
        "weights": combine(*digests) if digests else "",
        "files": {path: file_digests([Path(path).expanduser()])[0].hex() for path in files},
        "like": [sample_fingerprint(other) for other in like],
        "against": [sample_fingerprint(other) for other in against],
    }


def _ask(
    out: Path,
    spec: str,
    source: Source,
    like: Sequence[Source],
    against: Sequence[Source],
    rules: Filter,
    encoder: Encoder | None,
    console: Console,
) -> Findings:
    """The rules one after the other, those that need no model first."""
    entries = read_entries(rules.balance) if rules.balance else None
    found = together(lambda: read_findings(source, rules, entries))
    if encoder is not None and len(found.kept()):
        clusters = _number_of_clusters(rules, len(found.kept())) if rules.like else 0
        wanted = list(_images(out / "embeddings", "like", rules.like, like, encoder, rules, console))
        everything = rules.score_among == "source"
        rows = np.flatnonzero(found.dropped != found.number("unreadable")) if everything else found.kept()
        part = SelectedExamples(source, rows, ())
        z = _embed(out / "embeddings", spec, part, encoder, rules, ("image", "text") if rules.scores else ("image",), console)
        found.count_unreadable(out / "embeddings" / "problems.txt")
        whole = np.logical_and.reduce([~np.isnan(array[:, 0]) for array in z.values()])
        found.drop(rows[~whole], "unreadable")
        place = np.full(len(source), -1)
        place[rows] = np.arange(len(rows))

        def vectors(kept: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.asarray(z["image"][place[kept]])

        if rules.like:
            _drop_unlike(found, clusters, vectors, wanted)
        if rules.scores:
            found.score[rows] = _cosines(z["image"], z["text"])
            _drop_low_scores(found, rules)
        for number, theirs in enumerate(_images(out / "embeddings", "against", rules.against, against, encoder, rules, console)):
            _meet(found, number, vectors, theirs)
        if rules.against:
            found.drop(np.flatnonzero(as_near(found.against_cosine, rules.contaminated)), "contaminated")
        if rules.duplicates is not None:
            _drop_duplicates(found, rules, vectors)
    if entries is not None:
        kept = found.kept()
        keys, matches = [found.keys[row] or "" for row in kept], [found.entries[row] for row in kept]
        keep = balanced(matches, keys, entries.names, rules.balance_most, rules.seed)
        found.drop(kept[~keep], "balance")
    return found


def _embed(
    folder: Path, spec: str, source: Source, encoder: Encoder, rules: Filter, towers: Sequence[str], console: Console
) -> dict[str, NDArray[np.float32]]:
    """Embeddings f32 [n, E] by tower, on disk, as `jclip embed` writes them; of several processes each makes a part."""
    folder.mkdir(parents=True, exist_ok=True)
    job = together(lambda: Job(folder, spec, source, encoder, rules.max_pixels, guest=not is_first()))
    embed = share if is_shared(folder) else Job.embed
    for tower in towers:
        embed(job, tower, rules.image if tower == "image" else rules.text, rules.batch_size, console)
    return {tower: np.load(folder / f"{tower}.npy", mmap_mode="r") for tower in towers}


def _images(
    folder: Path,
    rule: str,
    names: Sequence[str],
    others: Sequence[Source],
    encoder: Encoder,
    rules: Filter,
    console: Console,
) -> Iterator[NDArray[np.float32]]:
    """Embeddings f32 [m, E] of the images of each source that a rule names; NaN of those that cannot be read."""
    for number, (name, other) in enumerate(zip(names, others, strict=True)):
        try:
            yield _embed(folder / f"{rule}-{number}", name, other, encoder, rules, ("image",), console)["image"]
        except SourceError as error:
            raise SourceError(f"filter: {rule} {name}: {error}") from None


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row-wise products of unit vectors [n, E], summed in f64; NaN where a row of either is."""
    starts = range(0, len(a), SCORED_AT_A_TIME)
    parts = [np.einsum("ij,ij->i", *(x[s : s + SCORED_AT_A_TIME].astype(np.float64) for x in (a, b))) for s in starts]
    return np.concatenate(parts).astype(np.float32)


def _drop_low_scores(found: Findings, rules: Filter) -> None:
    kept = found.kept()
    if rules.score_best is None:
        keep = found.score[kept] >= np.float32(rules.score_least if rules.score_least is not None else -1)
    elif rules.score_among == "source":
        keep = highest(found.score.astype(np.float64), rules.score_best)[kept]
    else:
        keep = highest(found.score[kept].astype(np.float64), rules.score_best)
    found.drop(kept[~keep], "score")


Vectors = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Rows of the source -> their embeddings."""


def _number_of_clusters(rules: Filter, images: int) -> int:
    """The number of clusters of so many images. Raises SourceError where these are too few."""
    clusters = rules.clusters if rules.clusters is not None else min(MOST_CLUSTERS, images // IMAGES_A_CLUSTER)
    if clusters > images:
        raise SourceError(
            f"filter: {clusters:,} clusters of {images:,} images that are left; give fewer --clusters, and another folder"
        )
    if clusters < 2 and rules.clusters is None:
        raise SourceError(f"filter: {images:,} images are left, too few for clusters of {IMAGES_A_CLUSTER}; give --clusters")
    return clusters


def _drop_unlike(found: Findings, clusters: int, vectors: Vectors, wanted: Sequence[NDArray[np.float32]]) -> None:
    """Drops what is kept so far and in a cluster that is the nearest to no image of the sources `like`."""
    kept = found.kept()
    if clusters > len(kept):  # some could not be read
        raise SourceError(
            f"filter: {clusters:,} clusters of {len(kept):,} images that can be read; give fewer, and another folder"
        )
    z = vectors(kept)
    centres = centres_of(z, clusters, seed=found.rules.seed, progress="clusters")
    nearest = [nearest_of(theirs, centres, progress="clusters of what is wanted").row for theirs in wanted]
    liked = np.unique(np.concatenate(nearest))
    found.cluster[kept] = nearest_of(z, centres, progress="clusters of all").row
    found.drop(kept[~np.isin(found.cluster[kept], liked)], "unlike")
    found.notes.append(f"{np.count_nonzero(liked >= 0):,} of {clusters:,} clusters have an image of --like")
    found.notes += [
        f"{count:,} of {len(rows):,} images of --like {name} cannot be read"
        for name, rows in zip(found.rules.like, nearest, strict=True)
        if (count := np.count_nonzero(rows < 0))
    ]


def _meet(found: Findings, number: int, vectors: Vectors, theirs: NDArray[np.float32]) -> None:
    """Notes the nearest image of another source for each example that is kept so far, where it is nearer than those before."""
    kept = found.kept()
    near = nearest_of(vectors(kept), theirs, progress=f"compare with {found.rules.against[number]}")
    nearer = near.cosine > found.against_cosine[kept]
    rows = kept[nearer]
    found.against_cosine[rows] = near.cosine[nearer]
    found.against_row[rows] = near.row[nearer]
    found.against_source[rows] = number


def _drop_duplicates(found: Findings, rules: Filter, vectors: Vectors) -> None:
    kept = found.kept()
    order = kept[np.argsort(-found.score[kept], kind="stable")] if rules.scores else kept
    near = nearest_before(vectors(order), progress="duplicates")
    found.before_cosine[order] = near.cosine
    found.before_row[order] = np.where(near.row >= 0, order[near.row], -1)
    assert rules.duplicates is not None
    found.drop(order[as_near(near.cosine, rules.duplicates)], "duplicate")


def _write(out: Path, spec: str, source: Source, others: Sequence[Source], found: Findings, console: Console) -> None:
    """The files, the keys last: who finds them finds the others."""
    keys = [[json.loads(line) for line in _lines(out / "embeddings" / f"against-{i}" / "keys.jsonl")] for i in range(len(others))]
    try:
        import pyarrow.parquet as pq

        table = table_of(found, keys)
        write_atomically(out / "table.parquet", lambda part: pq.write_table(table, part))
    except ImportError as error:
        console.print(f'no table.parquet: pyarrow cannot be imported ({error}); pip install "jclip[tables]"', soft_wrap=True)
    try:
        page = render(spec, source, others, found)
        write_atomically(out / "index.html", lambda part: part.write_text(page, encoding="utf-8", newline="\n"))
    except ImportError as error:
        console.print(f'no index.html: {error}; pip install "jclip[report]"', soft_wrap=True)
    text = "".join(f"{json.dumps(found.keys[row])}\n" for row in found.kept())
    write_atomically(out / "kept.jsonl", lambda part: part.write_text(text, encoding="ascii"))


def _lines(path: Path) -> Iterator[str]:
    yield from read_whole(path).decode().splitlines() if path.exists() else []
