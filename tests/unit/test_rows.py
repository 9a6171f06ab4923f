"""Rows and splits: round trip, manifest, damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.data.rows import Row, Split, Turn, open_split, row_from_record, row_to_record, verify_split, write_split


def _row(index: int, *, image: bytes | None = b"\x89PNG") -> Row:
    turns = (Turn(speaker="human", text=f"<image>\nWhich é {index}?"), Turn(speaker="gpt", text=str(index)))
    side = None if image is None else 4
    return Row(
        sample_id=f"r{index}", task="shop", split="train", turns=turns, answers=(str(index), "x"), metric="exact",
        source="test", image=image, width=side, height=side,
    )  # fmt: skip


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return write_split((_row(index) for index in range(2100)), tmp_path / "train", task="shop", split="train")


@pytest.mark.parametrize("image", [b"bytes", None])
def test_a_row_survives_its_record(image: bytes | None) -> None:
    assert row_from_record(row_to_record(_row(3, image=image))) == _row(3, image=image)


def test_rows_come_back_in_order_over_several_shards(split: Split) -> None:
    assert len(split.shards) == 3  # 1024 rows a shard
    assert list(split.rows()) == [_row(index) for index in range(2100)]
    assert list(split.column("sample_id")) == [f"r{index}" for index in range(2100)]
    verify_split(split)


def test_instruction_leaves_the_placeholder_out() -> None:
    assert _row(1).instruction == "Which é 1?"


def test_digest_depends_on_the_rows_not_on_the_place(tmp_path: Path, split: Split) -> None:
    same = write_split((_row(index) for index in range(2100)), tmp_path / "copy", task="shop", split="train")
    other = write_split((_row(index) for index in range(2099)), tmp_path / "other", task="shop", split="train")
    assert same.digest == split.digest != other.digest


def test_a_changed_shard_is_found(split: Split) -> None:
    path = split.shard_paths()[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"part-00001\.parquet differs"):
        verify_split(split)


def test_a_missing_shard_is_found(split: Split) -> None:
    split.shard_paths()[2].unlink()
    with pytest.raises(DataError, match=r"part-00002\.parquet is missing"):
        verify_split(split)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other/9"}, "other/9"),
        ({"shards": [{"file": "../up.parquet", "rows": 1, "bytes": 1, "sha256": ""}]}, "up.parquet"),
        ({"shards": [{"file": "a"}]}, "not a readable manifest"),
    ],
)
def test_a_foreign_manifest_is_refused(split: Split, change: dict[str, object], words: str) -> None:
    path = split.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=words):
        open_split(split.path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare"):
        open_split(tmp_path)


def test_a_failing_source_of_rows_leaves_the_old_split(split: Split) -> None:
    def broken() -> list[Row]:
        raise DataError("the source broke")

    with pytest.raises(DataError, match="source broke"):
        write_split((row for _ in range(1) for row in broken()), split.path, task="shop", split="train")
    verify_split(open_split(split.path))
