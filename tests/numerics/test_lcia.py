"""LCIA as a method on pocket: reuse with averaging, expansion without, allocation, oracle, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
import torch

from components.core.errors import CheckpointError, ConfigError
from components.data.batch import Batch, collate
from components.data.rows import Row, Turn
from components.methods.base import MethodState, TaskInfo, load_parameters
from components.methods.common.balance import BalancedAverage
from components.methods.lcia import Lcia, LciaConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.engine import TorchEngine, trainable_parameters
from components.training.optimizer import OptimizerConfig

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
TASKS = {
    "streets": [f"Is the car red?\n{SHORT}", f"How many people wait?\n{SHORT}", f"What is the sign's colour?\n{SHORT}"],
    "quiz": [f"Which is a metal?\n{LETTER}", f"Which floats?\n{LETTER}", f"Which one melts?\n{LETTER}"],
    "kitchens": [f"What is in the bowl?\n{SHORT}", f"Is the oven on?\n{SHORT}", f"How many cups are there?\n{SHORT}"],
}
GROUPS = [0, 1, 0]
# at these gradients and steps its value is in (0, 1) from the second step on
INSIDE = replace(LciaConfig.per_sample(), rank=4, kappa=0.5)
RELEASED = LciaConfig(rank=4, kappa=0.5)


def text_batch(questions: Sequence[str]) -> Batch:
    encoder = build_encoder(BackboneConfig(name="pocket"))
    rows = []
    for number, question in enumerate(questions):
        turns = (Turn(speaker="human", text=question), Turn(speaker="gpt", text=("yes", "no", "red")[number % 3]))
        row = Row(
            sample_id=str(number), task="t", split="train", turns=turns, answers=("yes",), metric="exact", source="test"
        )
        rows.append(encoder.training_example(row))
    return collate(rows, pad_id=encoder.pad_id, padding_side="right")


def info(index: int) -> TaskInfo:
    name = list(TASKS)[index]
    return TaskInfo(index=index, name=name, instructions=TASKS[name])


def attached(config: LciaConfig = INSIDE, state: MethodState | None = None) -> tuple[Lcia, Backbone]:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    method = config.build(seed=0)
    method.attach(backbone, state)
    return method, backbone


def updates(
    method: Lcia,
    backbone: Backbone,
    engine: TorchEngine,
    index: int,
    count: int,
    watch: Callable[[str], None] = lambda moment: None,
) -> list[dict[str, float]]:
    """Micro-steps on the task's batch; the logged parts of each."""
    batch, parts = text_batch(info(index).instructions), []
    backbone.train()
    for _ in range(count):
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(backbone, batch))
            outputs, selection = engine.forward(batch, enter)
            loss = method.loss(backbone, batch, outputs, selection)
            engine.backward(loss.total)
        parts.append({name: float(value) for name, value in loss.parts.items()})
        watch("before step")
        method.step(engine)
        watch("after step")
    return parts


def learn(method: Lcia, backbone: Backbone, index: int, *, count: int = 6) -> list[dict[str, float]]:
    method.begin_task(backbone, info(index))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    parts = updates(method, backbone, engine, index, count)
    method.end_task(engine, info(index), iter(()))
    engine.close()
    backbone.eval()
    return parts


def learned(config: LciaConfig = INSIDE, count: int = 3) -> tuple[Lcia, Backbone]:
    method, backbone = attached(config)
    for index in range(count):
        learn(method, backbone, index)
    return method, backbone


def logits(method: Lcia, backbone: Backbone, batch: Batch) -> torch.Tensor:
    with torch.no_grad(), method.select(backbone, batch):
        return backbone(batch).logits


def test_a_new_group_leaves_the_others_bit_identical_and_a_reused_one_only_itself() -> None:
    method, backbone = attached()
    learn(method, backbone, 0)
    first = method.state_dict(backbone).tensors
    learn(method, backbone, 1)
    second = method.state_dict(backbone).tensors
    assert all(torch.equal(second[name], value) for name, value in first.items())
    learn(method, backbone, 2)
    third = method.state_dict(backbone).tensors
    assert third.keys() == second.keys()
    assert {name for name, value in second.items() if not torch.equal(third[name], value)} == set(first)
    assert [decision.group for decision in method.codebook.decisions] == GROUPS
    assert [decision.averaged is None for decision in method.codebook.decisions] == [True, True, False]


