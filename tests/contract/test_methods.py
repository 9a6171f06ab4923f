"""What every method in METHODS promises the training loop. A new method is covered by being listed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_tasks import Toy, attached, calibrate, fresh_backbone, learn, logits, tiny_config

from components.core.errors import CheckpointError, ConfigError
from components.methods import method_config
from components.methods.base import Method, MethodState
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.merging import MergingConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine, trainable_parameters

every_method, training_methods = pytest.mark.every_method, pytest.mark.training_methods


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[Method, Backbone]]:
    """What `learned` has made."""
    return {}


@pytest.fixture
def learned(name: str, toys: list[Toy], known: dict[str, tuple[Method, Backbone]]) -> tuple[Method, Backbone]:
    """The method and its model after both tasks, for tests that only ask them."""
    if name not in known:
        backbone = fresh_backbone()
        method = attached(tiny_config(name), backbone)
        for task in toys:
            learn(method, backbone, task, updates=3)
        known[name] = method, backbone
    return known[name]


def through_disk(state: MethodState, folder: Path) -> MethodState:
    """The state as a checkpoint keeps it: safetensors and JSON."""
    save_file(state.tensors, folder / "state.safetensors")
    text = json.dumps(state.structure)
    return MethodState(tensors=load_file(folder / "state.safetensors"), structure=json.loads(text))


@every_method
def test_attached_model_answers_like_the_backbone(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    with torch.no_grad():
        expected = [backbone(task.batch).logits for task in toys]
    method = attached(tiny_config(name), backbone)
    for task, logit in zip(toys, expected, strict=True):
        assert torch.equal(logits(method, backbone, task.batch), logit)
    method.begin_task(backbone, toys[0].info)
    calibrate(method, backbone, toys[0])
    # where promised, the first task's increments start at zero; elsewhere something must have entered
    assert torch.equal(logits(method, backbone, toys[0].batch), expected[0]) == method.config.starts_as_backbone


@every_method
def test_attach_trains_nothing_and_keeps_the_backbones_names(name: str) -> None:
    original = set(fresh_backbone().state_dict())
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    assert not trainable_parameters(backbone)
    assert set(backbone.state_dict()) == original | set(method.parameters())


@every_method
def test_backbone_bits_never_change(learned: tuple[Method, Backbone]) -> None:
    original, trained = fresh_backbone().state_dict(), learned[1].state_dict()
    assert all(torch.equal(trained[key], value) for key, value in original.items())


@every_method
def test_only_declared_parameters_change(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    for task in toys:
        before: dict[str, torch.Tensor] = {}
        declared: set[str] = set()

        def watch(engine: TorchEngine, before: dict[str, torch.Tensor] = before, declared: set[str] = declared) -> None:
            if not before:
                before.update({key: value.detach().clone() for key, value in method.parameters().items()})
                declared.update(trainable_parameters(backbone))
            assert set(engine.gradients()) <= declared

        learn(method, backbone, task, updates=3, watch=watch)
        assert bool(declared) == method.is_trainable
        assert declared <= set(before)
        changed = {key for key, value in method.parameters().items() if not torch.equal(value, before[key])}
        assert changed <= declared
        assert changed or not method.is_trainable


@training_methods
def test_loss_falls(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    rate = max(1e-2, method.config.default_learning_rate)  # few updates: quicker, unless the method is quicker still
    for task in toys:
        losses = learn(method, backbone, task, updates=12, rate=rate)
        # pictures alone take pocket, which never learned to look, from 8.2 to 5.9 in any number of updates
        share = 0.4 if method.config.learns_from_text else 0.85
        assert losses[-1] < share * losses[0], f"{task.info.name}: {losses}"


@every_method
def test_state_rebuilds_the_same_model(name: str, toys: list[Toy], tmp_path: Path) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    for number, learned in enumerate(toys, 1):
        learn(method, backbone, learned, updates=3)
        other_backbone, state = fresh_backbone(), method.state_dict(backbone)
        other = attached(tiny_config(name), other_backbone, through_disk(state, tmp_path))
        assert other.tasks == [task.info.name for task in toys[:number]]
        assert same(other.state_dict(other_backbone), state)
        assert trains(other_backbone) == trains(backbone)
        for task in toys:
            assert torch.equal(logits(other, other_backbone, task.batch), logits(method, backbone, task.batch))
    assert other.decisions() == method.decisions() == json.loads(json.dumps(method.decisions()))
    assert set(method.decisions()) <= set(method.tasks)
    for task in toys:
        with method.select(backbone, task.prompts), other.select(other_backbone, task.prompts):
            answers = backbone.generate(task.prompts, max_new_tokens=3)
            assert other_backbone.generate(task.prompts, max_new_tokens=3) == answers


def trains(model: Backbone) -> dict[str, bool]:
    """Which of a model's parameters would train."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@training_methods
