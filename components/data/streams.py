"""Which stream a run learns: a named one (generated at the first use), a prepared folder, or a user's file."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from components.core.errors import ConfigError, DataError
from components.core.machine import cache_dir
from components.core.options import Count, CountOrZero, ShareUpToHalf, check_options
from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.embedded.facts import Partition
from components.data.embedded.family import Family
from components.data.embedded.mini_coast import MINI_COAST, SIZES
from components.data.embedded.mini_coin.generate import MINI_COIN
from components.data.formats.importing import RULES, StreamFile, import_stream, read_stream_file
from components.data.prepared import PreparedTask, open_prepared, whole_or_nothing, write_stream_json
from components.data.rows import Row, Split, open_split, verify_split, write_split
from components.data.tasks import Task, TaskStream
from components.data.validation import VALIDATION, part, sides

_COIN = ("scienceqa", "textvqa", "imagenet", "gqa", "vizwiz", "grounding", "vqav2", "ocrvqa")
NAMED_STREAMS: dict[str, tuple[str, ...]] = {
    "mini-coast-domain": ("chartqa", "docvqa", "iconqa", "medicalqa"),
    "mini-coast-capability": ("conversation", "detail", "reasoning", "referring"),
    "mini-coast-capability-table-order": ("referring", "detail", "reasoning", "conversation"),
    "mini-coast-pictures": ("charts", "cards", "icons", "scans"),  # same words, other pictures: routing is hard
    "mini-coast-dataset": _COIN,  # COAST's dataset-incremental stream learns CoIN's tasks
    "mini-coin": _COIN,
    "mini-coin-alphabetical": tuple(sorted(_COIN)),
    "mini-coin-reversed": _COIN[::-1],
}
FORMER = Path(__file__).parent / "former" / "mini_streams.json"  # family, version and size -> task -> its identity
_FAMILIES: dict[str, Family] = {task: family for family in (MINI_COAST, MINI_COIN) for task in family.tasks}


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which data is learned, in which order."""

    name: str = "mini-coast-domain"
    """mini-coast-domain, mini-coast-capability, mini-coast-capability-table-order, mini-coast-pictures,
    mini-coast-dataset, mini-coin, mini-coin-alphabetical, mini-coin-reversed, or the path of a stream TOML or of a
    folder written by pipelines/prepare.py."""
    size: str = "mini"
    """Of a generated stream: nano (32/16 rows a task), mini (400/100) or small (2000/400)."""
    order: tuple[str, ...] = ()
    """Task names in the order to learn them, possibly fewer; empty: the stream's own order."""
    data_dir: Path | None = None
    """Where generated splits are kept; default: $LITTORAL_CACHE/data or ~/.cache/littoral/data."""
    data_seed: CountOrZero = 0
    """Seed of a generated stream."""
    train_limit: Count | None = None
    """Use only the first rows of every train split, without its validation part."""
    test_limit: Count | None = None
    """Use only the first rows of every test split and validation part."""
    validation: ShareUpToHalf = 0.0
    """Share of the training rows (0 to 0.5) that is never trained on, to choose settings by: cut by a hash of a row's
    picture, or of its questions where it has none. Kept as copies below the data folder."""

    def __post_init__(self) -> None:
        check_options(self, "stream")
        if self.name in NAMED_STREAMS and self.size not in SIZES:
            raise ConfigError(f"stream.size {self.size!r} is unknown; choose {listed(self.size, SIZES)}")
        doubled = {task for task in self.order if self.order.count(task) > 1}
        if doubled:
            raise ConfigError(f"stream.order names {sorted(doubled)[0]} twice; a task is learned once.")


def listed(given: str, allowed: Iterable[str]) -> str:
    """The allowed names, and the one that `given` was probably meant to be."""
    names = list(allowed)
    close = difflib.get_close_matches(given, names, n=1)
    return f"{', '.join(names)}." + (f" Did you mean {close[0]}?" if close else "")


def data_root(config: StreamConfig) -> Path:
    """The folder that holds generated and imported splits."""
    if config.data_dir is not None:
        return config.data_dir.expanduser().resolve()
    return cache_dir() / "data"


