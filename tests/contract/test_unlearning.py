"""Unlearning a task: its tensors are in no file, the others' are the same bits, and the method goes on from there."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from components.core.checkpoint import write_checkpoint
from components.core.errors import ConfigError
from components.methods import METHODS
from components.methods.base import Method, MethodConfig, MethodState
from components.methods.options.merging import MergingConfig
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from tests.contract.toy_tasks import (
    COLOURS,
    OPPOSITES,
    Toy,
    attached,
    colour_row,
    fresh_backbone,
    learn,
    logits,
    opposite_row,
    told,
    toy,
)

A, B, C = "colours", "opposites", "mirrors"
OWNERS: dict[str, MethodConfig] = {
    "individual": METHODS["individual"].tiny(),
    "o_lora": METHODS["o_lora"].tiny(),
    "continual_llava": replace(METHODS["continual_llava"].tiny(), contextual="zero"),
    "dual_prompt": METHODS["dual_prompt"].tiny(),
    "modal_prompt": METHODS["modal_prompt"].tiny(),
    "eproj": replace(METHODS["eproj"].tiny(), threshold=2.0),
    "lcia": replace(METHODS["lcia"].tiny(), threshold=2.0),
    "cf_router": METHODS["cf_router"].tiny(),
    "coda_prompt": METHODS["coda_prompt"].tiny(),
    "disco": METHODS["disco"].tiny(),
    "hide": METHODS["hide"].tiny(),
    "merging": replace(MergingConfig.tiny(), rule="task_arithmetic"),
}
# What is learned after a task, or what all share, has something of it.
TRACES = {"o_lora", "dual_prompt", "modal_prompt", "lcia", "cf_router", "coda_prompt"}
# Each task is served by what it owns.
BY_THEIR_OWN = ("individual", "continual_llava", "dual_prompt", "eproj", "lcia", "cf_router", "disco")
SILENT = {  # tensors of the second task without which it adds nothing
    "o_lora": r"\.groups\.1\.up$",
    "merging": r"\.groups\.1\.up$",
    "hide": r"\.groups\.1\.(up|down)$",
    "coda_prompt": r"\.prompts_1$",
}


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, shade // 2, 90)).save(stream, format="PNG")
    return stream.getvalue()


def three_toys() -> list[Toy]:
    """Tasks with pictures and words of their own; the third one asks of the first one's pictures in other words."""
    rows = {
        A: [colour_row(name) for name in COLOURS],
        B: [opposite_row(word, picture(60 * number)) for number, word in enumerate(OPPOSITES)],
    }
    rows[C] = [
        replace(row, turns=tuple(replace(turn, text=turn.text.replace("What", "Now what")) for turn in row.turns))
        for row in rows[A]
    ]
    encoder = build_encoder(BackboneConfig(name="pocket"))
    return [told(toy(index, name, rows[name], encoder)) for index, name in enumerate(rows)]


def moved_up(task: Toy, index: int) -> Toy:
    return replace(task, info=replace(task.info, index=index))


def learned(config: MethodConfig) -> tuple[list[MethodState], list[Tensor]]:
    """The states after each of the three tasks, and the last one's logits for each."""
    model = fresh_backbone()
    method, states, toys = attached(config, model), list[MethodState](), three_toys()
    for task in toys:
        learn(method, model, task, updates=2, rate=max(1e-2, config.default_learning_rate))
        states.append(method.state_dict(model))
    return states, [logits(method, model, task.batch) for task in toys]


def on_fresh(config: MethodConfig, state: MethodState) -> list[Tensor]:
    model = fresh_backbone()
    method = attached(config, model, state)
    return [logits(method, model, task.batch) for task in three_toys()]


def floats(state: MethodState) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.tensors.items() if tensor.is_floating_point()}


def added(before: MethodState, after: MethodState) -> list[Tensor]:
    """What a task added: tensors of new names, and the rows that others grew by."""
    found = list[Tensor]()
    for name, tensor in floats(after).items():
        old = before.tensors.get(name)
        if old is None:
            found.append(tensor)
        elif len(old) < len(tensor):
            found += [*tensor[len(old) :]]
    return found


