"""Published general suites from trees in their released layouts: rows, faults, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import suite_trees as trees
from rich.console import Console

from components.core.errors import ConfigError, DataError
from components.data.benchmarks.raw import RawItem
from components.data.quality.report import NOT_STATED
from components.data.rows import Row
from components.data.suite import group_of, open_suite
from components.data.suites import catalogue
from components.data.suites.catalogue import SUITES
from components.data.suites.opening import open_suites
from components.data.suites.preparing import prepare_suite
from components.data.tasks import TaskStream
from components.evaluation.predictions import Prediction
from components.evaluation.suite_figures import figures
from components.metrics import check_answers, score
from pipelines.prepare import Prepare, prepare

# By suite: (id, question's first line, accepted answers, metric, has a picture). By hand from the trees.
EXPECTED: dict[str, list[tuple[str, str, tuple[str, ...], str, bool]]] = {
    "pope": [
        ("random/COCO_val2014_01.jpg/1", "Is there a dog in the image?", ("yes",), "yes_no", True),
        ("random/COCO_val2014_01.jpg/2", "Is there a random cat in the image?", ("no",), "yes_no", True),
    ],
    "mme": [
        ("existence/7/1", "Is it so?", ("yes",), "yes_no", True),
        ("existence/7/2", "Is it not?", ("no",), "yes_no", True),
    ],
    "mme-release": [
        ("existence/7/1", "Is it so? Please answer yes or no.", ("yes",), "yes_no", True),
        ("existence/7/2", "Is it not? Please answer yes or no.", ("no",), "yes_no", True),
    ],
    "mmbench": [
        ("identity_reasoning/241/241", "Which is it?", ("B", "dog"), "choice", True),
        ("identity_reasoning/241/1000241", "Which is it?", ("A", "dog"), "choice", True),
        ("ocr/242/242", 'A "quoted"', ("A", "True"), "choice", True),
    ],
    "seed-bench": [
        ("Scene Understanding/a_1/1", "What 1?", ("C", "option c"), "choice", True),
        ("Instances Counting/a_2/2", "What 2?", ("C", "option c"), "choice", True),
    ],
    "seed-bench-2-plus": [
        ("all/text_rich_1.png/1", "What 1?", ("C", "option c"), "choice", True),
        ("all/text_rich_1.png/2", "What 2?", ("C", "option c"), "choice", True),
    ],
    "mmmu": [
        ("Art/validation_Art_1/1", "Which?", ("B", "Manet's"), "choice", True),
        ("Math/validation_Math_1/1", "Which?", ("24", "25"), "number", True),
    ],
    "mathvista": [
        ("multi_choice/all/1", "Hint: give the letter.", ("B", "three"), "choice", True),
        ("free_form/all/2", "Hint: give a number.", ("1.20",), "number", True),
    ],
    "hallusion-bench": [
        ("VD/chart_0/0-0", "Is VD larger?", ("yes",), "yes_no", True),
        ("VD/chart_0/1-0", "Is VD larger?", ("no",), "yes_no", True),
        ("VS/chart_0/0-0", "Is VS larger?", ("yes",), "yes_no", False),
        ("VS/chart_0/1-0", "Is VS larger?", ("no",), "yes_no", True),
    ],
    "scienceqa-test": [
        ("natural science/picture/4", "Water changes.", ("B", "steam"), "choice", True),
        ("natural science/text/5", "Which?", ("A", "ice"), "choice", False),
    ],
    "ocr-vqa-test": [
        ("all/0761183272/1", "Who wrote this book?", ("A. Writer",), "exact", True),
        ("all/0761183272/2", "What is the genre?", ("Travel",), "exact", True),
    ],
}
ROWS = {"pope": 6, "mme": 28, "mme-release": 28}  # others: as expected above
LEFT_OUT = {"mmmu": {"too many images": 1}}


def prepared(name: str, tmp_path: Path) -> list[Row]:
    trees.TREES[name](tmp_path / "root")
    report = prepare_suite(name, tmp_path / "root", tmp_path / "out")
    assert report.refused is None
    assert dict(report.files[0].counts) == LEFT_OUT.get(name, {})
    return list(open_suite(tmp_path / "out").test.rows())


def test_every_suite_has_a_tree() -> None:
    assert set(trees.TREES) == set(EXPECTED) == set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_a_release_becomes_rows(name: str, tmp_path: Path) -> None:
    rows = prepared(name, tmp_path)
    assert len(rows) == ROWS.get(name, len(EXPECTED[name]))
    told = [
        (row.sample_id, row.instruction.splitlines()[0], row.answers, row.metric, row.image is not None) for row in rows
    ]
    assert told[: len(EXPECTED[name])] == EXPECTED[name]
    for row in rows:
        check_answers(row.metric, row.answers)
        assert score(row.metric, row.turns[-1].text, row.answers) == 1.0
    suite = open_suite(tmp_path / "out")
    assert (suite.name, suite.scoring) == (name, SUITES[name].scoring)
    scored = [
        Prediction(
            after="",
            task=name,
            sample_id=row.sample_id,
            prediction=row.answers[0],
            answers=row.answers,
            score=1.0,
        )
        for row in rows
    ]
    assert figures(suite.scoring, scored)["score"] == 100.0
    opened = open_suites([str(tmp_path / "out")], tmp_path, TaskStream(name="s", tasks=()))
    assert opened == (suite,)


@pytest.mark.parametrize("name", SUITES)
def test_a_missing_release_names_its_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="expected is"):
        prepare_suite(name, tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is not a folder"):
        prepare_suite(name, tmp_path / "none", tmp_path / "out")


def test_choices_are_lettered_and_orders_share_a_group_and_a_picture(tmp_path: Path) -> None:
    first, second, third = prepared("mmbench", tmp_path)
    assert group_of(first.sample_id) == group_of(second.sample_id) != group_of(third.sample_id)
    assert first.image == second.image != third.image
    assert first.instruction.splitlines()[1:4] == ["A. cat", "B. dog", "C. cow"]
    assert third.instruction.splitlines()[1:5] == ["hint", "Is it?", "A. True", "B. False"]


def _drop(root: Path, file: str) -> None:
    (root / file).unlink()


def _replace(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


RELEASE = "MME_Benchmark_release_version/MME_Benchmark"
TSV, SEED = "MMBench/mmbench_dev_20230712.tsv", "SEED-Bench/SEED-Bench.json"
FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("pope", lambda root: _drop(root, "val2014/COCO_val2014_01.jpg"), "missing image"),
    ("pope", lambda root: _replace(root, "POPE/output/coco/coco_pope_random.json", '"yes"', '"maybe"'), "wrong field"),
    ("mme", lambda root: _replace(root, f"{RELEASE}/OCR/7.txt", "\tYes", " Yes"), "wrong field"),
    ("mmbench", lambda root: _replace(root, TSV, "\tB\tidentity", "\tX\tidentity"), "wrong field"),
    (
        "mmbench",
        lambda root: _replace(root, TSV, "\t241\tx", "\t99\tx"),
        "missing image",
    ),
    (
        "seed-bench",
        lambda root: _replace(root, SEED, '"answer": "C"', '"answer": "c"'),
        "wrong field",
    ),
    (
        "hallusion-bench",
        lambda root: _replace(root, "HallusionBench/HallusionBench.json", '"gt_answer": "1"', '"gt_answer": "2"'),
        "wrong field",
    ),
    (
        "scienceqa-test",
        lambda root: _replace(root, "ScienceQA/data/scienceqa/problems.json", '"answer": 1', '"answer": 2'),
        "wrong field",
    ),
    ("ocr-vqa-test", lambda root: _replace(root, "OCR-VQA/dataset.json", '"Travel"', '""'), "wrong field"),
]


@pytest.mark.parametrize(("name", "damage", "kind"), FAULTS)
def test_what_is_wrong_is_left_out_and_named(
    name: str, damage: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    trees.TREES[name](tmp_path / "root")
    damage(tmp_path / "root")
    report = prepare_suite(name, tmp_path / "root", tmp_path / "out", max_broken=0.9)
    assert set(report.files[0].counts) == {kind}
    refused = prepare_suite(name, tmp_path / "root", tmp_path / "refused")
    assert refused.refused is not None, "a whole row of so few is more than one in a hundred"
    assert not (tmp_path / "refused").exists()
    strict = prepare_suite(name, tmp_path / "root", tmp_path / "strict", strict=True)
    assert (strict.refused or "").startswith(("--strict: ", "no row of"))
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("named", ["./", "./hallusion_bench/", "hallusion_bench/"])
@pytest.mark.parametrize("kept", ["hallusion_bench", ""])
@pytest.mark.parametrize("home", ["HallusionBench", "."])
def test_hallusion_bench_keeps_every_row_in_each_layout(tmp_path: Path, named: str, kept: str, home: str) -> None:
    root = tmp_path / "root"
    trees.hallusion(root, named=named, kept=kept)
    report = prepare_suite("hallusion-bench", root / "HallusionBench" if home == "." else root, tmp_path / "out")
    assert (report.refused, report.files[0].kept, report.files[0].with_image) == (None, 4, 3)
    figure = root / "HallusionBench" / kept / "VD/chart/0_1.png"
    rows = {row.sample_id: row for row in open_suite(tmp_path / "out").test.rows()}
    assert rows["VD/chart_0/1-0"].image == figure.read_bytes()


def test_hallusion_bench_without_its_figures_is_refused(tmp_path: Path) -> None:
    """Its rows without a figure could all be read, and would measure nothing that is seen."""
    trees.hallusion(tmp_path / "root")
    for figure in (tmp_path / "root").rglob("*.png"):
        figure.unlink()
    report = prepare_suite("hallusion-bench", tmp_path / "root", tmp_path / "out", max_broken=0.99)
    assert (report.refused or "").startswith("no row of hallusion-bench test has its picture, 3 rows would be left out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SUITES)
def test_every_report_shows_the_licence(name: str, tmp_path: Path) -> None:
    prepared(name, tmp_path)
    [licence] = json.loads((tmp_path / "out/report.json").read_text())["licences"]
    assert licence == {"licence": SUITES[name].licence, "get": SUITES[name].get, "tasks": [name]}
    assert SUITES[name].licence != NOT_STATED
    assert SUITES[name].get


def test_mme_asks_once_for_the_form(tmp_path: Path) -> None:
    """LLaVA's line in the place of the release's, or the release's own; never both."""
    llava, release = (prepared(name, tmp_path / name) for name in ("mme", "mme-release"))
    assert [row.turns[0].text for row in llava[:2]] == [
        "<image>\nIs it so?\nAnswer the question using a single word or phrase.",
        "<image>\nIs it not?\nAnswer the question using a single word or phrase.",
    ]
    assert release[0].turns[0].text == "<image>\nIs it so? Please answer yes or no."
    assert [row.sample_id for row in llava] == [row.sample_id for row in release]


