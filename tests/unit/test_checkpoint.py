"""Checkpoints: what is written comes back, and what is torn, foreign or changed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.core.checkpoint import read_checkpoint, write_checkpoint
from components.core.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"method": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"a.exp_avg": torch.ones(2)}}
    write_checkpoint(tmp_path, {"cursor": {"index": 2}}, tensors)
    return tmp_path


def test_round_trip(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.state["cursor"] == {"index": 2}
    assert torch.equal(checkpoint.tensors["method"]["a"], torch.arange(6.0).reshape(2, 3))
    assert set(checkpoint.tensors) == {"method", "optimizer"}


def test_an_empty_group_survives(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, {"in_task": {}})
    assert read_checkpoint(tmp_path).tensors == {"in_task": {}}


def test_a_folder_without_state_is_not_a_checkpoint(folder: Path) -> None:
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_checkpoint(folder)


def test_a_changed_tensor_file_is_refused(folder: Path) -> None:
    path = folder / "method.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(folder)


def test_a_missing_tensor_file_is_refused(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        read_checkpoint(folder)


def test_another_format_is_refused(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": "other/9"}))
    with pytest.raises(CheckpointError, match="other/9"):
        read_checkpoint(folder)


def test_a_file_name_cannot_leave_the_folder(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    state["files"] = {"../../etc/passwd": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=str(folder)):
        read_checkpoint(folder)
