"""Rows that are too long for a backbone, and answers that no reply can give, are found before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.core.errors import ConfigError, DataError
from components.data.batch import IGNORE
from components.data.prepared import open_prepared, write_stream_json
from components.data.rows import Row, write_split
from components.data.stream_config import StreamConfig
from components.metrics import score
from components.models.config import BackboneConfig
from components.models.cutting import kept_of_training, without_middles
from components.models.encoding import Encoder, build_encoder
from components.training.config import RunConfig, TrainingConfig
from components.training.measuring import measure_split
from components.training.plan import Plan, plan_stream
from components.training.run_folder import check_run_dir, claim_run_dir
from tests.unit.sample_rows import picture, row

RED = picture((250, 0, 0))
LONG = "Why? " + "word " * 200 + "Say it."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(BackboneConfig(name="pocket"))


def numbered(rows: list[Row], task: str, part: str) -> Iterator[Row]:
    for number, each in enumerate(rows, start=1):
        yield replace(each, sample_id=f"{task}-{number}", task=task, split=part, source=f"{task}-{part}.json#{number}")


def stream(folder: Path, *, train: list[Row], test: list[Row], max_new_tokens: int = 16) -> Path:
    """Two tasks: `a` is short everywhere, `b` has these rows."""
    short = [row("<image>\nWhat?", "red", image=RED)] * 8
    for task, parts in (("a", {"train": short, "test": short[:4]}), ("b", {"train": train, "test": test})):
        for part, rows in parts.items():
            write_split(numbered(rows, task, part), folder / task / part, task=task, split=part)
    write_stream_json(folder, "s", dict.fromkeys("ab", max_new_tokens))
    return folder


def planned(folder: Path, *, limit: int | None = None, **backbone: object) -> Plan:
    config = RunConfig(
        run_id="r",
        storage=folder.parent / "runs",
        stream=StreamConfig(name=str(folder), data_dir=folder.parent / "data"),
        backbone=BackboneConfig(name="pocket", **backbone),  # type: ignore[arg-type]
        training=TrainingConfig(global_batch_size=4),
    )
    config = replace(config.with_method("sequential_lora"), evaluation=replace(config.evaluation, limit=limit))
    return plan_stream(config)


SHORT = [row("What?", "red")] * 6


def test_every_long_row_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    train = [*SHORT, row(LONG, "red"), row("What?", LONG)]
    folder = stream(tmp_path / "s", train=train, test=[*SHORT[:3], row("What?", LONG), row(LONG, "red")])
    with pytest.raises(DataError) as caught:
        planned(folder, max_length=64)
    text = str(caught.value)
    sizes = [int(size) for size in re.findall(r": (\d+) tokens", text)]
    encoder = build_encoder(BackboneConfig(name="pocket"))
    assert sizes == [
        *(len(encoder.training_example(each).input_ids) for each in train[-2:]),
        len(encoder.prompt_example(row(LONG, "red")).input_ids),
    ]
    assert "3 rows take more tokens than backbone.max_length = 64" in text
    for place in ("b train row 7 (b-train.json#7)", "b train row 8 (b-train.json#8)", "b test row 5 (b-test.json#5)"):
        assert place in text
    assert f"--backbone.max-length to {max(sizes)}" in text
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError, match="2 rows take"):
        planned(folder, max_length=64, limit=4)  # the last test row takes no part
    assert planned(folder, max_length=max(sizes)).fitted.left_out == {}


def test_many_long_rows_are_all_listed_in_a_file(tmp_path: Path) -> None:
    folder = stream(tmp_path / "s", train=[row(LONG, "red")] * 30, test=SHORT)
    with pytest.raises(DataError, match=r"30 rows take.*and 25 more, all listed in (\S+)\. Raise") as caught:
        planned(folder, max_length=64)
    listed = re.search(r"all listed in (\S+)\. Raise", str(caught.value))
    assert listed is not None
    lines = Path(listed[1]).read_text().splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"b train row {number}" for number in range(1, 31)]


def test_long_rows_are_left_out_on_request(tmp_path: Path) -> None:
    test = [row("<image>\nWhat?", "red", image=RED), row(LONG, "red"), *SHORT[:3]]
    folder = stream(tmp_path / "s", train=[row("What?", LONG), *SHORT], test=test)
    plan = planned(folder, max_length=64, too_long="skip")
    assert plan.fitted.left_out == {"b train": 1, "b test": 1}
    a, b = plan.stream.tasks
    assert [r.sample_id for r in b.train.rows()] == [f"b-{number}" for number in range(2, 8)]
    kept = list(b.test.rows())
    assert [r.sample_id for r in kept] == ["b-1", "b-3", "b-4", "b-5"]
    assert kept[0].image == RED
    assert a.train.digest == open_prepared(folder).tasks[0].train.digest
    assert [scheduled.num_rows for scheduled in plan.schedule] == [8, 6]
    with pytest.raises(DataError, match="no row of b test is left"):
        planned(stream(tmp_path / "t", train=SHORT, test=[row(LONG, "red")]), max_length=64, too_long="skip")


def test_rows_that_move_up_behind_skipped_ones_fit_too(tmp_path: Path) -> None:
    long, wordy = row(LONG, "red"), row("What?", LONG)
    folder = stream(tmp_path / "s", train=SHORT, test=[SHORT[0], long, SHORT[0], long, wordy, wordy, SHORT[0]])
    plan = planned(folder, limit=3, max_length=64, too_long="skip")
    taken = list(plan.stream.tasks[1].test.rows(limit=3))
    assert [each.sample_id for each in taken] == ["b-1", "b-3", "b-5"]
    encoder = build_encoder(BackboneConfig(name="pocket", max_length=64))
    assert all(len(encoder.prompt_example(each).input_ids) <= 64 for each in taken)
    (warning,) = plan.fitted.warnings
    assert warning.startswith("1 of 3 test answers of task b need more")


def test_long_rows_are_cut_on_request(tmp_path: Path) -> None:
    folder = stream(tmp_path / "s", train=[row("What?", LONG), row(LONG, "red"), *SHORT], test=[row(LONG, "red")])
    plan = planned(folder, max_length=64, too_long="cut")
    assert plan.fitted.cut == {"b train": 2, "b test": 1}
    assert [scheduled.num_rows for scheduled in plan.schedule] == [8, 8]
    impossible = row("<image>\nWhat?", "red", image=RED)
    with pytest.raises(DataError, match=r"rows cannot be cut: a train row 1: .*picture or its answer"):
        planned(stream(tmp_path / "t", train=[impossible] * 4, test=SHORT), max_length=20, too_long="cut")


def test_a_cut_row_keeps_its_picture_its_answer_and_its_ends() -> None:
    whole = build_encoder(BackboneConfig(name="pocket"))
    short = build_encoder(BackboneConfig(name="pocket", max_length=64, too_long="cut"))
    for sample in (
        row(f"<image>\n{LONG}", "a red ball", image=RED),
        row(f"{LONG}\n<image>", "a red ball", image=RED),
        row("Hi", "ho", f"{LONG} <image> {LONG}", "a red ball", image=RED),
        row("<image>\nWhat?", LONG, image=RED),
        row("<image>\nWhat?", "a red ball", LONG, "yes", image=RED),
    ):
        example, full = short.training_example(sample), whole.training_example(sample)
        picture_id = short.family.image_token_id
        assert len(example.input_ids) == 64
        assert int((example.input_ids == picture_id).sum()) == 16
        learned, wanted = (one.labels[one.labels != IGNORE].tolist() for one in (example, full))
        assert learned
        assert wanted[: len(learned)] == learned  # answers lose their end, never their beginning
        prompt, asked = short.prompt_example(sample).input_ids, whole.prompt_example(sample).input_ids
        assert len(prompt) == min(64, len(asked))
        assert int((prompt == picture_id).sum()) == 16
        assert torch.equal(prompt[-6:], asked[-6:])  # the question's end and where the model is to go on


def test_where_the_middle_goes() -> None:
    # a loop would take one place after the other out of the middle of the longest stretch
    assert without_middles(10, 7, [1, 2, 3, 4, 5, 8]) == [0, 1, 5, 6, 7, 8, 9]
    assert without_middles(10, 4, [1, 2, 3, 4, 5, 8]) == [0, 6, 7, 9]
    assert without_middles(10, 3, [1, 2, 3, 4, 5, 8]) is None
    assert kept_of_training(10, 6, picture=[2, 3], labelled=[5, 6], asked=[4]) == [0, 1, 2, 3, 4, 5]
    assert kept_of_training(10, 8, picture=[2, 3], labelled=[8, 9], asked=[4, 5, 6]) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert kept_of_training(10, 5, picture=[5, 6], labelled=[1, 9], asked=[7]) is None


# ---- a run that goes on ------------------------------------------------------------------------------------------


def test_a_limit_that_admits_the_same_rows_does_not_forbid_to_go_on(tmp_path: Path) -> None:
    folder = stream(tmp_path / "s", train=[row("What?", LONG), *SHORT], test=SHORT)
    claim_run_dir(planned(folder, max_length=640))
    check_run_dir(planned(folder, max_length=2048))
    check_run_dir(planned(folder, max_length=1024, too_long="skip"))
    with pytest.raises(ConfigError, match="exists with"):
        check_run_dir(planned(folder, max_length=64, too_long="skip"))
    with pytest.raises(ConfigError, match="exists with"):
        check_run_dir(planned(folder, max_length=64, too_long="cut"))
    plan = planned(folder, max_length=640)
    with pytest.raises(ConfigError, match=r"exists with rows\.template = chatml, this command has vicuna_v1"):
        check_run_dir(replace(plan, fitted=replace(plan.fitted, template="vicuna_v1")))


def test_cut_rows_need_the_same_limit(tmp_path: Path) -> None:
    folder = stream(tmp_path / "s", train=[row("What?", LONG), *SHORT], test=SHORT)
    claim_run_dir(planned(folder, max_length=64, too_long="cut"))
    check_run_dir(planned(folder, max_length=64, too_long="cut"))
    with pytest.raises(ConfigError, match=r"backbone\.max_length = 64, this command has 65"):
        check_run_dir(planned(folder, max_length=65, too_long="cut"))


# ---- answers -----------------------------------------------------------------------------------------------------


def test_answers_longer_than_replies_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    answers = ["red", "a word " * 3, LONG, "blue square"]
    test = [row("What?", answer) for answer in answers]
    test.append(replace(row("What?", LONG), answers=(LONG, "red")))  # one accepted answer fits
    test.append(replace(row("Do it", "x"), answers=('{"kind": "words", "count": 3}',), metric="constraints"))
    folder = stream(tmp_path / "s", train=SHORT, test=test, max_new_tokens=8)
    lengths = measure_split(encoder, open_prepared(folder).tasks[1].test, answering=True)
    labelled = [encoder.training_example(row("What?", answer)).labels for answer in answers]
    assert lengths.replies == [*(int((labels != IGNORE).sum()) - 1 for labels in labelled), lengths.replies[0], 0]
    longer = [size for size in lengths.replies if size > 8]
    (warning,) = planned(folder).fitted.warnings
    assert warning.startswith(
        f"{len(longer)} of 6 test answers of task b need more than max_new_tokens = 8 (the longest"
    )
    assert str(max(longer)) in warning


def test_answers_no_reply_can_equal_are_said(tmp_path: Path) -> None:
    test = [*SHORT[:2], row("What?", "the"), row("Is it?", "maybe")]
    test[3] = replace(test[3], metric="yes_no")
    folder = stream(tmp_path / "s", train=SHORT, test=test)
    plan = planned(folder)
    expected = [at + 1 for at, each in enumerate(test) if score(each.metric, each.answers[0], each.answers) == 0]
    assert 4 in expected
    (warning,) = plan.fitted.warnings
    assert f"{len(expected)} of 4 test rows of task b score 0 whatever is replied" in warning
    assert f"rows {', '.join(map(str, expected))}" in warning