def test_a_reused_group_ends_as_the_average_of_its_training() -> None:
    """The end of the task against an average fed with what the engine showed at each step, before clipping."""
    method, backbone = learned(count=2)
    method.begin_task(backbone, info(2))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e-3))
    start = {name: value.detach().clone() for name, value in trainable_parameters(backbone).items()}
    expected, gradients = BalancedAverage(method.config.balance_options, start), {}

    def watch(moment: str) -> None:
        if moment == "before step":
            gradients.update({name: value.clone() for name, value in engine.gradients().items()})
        else:
            live = {name: value.detach().clone() for name, value in trainable_parameters(backbone).items()}
            expected.update(live, dict(gradients))

    parts = updates(method, backbone, engine, 2, 8, watch)
    assert engine.grad_norm > 1e-2  # the clip was at work
    live = {name: value.detach().clone() for name, value in trainable_parameters(backbone).items()}
    method.end_task(engine, info(2), iter(()))
    ended = method.parameters()
    assert start.keys() == {name for name in ended if ".groups.0." in name}
    for name, value in expected.average.items():
        assert torch.equal(ended[name], value), name
        assert not torch.equal(ended[name], live[name])
        assert not torch.equal(ended[name], start[name])
    # what is logged is the step before's; the first step has none
    assert parts[0] == {}
    assert parts[1]["ema_fallback"] == 1.0  # the first step has no gradient before it
    assert set(parts[-1]) == {"ema_fallback", "ema_old_p10", "ema_old_p50", "ema_old_p90"}
    averaged = method.codebook.decisions[-1].averaged
    assert averaged == expected.summary()
    assert averaged is not None
    assert averaged["ema_fallback"] < 0.6  # the formula's value was at work in many tensors and steps


def test_decisions_tell_groups_similarities_and_the_averages_weights() -> None:
    method, backbone = attached(RELEASED)
    assert method.decisions() == {}
    learn(method, backbone, 0)
    learn(method, backbone, 1)
    method.begin_task(backbone, info(2))
    assert list(method.decisions()) == ["streets", "quiz"]  # nothing of a task that is not over
    method, backbone = learned(RELEASED)
    told = method.decisions()
    assert [told[name]["group"] for name in TASKS] == GROUPS
    assert [told[name]["reused"] for name in TASKS] == [False, False, True]
    assert [told[name]["ema_steps"] for name in TASKS] == [0, 0, 5]  # six updates, the average is a copy of the first
    assert told["streets"]["similarity"] is None
    assert told["quiz"]["similarity"] == pytest.approx(0.092, abs=5e-4)
    assert told["kitchens"]["similarity"] == pytest.approx(1.0)
    least, mean, most = (told["kitchens"][f"ema_old_{which}"] for which in ("min", "mean", "max"))
    assert 0 < least < mean < most < 1  # type: ignore[operator]


def test_accumulation_averages_once_per_update() -> None:
    method, backbone = learned(count=2)
    method.begin_task(backbone, info(2))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2), accumulation=3)
    average = method.average
    assert average is not None
    kept: list[int] = []
    updates(method, backbone, engine, 2, 7, lambda moment: kept.append(average.steps))
    assert kept[1::2] == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("start", ["task_start", "after_first_step"])
def test_controls_frozen_is_the_start_and_constant_0_the_live_tensor(start: str) -> None:
    for balance, kept in (("frozen", "start"), ("constant", "live")):
        config = replace(INSIDE, balance=balance, constant_weight=0.0, ema_start=start)  # type: ignore[arg-type]
        method, backbone = learned(config, count=2)
        method.begin_task(backbone, info(2))
        engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
        seen = [{name: value.detach().clone() for name, value in trainable_parameters(backbone).items()}]

        def watch(moment: str, backbone: Backbone = backbone, seen: list[dict[str, torch.Tensor]] = seen) -> None:
            if moment == "after step":
                seen.append({name: value.detach().clone() for name, value in trainable_parameters(backbone).items()})

        updates(method, backbone, engine, 2, 4, watch)
        method.end_task(engine, info(2), iter(()))
        wanted = seen[-1] if kept == "live" else seen[0 if start == "task_start" else 1]
        assert all(torch.equal(method.parameters()[name], value) for name, value in wanted.items())
        assert any(not torch.equal(seen[-1][name], value) for name, value in seen[1].items())


