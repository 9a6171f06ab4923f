"""Whole small inputs of every reader, and how each is read: what the damage campaign breaks."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import benchmark_trees
import pyarrow as pa
import pyarrow.parquet as pq
import suite_trees
import torch
from PIL import Image
from reported_runs import run_with_replies
from safetensors.torch import save_file
from sample_rows import picture, row

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.checkpoint_files import remove_unreferenced
from components.core.files import file_sha256
from components.core.location import here
from components.core.tensor_store import TensorStore
from components.data.benchmarks.release import json_list
from components.data.benchmarks.release import parquet_rows as release_rows
from components.data.formats.pictures import proved
from components.data.formats.sources import open_source
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared, write_stream_json
from components.data.problems import ItemError
from components.data.rows import write_split
from components.data.suite import open_suite, write_suite_json
from components.evaluation.decisions import Decisions, Served
from components.evaluation.general import GeneralScores
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.matrix_rows import MatrixRow
from components.evaluation.predictions import read_predictions
from components.evaluation.released_files import file_text, json_value
from components.judging.protocol import Verdict, VerdictCache
from components.methods.sequential_lora import SequentialLoraConfig
from components.runs.costs import Costs, RowCost
from components.runs.execute import recorded_as, where_to_look
from components.runs.provenance import made_with
from components.runs.results import item_scores, read_run, scored, write_record
from components.training.checkpointing import method_state
from components.training.config import read_config
from components.training.run_folder import read_result
from components.training.stream_state import StreamState
from components.tuning.trials import begun_in, figures_after


@dataclass(frozen=True, kw_only=True)
class Input:
    """A reader with the folder it reads. `break_in` are the files of the folder that may be damaged."""

    name: str
    folder: Path
    break_in: tuple[str, ...]
    read: Callable[[Path], object]
    writes: str = ""  # what reading writes beside its input, which is whole or not there

    def files(self) -> list[Path]:
        """The files that may be damaged, in order."""
        return sorted({path for pattern in self.break_in for path in self.folder.glob(pattern) if path.is_file()})


def inputs(root: Path) -> list[Input]:
    """All of them, made anew below `root`."""
    return [*_run_folder(root), *_checkpoints(root), *_prepared(root), *_own_data(root), *_releases(root)]


# ---- a run's folder


def _run_folder(root: Path) -> Iterator[Input]:
    right = {("docvqa", "docvqa"): 12, ("iconqa", "docvqa"): 8, ("iconqa", "iconqa"): 4}
    runs = root / "runs"
    runs.mkdir()
    run = run_with_replies(runs, "r", SequentialLoraConfig(), right, repaired={8: 1.0}, oracle={8: 1.0})
    link = {
        "run_id": "ab12",
        "store": "sqlite:////none/x.db",
        "ui": "http://localhost:5000",
        "view": "http://localhost:5000/x",
    }
    (run / "mlflow.json").write_text(json.dumps(link))
    (run / "made_with.json").write_text(json.dumps({"budget": {"updates": {"docvqa": 3}}, "sessions": [{"gpu": "no"}]}))
    GeneralScores().plus(0, "zero-shot", "pope", {"score": 80.0}).plus(1, "docvqa", "pope", {"score": 70.0}).write(
        run / "general.json"
    )
    served = Served(rows=2, own=0.5, fallback=0.0, by={"docvqa": 2})
    Decisions(tasks={"docvqa": {"slots": [0, 1], "chosen": {"a": 1}}}, served={"docvqa": {"docvqa": served}}).write(
        run / "decisions.json"
    )
    rows = [RowCost(after=name, tasks_learned=at, train_s=1.5) for at, name in enumerate(("docvqa", "iconqa"), 1)]
    Costs(trainable_parameters=12, updates=4, rows=rows).write(run)
    trials = root / "sweep"
    earlier = {"values": {"method.rank": 4, "seed": 0}, "train_s": [1.0, 2.0], "updates": 3, "trainable_parameters": 9}
    (trials / "one").mkdir(parents=True)
    (trials / "one" / "trial.json").write_text(json.dumps(earlier))
    ScoreMatrix(["a", "b"], [[50.0, None], [25.0, 75.0]], zero_shot=False).write(
        trials / "one" / "score_matrix.json", stream="s", method="m", backbone="b", seed=0
    )
    records = root / "records"
    record = write_record(read_run(run), records).name
    cache = VerdictCache(root / "judge" / "cache.jsonl")
    cache.add({f"key{number}": Verdict(score=float(number), said=f"Grade: {number}") for number in range(5)})

    def whole_run(folder: Path) -> object:
        found = read_run(folder / "r")
        repr((found, found.matrix.summary(), found.general.summary(), found.decisions.metrics("iconqa", {})))
        return scored(found)

    def unfinished(folder: Path) -> object:
        (folder / "r" / "finished.json").unlink(missing_ok=True)
        return read_result(folder / "r"), read_run(folder / "r", unfinished=True), made_with(folder / "r")

    def link_read(folder: Path) -> object:
        plan = SimpleNamespace(run_dir=folder / "r", config=read_config(records / record).config)
        return recorded_as(folder / "r"), where_to_look(cast(Any, plan))

    def recorded(folder: Path) -> object:
        found = read_run(folder / record)
        return repr(found), item_scores(folder / record), found.matrix.summary(), found.general.summary()

    def trial(folder: Path) -> object:
        return begun_in(folder), figures_after(folder / "one", 2)

    yield Input(name="run folder", folder=runs, break_in=("r/*.json", "r/predictions/*"), read=whole_run)
    yield Input(name="run folder, unfinished", folder=runs, break_in=("r/*.json",), read=unfinished)
    yield Input(name="mlflow.json", folder=runs, break_in=("r/mlflow.json",), read=link_read)
    yield Input(
        name="config.json", folder=runs, break_in=("r/config.json",), read=lambda at: read_config(at / "r/config.json")
    )
    yield Input(name="preset", folder=records, break_in=("*.json",), read=lambda at: read_config(at / record))
    yield Input(name="record", folder=records, break_in=("*.json",), read=recorded)
    predictions = ("r/predictions/*",)
    yield Input(
        name="predictions",
        folder=runs,
        break_in=predictions,
        read=lambda at: [list(read_predictions(path)) for path in sorted((at / "r/predictions").iterdir())],
    )
    yield Input(name="trial.json", folder=trials, break_in=("one/*.json",), read=trial)
    yield Input(
        name="judge cache", folder=root / "judge", break_in=("*",), read=lambda at: VerdictCache(at / "cache.jsonl")
    )


# ---- checkpoints


def _checkpoints(root: Path) -> Iterator[Input]:
    folder = root / "checkpoint"
    folder.mkdir()
    rows = [vars(MatrixRow(after="a", scores={"a": 50.0}, served={"a": {"rows": 1}}))]
    state = {"stream_state": {"index": 1, "update": 2, "learned": False, "rows": rows}, "backbone": "f", "method": "m"}
    tensors = {"method": {"a": torch.arange(12.0).reshape(3, 4)}, "optimizer": {"m": torch.zeros(2)}}
    write_checkpoint(folder, {**state, "method_structure": {"tasks": ["a"]}}, tensors)

    def read(at: Path) -> object:
        found = read_checkpoint(at)
        return StreamState.of(found), method_state(found)

    def read_tensors(at: Path) -> object:
        state = json.loads((at / "state.json").read_text())
        state["files"] = {path.name: file_sha256(path) for path in at.glob("*.safetensors")}
        (at / "state.json").write_text(json.dumps(state))  # so that the damage is behind a right checksum
        return read(at)

    yield Input(name="checkpoint", folder=folder, break_in=("*",), read=read)
    run = root / "run with shared tensors"
    kept = run / "checkpoints" / "01-a"
    kept.mkdir(parents=True)
    store = TensorStore(run, "method")
    store.put({"a": torch.ones(5), "b": torch.zeros(3)})  # what does not stay
    shared = {"method": store.put({"a": torch.ones(5), "b": torch.arange(4.0)})}
    write_checkpoint(kept, {**state, "method_structure": {"tasks": ["a"]}}, {"in_task": tensors["optimizer"]}, shared)

    def read_in_run(at: Path) -> object:
        remove_unreferenced(at)
        return read(at / "checkpoints" / "01-a")

    yield Input(name="shared tensors", folder=run, break_in=("checkpoints/*/*", "tensors/*"), read=read_in_run)
    yield Input(name="safetensors", folder=folder, break_in=("*.safetensors",), read=read_tensors)
    save_file({"x": torch.zeros(1)}, folder / "unused.safetensors")


# ---- prepared streams and suites


def _prepared(root: Path) -> Iterator[Input]:
    rows = [row("<image>\nWhat?", f"a{at}", image=picture((at, 0, 0)), sample_id=f"r{at}") for at in range(3)]
    stream, suite = root / "stream", root / "suite"
    for split in ("train", "test"):
        write_split(rows, stream / "one" / split, task="one", split=split)
    write_stream_json(stream, "s", {"one": 5})
    write_split(rows, suite / "test", task="pope", split="test")
    write_suite_json(suite, "pope", scoring="mean", max_new_tokens=5)

    def prepared(at: Path) -> object:
        found = open_prepared(at)
        return found.digest, [list(task.train.rows()) for task in found.tasks]

    yield Input(name="prepared stream", folder=stream, break_in=("*.json", "*/*/*"), read=prepared)

    def shards(at: Path) -> object:
        for manifest in at.rglob("manifest.json"):  # so that the damage is behind a right checksum
            facts = json.loads(manifest.read_text())
            for shard in facts["shards"]:
                shard["sha256"] = file_sha256(manifest.with_name(shard["file"]))
            manifest.write_text(json.dumps(facts))
        return prepared(at)

    yield Input(name="prepared shards", folder=stream, break_in=("*/*/*.parquet",), read=shards)
    yield Input(name="prepared suite", folder=suite, break_in=("*.json", "*/*"), read=lambda at: open_suite(at).digest)


# ---- a user's own data


def _talk(number: int) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"answer {number}"}]
    return {"id": f"r{number}", "image": "a.png", "conversations": turns}


def _own_data(root: Path) -> Iterator[Input]:
    folder = root / "own"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture((9, 9, 9)))
    talks = [_talk(number) for number in range(4)]
    lines = "".join(json.dumps(talk) + "\n" for talk in talks).encode()
    made: dict[str, bytes] = {
        "rows.json": json.dumps(talks).encode(), "rows.jsonl": lines, "rows.jsonl.gz": gzip.compress(lines),
        "rows.jsonl.bz2": bz2.compress(lines), "rows.jsonl.zst": _zstd(lines),
        "rows.tar": _shard(), "rows.parquet": _table(talks, "parquet"), "rows.arrow": _table(talks, "stream"),
        "file.arrow": _table(talks, "file"),
    }  # fmt: skip
    for name, content in made.items():
        home = root / f"own {name}"
        home.mkdir()
        (home / "a.png").write_bytes(picture((9, 9, 9)))
        (home / name).write_bytes(content)
        (home / "stream.toml").write_text(_toml(name))
        yield Input(name=name, folder=home, break_in=(name,), read=_import, writes="out")
    yield Input(
        name="stream TOML", folder=root / "own rows.json", break_in=("stream.toml",), read=_import, writes="out"
    )
    saved = root / "saved"
    saved.mkdir()
    (saved / "data.arrow").write_bytes(_table(talks, "stream"))
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    yield Input(
        name="saved dataset",
        folder=saved,
        break_in=("*",),
        read=lambda at: list(open_source(here(at), "train").read().items()),
    )
    pictures = root / "pictures"
    pictures.mkdir()
    for ending in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "dds", "avif"):
        if Image.registered_extensions().get(f".{ending}") in Image.SAVE:
            file = io.BytesIO()
            Image.effect_noise((24, 24), 60).convert("RGB").save(file, ending)
            (pictures / f"a.{ending}").write_bytes(file.getvalue())
    yield Input(name="pictures", folder=pictures, break_in=("*",), read=_look)


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def _toml(name: str) -> str:
    return (
        f'name = "s"\n[[task]]\nname = "one"\ntrain = "{name}"\ntest = "{name}"\nimages = "."\nmetric = "exact"\n'
        "max_new_tokens = 5\n"
    )


def _import(folder: Path) -> object:
    return import_stream(read_stream_file(folder / "stream.toml"), folder / "out", max_broken=0.5)


def _look(folder: Path) -> object:
    found: list[object] = []
    for path in sorted(folder.iterdir()):
        try:
            found.append(proved(path.read_bytes(), path.name))
        except ItemError as error:
            found.append(error)
    if any(isinstance(one, ItemError) for one in found):
        raise next(one for one in found if isinstance(one, ItemError))
    return found


def _shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(3):
            talk = {**_talk(number), "image": None}
            for ending, content in (("json", json.dumps(talk).encode()), ("png", picture((number, 0, 0)))):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _table(talks: list[dict[str, object]], kind: str) -> bytes:
    table, file = pa.Table.from_pylist(talks), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        writer = (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(file, table.schema)
        writer.write_table(table, max_chunksize=2)
        writer.close()
    return file.getvalue()


# ---- released files


def _releases(root: Path) -> Iterator[Input]:
    benchmark_trees.pathvqa(root / "pathvqa")
    suite_trees.pope(root / "pope")
    tables = sorted((root / "pathvqa").rglob("*.parquet"))

    def table(at: Path) -> object:
        return [
            list(release_rows(path.parent, path.name, pq.read_schema(root / "pathvqa" / path.relative_to(at)).names))
            for path in sorted(at.rglob("*.parquet"))
        ]

    def released(at: Path) -> object:
        return [json_value(line, path.name) for path in at.rglob("*.json") for line in file_text(path).splitlines()]

    assert tables
    yield Input(name="released Parquet", folder=root / "pathvqa", break_in=("**/*.parquet",), read=table)
    yield Input(name="released JSON lines", folder=root / "pope", break_in=("**/*.json",), read=released)
    lists = root / "lists"
    lists.mkdir()
    (lists / "a.json").write_text(json.dumps([_talk(1), _talk(2)]))
    yield Input(name="released JSON list", folder=lists, break_in=("*",), read=lambda at: json_list(at / "a.json"))
