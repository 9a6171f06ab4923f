"""Questions of real releases, in the layout of their download, with small pictures made here in the place of theirs.

The files lie in the folder that LITTORAL_REAL_FILES names, or in shared/real-files beside the checkout.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_trees import only, picture

from components.data.benchmarks.chartqa import read_chartqa
from components.data.benchmarks.raw import RawItem
from components.data.benchmarks.spec import PartSpec
from components.data.suite import open_suite
from components.data.suites.mme import SUBTASKS
from components.data.suites.preparing import prepare_suite

CHECKOUT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("LITTORAL_REAL_FILES", CHECKOUT.parent / "shared" / "real-files"))
SMALL = picture("small.jpg")

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not on this machine")


def kept(name: str, root: Path, tmp_path: Path) -> tuple[int, int]:
    """Rows and rows with a picture; none may be lost and the published size must be met."""
    report = prepare_suite(name, root, tmp_path / "out", strict=True)
    assert (report.refused, report.state) == (None, "clean")
    assert open_suite(tmp_path / "out").test.num_rows == report.files[0].kept
    return report.files[0].kept, report.files[0].with_image


def test_pope(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "val2014").mkdir(parents=True)
    (root / "output").symlink_to(REAL / "pope3000/output")
    for setting in ("random", "popular", "adversarial"):
        for line in (root / f"output/coco/coco_pope_{setting}.json").read_text().splitlines():
            (root / "val2014" / json.loads(line)["image"]).write_bytes(SMALL)
    assert len(list((root / "val2014").iterdir())) == 500
    assert kept("pope", root, tmp_path) == (9_000, 9_000)


@pytest.mark.parametrize("apart", [True, False], ids=["images/ apart", "one folder"])
def test_mme(tmp_path: Path, apart: bool) -> None:
    home = tmp_path / "root/MME_Benchmark_release_version"
    pictures = 0
    for text in sorted((REAL / "mme/MME_Benchmark_release_version").rglob("*.txt")):
        place = home / text.relative_to(REAL / "mme/MME_Benchmark_release_version")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(text)
        folder = place.parent
        if folder.name == "questions_answers_YN":
            folder = folder.parent / "images" if apart else folder.parent
        folder.mkdir(exist_ok=True)
        (folder / f"{text.stem}.jpg").write_bytes(SMALL)
        pictures += 1
    assert (pictures, len(list(home.iterdir()))) == (1_187, len(SUBTASKS))
    assert kept("mme", tmp_path / "root", tmp_path) == (2_374, 2_374)
    asked = [row.instruction for row in open_suite(tmp_path / "out").test.rows()]
    assert not any("yes or no" in text.lower().splitlines()[-2] for text in asked)
    assert {text.splitlines()[-1] for text in asked} == {"Answer the question using a single word or phrase."}


def test_scienceqa(tmp_path: Path) -> None:
    home, source = tmp_path / "root/ScienceQA/data/scienceqa", REAL / "scienceqa/ScienceQA/data/scienceqa"
    home.mkdir(parents=True)
    (home / "pid_splits.json").symlink_to(source / "pid_splits.json")
    problems = json.loads(gzip.decompress((source / "problems.json.gz").read_bytes()))
    (home / "problems.json").write_text(json.dumps(problems))
    for pid in (pid for pid, problem in problems.items() if problem["image"]):
        (home / "images/test" / pid).mkdir(parents=True)
        (home / "images/test" / pid / problems[pid]["image"]).write_bytes(SMALL)
    assert kept("scienceqa-test", tmp_path / "root", tmp_path) == (4_241, 2_017)


@pytest.mark.parametrize("part", ["val", "test"])
def test_odd_labels_of_chartqa_are_read(tmp_path: Path, part: str) -> None:
    """Lists as text, quotes, a lost character, dates as Excel's numbers: as they stand."""
    source = REAL / f"chartqa-sample/ChartQA Dataset/{part}/{part}_human.json"
    home = tmp_path / "ChartQA Dataset" / part
    home.mkdir(parents=True)
    (home / source.name).symlink_to(source)
    (home / f"{part}_augmented.json").write_text("[]")
    [task] = only("coast-domain", "chartqa").tasks
    read = list(read_chartqa(tmp_path, replace(task, test=PartSpec(source=part)), "test"))
    items = json.loads(source.read_text())
    assert all(isinstance(item, RawItem) for item in read)
    assert [item.answers for item in read if isinstance(item, RawItem)] == [(item["label"].strip(),) for item in items]