def test_code_and_paper_end_differently() -> None:
    """The same value on opposite sides: the code's keeps the old tensor where the paper's takes the new one."""
    ends = {}
    for balance in ("official_code", "paper", "constant"):
        method, _ = learned(replace(INSIDE, balance=balance))  # type: ignore[arg-type]
        ends[balance] = torch.cat([value.detach().flatten() for value in method.parameters().values()])
    assert not torch.allclose(ends["official_code"], ends["paper"], atol=1e-4)
    assert not torch.allclose(ends["official_code"], ends["constant"], atol=1e-4)


@pytest.mark.parametrize("new_group", ["parent", "fresh"])
def test_a_new_group_starts_from_the_newest_trained_one_or_anew(new_group: str) -> None:
    method, backbone = attached(replace(INSIDE, new_group=new_group, threshold=1.5))  # type: ignore[arg-type]
    learn(method, backbone, 0)
    learn(method, backbone, 1)
    method.begin_task(backbone, info(2))
    new, parent = (method.bank.group_parameters(group) for group in ("2", "1"))
    same = [torch.equal(one, other) for one, other in zip(new.values(), parent.values(), strict=True)]
    assert all(same) if new_group == "parent" else not any(same)
    ups_are_zero = [not value.any() for name, value in new.items() if name.endswith("up")]
    assert all(ups_are_zero) == (new_group == "fresh")
    assert method.average is None


def test_each_sample_of_a_mixed_batch_is_served_by_its_group() -> None:
    method, backbone = learned()
    batch = text_batch([TASKS["quiz"][0], TASKS["streets"][0], TASKS["quiz"][1], TASKS["kitchens"][2]])
    with method.select(backbone, batch) as selection:
        assert selection.slots is not None
        assert selection.slots.tolist() == [[1], [0], [1], [0]]
        assert selection.routed_to == ["quiz", "kitchens", "quiz", "kitchens"]  # the group's newest task
        assert selection.matched == [True] * 4
    mixed = logits(method, backbone, batch)
    targets = (batch.labels[:, 1:] != -100).nonzero()[:, 0]
    served_alone = []
    for row, oracle in enumerate(["quiz", "streets", "quiz", "kitchens"]):
        alone = logits(method, backbone, replace(batch, oracle_task=oracle))
        torch.testing.assert_close(mixed[targets == row], alone[targets == row], rtol=1e-4, atol=1e-4)
        served_alone.append(alone)
    assert not torch.allclose(served_alone[0], served_alone[1], atol=1e-2)  # the groups do differ
    assert torch.equal(served_alone[1], served_alone[3])  # both tasks of group 0


def test_the_owner_of_a_task_is_its_groups_newest_task() -> None:
    method, backbone = learned(count=2)
    assert [method.owner(name) for name in TASKS] == ["streets", "quiz", "kitchens"]  # not learned: its own name
    learn(method, backbone, 2)
    assert [method.owner(name) for name in TASKS] == ["kitchens", "quiz", "kitchens"]
    for name in TASKS:  # routing is right when a sample is served under its task's owner
        batch = text_batch(TASKS[name])
        with method.select(backbone, batch) as selection:
            assert selection.routed_to == [method.owner(name)] * 3
        with method.select(backbone, replace(batch, oracle_task=name)) as selection:
            assert selection.routed_to == [name] * 3


def test_a_text_below_the_threshold_is_served_and_reported() -> None:
    for on_miss, group in (("best", 0), ("last", 1)):
        method, backbone = learned(replace(INSIDE, on_miss=on_miss))  # type: ignore[arg-type]
        batch = text_batch(["Reply with a single short phrase.", TASKS["quiz"][0]])
        with method.select(backbone, batch) as selection:
            assert selection.matched == [False, True]
            assert selection.slots is not None
            assert selection.slots.tolist() == [[group], [1]]


