"""What Littoral does on this GPU, in at most eight minutes: right first, then fast.

    python tests/gpu/prove.py [--out DIR] [--only PART ...] [--seconds 450] [--cpu]
    python tests/gpu/prove.py --pack DIR

Every part is a process of its own, in the order below, with a budget of seconds; within a part every measurement has
its own. What fails is said in one line and the rest goes on; the command then ends with 1. A line of JSON is written
as soon as something is measured (DIR/proof.jsonl), a table of all lines at the end (DIR/proof.md).

It needs torch, transformers, peft, pillow, pyarrow, pydantic and scikit-learn. DeepSpeed is needed by `zero`; Ray, tyro
and MLflow, too, by `loop`: where they are missing those parts say so. Nothing is downloaded. `--cpu` runs every part at
tiny sizes: it proves that the proof runs, and its speeds say nothing.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/gpu", "tests/contract", "tests/unit", "tests", "")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler: none of its own messages

from proof_pack import commit, how_to_go_on, pack  # noqa: E402

from components.core.runtime import quiet_environment  # noqa: E402

quiet_environment()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process: the function `module:function` that it calls, and the seconds that it may take."""

    work: str
    budget_s: float


PARTS = {
    "card": Part(work="proof_card:card", budget_s=60),
    "equality": Part(work="proof_equality:equality", budget_s=120),
    "steps": Part(work="proof_steps:steps", budget_s=120),
    "methods": Part(work="proof_steps:methods", budget_s=90),
    "evaluation": Part(work="proof_replies:evaluation", budget_s=90),
    "zero": Part(work="proof_engines:zero", budget_s=90),
    "waits": Part(work="proof_replies:waits", budget_s=60),
    "loading": Part(work="proof_loading:loading", budget_s=120),
    "loop": Part(work="proof_loop:loop", budget_s=240),
}
AT_LEAST_S = 5.0  # less time left than this is not enough for any part
SLACK_ON_CPU = 3  # there a budget is no promise: the machine may be small or busy
GRACE_S = 10.0  # beyond its budget, for a part that is about to end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-proof-results"), metavar="DIR", help="for both files")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=450.0, help="after which no further part begins")
    parser.add_argument("--cpu", action="store_true", help="every part at tiny sizes on the CPU")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="only write an archive of what this needs")
    options = parser.parse_args()
    if options.pack is not None:
        print(how_to_go_on(pack(options.pack)))
        return 0
    import torch

    if not options.cpu and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --cpu runs every part at tiny sizes.")
    return prove(options.out, options.only or list(PARTS), seconds=options.seconds, cpu=options.cpu)


def prove(out: Path, names: list[str], *, seconds: float, cpu: bool) -> int:
    """Run the parts and write both files; 1 if anything failed, else 0."""
    from proof_record import failures, markdown, read_lines

    out.mkdir(parents=True, exist_ok=True)
    lines, began = out / "proof.jsonl", time.time()
    lines.unlink(missing_ok=True)
    _run(names, lines, ends=began + seconds, cpu=cpu)
    found = sorted(read_lines(lines), key=lambda line: names.index(str(line["part"])))
    kind = "tiny sizes on a CPU: its speeds mean nothing" if cpu else "GPU"
    title = f"# GPU proof ({kind})\n\nCommit {commit()}, {time.strftime('%Y-%m-%d')}, {time.time() - began:.0f} s.\n\n"
    table = title + markdown(found)
    (out / "proof.md").write_text(table, encoding="utf-8")
    bad = len(failures(found))
    print(f"\n{table}\n{len(found)} lines, {bad} failed: {lines}, {out / 'proof.md'}")
    return 1 if bad else 0


def _run(names: list[str], lines: Path, *, ends: float, cpu: bool) -> None:
    """A process a part: on a GPU one after another, on a CPU, where no speed counts, the longest beside the others."""
    from proof_record import Record

    forks = cpu and len(names) > 1
    if forks:  # CUDA does not survive a fork; here it saves every further part the seconds of its imports
        for name in names:
            _function(name)
        gc.freeze()  # garbage is collected after every measurement, and libraries are none
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    waiting = sorted(names, key=lambda name: -PARTS[name].budget_s) if cpu else list(names)
    running: dict[str, tuple[BaseProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < (2 if cpu else 1):
            name, now = waiting.pop(0), time.time()
            deadline = min(now + PARTS[name].budget_s * (SLACK_ON_CPU if cpu else 1), ends)
            if deadline - now < AT_LEAST_S:
                Record(lines, name, deadline=deadline).say("–", not_run="no time was left")
                continue
            process = context.Process(target=work, args=(name, lines, deadline, cpu))
            process.start()
            running[name] = process, deadline
        for name, (process, deadline) in list(running.items()):
            record = Record(lines, name, deadline=deadline)
            if time.time() > deadline + GRACE_S:
                _kill(process)
                record.say("–", failed=f"its process was ended, because it took {GRACE_S:g} s more than it may")
            elif process.is_alive():
                continue
            elif process.exitcode:
                record.say("–", failed=f"its process ended with {process.exitcode}")
            process.join()
            del running[name]
        time.sleep(0.05)


def work(name: str, lines: Path, deadline: float, cpu: bool) -> None:
    """What the process of a part does."""
    os.setpgrp()  # so that what it starts can be ended with it
    from proof_record import NotRun, Record, one_line
    from proof_scale import SMALL, Scale

    warnings.simplefilter("ignore")  # of libraries, about names of theirs
    record = Record(lines, name, deadline=deadline)
    folder = Path(tempfile.mkdtemp(prefix=f"gpu-proof-{name}-"))
    os.environ["LITTORAL_CACHE"] = str(folder / "cache")  # digests of made-up checkpoints are nobody's business
    try:
        function = _function(name)
        gc.freeze()
        function(record, SMALL if cpu else Scale(), folder)
    except NotRun as reason:
        record.say("–", not_run=str(reason))
    except Exception as error:  # noqa: BLE001 - the next part has to run
        record.say("–", failed=one_line(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _function(name: str) -> Callable[..., None]:
    module, _, function = PARTS[name].work.partition(":")
    return getattr(__import__(module), function)


def _kill(process: BaseProcess) -> None:
    """End a part that does not end, with all that it has started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


if __name__ == "__main__":
    sys.exit(main())
