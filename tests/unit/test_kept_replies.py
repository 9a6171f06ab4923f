"""Replies that are kept: only from files that are what was written, and those of the frozen model for every run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from failing_store import Store

from components.adapters.serving import Digests
from components.core.files import write_json
from components.data.rows import Shard, Split
from components.data.tasks import Task
from components.evaluation.generation import Answer
from components.evaluation.manifest import MANIFEST_FILE, note_digests
from components.evaluation.predictions import Prediction, predictions_file, read_predictions, write_predictions
from components.evaluation.reuse import KeptReply
from components.training.config import EvaluationConfig
from components.training.kept_replies import KeptReplies, UnaidedReplies, earlier_row


def written(run_dir: Path, learned: int, after: str, *rows: tuple[str, str, str], suite: str | None = None) -> Path:
    """A row's file of (task, key, reply), noted in the manifest."""
    path = predictions_file(run_dir, learned, after, suite=suite)
    table = [
        Prediction(after=after, task=task, sample_id=key, prediction=text, score=0.0, reply_key=key, slots=[1, 2])
        for task, key, text in rows
    ]
    write_predictions(path, table)
    note_digests(run_dir, [path])
    return path


def replies(run_dir: Path) -> KeptReplies:
    return KeptReplies(run_dir, run_dir / "shared", EvaluationConfig())


def texts(run_dir: Path, task: str = "charts") -> dict[str, str]:
    return {key: kept.text for key, kept in replies(run_dir).of(task).items()}


def test_a_restarted_run_finds_the_replies_that_each_task_had(tmp_path: Path) -> None:
    written(tmp_path, 1, "charts", ("charts", "a", "old"), ("icons", "b", "an icon"))
    written(tmp_path, 10, "icons", ("charts", "c", "new"))
    written(tmp_path, 10, "icons", ("pope", "d", "yes"), suite="pope")
    assert (texts(tmp_path), texts(tmp_path, "icons")) == ({"a": "old", "c": "new"}, {"b": "an icon"})
    assert texts(tmp_path, "pope") == {"d": "yes"}
    assert replies(tmp_path).of("icons")["b"].slots == (1, 2)
    assert replies(tmp_path).of("icons")["b"].cell == "charts"


def test_replies_of_a_file_that_fails_its_check_are_not_taken(tmp_path: Path) -> None:
    path = written(tmp_path, 2, "icons", ("charts", "a", "true"))
    assert texts(tmp_path) == {"a": "true"}
    write_predictions(path, [replace(one, prediction="forged") for one in read_predictions(path)])
    assert texts(tmp_path) == {}
    path.write_bytes(path.read_bytes()[:-9])
    assert texts(tmp_path) == {}
    note_digests(tmp_path, [path])  # noted as it is, and still no Parquet
    assert texts(tmp_path) == {}


@pytest.mark.parametrize("content", [None, "{", '{"format": "other", "files": {}}'])
def test_without_a_whole_manifest_nothing_is_taken(tmp_path: Path, content: str | None) -> None:
    written(tmp_path, 1, "charts", ("charts", "a", "true"))
    if content is None:
        (tmp_path / MANIFEST_FILE).unlink()
    else:
        (tmp_path / MANIFEST_FILE).write_text(content)
    assert texts(tmp_path) == {}


def test_a_reply_keeps_the_row_in_which_it_was_answered_first(tmp_path: Path) -> None:
    written(tmp_path, 1, "charts", ("charts", "a", "old"))
    kept = replies(tmp_path)
    assert set(kept.of("charts")) == {"a"}
    before = KeptReply(text="new", cell="zero-shot")
    shared = KeptReply(text="theirs", cell="zero-shot", run="another")
    answers = [
        Answer(sample_id="1", text="new", key="c", kept=before, oracle_text="told", oracle_key="o"),
        Answer(sample_id="2", text="no key"),
        Answer(sample_id="3", text="theirs", key="s", kept=shared),
        Answer(sample_id="4", text="same row", key="r", kept=replace(before, cell="icons")),
    ]
    assert [earlier_row(one, "icons") for one in answers] == ["zero-shot", None, None, None]
    kept.answered("charts", answers, "icons")
    kept.answered(
        "charts", [Answer(sample_id="4", text="same row", key="r", kept=replace(before, cell="icons"))], "vqa"
    )
    expected = {
        "a": ("old", "charts"),
        "c": ("new", "zero-shot"),
        "o": ("told", "zero-shot"),
        "s": ("theirs", "icons"),
        "r": ("same row", "icons"),
    }
    assert {key: (one.text, one.cell) for key, one in kept.of("charts").items()} == expected
    written(tmp_path, 2, "icons", ("charts", "d", "of a cell that an earlier start had answered"))
    assert "d" not in kept.of("charts")
    kept.read_again()
    assert set(kept.of("charts")) == {*expected, "d"}


def unaided(key: str, text: str, **more: object) -> Answer:
    return replace(Answer(sample_id=key, text=text, key=key, unaided=True), **more)