def test_a_test_file_is_served_by_one_group_whatever_its_batches_hold() -> None:
    method, backbone = learned(RELEASED)
    streets, quiz = text_batch(TASKS["streets"]), text_batch(TASKS["quiz"])

    def served(batch: Batch) -> tuple[list[int], list[bool] | None]:
        with method.select(backbone, batch) as selection:
            assert selection.slots is not None
            return selection.slots.flatten().tolist(), selection.matched

    # the file's strings: one of group 0, two that nobody knows; no group reaches 0.9, so the last opened serves
    with method.test_file([TASKS["streets"][0], "Sing a song.", "Describe the scene at length."]):
        assert served(streets) == ([1] * 3, [False] * 3)
        assert served(replace(streets, oracle_task="streets")) == ([0] * 3, [True] * 3)
        assert logits(method, backbone, streets).shape == logits(method, backbone, quiz).shape
    with method.test_file(TASKS["streets"]):
        assert served(quiz) == ([0] * 3, [True] * 3)
    with pytest.raises(KeyboardInterrupt), method.test_file(TASKS["streets"]):
        raise KeyboardInterrupt
    assert served(quiz) == ([1] * 3, [True] * 3)  # outside: a batch is a file


@pytest.mark.parametrize(
    "config",
    [INSIDE, replace(INSIDE, balance="paper"), RELEASED, replace(INSIDE, rank=2)],
)
def test_an_interrupted_task_ends_with_the_same_bits(config: LciaConfig) -> None:
    """As the worker resumes: state of the task's start, `begin_task`, trained values, then `load_task_state`."""
    method, backbone = learned(config, count=2)
    start = method.state_dict(backbone)
    method.begin_task(backbone, info(2))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    updates(method, backbone, engine, 2, 3)
    values = {name: value.detach().clone() for name, value in trainable_parameters(backbone).items()}
    moments, in_task = engine.optimizer_state(), method.task_state()
    inside = method.state_dict(backbone)
    updates(method, backbone, engine, 2, 3)
    method.end_task(engine, info(2), iter(()))
    expected = method.state_dict(backbone)

    for resumed_from in (start, inside):  # the second: a state taken inside the task brings all of it along
        other, other_backbone = attached(config, resumed_from)
        other.begin_task(other_backbone, info(2))
        if resumed_from is start:
            load_parameters(trainable_parameters(other_backbone), values)
            other.load_task_state(in_task)
        engine = TorchEngine(other_backbone, OptimizerConfig(learning_rate=1e-2))
        engine.load_optimizer_state(moments)
        updates(other, other_backbone, engine, 2, 3)
        other.end_task(engine, info(2), iter(()))
        found = other.state_dict(other_backbone)
        assert found.structure == expected.structure
        assert found.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_a_plain_group_keeps_nothing_for_a_resume() -> None:
    method, backbone = attached()
    method.begin_task(backbone, info(0))
    assert method.task_state() == {}
    assert method.state_dict(backbone).tensors.keys() == method.parameters().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, r"lcia\.rank is 0"),
        ({"kappa": -1.0}, r"lcia\.kappa is -1"),
        ({"dropout": 1.0}, r"lcia\.dropout"),
        ({"constant_weight": 1.5}, r"constant_weight is 1\.5"),
        ({"threshold": -0.1}, r"threshold is -0\.1"),
        ({"max_strings": 0}, "max_strings is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(INSIDE, **change)


def test_a_task_without_instructions_is_refused() -> None:
    method, backbone = attached()
    with pytest.raises(ConfigError, match="no instructions"):
        method.begin_task(backbone, TaskInfo(index=0, name="empty", instructions=[]))


def test_a_state_without_its_groups_is_refused() -> None:
    method, backbone = learned(count=1)
    state = method.state_dict(backbone)
    structure = {name: value for name, value in state.structure.items() if name != "decisions"}
    with pytest.raises(CheckpointError, match="no decisions and groups"):
        attached(INSIDE, MethodState(tensors=state.tensors, structure=structure))