def test_a_task_is_learned_without_knowing_what_will_come(name: str, toys: list[Toy]) -> None:
    """Runs that differ in later tasks only may share the earlier ones: see training/task_cache.py."""
    states: list[MethodState] = []
    for future in (toys[1].info.instructions, ["Name the capital.", "Count."]):
        backbone = fresh_backbone()
        method = attached(tiny_config(name), backbone)
        method.prepare([*toys[0].info.instructions, *future])
        learn(method, backbone, toys[0], updates=2)
        states.append(method.state_dict(backbone))
    one, other = states
    assert one.structure == other.structure
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(value, other.tensors[key]) for key, value in one.tensors.items())


@training_methods
def test_what_is_learned_does_not_depend_on_answers_in_between(name: str, toys: list[Toy]) -> None:
    """So a row may be scored by another process while the next task is learned: see training/beside.py."""
    states: list[MethodState] = []
    for answers in (False, True):
        backbone = fresh_backbone()
        method = attached(tiny_config(name), backbone)
        for task in toys if method.config.data_scope == "each" else toys[:1]:
            if answers:
                answer_all(method, backbone, toys)
            learn(method, backbone, task, updates=2)
        before = method.state_dict(backbone)
        if answers:
            answer_all(method, backbone, toys)
            assert same(method.state_dict(backbone), before)
        states.append(before)
    assert same(*states)


def answer_all(method: Method, backbone: Backbone, toys: list[Toy]) -> None:
    """Answer each task's prompts as a row of the score matrix does."""
    backbone.eval()
    for task in toys:
        with method.test_file(task.info.instructions), method.select(backbone, task.prompts) as selection:
            backbone.generate(task.prompts, max_new_tokens=3)
            method.served(selection)


def same(one: MethodState, other: MethodState) -> bool:
    bits = one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(value, other.tensors[key]) for key, value in one.tensors.items()
    )
    return bits and one.structure == other.structure


@training_methods
def test_a_task_goes_on_from_a_state_taken_in_its_middle(name: str, toys: list[Toy], tmp_path: Path) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    learn(method, backbone, toys[0], updates=2)
    taken: list[MethodState] = []

    def watch(_: TorchEngine) -> None:
        taken.append(method.state_dict(backbone))

    learn(method, backbone, toys[1], updates=3, watch=watch)
    other_backbone = fresh_backbone()
    other = attached(tiny_config(name), other_backbone, through_disk(taken[2], tmp_path))
    assert other.tasks == ["colours"]
    other.begin_task(other_backbone, toys[1].info)
    calibrate(other, other_backbone, toys[1])  # finds what it found at the task's start
    parameters = other.parameters()
    assert trainable_parameters(other_backbone).keys() <= parameters.keys()
    assert all(torch.equal(parameters[key], taken[2].tensors[key]) for key in parameters)
    # the method's own engine took one more step from there
    assert not all(torch.equal(parameters[key], value) for key, value in method.parameters().items())


@every_method
def test_select_is_undone_on_exit(learned: tuple[Method, Backbone], toys: list[Toy]) -> None:
    method, backbone = learned

    def bare() -> torch.Tensor:
        with torch.no_grad():
            return backbone(toys[1].batch).logits

    before = bare()
    with pytest.raises(KeyboardInterrupt), method.select(backbone, toys[0].batch):
        raise KeyboardInterrupt
    assert torch.equal(bare(), before)


@training_methods
def test_gradient_checkpointing_gives_the_same_gradients(name: str, toys: list[Toy]) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = fresh_backbone(gradient_checkpointing=checkpointing)
        method = attached(tiny_config(name), backbone)
        learn(method, backbone, toys[0], updates=2)
        found: list[dict[str, torch.Tensor]] = []

        def watch(engine: TorchEngine, found: list[dict[str, torch.Tensor]] = found) -> None:
            found.append({key: value.clone() for key, value in engine.gradients().items()})

        learn(method, backbone, toys[1], updates=2, watch=watch)
        gradients.append(found[1])
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-5, atol=1e-7)


@every_method
def test_same_seed_same_bits_and_another_seed_differs(name: str, toys: list[Toy]) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(torch.seed())  # a method must not lean on the global random state
        backbone = fresh_backbone()
        method = attached(tiny_config(name), backbone, seed=seed)
        for task in toys:
            learn(method, backbone, task, updates=2)
        states.append(method.state_dict(backbone).tensors)
    first, again, another = states
    assert first.keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    differs = any(not torch.equal(another[key], value) for key, value in first.items())
    assert differs == (method.is_trainable and method.config.is_stochastic)