@pytest.mark.parametrize("name", OWNERS)
def test_a_task_is_gone_and_the_others_are_the_same_bits(name: str, tmp_path: Path) -> None:
    config = OWNERS[name]
    states, before = learned(config)
    forgotten = config.build(seed=0).forget_task(states[2], B)
    assert bool(forgotten.traces) == (name in TRACES)

    write_checkpoint(tmp_path, {"structure": forgotten.state.structure}, {"method": forgotten.state.tensors})
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    gone, kept = added(states[0], states[1]), added(states[1], states[2])
    assert gone
    assert kept
    assert B.encode() not in written
    assert all(tensor.numpy().tobytes() not in written for tensor in gone if tensor.any())
    assert all(tensor.numpy().tobytes() in written for tensor in kept)
    of = {key: sum(tensor.numel() for tensor in floats(state).values()) for key, state in enumerate(states)}
    assert sum(tensor.numel() for tensor in floats(forgotten.state).values()) == of[2] - (of[1] - of[0])

    after = on_fresh(config, forgotten.state)
    if name in BY_THEIR_OWN:
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[2], before[2])
        assert not torch.equal(after[1], before[1])
    elif name in SILENT:  # as if what the task owned added nothing
        silent = {key: value * (re.search(SILENT[name], key) is None) for key, value in states[2].tensors.items()}
        wanted = on_fresh(config, replace(states[2], tensors=silent))
        shared = [0, 2] if name == "hide" else [0, 1, 2]  # its last layer serves a task by its own branch
        assert all(torch.allclose(after[place], wanted[place], atol=1e-5) for place in shared)
    else:  # the first task has no prompt but its own in front
        assert torch.equal(after[0], before[0])


@pytest.mark.parametrize("name", sorted({*OWNERS} - {"dual_prompt", "cf_router"}))
def test_without_the_last_task_the_state_is_the_one_before_it(name: str) -> None:
    config = METHODS[name].tiny() if name == "continual_llava" else OWNERS[name]  # with what earlier tasks add
    states, _ = learned(config)
    forgotten = config.build(seed=0).forget_task(states[2], C)
    assert not forgotten.traces
    assert forgotten.state.structure == states[1].structure
    assert forgotten.state.tensors.keys() == states[1].tensors.keys()
    assert all(torch.equal(value, states[1].tensors[key]) for key, value in forgotten.state.tensors.items())


@pytest.mark.parametrize("name", OWNERS)
def test_another_task_is_learned_afterwards_and_resumed(name: str) -> None:
    config = OWNERS[name]
    states, _ = learned(config)
    start = config.build(seed=0).forget_task(states[2], B).state
    model, again = fresh_backbone(), moved_up(three_toys()[1], 2)
    method = attached(config, model, start)
    learn(method, model, again, updates=2, rate=max(1e-2, config.default_learning_rate))
    assert method.tasks == [A, C, B]
    kept = floats(start)
    state = method.state_dict(model)
    if name not in ("dual_prompt", "cf_router"):  # a prefix that trains on, sums that grow
        assert all(torch.equal(state.tensors[key][: len(value)], value) for key, value in kept.items())
    resumed = on_fresh(config, state)
    assert all(
        torch.equal(logits(method, model, task.batch), each) for task, each in zip(three_toys(), resumed, strict=True)
    )


def test_slots_that_later_tasks_add_to_their_own_stay() -> None:
    config = METHODS["continual_llava"].tiny()
    states, _ = learned(config)
    with pytest.raises(ConfigError, match="trained on sums that add its slots"):
        config.build(seed=0).forget_task(states[2], B)


@pytest.mark.parametrize(
    "config",
    [
        replace(METHODS["eproj"].tiny(), threshold=0.0),
        replace(METHODS["lcia"].tiny(), threshold=0.0),
        replace(METHODS["continual_llava"].tiny(), pool="shared", pool_size=8),
    ],
    ids=["eproj", "lcia", "continual_llava"],
)
def test_what_tasks_share_is_not_taken_from_one(config: MethodConfig) -> None:
    states, _ = learned(config)
    with pytest.raises(ConfigError, match=f"method {config.name} cannot unlearn task 'opposites'.*shared"):
        config.build(seed=0).forget_task(states[2], B)


@pytest.mark.parametrize("name", sorted({*METHODS} - {*OWNERS}))
def test_other_methods_refuse(name: str) -> None:
    state = MethodState(tensors={"a.b": torch.ones(1)}, structure={"tasks": [A, B]})
    method: Method = METHODS[name].tiny().build(seed=0)
    said = rf"method {name} cannot unlearn task 'colours': {re.escape(method.owned_by_none)}\.$"
    with pytest.raises(ConfigError, match=said):
        method.forget_task(state, A)


def test_tasks_that_cannot_be_unlearned_are_named() -> None:
    method = METHODS["individual"].tiny().build(seed=0)
    state = MethodState(tensors={}, structure={"tasks": [A], "begun": 1})
    with pytest.raises(ConfigError, match="'x' is not learned; learned are colours"):
        method.forget_task(state, "x")
    with pytest.raises(ConfigError, match="only one"):
        method.forget_task(state, A)
    inside = MethodState(tensors={}, structure={"tasks": [A, B], "begun": 3})
    with pytest.raises(ConfigError, match="inside a task"):
        method.forget_task(inside, A)
