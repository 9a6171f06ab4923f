"""A release's own reply files against its rows: every form of every suite, what does not fit, and real releases."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import suite_trees as trees
from in_process import ran

from components.core.errors import ConfigError, DataError
from components.data.benchmarks.raw import RawItem
from components.data.suites.catalogue import SUITES
from components.evaluation.suite_replies import Missing, score_suite
from components.metrics.released.evalai import processed
from pipelines.rescore import main

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("LITTORAL_REAL_FILES", ROOT.parent / "shared" / "real-files"))
real = pytest.mark.skipif(not REAL.is_dir(), reason="no real release files beside the checkout")
Records = list[dict[str, Any]]


def lines(records: Records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table(records: Records, sign: str) -> str:
    return "\n".join(sign.join(map(str, row)) for row in ([*records[0]], *(record.values() for record in records)))


def answers(*pairs: tuple[str | int, str], key: str = "question_id", text: str = "text") -> Records:
    return [{key: name, text: reply} for name, reply in pairs]


def pope_lines(setting: str, named: bool) -> str:
    """Both questions of a setting, the first of the random ones wrong; the release's lines hold the question, no id."""
    records: Records = []
    for at, (right, thing) in enumerate(POPE, start=1):
        reply = "Maybe not." if (setting, at) == ("random", 1) else right
        question = f"Is there a {thing.format(setting)} in the image?"
        named_record, asked = {"question_id": at, "text": reply}, {"question": question, "answer": reply}
        records.append(named_record if named else asked)
    return lines(records)


def mme_reply(task: str, answer: str) -> str:
    return "no" if (task, answer) == ("existence", "Yes") else answer


def mme_lines(task: str) -> str:
    return "".join(f"7.jpg\t{ask} {PLEASE}\t{answer}\t{mme_reply(task, answer)}\n" for ask, answer in MME)


SHORT = "\nAnswer the question using a single word or phrase."
PLEASE = "Please answer yes or no."
POPE = [("yes", "dog"), ("no", "{} cat")]  # the tree's answers and things
SETTINGS = ("random", "popular", "adversarial")
MME = [("Is it so?", "Yes"), ("Is it not?", "No")]
LLAVA_MME = [
    {"question_id": f"{task}/7.png", "prompt": f"{ask}{SHORT}", "text": mme_reply(task, answer)}
    for task in trees.SUBTASKS
    for ask, answer in MME
]
MATHVISTA = {
    "1": {"response": "two", "extraction": "two", "choices": ["two", "three"]},
    "2": {"response": "So it is 1.204.", "extraction": "1.204"},
}
HALLUSION = [
    {
        "category": category,
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": "0",
        "model_prediction": reply,
    }
    for category, figure, reply in (("VD", 0, "No."), ("VD", 1, "No."), ("VS", 0, "Yes, it is."), ("VS", 1, "no"))
]
COVER = "images/0761183272.jpg"
BOOKS = [
    {"image": COVER, "prompt": "Who wrote this book?", "text": "nobody"},
    {"image": COVER, "prompt": "What is the genre?", "text": "Travel"},
]
MMMU = {"validation_Art_1": "A", "validation_Art_2": "A", "validation_Math_1": "so 24"}
MMMU_ART = [{"id": "validation_Art_1", "response": "(A)", "answer": "B"}]
MMMU_MATH = [{"id": "validation_Math_1", "response": "It is 25.", "answer": "25"}]
ORDERS = ((241, "A"), (1000241, "A"), (242, "A"))
# suite and form: reply files by name, all right but for one reply, and the number of rows
FORMS: dict[tuple[str, str], tuple[dict[str, str], int]] = {
    ("pope", "ids"): ({f"pope_{name}.jsonl": pope_lines(name, named=True) for name in SETTINGS}, 6),
    ("pope", "by place"): ({f"{name}.json": pope_lines(name, named=False) for name in SETTINGS}, 6),
    ("mme", "the release's"): ({f"{task}.txt": mme_lines(task) for task in trees.SUBTASKS}, 28),
    ("mme", "LLaVA's"): ({"llava.jsonl": lines(LLAVA_MME)}, 28),
    ("mmbench", "lines"): ({"a.jsonl": lines(answers(*ORDERS))}, 3),
    ("mmbench", "a table"): ({"a.tsv": table(answers(*ORDERS, key="index", text="prediction"), "\t")}, 3),
    ("seed-bench", "lines"): ({"a.jsonl": lines(answers((1, "A"), (2, "C"), (3, "A")))}, 2),
    ("seed-bench", "the upload"): ({"a.jsonl": lines(answers(("1", "A"), ("2", "C"), text="prediction"))}, 2),
    ("seed-bench-2-plus", "lines"): ({"a.jsonl": lines(answers(("1", "D"), ("2", "C")))}, 2),
    ("mmmu", "an object"): ({"output.json": json.dumps(MMMU)}, 2),
    ("mmmu", "lists by subject"): ({"art.json": json.dumps(MMMU_ART), "math.json": json.dumps(MMMU_MATH)}, 2),
    ("mathvista", "an object"): ({"output.json": json.dumps(MATHVISTA)}, 2),
    ("hallusion-bench", "the release's"): ({"result.json": json.dumps(HALLUSION)}, 4),
    ("scienceqa-test", "lines"): ({"a.jsonl": lines(answers(("4", "A"), (5, "A")))}, 2),
    ("scienceqa-test", "outputs"): ({"a.json": json.dumps({"acc": 50.0, "outputs": {"4": "A", "5": "A. ice"}})}, 2),
    ("ocr-vqa-test", "ids"): ({"a.jsonl": lines(answers(("0761183272_1", "no one"), ("0761183272_2", "Travel")))}, 2),
    ("ocr-vqa-test", "picture and question"): ({"a.csv": table(BOOKS, ",")}, 2),
}


