"""What a method promises that says it needs no boundaries between tasks (`MethodConfig.is_task_free`).

python -m pytest tests/contract/test_task_free.py --method-contract my_method
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_tasks import (
    COLOURS,
    OPPOSITES,
    Toy,
    attached,
    colour_row,
    fresh_backbone,
    learn,
    opposite_row,
    tiny_config,
    toy,
)

from components.data.rows import Row
from components.methods.base import Method
from components.models.backbone import Backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder

task_free_methods = pytest.mark.task_free_methods


def blurred(*names: str, disguised: bool = False) -> list[Toy]:
    """Two segments: three colours and one opposite, then one colour and three opposites."""
    colours, opposites = [colour_row(name) for name in COLOURS], [opposite_row(word) for word in OPPOSITES]
    parts = [[*colours[:3], opposites[0]], [colours[3], *opposites[1:]]]
    encoder = build_encoder(BackboneConfig(name="pocket"))
    return [
        toy(index, name, [_disguised(row) if disguised else row for row in rows], encoder)
        for index, (name, rows) in enumerate(zip(names, parts, strict=True))
    ]


def _disguised(row: Row) -> Row:
    """The same sample, which no longer says which task it is of."""
    return replace(row, sample_id=f"{sum(row.sample_id.encode()):05d}", task="t", source="?")


def learned(name: str, toys: list[Toy], *, updates: int = 8) -> tuple[Method, Backbone, list[list[float]]]:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    rate = max(1e-2, method.config.default_learning_rate)
    return method, backbone, [learn(method, backbone, each, updates=updates, rate=rate) for each in toys]


@task_free_methods
def test_a_blurred_stream_is_learned(name: str) -> None:
    method, _, (early, late) = learned(name, blurred("segment-1", "segment-2"), updates=12)
    assert early[-1] < 0.5 * early[0]
    assert late[-1] < 0.5 * late[0]
    assert method.tasks == ["segment-1", "segment-2"]


@task_free_methods
def test_no_name_of_a_task_or_row_has_an_influence(name: str) -> None:
    """Bit for bit: a task-free method may not know which task a row is of."""
    method, backbone, losses = learned(name, blurred("segment-1", "segment-2"))
    other, other_backbone, same = learned(name, blurred("colours", "opposites", disguised=True))
    assert losses == same
    mine, theirs = method.state_dict(backbone).tensors, other.state_dict(other_backbone).tensors
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())


@task_free_methods
def test_nothing_grows_with_segments_and_no_task_is_told(name: str) -> None:
    config = tiny_config(name)
    assert [config.needs_task_id, config.is_routed, config.slots_are_tasks] == [False] * 3
    assert config.data_scope == "each"
    assert config.calibration_share == 0.0
    assert config.bound_by == ""
    method, backbone, _ = learned(name, [], updates=0)
    sizes = [sum(tensor.numel() for tensor in method.parameters().values())]
    for each in blurred("segment-1", "segment-2"):
        learn(method, backbone, each, updates=1)
        sizes.append(sum(tensor.numel() for tensor in method.parameters().values()))
        assert not method.is_routed
    assert len(set(sizes)) == 1


@task_free_methods
def test_a_boundary_more_changes_nothing_but_the_optimizer(name: str) -> None:
    """The end of one segment and the beginning of the next leave every value, and what trains, as they were."""
    toys = blurred("segment-1", "segment-2")
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    inside: list[dict[str, tuple[bool, torch.Tensor]]] = []

    def now() -> dict[str, tuple[bool, torch.Tensor]]:
        return {key: (value.requires_grad, value.detach().clone()) for key, value in method.parameters().items()}

    learn(method, backbone, toys[0], updates=2, watch=lambda _: inside.append(now()))
    ended = {key: value for key, (_, value) in now().items()}
    method.begin_task(backbone, toys[1].info)
    begun = now()
    assert {key: trains for key, (trains, _) in begun.items()} == {
        key: trains for key, (trains, _) in inside[0].items()
    }
    assert all(torch.equal(value, ended[key]) for key, (_, value) in begun.items())
    moved = [key for key, (_, value) in begun.items() if not torch.equal(value, inside[0][key][1])]
    assert moved, "nothing was learned, so nothing was seen"