def test_a_subtask_of_mme_without_texts_is_named(tmp_path: Path) -> None:
    """Texts may lie apart though the pictures do not; an empty folder is no subtask without questions."""
    trees.mme(tmp_path / "root")
    home = tmp_path / "root" / RELEASE / "artwork"
    (home / "images/7.png").rename(home / "7.png")
    (home / "images").rmdir()
    assert prepare_suite("mme", tmp_path / "root", tmp_path / "out").files[0].kept == 28
    (home / "questions_answers_YN/7.txt").unlink()
    report = prepare_suite("mme", tmp_path / "root", tmp_path / "none")
    assert dict(report.files[0].counts) == {"no rows": 1}


def test_seed_bench_leaves_out_videos_alone(tmp_path: Path) -> None:
    trees.seed(tmp_path / "root")
    file = tmp_path / "root" / SEED
    content = json.loads(file.read_text())
    del content["questions"][0]["data_type"]
    file.write_text(json.dumps(content))
    assert prepare_suite("seed-bench", tmp_path / "root", tmp_path / "out").files[0].kept == 2


def test_a_picture_outside_the_root_is_refused(tmp_path: Path) -> None:
    trees.pope(tmp_path / "root")
    (tmp_path / "secret.jpg").write_bytes(trees.picture("secret.jpg"))
    file = "POPE/output/coco/coco_pope_random.json"
    _replace(tmp_path / "root", file, "COCO_val2014_01.jpg", "../../secret.jpg")
    report = prepare_suite("pope", tmp_path / "root", tmp_path / "out", max_broken=0.5)
    assert dict(report.files[0].counts) == {"image outside folder": 1}


