"""Which stream a run learns: a named one (generated at the first use), a prepared folder, or a user's file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from components.core.errors import ConfigError, DataError
from components.core.location import Location, Place, folder_at, is_uri, place
from components.core.machine import cache_dir, shared_cache
from components.core.options import listed
from components.core.shell import pipeline_command
from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.cache import first_rows, kept_split, kept_subset, made_here
from components.data.formats.storage import looked_at
from components.data.generated import GENERATED_STREAMS, GeneratedStream, generated_stream
from components.data.importing import RULES, StreamFile, import_stream, read_stream_file
from components.data.preparation import whole_or_nothing
from components.data.prepared import open_prepared, write_stream_json
from components.data.rows import Split
from components.data.segments import Segment, segments_of
from components.data.stream_config import StreamConfig, check_size
from components.data.tasks import Task, TaskStream
from components.data.validation import VALIDATION, cut

FORMER = Path(__file__).parent / "former" / "mini_streams.json"  # family, version and size -> task -> its identity


def data_root(config: StreamConfig) -> Place:
    """The folder that holds generated and imported splits: with a LITTORAL_CACHE in a store, there."""
    if config.data_dir is not None:
        return folder_at(config.data_dir)
    shared = shared_cache()
    return (shared if isinstance(shared, Location) else cache_dir()) / "data"


def kept_beside(storage: Place, config: StreamConfig) -> StreamConfig:
    """The same, with a place for splits that every node of a run in `storage` can read."""
    if config.data_dir is None and shared_cache() is None and isinstance(storage, Location):
        return replace(config, data_dir=(storage / ".cache" / "data").uri)
    return config


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
    stream = _ordered(_named(config), config.order)
    if config.validation:
        stream = replace(stream, tasks=tuple(_with_validation(task, config, scored) for task in stream.tasks))
    if config.train_limit is None and config.test_limit is None:
        return stream
    root = data_root(config) / "first-rows"
    tasks = tuple(
        replace(
            task,
            train=first_rows(root, task.train, config.train_limit),
            test=first_rows(root, task.test, config.test_limit),
            unscored=None if task.unscored is None else first_rows(root, task.unscored, config.test_limit),
        )
        for task in stream.tasks
    )
    return replace(stream, tasks=tasks)


def _named(config: StreamConfig) -> TaskStream:
    """The whole stream of that name, in its own order."""
    path = place(config.name)
    generated = generated_stream(config.name)
    if generated is not None:
        return _generated(generated, config)
    if isinstance(path, Location) or path.is_dir():
        return open_prepared(path)
    if path.is_file():
        return _imported(config, path)
    if config.name in BENCHMARKS:
        before = pipeline_command("prepare.py", config.name, "--root", "DOWNLOADS", "--out", "DIR")
        raise ConfigError(
            f"{config.name} must be prepared from downloaded releases first: {before}, then --stream.name DIR."
        )
    allowed = listed(config.name, GENERATED_STREAMS)
    raise ConfigError(
        f"There is no stream {config.name!r}: no such file or folder, and the named streams are {allowed}"
    )


def _with_validation(task: Task, config: StreamConfig, scored: str) -> Task:
    """The task with its training rows cut in two, and the part to score as its `test`."""
    train, validation = cut(task.train, config.validation, data_root(config) / VALIDATION)
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


def _generated(stream: GeneratedStream, config: StreamConfig) -> TaskStream:
    """The splits from the cache, or newly written there."""
    names, generator = _tasks_of(stream, config), stream.load()
    folder = data_root(config) / generator.folder

    def kept(task: str, split: Literal["train", "test"]) -> Split:
        def write(out_dir: Path) -> None:
            generator.generate_split(task, split, size=config.size, seed=config.data_seed, out_dir=out_dir)

        return kept_split(folder / f"{task}-{config.size}-seed{config.data_seed}" / split, write)

    tasks = tuple(
        Task(
            name=name,
            train=kept(name, "train"),
            test=kept(name, "test"),
            max_new_tokens=generator.max_new_tokens(name),
        )
        for name in names
    )
    return TaskStream(name=config.name, tasks=tasks)


def _tasks_of(stream: GeneratedStream, config: StreamConfig) -> tuple[str, ...]:
    """The tasks to learn, in order; raises `ConfigError` before anything is generated."""
    check_size(stream, config.size)
    for name in config.order:
        if name not in stream.tasks:
            allowed = listed(name, stream.tasks)
            raise ConfigError(f"The stream {config.name} has no task {name!r}; stream.order may name {allowed}")
    return config.order or stream.tasks


def known_identities(config: StreamConfig, tasks: Sequence[str], *, scored: str) -> Iterator[list[str]]:
    """`Task.identity` of the `tasks` in this order: of the present data, then of what earlier versions generated.

    Records name the data they were learned on by its digest only, and a generated stream changes with its version.
    """
    yield [task.identity for task in open_stream(replace(config, order=tuple(tasks)), scored=scored).tasks]
    if config.name in GENERATED_STREAMS and config.data_seed == 0 and not config.validation:
        for folder, identities in json.loads(FORMER.read_text(encoding="utf-8")).items():
            if folder.endswith(f"-{config.size}") and all(task in identities for task in tasks):
                yield [identities[task] for task in tasks]


def stored_rows(config: StreamConfig, split: Split, count: int, *, seed: int) -> Split:
    """A replay buffer: `count` rows of `split` (or all), drawn without replacement with `seed`, in stored order."""
    if count >= split.num_rows:
        return split
    chosen = set(np.random.default_rng(seed).choice(split.num_rows, count, replace=False).tolist())
    rows = (row for index, row in enumerate(split.rows()) if index in chosen)
    path = data_root(config) / "stored-rows" / f"{split.digest[:16]}-{count}-seed{seed}"
    return kept_subset(rows, split, path, {"stored_rows_of": split.digest, "rows": count, "seed": seed})


def rows_left(config: StreamConfig, split: Split, without: frozenset[int]) -> Split:
    """The rows of `split` but those `without` (counted from 0), in stored order; raises `DataError` if none is left."""
    if len(without) >= split.num_rows:
        raise DataError(f"no row of {split.task} {split.split} is left; raise --backbone.max-length.")
    rows = (row for index, row in enumerate(split.rows()) if index not in without)
    name = hashlib.sha256(str(sorted(without)).encode()).hexdigest()[:16]
    path = data_root(config) / "rows-left" / f"{split.digest[:16]}-{name}"
    return kept_subset(rows, split, path, {"rows_left_of": split.digest, "rows": split.num_rows - len(without)})


def _imported(config: StreamConfig, path: Path) -> TaskStream:
    """A stream file prepared on the fly into the cache; any broken row refuses it. Or another stream, mixed by it."""
    stream = read_stream_file(path)
    if stream.source is not None:
        return replace(_source(config, path, stream.source), name=stream.name, mixture=stream.mixture)
    out_dir = data_root(config) / "imported" / f"{stream.name}-{_fingerprint(path, stream)}"
    if not (out_dir / "stream.json").is_file():
        report = import_stream(stream, out_dir)
        if report.refused is not None:
            repeat = pipeline_command("prepare.py", path, "--out", "DIR", "--max-broken", "SHARE")
            raise DataError(f"{report.refused}. Repair the rows, or leave them out: {repeat}, then --stream.name DIR.")
    return open_prepared(out_dir)


def _source(config: StreamConfig, path: Path, source: str) -> TaskStream:
    """The stream whose tasks the file `path` mixes: a named one, or a prepared folder beside the file."""
    folder = place(source) if is_uri(source) else path.absolute().parent / Path(source).expanduser()
    if generated_stream(source) is None and not (isinstance(folder, Location) or folder.is_dir()):
        allowed = listed(source, GENERATED_STREAMS)
        raise ConfigError(
            f"The stream file {path} has from = {source!r}, which is not the folder of a prepared stream; the named "
            f"streams are {allowed}"
        )
    named = source if generated_stream(source) is not None or is_uri(source) else str(folder)
    stream = _named(replace(config, name=named))
    if stream.mixture is not None:
        raise ConfigError(f"The stream file {path} mixes {source}, which is mixed already; name an unmixed stream.")
    return stream


def segments(config: StreamConfig, stream: TaskStream) -> tuple[Segment, ...]:
    """What a stream without boundaries is learned in, written at the first use; () for one with boundaries.

    Raises `ConfigError` where a segment would have no row, and as `open_stream`.
    """
    return () if stream.mixture is None else segments_of(stream, stream.mixture, data_root(config) / "segments")


def _fingerprint(path: Path, stream: StreamFile) -> str:
    """Identity of a stream file's inputs: its text, and size and time of change of the files and pictures it names."""
    digest = hashlib.sha256(path.read_bytes() + str(RULES).encode())
    for task in stream.tasks:
        places = [file for source in (task.train, task.test) for file in source.files]
        with looked_at(task.images or places[0]):
            pictures = task.images.listing(recursive=True) if task.images is not None else []
            files = [file.facts() for file in places]
        for facts in (*files, *pictures):
            digest.update(f"{facts.path}\0{facts.size}\0{facts.mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def write_generated_stream(config: StreamConfig, out_dir: Place) -> TaskStream:
    """Write a named stream to `out_dir` as a prepared folder; raises as `open_stream`."""
    stream = generated_stream(config.name)
    if stream is None:
        allowed = listed(config.name, GENERATED_STREAMS)
        raise ConfigError(f"There is no stream {config.name!r} to generate; choose {allowed}")
    names, generator = _tasks_of(stream, config), stream.load()
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    with whole_or_nothing(out_dir) as partial:
        for name, split in product(names, splits):
            with made_here(partial / name / split) as folder:
                generator.generate_split(name, split, size=config.size, seed=config.data_seed, out_dir=folder)
        write_stream_json(partial, config.name, {name: generator.max_new_tokens(name) for name in names})
    return open_prepared(out_dir)
