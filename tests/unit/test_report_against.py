"""Methods against a baseline, from folders of runs and from records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import STREAM, TASKS, finished

from components.core.errors import ConfigError
from components.methods.joint import JointConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.reporting.comparison import against_baseline
from components.reporting.groups import grouped, named
from components.runs.results import FinishedRun, read_run, scored, write_record
from components.statistics.contributions import contributions
from components.statistics.paired import compare
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig
from pipelines.report import Report

RECORDS = sorted((Path(__file__).resolve().parents[2] / "docs" / "results" / "mini-coast-domain").glob("*.json"))
Right = dict[tuple[str, str], int]  # (after, task) -> rows answered rightly, the first ones


def run_of(folder: Path, config: RunConfig, right: Right, num_rows: int = 20) -> FinishedRun:
    """A finished run's folder with the predictions behind its matrix."""
    cells = [[right.get((after, task)) for task in TASKS] for after in TASKS]
    matrix = [[None if cell is None else 100.0 * cell / num_rows for cell in row] for row in cells]
    path = finished(folder, config, matrix)
    (path / "predictions").mkdir()
    for (after, task), count in right.items():
        rows = [
            {"after": after, "task": task, "sample_id": f"{number:03}", "score": float(number < count)}
            for number in range(num_rows)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path / "predictions" / f"{after}-{task}.parquet")
    return read_run(path)


@pytest.fixture
def base() -> RunConfig:
    return RunConfig(stream=STREAM, method=SequentialLoraConfig(), tracking=TrackingConfig(enabled=False))


@pytest.fixture
def runs(tmp_path: Path, base: RunConfig) -> list[FinishedRun]:
    """Sequential LoRA over three seeds, a smaller rank over two, and joint learning, which cannot forget."""
    d, i = TASKS
    found = [
        run_of(
            tmp_path,
            replace(base, run_id=f"s{seed}", seed=seed),
            {(d, d): 16, (i, d): 4 + seed, (i, i): 10},
        )
        for seed in range(3)
    ]
    small = replace(base, method=SequentialLoraConfig(rank=4))
    found += [
        run_of(tmp_path, replace(small, run_id=f"r{seed}", seed=seed), {(d, d): 15, (i, d): 15, (i, i): 11 + seed})
        for seed in range(2)
    ]
    joint = replace(base, run_id="j0", seed=0, method=JointConfig())
    return [*found, run_of(tmp_path, joint, {(i, d): 18, (i, i): 12})]


def test_a_table_against_a_baseline(runs: list[FinishedRun], tmp_path: Path) -> None:
    header, lines, verdicts = against_baseline(runs, "s0")
    assert header[:3] == ["method", "seeds", "final average 95 %"]
    assert {len(line) for line in lines} == {len(header)}
    first, small, joint = lines
    # by hand: final averages (20 + 50) / 2 = 35, 37.5, 40 and (75 + 55) / 2 = 65, 67.5; common seeds differ by 30, 30
    assert first[:2] == ["`sequential_lora`", "0, 1, 2"]
    assert first[2].startswith("37.5 [")
    assert first[3:7] == ["", "", "", ""]
    assert small[:2] == ["`sequential_lora` (rank 4)", "0, 1"]
    assert small[3].startswith("30.0 [")
    assert small[6] == "24 : 0"  # answers: 11 + 1 more with seed 0, 10 + 2 more with seed 1
    assert joint[7:] == ["-", "", "", "", ""], "learning all at once has no forgetting"
    assert small[4] == joint[4] == "-", "two seeds and one: no p value of the methods"
    (ends,) = [line for line in verdicts if "final average against" in line]
    assert ends.startswith("No verdict on final average against `sequential_lora` (two seeds or one seed): ")
    assert "`sequential_lora` (rank 4) (+30.0), `joint` (+40.0, p" in ends
    (forgets,) = [line for line in verdicts if "forgets" in line]
    assert forgets.startswith("no verdict, two seeds: `sequential_lora` (rank 4) forgets ")
    assert forgets.endswith(" points less than `sequential_lora`; run at least 3 seeds.")
    assert verdicts[-1].endswith("for one seed each: `joint`.")
    records = [read_run(write_record(run, tmp_path / "records")) for run in runs]
    assert against_baseline(records, "s0") == (header, lines, verdicts), "a record says the same as its folder"


