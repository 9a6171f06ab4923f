"""A user's own stream: what is read, every planted fault named with file and row, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import ran
from PIL import Image

from components.core.errors import ConfigError, DataError
from components.data.formats.items import distinct_items
from components.data.formats.json_items import iter_items
from components.data.formats.parallel_map import Threads
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.quality.report import ImportReport
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from pipelines.prepare import main

ROOT = Path(__file__).resolve().parents[2]
TOML = """name = "my-stream"
[[task]]
name = "shop"
train = "shop/train.json"
test = "shop/test.jsonl"
images = "shop/images"
metric = "exact"
max_new_tokens = 16
"""


def _png(side: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 60).save(buffer, format="PNG")
    return buffer.getvalue()


def _item(key: str, **changes: object) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nWhat is sold?"}, {"from": "gpt", "value": "tea"}]
    return {"id": key, "image": "a.png", "conversations": turns, **changes}


def _turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A good stream of 3 + 2 rows; tests damage it."""
    folder = tmp_path / "raw"
    (folder / "shop" / "images").mkdir(parents=True)
    (folder / "shop" / "images" / "a.png").write_bytes(_png())
    text_only = _item("t3", image=None, conversations=_turns(("human", "Is tea a drink?"), ("gpt", "yes")))
    (folder / "shop" / "train.json").write_text(
        json.dumps([_item("t1"), _item("t2", answers=["tea", "Tea"]), text_only])
    )
    (folder / "shop" / "test.jsonl").write_text("\n".join(json.dumps(_item(f"e{index}")) for index in range(2)) + "\n")
    (folder / "stream.toml").write_text(TOML)
    return folder


def _run(source: Path, out: Path, max_broken: float = 0.0) -> ImportReport:
    return import_stream(read_stream_file(source / "stream.toml"), out, max_broken=max_broken)


def test_a_good_stream_is_written_whole(source: Path, tmp_path: Path) -> None:
    assert _run(source, tmp_path / "out").refused is None
    stream = open_prepared(tmp_path / "out")
    train, test = list(stream.tasks[0].train.rows()), list(stream.tasks[0].test.rows())
    assert (stream.name, stream.task_names, stream.tasks[0].max_new_tokens) == ("my-stream", ["shop"], 16)
    assert [row.sample_id for row in train] == ["t1", "t2", "t3"]
    assert [row.answers for row in train] == [("tea",), ("tea", "Tea"), ("yes",)]
    assert train[0].turns[0].text == "<image>\nWhat is sold?"
    assert (train[0].image, train[0].width) == ((source / "shop/images/a.png").read_bytes(), 24)
    assert (train[2].image, train[2].width, train[2].turns[0].text) == (None, None, "Is tea a drink?")
    assert len(test) == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(file["rows"], file["kept"], file["with_image"]) for file in report["files"]] == [(3, 3, 2), (2, 2, 2)]


def test_json_list_longer_than_one_read_keeps_every_item(source: Path, tmp_path: Path) -> None:
    long = "word " * 1000
    items = [_item(f"t{index}", conversations=_turns(("human", long), ("gpt", "é"))) for index in range(500)]
    (source / "shop" / "train.json").write_text("\n" + json.dumps(items, ensure_ascii=False, indent=1))
    assert _run(source, tmp_path / "out").files[0].kept == 500  # 2.5 MB, read in pieces of 1 MB


def test_threads_write_the_same_shards(source: Path, tmp_path: Path) -> None:
    items = [_item(f"t{index}", **({"image": "none.png"} if index % 7 == 0 else {})) for index in range(50)]
    (source / "shop" / "train.json").write_text(json.dumps(items))
    for workers in (1, 3):
        stream, threads = read_stream_file(source / "stream.toml"), Threads(workers=workers)
        report = import_stream(stream, tmp_path / str(workers), max_broken=0.5, in_order=threads)
        assert [problem.row for problem in report.problems] == list(range(1, 51, 7))
    assert open_prepared(tmp_path / "1").digest == open_prepared(tmp_path / "3").digest