def placed(folder: Path, suite: str, files: dict[str, str]) -> tuple[Path, list[Path]]:
    """The suite's tree, without its pictures, and the reply files."""
    trees.TREES[suite](folder / "root")
    for picture in [*(folder / "root").rglob("*.jpg"), *(folder / "root").rglob("*.png")]:
        picture.unlink()
    paths = [folder / "replies" / name for name in files]
    (folder / "replies").mkdir()
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return folder / "root", paths


def test_every_suite_has_a_form() -> None:
    assert {suite for suite, _ in FORMS} == set(SUITES) - {"mme-release"}


@pytest.mark.parametrize(("suite", "form"), FORMS)
def test_a_releases_replies_find_their_rows(suite: str, form: str, tmp_path: Path) -> None:
    files, count = FORMS[suite, form]
    root, paths = placed(tmp_path, suite, files)
    found = score_suite(suite, root, paths)
    assert (found.samples, found.correct) == (count, count - 1)
    assert all("left out" in note for note in found.notes)  # a video's reply, a question about two pictures
    assert score_suite(suite, root, [tmp_path / "replies"]).record() == found.record()  # a folder stands for its files


def test_llavas_one_file_of_pope_needs_its_questions(tmp_path: Path) -> None:
    """Its ids run over all settings, so the question file tells which row they mean."""
    things = [(setting, thing.format(setting)) for setting in SETTINGS[::-1] for _, thing in POPE]
    questions = [
        {
            "question_id": at,
            "image": "COCO_val2014_01.jpg",
            "text": f"Is there a {thing} in the image?{SHORT}",
            "category": setting,
        }
        for at, (setting, thing) in enumerate(things)
    ]
    replies = [{"question_id": at, "prompt": "x", "text": "Yes" if at % 2 == 0 else "No"} for at in range(6)]
    root, [path] = placed(tmp_path, "pope", {"llava.jsonl": lines(replies)})
    asked = tmp_path / "llava_pope_test.jsonl"
    asked.write_text(lines(questions), encoding="utf-8")
    assert score_suite("pope", root, [path], questions=asked).figures["accuracy"] == 100.0
    with pytest.raises(DataError, match=r"No reply fits a row of pope: .*llava.jsonl line 1 names nothing, rows are"):
        score_suite("pope", root, [path])


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "QUESTION", "answer": "RIGHT", "prediction": "REPLY"},  # a table of another toolbox
        {"prompt": "QUESTION", "answer": "RIGHT", "text": "REPLY"},
        {"text": "QUESTION", "answer": "REPLY", "label": "RIGHT"},  # the questions with a field more
        {"text": "QUESTION", "response": "REPLY"},
    ],
    ids=" ".join,
)
def test_a_reply_is_neither_the_question_nor_the_right_answer(tmp_path: Path, fields: dict[str, str]) -> None:
    """All say yes, which is right of every other row."""
    values = {"QUESTION": "Is there a dog in the image?", "REPLY": "Yes"}
    files = {
        f"{setting}.jsonl": lines(
            [
                {"question_id": at, **{name: (values | {"RIGHT": right})[held] for name, held in fields.items()}}
                for at, (right, _) in enumerate(POPE, start=1)
            ]
        )
        for setting in SETTINGS
    }
    root, paths = placed(tmp_path, "pope", files)
    found = score_suite("pope", root, paths)
    assert (found.samples, found.figures["accuracy"], found.figures["yes_ratio"]) == (6, 50.0, 100.0)


