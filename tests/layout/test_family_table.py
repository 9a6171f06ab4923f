"""The family table has a cell for all that the code offers, and none that says no."""

from __future__ import annotations

import json

from components.methods import METHODS, method_config
from components.models.families import FAMILIES
from docs.hooks import STEPS as COLUMNS
from docs.hooks import families, seen
from tests.families import tiny
from tests.families.recording import ANY, FILE, KINDS, STEPS, kind_of

FOUND = json.loads(FILE.read_text(encoding="utf-8"))
KILLED = {"llava", "qwen2_5_vl", "smolvlm", "internvl", "qwen3"}


def test_every_type_has_every_step_and_kind() -> None:
    assert set(FOUND) == set(tiny.NAMES)
    assert COLUMNS == STEPS
    for name, steps in FOUND.items():
        assert set(steps) == set(STEPS), name
        for step in ("train", "evaluate", "resume", "export"):
            assert set(KINDS) - set(steps[step]) == set(), (name, step)
        assert ANY in steps["prepare"]
    assert {name for name, steps in FOUND.items() if steps["resume"].get("killed") == "passed"} == KILLED
    # every class of a family has a checkpoint of one of its types
    assert {FAMILIES[name] for name in tiny.NAMES if name in FAMILIES} == set(FAMILIES.values())


def test_every_method_is_of_a_kind() -> None:
    kinds = {kind_of(name) for name in METHODS if method_config(name).is_trainable}
    assert kinds == set(KINDS)


def test_nothing_fails() -> None:
    assert "**" not in families()
    assert seen({}) == "**no: not tested**"
    assert seen({"any": "passed", "plain": "failed"}) == "**no: plain**"
    assert seen({"any": "passed", "plain": "passed", "projector": "refused"}) == "all but projector"