def test_what_cannot_be_compared_is_one_sentence(runs: list[FinishedRun], tmp_path: Path, base: RunConfig) -> None:
    with pytest.raises(ConfigError, match="'ewc' is not a method or run given here; choose one of 'sequential_lora', "):
        against_baseline(runs, "ewc")
    with pytest.raises(ConfigError, match="belongs to the baseline `joint`"):
        against_baseline(runs[-1:], "joint")
    other = replace(runs[-1], stream_digest="0" * 64)
    with pytest.raises(ConfigError, match="s0 and j0 differ in stream"):
        against_baseline([runs[0], other], "joint")
    far = run_of(tmp_path, replace(base, run_id="far", seed=9, method=JointConfig()), {(TASKS[1], t): 9 for t in TASKS})
    with pytest.raises(ConfigError, match=r"`joint` and `sequential_lora`: the seeds 9 and 0 have none in common"):
        against_baseline([runs[0], far], "sequential-lora")
    fewer = replace(base, run_id="few", method=JointConfig())
    few = run_of(tmp_path, fewer, {(TASKS[1], task): 9 for task in TASKS}, num_rows=10)
    with pytest.raises(
        ConfigError, match="`joint` and `sequential_lora`: the two were not scored on the same test rows"
    ):
        against_baseline([runs[0], few], "sequential-lora")
    (runs[0].path / "predictions" / f"{TASKS[1]}-{TASKS[0]}.parquet").unlink()
    with pytest.raises(ConfigError, match="are missing, the score matrix says"):
        against_baseline(runs, "s0")


def test_a_method_of_several_lines_is_no_baseline_by_its_name_alone(tmp_path: Path, base: RunConfig) -> None:
    d, i = TASKS
    right = {(d, d): 9, (i, d): 9, (i, i): 9}
    small, smaller = (
        run_of(tmp_path, replace(base, run_id=f"r{rank}", method=SequentialLoraConfig(rank=rank)), right)
        for rank in (4, 2)
    )
    with pytest.raises(ConfigError, match=r"has several lines here; choose one of 'sequential_lora \(rank 4\)', "):
        against_baseline([small, smaller], "sequential_lora")
    _, _, verdicts = against_baseline([small, smaller], "sequential_lora (rank 4)")
    assert (
        "tie: `sequential_lora` (rank 2) and `sequential_lora` (rank 4) score the same on every test row"
        in verdicts[-5]
    )
    trained = replace(base.training, optimizer=replace(base.training.optimizer, learning_rate=0.5))
    quick = run_of(tmp_path, replace(small.config, run_id="quick", training=trained), right)
    _, lines, _ = against_baseline([small, quick], "r4")
    assert [line[0] for line in lines] == ["`sequential_lora` (rank 4)", "`sequential_lora` (rank 4), quick"]


def test_all_claims_of_a_comparison_are_adjusted_together(tmp_path: Path, base: RunConfig) -> None:
    """Two figures of two methods are four claims; Holm's correction by a loop over the unadjusted p values."""
    d, i = TASKS
    told: list[FinishedRun] = []
    for rank, better in ((32, 0), (4, 3), (2, 6)):
        config = replace(base, method=SequentialLoraConfig(rank=rank))
        told += [
            run_of(
                tmp_path,
                replace(config, run_id=f"r{rank}-{seed}", seed=seed),
                {(d, d): 16, (i, d): 8 + better - seed % 2, (i, i): 10 + seed + better // 3},
            )
            for seed in range(3)
        ]
    groups = named(grouped(told))
    first, *others = groups.values()
    plain = [
        compare(
            contributions(figure, [scored(run) for run in group]), contributions(figure, list(map(scored, first)))
        ).p
        for figure in ("final_average", "forgetting")
        for group in others
    ]
    known = sorted(p for p in plain if p is not None)
    assert len(known) == 4
    expected, highest = dict[float, str](), 0.0
    for rank, p in enumerate(known):
        highest = max(highest, min(1.0, (4 - rank) * p))
        expected[p] = "< 0.001" if highest < 0.001 else f"{highest:.3f}"
    header, lines, verdicts = against_baseline(told, "r32-0")
    columns = [place for place, title in enumerate(header) if title.endswith(" p")]
    shown = [line[column] for column in columns for line in lines[1:]]
    assert shown == [expected[p] for p in plain if p is not None]
    assert any("adjusted for all 4 comparisons made here (Holm)" in line for line in verdicts)
    assert "0.000" not in " ".join(cell for line in lines for cell in line) + " ".join(verdicts)


def test_one_thing_is_asked_for_at_a_time() -> None:
    with pytest.raises(ConfigError, match="--baseline and --forecast were given together"):
        Report(runs=(), baseline="ewc", forecast=True)
    with pytest.raises(ConfigError, match="give --forecast as well"):
        Report(runs=(), picture=Path("a.png"))


def test_recorded_runs_compare() -> None:
    _, lines, verdicts = against_baseline([read_run(path) for path in RECORDS], "cf-router")
    assert len(lines) >= 7
    assert any("`disco` and `cf_router` score the same on every test row" in line for line in verdicts)