def test_replies_by_place_are_not_moved_on_where_one_is_missing(tmp_path: Path) -> None:
    """The last one is there twice, so the numbers are right."""
    asked = [json.loads(line) for line in pope_lines("random", named=False).splitlines()]
    files = {f"{name}.json": pope_lines(name, named=False) for name in SETTINGS}
    root, paths = placed(tmp_path, "pope", {**files, "random.json": lines([asked[1], asked[1]])})
    with pytest.raises(DataError, match="1 of 6 rows of pope have no reply"):
        score_suite("pope", root, paths)


@pytest.mark.parametrize(("missing", "score"), [("wrong", 0.5), ("leave_out", 1.0)])
def test_a_row_without_a_reply(missing: Missing, score: float, tmp_path: Path) -> None:
    root, [path] = placed(tmp_path, "scienceqa-test", {"a.jsonl": lines([{"question_id": "4", "text": "B"}])})
    with pytest.raises(DataError, match=r"1 of 2 rows of .* have no reply \(the first is natural science/text/5"):
        score_suite("scienceqa-test", root, [path])
    found = score_suite("scienceqa-test", root, [path], missing=missing)
    assert found.figures["score"] == 100 * score
    assert found.notes[0].startswith("Rows without a reply, ")


BROKEN = [
    ("scienceqa-test", "a.jsonl", lines(answers(("4", "B"), ("4", "B"))), "line 2 is a second reply to natural"),
    ("scienceqa-test", "a.jsonl", lines(answers(("9", "B"))), "line 1 names 9, rows are named .* or 4 or"),
    ("scienceqa-test", "a.jsonl", '{"question_id": "4", "text": "B"}\nx\n', "line 2 is not JSON"),
    ("scienceqa-test", "a.jsonl", '{"question_id": "4", "text": null}', "needs a reply as a text in response or"),
    ("scienceqa-test", "a.json", "[1]", "record 1 must be a JSON object, given: 1"),
    ("scienceqa-test", "a.jsonl", "", "There is nothing to score: 2 rows of scienceqa-test and 0 replies"),
    ("mmbench", "a.csv", "index,prediction\n241,A, for one\n", "row 1 has more cells than the table has columns"),
    ("mme", "existence.txt", "7.jpg\tIs it so?\tYes\n", "line 1 must be picture, question, answer, reply between tabs"),
]


@pytest.mark.parametrize(("suite", "name", "text", "words"), BROKEN)
def test_files_that_do_not_fit(suite: str, name: str, text: str, words: str, tmp_path: Path) -> None:
    root, paths = placed(tmp_path, suite, {name: text})
    with pytest.raises(DataError, match=words):
        score_suite(suite, root, paths)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no suite 'popes'; allowed are pope, mme"):
        score_suite("popes", tmp_path, [])


def command(*options: str) -> tuple[int, list[str], str]:
    done = ran(main, *options)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_command(tmp_path: Path) -> None:
    root, [path] = placed(tmp_path, "scienceqa-test", FORMS["scienceqa-test", "lines"][0])
    code, shown, _ = command("--suite", "scienceqa-test", "--root", str(root), "--predictions", str(path))
    assert code == 0
    assert shown[0] == "scienceqa-test, fixed: 1 of 2 right, 50.000 %"
    assert json.loads(shown[-1])["figures"]["with a picture"] == 0.0
    for options, words in (
        (("--predictions", str(path)), "Give either --task or --suite."),
        (("--suite", "pope", "--predictions", str(path)), "--suite pope needs --root"),
        (("--suite", "pope", "--root", str(tmp_path), "--predictions", str(path)), "has none of"),
    ):
        code, shown, said = command(*options)
        assert (code, shown) == (1, [])
        assert said.startswith("error: ")
        assert words in said


