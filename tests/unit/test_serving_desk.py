"""The desk knows when a server that ends is empty."""

from __future__ import annotations

import time

import pytest

from components.serving import desk as module
from components.serving.desk import Desk
from components.serving.plan import Place, Plan

PLAN = Plan(primary=Place("toys", 1, "a"))


def said(desk: Desk, replica: str, inside: int | None) -> bool:
    """What a replica hears of the end when it says how many requests are inside."""
    number, plan, ending = desk.exchange(replica, [], 1, PLAN, inside)
    assert (number, plan) == (1, PLAN)
    return ending


def test_it_waits_for_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(PLAN)
    assert [said(desk, name, None) for name in ("a", "b")] == [False, False]
    desk.end()
    assert said(desk, "a", 0)
    assert not desk.empty(), "b has not heard of it"
    assert not desk.all_said_so()
    said(desk, "b", 2)
    assert not desk.empty()
    said(desk, "b", 0)
    assert desk.empty()
    assert desk.all_said_so()
    said(desk, "b", 1)
    monkeypatch.setattr(module, "SILENT_S", 0.01)
    time.sleep(0.02)
    assert desk.empty(), "replicas that say nothing are lost, or Ray itself waits for them"
    assert not desk.all_said_so()


def test_without_a_replica_none_has_said_so() -> None:
    assert not Desk(PLAN).all_said_so()