def test_a_large_suite_is_drawn_by_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.ocrvqa(tmp_path / "root")
    spec = replace(SUITES["ocr-vqa-test"], use=1)
    monkeypatch.setitem(catalogue.SUITES, "ocr-vqa-test", spec)
    report = prepare_suite("ocr-vqa-test", tmp_path / "root", tmp_path / "out")
    (file,) = report.files
    assert (file.rows, file.chosen, file.kept, file.missed) == (2, 1, 1, 0)
    every = [item.item_id for item in spec.read(tmp_path / "root") if isinstance(item, RawItem)]
    (kept,) = open_suite(tmp_path / "out").test.column("sample_id")
    assert kept in every


def test_the_command_prepares_a_suite_and_says_how_to_score_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.pope(tmp_path / "root")
    out = tmp_path / "out"
    assert prepare(Prepare(stream="pope", root=tmp_path / "root", out=out), Console(width=200)) == 0
    assert f"--evaluation.suites {out}" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["files"][0]["kept"] == 6
    assert prepare(Prepare(stream="pope", root=tmp_path / "root", out=out), Console(width=200)) == 0, (
        "it may be replaced"
    )
    with pytest.raises(ConfigError, match="give their folder with --root"):
        prepare(Prepare(stream="pope", out=out), Console())
