"""Preparing published streams: sizes, draws, strict, interrupted work, folders that stay, and the command."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import benchmark_trees as trees
import pytest
from in_process import ran

from components.core.errors import ConfigError, DataError
from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.benchmarks.preparing import prepare_benchmark
from components.data.benchmarks.spec import PartSpec
from components.data.prepared import open_prepared
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from pipelines.prepare import main

TRAIN, VAL = "ChartQA Dataset/train/train_human.json", "ChartQA Dataset/val/val_human.json"
CHARTS = trees.only("coast-domain", "chartqa")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole ChartQA: 4 training rows, 2 to validate."""
    trees.chartqa(tmp_path / "downloads")
    return tmp_path / "downloads"


def test_a_whole_release_passes_strict(root: Path, tmp_path: Path) -> None:
    report = prepare_benchmark(CHARTS, root, tmp_path / "out", strict=True)
    assert (report.refused, report.problems) == (None, [])
    assert [(file.split, file.rows, file.kept, file.with_image) for file in report.files] == [
        ("train", 4, 4, 4),
        ("test", 2, 2, 2),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["chartqa", "report.json", "stream.json"]
    assert sorted(path.name for path in (tmp_path / "out" / "chartqa").iterdir()) == ["test", "train"]


def test_sizes_are_compared_with_the_published_ones(root: Path, tmp_path: Path) -> None:
    task = CHARTS.tasks[0]
    sizes = replace(task, train=replace(task.train, published=(5, 6)), test=replace(task.test, published=(3, 2)))
    report = prepare_benchmark(replace(CHARTS, tasks=(sizes,)), root, tmp_path / "out")
    (problem,) = report.problems
    assert problem.detail == "the source has 4 rows, published are 5 or 6"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [file["published"] for file in report["files"]] == [[5, 6], [3, 2]]


def test_a_missing_picture_does_not_shift_the_draw(root: Path, tmp_path: Path) -> None:
    task = CHARTS.tasks[0]
    drawn = replace(CHARTS, tasks=(replace(task, train=PartSpec(source="train", use=2)),))
    ids = {}
    for name in ("whole", "broken"):
        report = prepare_benchmark(drawn, root, tmp_path / name, max_broken=0.5)
        assert (report.files[0].rows, report.files[0].chosen) == (4, 2)
        ids[name] = [row.sample_id for row in open_prepared(tmp_path / name).tasks[0].train.rows()]
        kind, _, at = ids["whole"][0].partition("-")
        (root / f"ChartQA Dataset/train/png/{kind}_{int(at) - 1}.png").unlink(missing_ok=True)
    assert len(ids["whole"]) == 2
    assert ids["broken"] == ids["whole"][1:]


def _many_charts(root: Path, rows: int, *, missing: int = 0, without_question: int = 0) -> None:
    """`rows` questions about one chart to train on; of them `missing` name no picture, and some have no question."""
    if not root.exists():
        trees.chartqa(root)
    [name] = json.loads((root / VAL).read_text())[:1]
    chart = root / "ChartQA Dataset/train/png/one.png"
    chart.write_bytes((root / "ChartQA Dataset/val/png" / name["imgname"]).read_bytes())
    items = [{"imgname": "one.png", "query": f"How much is {at}?", "label": str(at)} for at in range(rows)]
    for item in items[:missing]:
        item["imgname"] = "none.png"
    for item in items[missing : missing + without_question]:
        item["query"] = ""
    trees.put_json(root / TRAIN, items)
    trees.put_json(root / TRAIN.replace("human", "augmented"), [])


@pytest.mark.parametrize(
    ("missing", "without_question", "use", "refused"),
    [(2, 0, None, False), (3, 0, None, True), (1, 1, None, False), (0, 3, None, True), (1, 2, None, True),
     (0, 2, 50, False), (0, 3, 50, True), (200, 0, 50, True)],
)  # fmt: skip
def test_one_row_in_a_hundred_may_be_lost(
    tmp_path: Path, missing: int, without_question: int, use: int | None, refused: bool
) -> None:
    """Of 200 rows two may be lost, whether their annotation or their picture is, and whether all or 50 are taken."""
    _many_charts(tmp_path / "root", 200, missing=missing, without_question=without_question)
    task = CHARTS.tasks[0]
    stream = replace(CHARTS, tasks=(replace(task, train=PartSpec(source="train", use=use)),))
    report = prepare_benchmark(stream, tmp_path / "root", tmp_path / "out")
    assert (report.refused is not None, (tmp_path / "out").exists()) == (refused, not refused)
    train = report.files[0]
    assert train.rows == 200
    if use is None:
        assert train.lost == missing + without_question == 200 - train.kept
        assert train.lost_share == pytest.approx((missing + without_question) / 200)


def test_a_file_that_breaks_off_is_refused(root: Path, tmp_path: Path) -> None:
    """Half a download is one broken item, however many rows are behind it."""
    _many_charts(root, 400)
    text = (root / TRAIN).read_text()
    (root / TRAIN).write_text(text[: len(text) // 2])
    report = prepare_benchmark(CHARTS, root, tmp_path / "out", max_broken=0.9)
    assert f"{TRAIN} of chartqa train breaks off after" in (report.refused or "")
    sized = replace(CHARTS.tasks[0], train=PartSpec(source="train", published=(400,)))
    known = prepare_benchmark(replace(CHARTS, tasks=(sized,)), root, tmp_path / "out", max_broken=0.4)
    assert "of 400 rows are there; allowed is 40.0%" in (known.refused or "")
    assert not (tmp_path / "out").exists()
    taken = prepare_benchmark(replace(CHARTS, tasks=(sized,)), root, tmp_path / "out", max_broken=0.6)
    assert taken.refused is None


def test_a_split_that_lost_every_picture_is_refused_at_any_share(root: Path, tmp_path: Path) -> None:
    trees.coin(root)
    (root / "cl_dataset/ScienceQA/images/0.jpg").unlink()  # the second training row is text alone
    report = prepare_benchmark(trees.only("coin", "scienceqa"), root, tmp_path / "out", max_broken=0.9)
    assert (report.refused or "").startswith("no row of scienceqa train has its picture, 1 rows would be left out")
    assert report.files[0].kept == 1
    assert not (tmp_path / "out").exists()


def test_a_split_without_rows_is_refused(root: Path, tmp_path: Path) -> None:
    for name in ("human", "augmented"):
        trees.put_json(root / f"ChartQA Dataset/val/val_{name}.json", [])
    report = prepare_benchmark(CHARTS, root, tmp_path / "out")
    assert (report.refused or "").startswith("no row of chartqa test could be read")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_preparation_goes_on(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.chartqa(root)
    trees.docvqa(root)
    stream = trees.only("coast-domain", "chartqa", "docvqa")
    notes = root / "DocVQA/spdocvqa_qas/train_v1.0_withQT.json"
    whole = notes.read_text()
    notes.write_text("{")  # found when the charts are written already
    with pytest.raises(DataError, match="is not a JSON object with"):
        prepare_benchmark(stream, root, out)
    scratch = tmp_path / ".out.unfinished"
    stamp = (scratch / "chartqa/test/part-00000.parquet").stat().st_mtime_ns
    (scratch / "gqa" / "train").mkdir(parents=True)  # of another stream
    (scratch / "chartqa" / ".train.1.partial").mkdir()  # of a killed process
    notes.write_text(whole)
    trees.edit(root / TRAIN, lambda items: items[0].update(query="Changed?"))
    report = prepare_benchmark(stream, root, out)
    assert report.problems == []
    assert (out / "chartqa/test/part-00000.parquet").stat().st_mtime_ns == stamp, "an unchanged split is kept"
    assert next(open_prepared(out).tasks[0].train.rows()).instruction.startswith("Changed?"), "a changed one is not"
    assert [(file.kept, file.with_image) for file in report.files[:2]] == [(4, 4), (2, 2)]
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*")) == [
        "chartqa/test", "chartqa/train", "docvqa/test", "docvqa/train",
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["chartqa", "docvqa", "report.json", "stream.json"]
    assert not list(tmp_path.glob(".*"))
    fresh = prepare_benchmark(stream, root, tmp_path / "fresh")
    assert fresh.problems == []
    assert open_prepared(tmp_path / "fresh").digest == open_prepared(out).digest


def test_a_changed_test_part_has_training_rows_compared_again(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.chartqa(root)
    trees.docvqa(root)
    notes = root / "DocVQA/spdocvqa_qas/train_v1.0_withQT.json"
    whole = notes.read_text()
    notes.write_text("{")
    stream = trees.only("coast-domain", "chartqa", "docvqa")
    with pytest.raises(DataError):
        prepare_benchmark(stream, root, out)
    notes.write_text(whole)
    train = json.loads((root / TRAIN).read_text())[0]
    picture = (root / "ChartQA Dataset/train/png" / train["imgname"]).read_bytes()
    (root / "ChartQA Dataset/val/png/same.png").write_bytes(picture)
    trees.edit(root / VAL, lambda items: items[0].update(imgname="same.png", query=train["query"]))
    assert trees.faults(prepare_benchmark(stream, root, out)) == {("chartqa", "train"): {"leaked": 1}}


def test_other_folders_are_not_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a prepared stream"):
        prepare_benchmark(CHARTS, root, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not a folder"):
        prepare_benchmark(CHARTS, tmp_path / "none", tmp_path / "new")


def test_an_unprepared_stream_says_how_to_prepare_it() -> None:
    with pytest.raises(ConfigError, match=r"prepare\.py coast-domain --root"):
        open_stream(StreamConfig(name="coast-domain"))


def _prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ran(main, *arguments, columns=200)


def test_the_command_prints_digest_table_and_problems(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.mllm_cl(root)
    (root / "Sci/images/train0.png").unlink()
    lost = _prepare("mllm-dcl", "--root", str(root), "--out", str(out))
    assert (lost.returncode, lost.stderr.count("\n"), out.exists()) == (1, 1, False)
    assert "1 of 2 rows of science train would be left out, 50.0%; allowed is 1.0%" in lost.stderr
    done = _prepare("mllm-dcl", "--root", str(root), "--out", str(out), "--max-broken", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert BENCHMARKS["mllm-dcl"].digest in done.stdout
    assert "Sci/train.json row 1: the image train0.png is missing" in done.stdout
    assert json.loads((out / "report.json").read_text())["spec"] == BENCHMARKS["mllm-dcl"].digest
    assert open_prepared(out).task_names == list(BENCHMARKS["mllm-dcl"].task_names)

    refused = _prepare("mllm-dcl", "--root", str(root), "--out", str(tmp_path / "strict"), "--strict")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --strict: 2 problems in science train")
    assert refused.stderr.count("\n") == 1
    without = _prepare("coin", "--out", str(out))
    assert (without.returncode, "--root" in without.stderr) == (1, True)


def test_some_tasks_of_a_stream_need_only_their_own_releases(tmp_path: Path) -> None:
    root, out = tmp_path / "downloads", tmp_path / "out"
    trees.chartqa(root)
    trees.iconqa(root)
    done = _prepare("coast-domain", "--tasks", "iconqa", "chartqa", "--root", str(root), "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    stream = open_prepared(out)
    assert (stream.name, stream.task_names) == ("part-of-coast-domain-chartqa-iconqa", ["chartqa", "iconqa"])
    spec = BENCHMARKS["coast-domain"].part(["chartqa", "iconqa"]).digest
    assert {task.train.card["spec"] for task in stream.tasks} == {spec}
    assert spec != BENCHMARKS["coast-domain"].digest
    assert stream.tasks[0].test.card["name"] == "part-of-coast-domain-chartqa-iconqa/chartqa"
    assert stream.name in done.stdout
    wrong = _prepare("coast-domain", "--tasks", "chart", "--root", str(root), "--out", str(tmp_path / "no"))
    assert (wrong.returncode, wrong.stderr.count("\n"), "has no task 'chart'" in wrong.stderr) == (1, 1, True)
    own = _prepare("mini-coast-domain", "--tasks", "chartqa", "--out", str(tmp_path / "no"))
    assert (own.returncode, own.stderr.count("\n"), "--stream.order" in own.stderr) == (1, 1, True)
    assert not (tmp_path / "no").exists()