def open_stream(config: StreamConfig, *, scored: str = "test") -> TaskStream:
    """The stream that `config` names, every shard verified; missing splits of a named one are generated and kept.

    With `scored` "validation", every task's `test` is its validation part. Raises `ConfigError` for an unknown stream,
    size or task, and for a validation part that `config` does not cut; `DataError` for damaged or refused data.
    """
    if scored == VALIDATION and not config.validation:
        raise ConfigError(
            "evaluation.split is validation, and stream.validation is 0; give --stream.validation 0.2, or any share up "
            "to 0.5."
        )
    path = Path(config.name).expanduser()
    if config.name in NAMED_STREAMS:
        stream = _generated(config)
    elif path.is_dir():
        stream = open_prepared(path)
    elif path.is_file():
        stream = _imported(config, path)
    elif config.name in BENCHMARKS:
        raise ConfigError(
            f"{config.name} must be prepared from downloaded releases first: "
            f"python pipelines/prepare.py {config.name} --root DOWNLOADS --out DIR, then --stream.name DIR."
        )
    else:
        allowed = listed(config.name, NAMED_STREAMS)
        raise ConfigError(
            f"There is no stream {config.name!r}: no such file or folder, and the named streams are {allowed}"
        )
    stream = _ordered(stream, config.order)
    if config.validation:
        stream = replace(stream, tasks=tuple(_with_validation(task, config, scored) for task in stream.tasks))
    if config.train_limit is None and config.test_limit is None:
        return stream
    root = data_root(config) / "first-rows"
    tasks = tuple(
        replace(
            task,
            train=_first_rows(root, task.train, config.train_limit),
            test=_first_rows(root, task.test, config.test_limit),
            unscored=None if task.unscored is None else _first_rows(root, task.unscored, config.test_limit),
        )
        for task in stream.tasks
    )
    return replace(stream, tasks=tasks)


def _with_validation(task: Task, config: StreamConfig, scored: str) -> Task:
    """The task with its training rows cut in two, and the part to score as its `test`."""
    root = data_root(config) / VALIDATION / f"{task.train.digest[:16]}-{config.validation:g}"
    if not all((root / name / "manifest.json").is_file() for name in ("train", VALIDATION)):
        held = sides(task.train, config.validation)
        for name, wanted in (("train", False), (VALIDATION, True)):
            whole = replace(task.train, split=name)
            rows = (replace(row, split=name) for row in part(task.train, held, wanted=wanted))
            facts = {"cut_from": whole.digest, "share": config.validation, "rows": held.count(wanted)}
            _kept_subset(rows, whole, root / name, facts)
    train, validation = (_verified(root / name) for name in ("train", VALIDATION))
    if scored == VALIDATION:
        return replace(task, train=train, test=validation, unscored=task.test)
    return replace(task, train=train, unscored=validation)


def _ordered(stream: TaskStream, order: Sequence[str]) -> TaskStream:
    tasks = {task.name: task for task in stream.tasks}
    for name in order:
        if name not in tasks:
            allowed = listed(name, tasks)
            raise ConfigError(f"The stream {stream.name} has no task {name!r}; stream.order may name {allowed}")
    return replace(stream, tasks=tuple(tasks[name] for name in order)) if order else stream


def _generated(config: StreamConfig) -> TaskStream:
    names = NAMED_STREAMS[config.name]
    for name in config.order:
        if name not in names:  # before generating anything
            raise ConfigError(
                f"The stream {config.name} has no task {name!r}; stream.order may name {listed(name, names)}"
            )
    tasks = tuple(
        Task(
            name=name,
            train=_kept_split(name, "train", config),
            test=_kept_split(name, "test", config),
            max_new_tokens=_max_new_tokens(name),
        )
        for name in (config.order or names)
    )
    return TaskStream(name=config.name, tasks=tasks)


def known_identities(config: StreamConfig, tasks: Sequence[str], *, scored: str) -> Iterator[list[str]]:
    """`Task.identity` of the `tasks` in this order: as they are here, then as earlier versions generated them.

    Records name the data they were learned on by its digest only, and a generated stream changes with its version.
    """
    yield [task.identity for task in open_stream(replace(config, order=tuple(tasks)), scored=scored).tasks]
    if config.name in NAMED_STREAMS and config.data_seed == 0 and not config.validation:
        for folder, identities in json.loads(FORMER.read_text(encoding="utf-8")).items():
            if folder.endswith(f"-{config.size}") and all(task in identities for task in tasks):
                yield [identities[task] for task in tasks]


def _max_new_tokens(task: str) -> int:
    return _FAMILIES[task].tasks[task].max_new_tokens


def _kept_split(task: str, split: Partition, config: StreamConfig) -> Split:
    """The split from the cache, verified, or newly generated."""
    family = _FAMILIES[task]
    path = data_root(config) / family.folder / f"{task}-{config.size}-seed{config.data_seed}" / split
    if not (path / "manifest.json").is_file():
        scratch = path.with_name(f".{split}.{os.getpid()}.new")
        try:
            family.generate_split(task, split, size=config.size, seed=config.data_seed, out_dir=scratch)
            _settle(scratch, path)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error}); give another --stream.data-dir.") from error
        return open_split(path)
    return _verified(path)