def test_a_list_of_four_times_the_length_takes_no_more_memory(tmp_path: Path) -> None:
    peaks: list[int] = []
    for count in (200, 800):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps([_item(str(index), note="word " * 4000) for index in range(count)], indent=1))
        tracemalloc.start()
        assert sum(1 for _ in distinct_items(iter_items(path))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8 << 20  # the longer list has 16 MB


FAULTS: list[tuple[str, object, str]] = [
    ("missing id", {"image": "a.png", "conversations": _turns(("human", "q"), ("gpt", "a"))}, '"id" is missing'),
    ("id of a wrong kind", _item("x", id=[1]), '"id" must be'),
    ("duplicate id", _item("good"), "used in row 1"),
    ("no conversations", {"id": "x", "image": "a.png"}, '"conversations" is missing'),
    ("other names", {"question": "q", "answer": "a"}, "the row has 'question', 'answer'"),
    ("no turns", _item("x", conversations=[]), "at least one question"),
    ("turn without value", _item("x", conversations=[{"from": "human"}]), 'turn 1 needs "from"'),
    ("wrong order", _item("x", conversations=_turns(("gpt", "a"), ("human", "q"))), "turn 1 is from 'gpt'"),
    ("no answer turn", _item("x", conversations=_turns(("human", "q"))), "must end with an answer"),
    ("empty answer", _item("x", conversations=_turns(("human", "q"), ("gpt", " "))), "empty answer"),
    ("empty question", _item("x", conversations=_turns(("human", "<image>"), ("gpt", "a"))), "empty question"),
    ("empty accepted answer", _item("x", answers=[""]), "accepted answer is empty"),
    ("no accepted answer", _item("x", answers=[]), '"answers" must be'),
    ("missing image", _item("x", image="none.png"), "none.png is missing"),
    ("truncated image", _item("x", image="cut.png"), "cut.png is truncated"),
    ("no picture", _item("x", image="note.png"), "note.png is not a picture"),
    ("path upwards", _item("x", image="../../secret.png"), "leads outside"),
    ("absolute path", _item("x", image="/etc/hostname"), "leads outside"),
    ("symlink outwards", _item("x", image="link.png"), "leads outside"),
    ("null byte", _item("x", image="a\0.png"), "cannot be followed"),
    ("two placeholders", _item("x", conversations=_turns(("human", "<image><image>q"), ("gpt", "a"))), "2 <image>"),
    ("placeholder alone", _item("x", image=None), 'field "image" is missing'),
    ("not an object", 7, "this is a number"),
    (
        "half a character",
        _item("x", conversations=_turns(("human", "\ud83d"), ("gpt", "a"))),
        "half of an escaped",
    ),
    ("half a character in an id", _item("\ud83d"), "half of an escaped"),
]


@pytest.mark.parametrize(("fault", "words"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_every_planted_fault_is_named_with_file_and_row(
    source: Path, tmp_path: Path, fault: object, words: str, form: str
) -> None:
    images = source / "shop" / "images"
    (images / "cut.png").write_bytes(_png(64)[:-800])
    (images / "note.png").write_text("no picture")
    (source / "secret.png").write_bytes(_png())
    (images / "link.png").symlink_to(source / "secret.png")
    items = [_item("good"), fault, _item("last")]
    text = json.dumps(items) if form == "json" else "\n".join(map(json.dumps, items))
    (source / "shop" / "train.json").write_text(text)

    refused = _run(source, tmp_path / "out")
    assert refused.refused is not None
    assert not (tmp_path / "out").exists()
    (problem,) = refused.problems
    assert str(problem).startswith(f"{source / 'shop' / 'train.json'} row 2: ")
    assert words in problem.detail
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["files"][0]["problems"][0]["row"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.report.json", "raw"]

    kept = _run(source, tmp_path / "out", max_broken=0.4)
    assert kept.refused is None
    assert [row.sample_id for row in open_prepared(tmp_path / "out").tasks[0].train.rows()] == ["good", "last"]


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ('[{"id": "x"', 1, "not JSON from here on"),
        ("[" + json.dumps(_item("x")) + ", oops]", 2, "not JSON from here on"),
        (json.dumps(_item("x")) + "\n{oops}\n", 2, "not JSON"),
        (json.dumps(_item("x")) + "\n" + '{"id": ' + "9" * 5000 + "}\n", 2, "4300 digits"),
        ("[" + json.dumps(_item("x")) + ', {"id": ' + "9" * 5000 + "}]", 2, "4300 digits"),
        (json.dumps(_item("x")) + "\n" + "[" * 100_000 + "\n", 2, "nested too deeply"),
        ("", None, "no rows"),
        ("[]", None, "no rows"),
    ],
)
def test_broken_json_is_named(source: Path, tmp_path: Path, text: str, row: int | None, words: str) -> None:
    (source / "shop" / "train.json").write_text(text)
    problem = _run(source, tmp_path / "out").problems[0]
    assert problem.row == row
    assert words in problem.detail


@pytest.mark.parametrize("text", ["", "[]"])
def test_a_file_without_rows_is_not_called_broken_rows(source: Path, tmp_path: Path, text: str) -> None:
    (source / "shop" / "train.json").write_text(text)
    report = _run(source, tmp_path / "out")
    assert report.refused == f"{source / 'shop' / 'train.json'}: the file has no rows"
    assert [kind.outcome for kind in report.kinds] == ["1 source without a row"]


@pytest.mark.parametrize(
    ("metric", "answer", "refused"),
    [("yes_no", "maybe", True), ("yes_no", "Yes.", False), ("iou", "[0.5,0.1,0.2,0.3]", True),
     ("iou", "[0.1,0.1,0.2,0.3]", False), ("iou", "left", True)],
)  # fmt: skip
def test_answers_must_fit_the_metric(source: Path, tmp_path: Path, metric: str, answer: str, refused: bool) -> None:
    (source / "stream.toml").write_text(TOML.replace("exact", metric))
    item = json.dumps(_item("x", conversations=_turns(("human", "q"), ("gpt", answer))))
    for name in ("train.json", "test.jsonl"):
        (source / "shop" / name).write_text(item)
    assert (_run(source, tmp_path / "out").refused is not None) == refused


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b'{"id": "\xff"}', "the byte 0xff"),
        (b'{"id": "\\udc00"}', "half of an escaped"),
        ('{"id": "x"}'.encode("utf-16"), "the byte 0xff"),
    ],
)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_text_that_is_not_utf8_is_named_with_its_row(
    source: Path, tmp_path: Path, damaged: bytes, words: str, form: str
) -> None:
    good, last = (json.dumps(_item(key, emoji="\U0001f600")).encode() for key in ("good", "last"))
    parts = (good, damaged, last)
    (source / "shop" / "train.json").write_bytes(
        b"[" + b",".join(parts) + b"]" if form == "json" else b"\n".join(parts)
    )
    report = _run(source, tmp_path / "out", max_broken=0.7)
    assert (report.problems[0].kind, report.problems[0].row) == ("not UTF-8", 2)
    assert words in report.problems[0].detail
    if words.startswith("half"):
        assert [row.sample_id for row in open_prepared(tmp_path / "out").tasks[0].train.rows()] == ["good", "last"]