# ---- real releases, where they lie beside the checkout


def unpacked(folder: Path) -> Path:
    """ScienceQA's real release with its problems unpacked."""
    home = folder / "ScienceQA" / "data" / "scienceqa"
    shutil.copytree(REAL / "scienceqa" / "ScienceQA" / "data" / "scienceqa", home)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (home / "problems.json").write_bytes(gzip.decompress((home / "problems.json.gz").read_bytes()))
    return folder


@real
@pytest.mark.parametrize(
    ("model", "right", "with_picture"), [("llava-v1.5-13b", 3155, 1445), ("llava_13b_v0", 3855, None)]
)
def test_llavas_scienceqa_as_published(model: str, right: int, with_picture: int | None, tmp_path: Path) -> None:
    """74.393 %, with a picture 71.641 % (published 71.6), and 90.898 %; ours may find a few more, none less."""
    replies = REAL / "scienceqa" / "predictions" / f"{model}.jsonl.gz"
    found = score_suite("scienceqa-test", unpacked(tmp_path / "root"), [replies])
    assert (found.samples, found.compat) == (4241, right)
    assert right <= found.correct <= right + 5
    assert found.pictured is not None
    assert found.pictured[0] == 2017
    if with_picture is not None:
        assert found.pictured[1:] == (with_picture, with_picture)
        assert round(found.figures["compat with a picture"], 3) == 71.641
        assert round(found.figures["compat"], 3) == 74.393


@real
def test_coins_scienceqa_on_real_replies(tmp_path: Path) -> None:
    home = unpacked(tmp_path / "root") / "ScienceQA" / "data" / "scienceqa"
    files = ("--problems", str(home / "problems.json"), "--splits", str(home / "pid_splits.json"))
    replies = REAL / "scienceqa" / "predictions" / "llava-v1.5-13b.jsonl.gz"
    code, shown, said = command("--task", "ScienceQA", *files, "--predictions", str(replies))
    assert (code, json.loads(shown[-1])["correct"]) == (0, 3158.0), said


@real
@pytest.mark.parametrize("suite", ["mme", "mme-release"])
def test_lavins_mme_as_published(suite: str) -> None:
    found = score_suite(suite, REAL / "mme", [REAL / "mme" / "predictions" / "LaVIN"])
    assert found.samples == 2374
    assert round(found.figures["compat perception"], 2) == round(found.figures["perception"], 2) == 963.61
    assert round(found.figures["compat cognition"], 2) == 249.64
    assert round(found.figures["cognition"], 2) == 250.36  # one "no" that is not among the first four letters


@real
def test_pope_of_a_model_that_only_says_yes(tmp_path: Path) -> None:
    """Half of the 9,000 real answers are yes: accuracy and precision 50, recall 100, F1 66.7."""
    paths = [tmp_path / f"yes_{setting}.jsonl" for setting in SETTINGS]
    for path in paths:
        path.write_text(lines([{"question_id": at, "answer": "Yes, there is."} for at in range(1, 3001)]))
    found = score_suite("pope", REAL / "pope3000", paths)
    assert found.samples == 9000
    assert [round(found.figures[name], 1) for name in ("accuracy", "precision", "recall", "f1")] == [50, 50, 100, 66.7]


@real
def test_the_answer_processor_on_real_replies() -> None:
    text = gzip.decompress((REAL / "replies" / "evalai_processor.jsonl.gz").read_bytes()).decode()
    pairs = [json.loads(line) for line in text.splitlines()]
    assert len(pairs) > 1000
    assert [reply for reply, wanted in pairs if processed(reply) != wanted] == []


@real
def test_scienceqas_release_is_whole(tmp_path: Path) -> None:
    items = [item for item in SUITES["scienceqa-test"].read(unpacked(tmp_path / "root")) if isinstance(item, RawItem)]
    assert len(items) == 4241
    assert sum(bool(item.images) for item in items) == 2017