@every_method
def test_an_answer_does_not_depend_on_its_neighbours(learned: tuple[Method, Backbone], toys: list[Toy]) -> None:
    method, backbone = learned
    batch = toys[1].batch
    together = logits(method, backbone, batch)
    targets = batch.labels[:, 1:] != -100
    rows = targets.nonzero()[:, 0]
    for index, alone in enumerate(batch.singles()):
        torch.testing.assert_close(logits(method, backbone, alone), together[rows == index], rtol=1e-4, atol=1e-4)


@every_method
def test_routed_methods_name_a_learned_task_and_obey_the_oracle(
    name: str, learned: tuple[Method, Backbone], toys: list[Toy]
) -> None:
    backbone = fresh_backbone()
    with attached(tiny_config(name), backbone).select(backbone, toys[0].prompts) as selection:
        assert selection.routed_to is None
    method, backbone = learned
    for task in toys:
        with method.select(backbone, replace(toys[0].prompts, oracle_task=task.info.name)) as selection:
            assert selection.routed_to == ([task.info.name] * len(toys[0].prompts) if method.is_routed else None)
            if method.is_routed:
                assert selection.slots is not None, "which slot, expert or group served each sample"
                assert method.num_slots is not None
                assert 0 <= int(selection.slots.min()) <= int(selection.slots.max()) < method.num_slots


@every_method
def test_a_task_is_learned_once(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(tiny_config(name), backbone)
    learn(method, backbone, toys[0], updates=1)
    with pytest.raises(ConfigError, match="learned already"):
        method.begin_task(backbone, toys[0].info)


@every_method
def test_the_checkpoint_of_another_method_is_refused(name: str) -> None:
    state = MethodState(tensors={}, structure={"method": "another", "options": {}, "tasks": []})
    with pytest.raises(CheckpointError, match="'another'"):
        attached(tiny_config(name), fresh_backbone(), state)


@pytest.mark.parametrize(
    "config", [SequentialLoraConfig(rank=4), ContinualLlavaConfig(rank=4, sentence_encoder="hash")]
)
def test_the_checkpoint_of_another_rank_is_refused(config: SequentialLoraConfig | ContinualLlavaConfig) -> None:
    backbone = fresh_backbone()
    state = attached(config, backbone).state_dict(backbone)
    with pytest.raises(CheckpointError, match="rank = 4, this run asks for 2"):
        attached(replace(config, rank=2), fresh_backbone(), state)


def test_a_checkpoint_older_than_an_option_has_its_default() -> None:
    backbone = fresh_backbone()
    state = attached(SequentialLoraConfig(), backbone).state_dict(backbone)
    options = state.structure["options"]
    assert isinstance(options, dict)
    del options["train_projector"]
    attached(SequentialLoraConfig(), fresh_backbone(), state)
    with pytest.raises(CheckpointError, match="train_projector = False, this run asks for True"):
        attached(SequentialLoraConfig(train_projector=True), fresh_backbone(), state)


def test_an_older_checkpoint_that_lists_the_begun_tasks_by_name_is_read(encoded: list[Toy]) -> None:
    backbone = fresh_backbone()
    method = attached(MergingConfig(rank=4), backbone)
    learn(method, backbone, encoded[0], updates=1)
    state = method.state_dict(backbone)
    assert state.structure["begun"] == 1
    older = MethodState(tensors=state.tensors, structure={**state.structure, "begun": ["colours"]})
    other = attached(MergingConfig(rank=4), other_backbone := fresh_backbone(), older)
    assert other.state_dict(other_backbone).structure == state.structure


def test_tensors_of_another_backbone_are_refused() -> None:
    backbone = fresh_backbone()
    state = attached(SequentialLoraConfig(), backbone).state_dict(backbone)
    fewer = dict(list(state.tensors.items())[1:])
    with pytest.raises(CheckpointError, match="do not fit this backbone"):
        attached(SequentialLoraConfig(), fresh_backbone(), MethodState(tensors=fewer, structure=state.structure))
    shorter = {key: value[:, :3].contiguous() for key, value in state.tensors.items()}
    with pytest.raises(CheckpointError, match="has shape"):
        attached(SequentialLoraConfig(), fresh_backbone(), MethodState(tensors=shorter, structure=state.structure))


def test_an_unknown_method_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean continual_llava"):
        method_config("continual_lava")


@pytest.mark.parametrize("name", ["sequential_lora", "frozen", "joint", "replay"])
def test_backbone_bits_never_change_while_a_copy_of_the_projector_trains(name: str, toys: list[Toy]) -> None:
    config = tiny_config(name)
    assert isinstance(config, SequentialLoraConfig)
    original = fresh_backbone().state_dict()
    backbone = fresh_backbone()
    method = attached(replace(config, train_projector=True), backbone)
    start = method.state_dict(backbone).tensors
    for task in toys:
        learn(method, backbone, task, updates=3)
    trained = backbone.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in original.items())
    assert all(not torch.equal(trained[key], value) for key, value in start.items() if "projector" in key)
