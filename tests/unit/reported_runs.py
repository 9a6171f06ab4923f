"""Runs with replies for the HTML report, small enough to be reckoned by hand.

docvqa then iconqa, 16 test rows each, rows right in order of their sample ids:

    run        docvqa when new   docvqa at the end   iconqa   lost
    plain      12 (75.0)         8 (50.0)            4 (25.0) rows 8 to 11; 8 by its form, the others by knowledge
    routed     12 (75.0)         10 (62.5)           4 (25.0) row 10 by routing, row 11 by drift
    recorded   -                 13 (81.25)          8 (50.0) a record of joint learning: nothing to lose, no replies
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from finished_runs import STREAM, TASKS, finished

from components.data.streams import open_stream
from components.evaluation.matrix import ScoreMatrix
from components.methods.base import MethodConfig
from components.methods.cf_router import CfRouterConfig
from components.methods.joint import JointConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.runs.results import FinishedRun, read_run, write_record
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig

HOSTILE = "<script>alert(1)</script> \" onerror='x' <img src=http://example.com/a.png> {{ 7 * 7 }} </script>"
HOSTILE += " \x1b[2J \u202e"  # clears a terminal; turns the page's text around
Scores = dict[int, float]  # of the rows whose other reading differs

DOC, ICON = TASKS


def run_with_replies(
    folder: Path,
    name: str,
    method: MethodConfig,
    right: dict[tuple[str, str], int],
    *,
    oracle: Scores | None = None,
    repaired: Scores | None = None,
    seed: int = 0,
    num_slots: int = 0,
) -> Path:
    """A finished run's folder; `right` counts the rows answered rightly, by (after, task).

    `num_slots`: the rows were served by that many slots in turn, and were routed to no task.
    """
    config = RunConfig(stream=STREAM, method=method, tracking=TrackingConfig(enabled=False))
    config = replace(config, run_id=name, seed=seed)
    cells = [[right.get((after, task)) for task in TASKS] for after in TASKS]
    path = finished(folder, config, [[None if cell is None else 100 * cell / 16 for cell in row] for row in cells])
    tests = {task.name: [row.sample_id for row in task.test.rows()] for task in open_stream(STREAM).tasks}
    (path / "predictions").mkdir()
    for number, after in enumerate(TASKS, 1):
        rows: list[dict[str, object]] = []
        for task in TASKS:
            count = right.get((after, task), 0)
            for at, sample_id in enumerate(sorted(tests[task]) if (after, task) in right else ()):
                score, end = float(at < count), after == ICON and task == DOC
                reply = HOSTILE if end and at == 8 else f"reply {at}"
                rows.append(
                    {
                        "after": after,
                        "task": task,
                        "sample_id": sample_id,
                        "prompt": f"{HOSTILE} question {at}?",
                        "prediction": reply,
                        "answers": [f"answer {at}"],
                        "score": score,
                        "repaired_score": None if repaired is None else repaired.get(at, score) if end else score,
                        "routed_to": None if oracle is None else ICON if end and at == 10 else task,
                        "slots": [at % num_slots] if num_slots else None if oracle is None else [int(task == ICON)],
                        "oracle_score": None if oracle is None else oracle.get(at, score) if end else score,
                    }
                )
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), path / "predictions" / f"{number:02d}-{after}.parquet")
    for reading, scores in {"oracle": oracle, "repaired": repaired}.items():
        if scores is not None:
            gained = 100 * (right[ICON, DOC] + sum(scores.values())) / 16
            other = ScoreMatrix(TASKS, [[100 * right[DOC, DOC] / 16, None], [gained, 25.0]], zero_shot=False)
            other.write(path / f"{reading}_matrix.json", stream="s", method="m", backbone="smol", seed=0)
    return path


def three_runs(folder: Path) -> list[FinishedRun]:
    """plain, routed, recorded."""
    plain = run_with_replies(
        folder, "plain", SequentialLoraConfig(), {(DOC, DOC): 12, (ICON, DOC): 8, (ICON, ICON): 4}, repaired={8: 1.0}
    )
    routed = run_with_replies(
        folder, "routed", CfRouterConfig(), {(DOC, DOC): 12, (ICON, DOC): 10, (ICON, ICON): 4}, oracle={10: 1.0}
    )
    joint = run_with_replies(folder, "recorded", JointConfig(), {(ICON, DOC): 13, (ICON, ICON): 8})
    return [read_run(plain), read_run(routed), read_run(write_record(read_run(joint), folder / "records"))]