@pytest.mark.parametrize("key", ["name", "train", "test", "metric", "max_new_tokens"])
def test_a_missing_field_names_task_and_field(source: Path, key: str) -> None:
    lines = TOML.splitlines(keepends=True)
    head, body = lines[:2], [line for line in lines[2:] if not line.startswith(f"{key} ")]
    (source / "stream.toml").write_text("".join(head + body))
    with pytest.raises(ConfigError, match=f"lacks the field '{key}'") as caught:
        read_stream_file(source / "stream.toml")
    assert ("Task 1" if key == "name" else "'shop'") in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "my-stream"', "", '"name"'),
        ('metric = "exact"', 'metric = "blue"', "'blue'; allowed are exact"),
        ("metric =", "metrik =", "Did you mean metric"),
        ("= 16", "= 0", "max_new_tokens = 0"),
        ('"shop/train.json"', '"none.json"', "none.json"),
        ('"shop/images"', '"none"', "is not a folder"),
        ('"shop"\n', '"../shop"\n', "a task name"),
        ('"shop"\n', '"zero-shot"\n', "a name that is taken; tasks may not be called stream.json"),
        ('"shop"\n', '"report.html"\n', "a name that is taken"),
        ("[[task]]", "[[task]", "not TOML"),
    ],
)
def test_a_wrong_stream_file_is_one_sentence(source: Path, old: str, new: str, words: str) -> None:
    assert old in TOML
    (source / "stream.toml").write_text(TOML.replace(old, new))
    with pytest.raises((ConfigError, DataError), match=words.replace("[", r"\[")):
        read_stream_file(source / "stream.toml")


