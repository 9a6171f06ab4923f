"""Bytes that the checkpoints of a stream write, task by task: only what has changed, against everything three times.

    python tests/benchmarks/written_bytes.py [--tasks 40] [--method continual_llava] [--backbone smol]

No training: each task's new parameters are drawn. After each task the method's state is written as a run writes it:
kept for users, reported once learned, reported once scored. **Once** is the run's own way, into files that its
checkpoints share; every file that appears is counted. **Whole** is how it was before: the same three checkpoints, each
with all tensors; the first and the last task are written for real, the others counted by their tensors. Checkpoints
inside a task also hold what trains and Adam's moments, in both ways; what else is written into each, the method at the
task's start, is the last column. CPU time is this process's own, without drawing. Aim: all tasks together at most 2.5
times one task's bytes times their number.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from annotated_types import Ge

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.files import whole_folder
from components.core.tensor_store import TensorStore
from components.methods import METHODS
from components.methods.base import MethodState, TaskInfo
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.training.engine import TorchEngine
from components.training.optimizer_config import OptimizerConfig
from tests.benchmarks.bars import print_bar

MIB = 1 << 20
BAR = 2.5


@dataclass(frozen=True, kw_only=True)
class Options:
    """See above."""

    tasks: Annotated[int, Ge(2)] = 40
    """Tasks of the stream."""
    method: str = "continual_llava"
    """What learns them; one that needs no pass over a task's rows."""
    backbone: str = "smol"
    """The model."""


@dataclass
class Way:
    """What one way of writing has cost by task."""

    written: list[int]
    cpu_s: list[float]


def states(options: Options) -> Iterator[MethodState]:
    """The method's state after each task, as `Method.state_dict` hands it out."""
    config = METHODS[options.method]()
    if "sentence_encoder" in config.options():  # keys of another width would differ by a few kB
        config = replace(config, **{"sentence_encoder": "hash"})
    model = load_backbone(BackboneConfig(name=options.backbone))
    method = config.build(seed=0)
    method.attach(model, None)
    generator = torch.Generator().manual_seed(0)
    for index in range(options.tasks):
        info = TaskInfo(index=index, name=f"task {index}", instructions=[f"Question {index} of another kind?"])
        method.begin_task(model, info)
        with torch.no_grad():
            for parameter in method.parameters().values():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 1e-3, generator=generator)
        method.end_task(TorchEngine(model, OptimizerConfig(learning_rate=1e-4)), info, iter([]))
        yield method.state_dict(model)


def once(run: Path, store: TensorStore, number: int, state: MethodState) -> None:
    """The three checkpoints of a task in a run's folder; of Ray Train's, two are kept."""
    names = (f"checkpoints/{number:02d}", f"checkpoint_{number}_learned", f"checkpoint_{number}_scored")
    for name in names:
        again = name.endswith("scored")  # the state is then read from the method once more
        tensors = {each: tensor.clone() if again else tensor for each, tensor in state.tensors.items()}
        shared = {"method": store.put(tensors)}
        with whole_folder(run / name, durable=True) as folder:
            write_checkpoint(folder, {"method_structure": state.structure}, {}, shared)


def sizes(folder: Path) -> dict[Path, int]:
    """Bytes of the files below a folder."""
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def main(options: Options) -> None:
    """Print both ways side by side."""
    torch.set_num_threads(1)
    new, old, inside = Way([], []), Way([], []), list[int]()
    with tempfile.TemporaryDirectory() as made:
        run, whole = Path(made) / "run", Path(made) / "whole"
        run.mkdir()
        store = TensorStore(run, "method")
        for number, state in enumerate(states(options), 1):
            before, began = sizes(run), time.process_time()
            once(run, store, number, state)
            new.cpu_s.append(time.process_time() - began)
            new.written.append(sum(size for path, size in sizes(run).items() if path not in before))
            bytes_ = sum(tensor.nbytes for tensor in state.tensors.values())
            inside.append(bytes_)
            old.written.append(3 * bytes_)
            if number in (1, options.tasks):
                began = time.process_time()
                for copy in range(3):
                    with whole_folder(whole / f"{number}-{copy}", durable=True) as folder:
                        write_checkpoint(folder, {"method_structure": state.structure}, {"method": state.tensors})
                old.cpu_s.append(time.process_time() - began)
                assert sum(sizes(whole).values()) >= old.written[-1]
                found = read_checkpoint(run / "checkpoints" / f"{number:02d}").tensors["method"]
                assert found.keys() == state.tensors.keys()
                assert all(torch.equal(found[name], state.tensors[name]) for name in found)
    print(f"{options.method} on {options.backbone}, {options.tasks} tasks, load {os.getloadavg()[0]:.1f}")
    print("            once: MiB, CPU s     whole: MiB, CPU s    checkpoint inside the next task: once, whole MiB")
    for place, number in ((0, 1), (-1, options.tasks)):
        print(
            f"  task {number:3}  {new.written[place] / MIB:9.2f} {new.cpu_s[place]:7.3f}  "
            f"{old.written[place] / MIB:11.2f} {old.cpu_s[place]:7.3f}  {'0.00':>20} {inside[place] / MIB:8.2f}"
        )
    for name, way in (("once", new), ("whole", old)):
        print(f"{name}: {sum(way.written) / MIB:,.0f} MiB in all")
    one = new.written[0] * options.tasks
    print(f"whole, of {options.tasks} times one task's bytes: {sum(old.written) / one:.1f}")
    print_bar(f"checkpoints' bytes, {options.tasks} tasks / as many times one", sum(new.written) / one, "at most", BAR)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