def test_the_frozen_models_replies_are_shared_and_say_whose_they_were(tmp_path: Path) -> None:
    shared = UnaidedReplies.of(tmp_path, ["charts", 16])
    assert shared.read() == {}
    shared.add([unaided("a", "ein Bär – 熊"), replace(unaided("b", "routed"), unaided=False)], "one", "zero-shot")
    UnaidedReplies.of(tmp_path, ["charts", 16]).add([unaided("a", "later"), unaided("c", "")], "two", "zero-shot")
    assert {key: (one.text, f"{one.run}/{one.cell}") for key, one in shared.read().items()} == {
        "a": ("ein Bär – 熊", "one/zero-shot"),
        "c": ("", "two/zero-shot"),
    }
    assert UnaidedReplies.of(tmp_path, ["charts", 17]).read() == {}


def test_log_likelihoods_of_options_are_kept_with_the_reply(tmp_path: Path) -> None:
    chosen = Prediction(
        after="charts",
        task="charts",
        sample_id="1",
        prediction="B",
        score=1.0,
        reply_key="a",
        chosen_by="acc",
        options=["A", "B"],
        log_likelihoods=[-2.5, -0.1],
        oracle_prediction="A",
        oracle_reply_key="o",
        oracle_log_likelihoods=[-0.3, -2.0],
    )
    path = predictions_file(tmp_path, 1, "charts")
    write_predictions(path, [chosen])
    note_digests(tmp_path, [path])
    kept = replies(tmp_path)
    now = Answer(sample_id="2", text="A", key="n", log_likelihoods=(-0.2, -4.0))
    kept.answered("charts", [now], "charts")
    expected = {"a": (-2.5, -0.1), "o": (-0.3, -2.0), "n": (-0.2, -4.0)}
    assert {key: one.log_likelihoods for key, one in kept.of("charts").items()} == expected
    shared = UnaidedReplies.of(tmp_path, "asked")
    shared.add([unaided("a", "A", log_likelihoods=(-0.2, -4.0)), unaided("b", "said")], "one", "zero-shot")
    assert {key: one.log_likelihoods for key, one in shared.read().items()} == {"a": (-0.2, -4.0), "b": None}


def test_a_damaged_or_foreign_file_counts_as_missing_and_is_written_anew(tmp_path: Path) -> None:
    shared = UnaidedReplies.of(tmp_path, "asked")
    shared.add([unaided("a", "true")], "one", "zero-shot")
    good = json.loads(shared.path.read_text())
    forged = {**good, "replies": {"a": ["forged", "one", "zero-shot"]}}
    for content in (forged, {**good, "format": "other"}, [1], {}, {**good, "replies": {"a": 1}}, {**good, "sha256": 1}):
        write_json(shared.path, content)
        assert shared.read() == {}
    for damaged in (b"", b"\xff\xfe", json.dumps(good).encode()[:-20], b"[" * 100_000):
        shared.path.write_bytes(damaged)
        assert shared.read() == {}
        shared.add([unaided("b", "again")], "two", "zero-shot")
        assert set(shared.read()) == {"b"}
        shared.path.unlink()


def test_runs_share_them_in_a_store_too() -> None:
    store = Store(whole_puts=True, piece=1 << 20)
    for run, key in (("one", "a"), ("two", "b")):
        UnaidedReplies.of(store.place("b/.cache"), "asked").add([unaided(key, f"of {run}")], run, "zero-shot")
    found = UnaidedReplies.of(store.place("b/.cache"), "asked").read()
    assert {key: kept.text for key, kept in found.items()} == {"a": "of one", "b": "of two"}
    assert [found[key].run for key in "ab"] == ["one", "two"]
    assert UnaidedReplies.of(store.place("b/.cache"), "other").read() == {}
    (name,) = store.files
    store.files[name] = store.files[name][:-9]
    assert UnaidedReplies.of(store.place("b/.cache"), "asked").read() == {}


def test_a_run_that_keeps_no_replies_asks_for_none(tmp_path: Path) -> None:
    split = Split(
        path=Path("charts"), task="charts", split="test", shards=(Shard(file="0", rows=2, bytes=9, sha256="a"),)
    )
    charts = Task(name="charts", train=split, test=split, max_new_tokens=8)
    off = KeptReplies(tmp_path, tmp_path, EvaluationConfig(reuse=False))
    assert off.unaided(charts, 2, "", 1) is None
    assert off.reuse(charts, None, "", "", Digests()) is None
    on = replies(tmp_path)
    places = {
        one.path
        for one in (
            on.unaided(charts, 2, "", 1),
            on.unaided(charts, 2, "", 2),
            on.unaided(charts, 1, "", 1),
            on.unaided(replace(charts, max_new_tokens=9), 2, "", 1),
            KeptReplies(tmp_path, tmp_path / "shared", EvaluationConfig(batch_size=3)).unaided(charts, 2, "", 1),
        )
        if one is not None
    }
    assert len(places) == 5