def _settle(scratch: Path, path: Path) -> None:
    """Move a finished split into place; when another process was faster, its equal split stays."""
    try:
        scratch.rename(path)
    except OSError:
        if not (path / "manifest.json").is_file():
            raise
        shutil.rmtree(scratch)


def stored_rows(config: StreamConfig, split: Split, count: int, *, seed: int) -> Split:
    """A replay buffer: `count` rows of `split` (or all), drawn without replacement with `seed`, in stored order."""
    if count >= split.num_rows:
        return split
    chosen = set(np.random.default_rng(seed).choice(split.num_rows, count, replace=False).tolist())
    rows = (row for index, row in enumerate(split.rows()) if index in chosen)
    path = data_root(config) / "stored-rows" / f"{split.digest[:16]}-{count}-seed{seed}"
    return _kept_subset(rows, split, path, {"stored_rows_of": split.digest, "rows": count, "seed": seed})


def rows_left(config: StreamConfig, split: Split, without: frozenset[int]) -> Split:
    """The rows of `split` but those `without` (counted from 0), in stored order; raises `DataError` if none is left."""
    if len(without) >= split.num_rows:
        raise DataError(f"no row of {split.task} {split.split} is left; raise --backbone.max-length.")
    rows = (row for index, row in enumerate(split.rows()) if index not in without)
    name = hashlib.sha256(str(sorted(without)).encode()).hexdigest()[:16]
    path = data_root(config) / "rows-left" / f"{split.digest[:16]}-{name}"
    return _kept_subset(rows, split, path, {"rows_left_of": split.digest, "rows": split.num_rows - len(without)})


def _first_rows(root: Path, split: Split, limit: int | None) -> Split:
    """A split of the first `limit` rows, kept under the digest of the whole one."""
    if limit is None or limit >= split.num_rows:
        return split
    path = root / f"{split.digest[:16]}-{limit}"
    return _kept_subset(islice(split.rows(), limit), split, path, {"first_rows_of": split.digest, "rows": limit})


def _kept_subset(rows: Iterable[Row], split: Split, path: Path, facts: dict[str, object]) -> Split:
    """Some `rows` of `split` as a split of its own at `path`, written at the first use; `facts` go to its card."""
    if (path / "manifest.json").is_file():
        return _verified(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        write_split(rows, scratch, task=split.task, split=split.split, card={**split.card, **facts})
        _settle(scratch, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}); give another --stream.data-dir.") from error
    return open_split(path)


def _verified(path: Path) -> Split:
    """A kept split whose files are whole; raises `DataError`."""
    kept = open_split(path)
    try:
        verify_split(kept)
    except DataError as error:
        raise DataError(f"{error} Delete {path} to have it written again.") from error
    return kept


def _imported(config: StreamConfig, path: Path) -> TaskStream:
    """A stream file prepared on the fly into the cache; any broken row refuses it."""
    stream = read_stream_file(path)
    out_dir = data_root(config) / "imported" / f"{stream.name}-{_fingerprint(path, stream)}"
    if not (out_dir / "stream.json").is_file():
        report = import_stream(stream, out_dir)
        if report.refused is not None:
            raise DataError(
                f"{report.refused}. Repair the rows, or leave them out: "
                f"python pipelines/prepare.py {path} --out DIR --max-broken SHARE, then --stream.name DIR."
            )
    return open_prepared(out_dir)


def _fingerprint(path: Path, stream: StreamFile) -> str:
    """Identity of a stream file's inputs: its text, and size and time of change of the files and pictures it names."""
    digest = hashlib.sha256(path.read_bytes() + str(RULES).encode())
    for task in stream.tasks:
        pictures = task.images.listing(recursive=True) if task.images is not None else []
        files = [file.facts() for source in (task.train, task.test) for file in source.files]
        for facts in (*files, *pictures):
            digest.update(f"{facts.path}\0{facts.size}\0{facts.mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def write_generated_stream(config: StreamConfig, out_dir: Path) -> TaskStream:
    """Write a named stream to `out_dir` as a prepared folder; raises as `open_stream`."""
    if config.name not in NAMED_STREAMS:
        raise ConfigError(
            f"There is no stream {config.name!r} to generate; choose {listed(config.name, NAMED_STREAMS)}"
        )
    names = config.order or NAMED_STREAMS[config.name]
    with whole_or_nothing(out_dir) as partial:
        for name in names:
            for split in ("train", "test"):
                folder = partial / name / split
                _FAMILIES[name].generate_split(name, split, size=config.size, seed=config.data_seed, out_dir=folder)
        prepared = [PreparedTask(name=name, max_new_tokens=_max_new_tokens(name)) for name in names]
        write_stream_json(partial, config.name, prepared)
    return open_prepared(out_dir)