def test_a_stream_file_may_begin_with_a_byte_order_mark(source: Path) -> None:
    (source / "stream.toml").write_text(TOML, encoding="utf-8-sig")
    assert read_stream_file(source / "stream.toml").name == "my-stream"


def test_the_same_task_twice_is_refused(source: Path) -> None:
    (source / "stream.toml").write_text(TOML + TOML.split("\n", 1)[1])
    with pytest.raises(ConfigError, match="shop twice"):
        read_stream_file(source / "stream.toml")


def test_a_stream_file_opens_by_path_and_follows_its_files(source: Path, tmp_path: Path) -> None:
    config = StreamConfig(name=str(source / "stream.toml"), data_dir=tmp_path / "data")
    first = open_stream(config)
    assert open_stream(config) == first
    with (source / "shop" / "test.jsonl").open("a") as file:
        file.write(json.dumps(_item("new")))
    assert open_stream(config).tasks[0].test.num_rows == 3
    (source / "shop" / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png is missing.*--max-broken"):
        open_stream(config)
    spaced = (source / "stream.toml").rename(source / "my stream.toml")
    with pytest.raises(DataError, match=f"'{spaced}' --out DIR --max-broken"):  # to be pasted
        open_stream(replace(config, name=str(spaced)))


def _prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ran(main, *arguments)


def test_the_command_reports_and_exits(source: Path, tmp_path: Path) -> None:
    toml, out = str(source / "stream.toml"), tmp_path / "out"
    done = _prepare(toml, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert open_prepared(out).task_names == ["shop"]
    before = (out / "stream.json").stat().st_mtime_ns

    (source / "shop" / "images" / "a.png").unlink()
    refused = _prepare(toml, "--out", str(out))
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert "row 1: the image a.png is missing" in refused.stdout
    assert (out / "stream.json").stat().st_mtime_ns == before, "the prepared stream must stay as it was"


def test_the_command_answers_an_unknown_stream_in_one_sentence(tmp_path: Path) -> None:
    unknown = _prepare("mini-coast-domian", "--out", str(tmp_path / "out"))
    assert unknown.returncode == 1
    assert "Did you mean mini-coast-domain" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("STREAM", "--root", "."), "--root is for a published stream and a published suite, STREAM is a stream file"),
        (("STREAM", "--size", "nano"), "--size is for a generated stream, STREAM is a stream file"),
        (("mini-coin", "--max-broken", "0.5"), "--max-broken is for a published stream and a published suite and a"),
        (("pope", "--tasks", "chartqa"), "--tasks is for a published stream, pope is a published suite"),
    ],
)
def test_an_option_that_would_not_be_looked_at_is_refused(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    stream = str(source / "stream.toml")
    given = [stream if part == "STREAM" else part for part in arguments]
    done = _prepare(*given, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert words.replace("STREAM", stream) in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_refusal_is_told_once_and_nothing_is_cut(source: Path, tmp_path: Path, width: int) -> None:
    text = (source / "stream.toml").read_text().replace('"shop"', '"a-shop-with-quite-a-long-name"', 1)
    (source / "stream.toml").write_text(text)
    (source / "shop" / "images" / "a.png").unlink()
    done = ran(main, str(source / "stream.toml"), "--out", str(tmp_path / "out"), columns=width)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("was not written") == 1
    assert "efused" not in done.stdout
    assert "…" not in done.stdout
    assert "a-shop-with-quite-a-long-name" in "".join(done.stdout.split())
    for word in ("release", "benchmark", "published", "new ids"):
        assert word not in done.stdout, "these are a user's own files"
    assert "missing image: 4 rows left out" in done.stdout


def test_help_fits_its_terminal() -> None:
    command = [sys.executable, str(ROOT / "pipelines" / "prepare.py"), "--help"]
    environment = {**os.environ, "COLUMNS": "90"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 90


@pytest.mark.long
def test_the_next_step_can_be_pasted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "my 'best' stream"
    done = _prepare(str(source / "stream.toml"), "--out", str(out), "--no-overlaps")
    first, last = done.stdout.splitlines()[-2:]
    for line in (first.partition(" learn it with: ")[2], last.partition(": ")[2]):
        _, script, *options = shlex.split(line)
        assert Path(script).name == "coast.py"
        assert options == ["--stream.name", str(out)]
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{first.partition(' learn it with: ')[2]} --run-id pasted --dry-run"],
        capture_output=True, text=True, timeout=200, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
