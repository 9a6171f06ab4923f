"""A reply that is kept is the reply that would be computed: over every method, and against numbers that are changed."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import toy_tasks
from toy_tasks import Toy, attached, colour_row, fresh_backbone, learn, opposite_row, tiny_config, told

from components.adapters.serving import Digests
from components.data.batch import Example, collate
from components.data.rows import Row
from components.evaluation.choosing import Choosing
from components.evaluation.generation import Answer, answer
from components.evaluation.reuse import KeptReply, Reuse, foreign_code
from components.methods import METHODS
from components.methods.base import Method, MethodState, Selection
from components.methods.continual_llava import ContinualLlava
from components.methods.individual import Individual, IndividualConfig
from components.models.backbone import Backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.kept_cells import state_digest

every_method = pytest.mark.every_method
ENCODER = build_encoder(BackboneConfig(name="pocket"))
KEEPING = {"individual", "frozen", "zero_shot", "cf_router", "eproj"}  # on the toys, no old row of theirs changes
ROUTED_INSIDE = {"moelora", "smolora"}  # what serves a row is known after its forward pass only, so they say nothing


def rows(toy: Toy) -> list[Row]:
    if toy.info.name == "colours":
        return [colour_row(name) for name in ("red", "green", "blue", "yellow")]
    images = [None, *([colour_row("red").image] if any(toy.prompts.pictures) else [None]) * 3]
    words = ("left", "up", "yes", "small")
    return [opposite_row(word, image) for word, image in zip(words, images, strict=True)]


def prompts(toy: Toy) -> list[Example]:
    return [ENCODER.prompt_example(row) for row in rows(toy)]


@dataclass
class Memory:
    """What a run keeps between the rows of its matrix, for one task."""

    known: dict[str, KeptReply]

    def answers(
        self,
        method: Method,
        backbone: Backbone,
        toy: Toy,
        *,
        reuse: bool,
        oracle: bool = False,
        known: bool = False,
        choosing: Choosing | None = None,
        refill: bool = False,
    ) -> list[Answer]:
        state = state_digest(method.state_dict(backbone))
        kept = Reuse(known=self.known, arithmetic=backbone.arithmetic(), state=state, digests=Digests())
        with method.test_file(toy.info.instructions):
            found = answer(
                backbone,
                method,
                ENCODER,
                prompts(toy),
                batch_size=2,
                max_new_tokens=3,
                device=torch.device("cpu"),
                known_task=toy.info.name if method.config.needs_task_id or known else None,
                oracle_task=toy.info.name if oracle and toy.info.name in method.tasks else None,
                reuse=kept if reuse else None,
                choosing=choosing,
                refill=refill,
            )
        if reuse:
            for one in found:
                assert one.key is not None
                self.known[one.key] = KeptReply(
                    text=one.text,
                    cell=f"{len(method.tasks)}",
                    slots=one.slots,
                    routed_to=one.routed_to,
                    matched=one.matched,
                    log_likelihoods=one.log_likelihoods,
                )
                if one.oracle_key is not None and one.oracle_text is not None:
                    self.known[one.oracle_key] = KeptReply(
                        text=one.oracle_text,
                        cell=f"{len(method.tasks)}",
                        log_likelihoods=one.oracle_log_likelihoods,
                    )
        return found


def said(answers: list[Answer]) -> list[Answer]:
    """The answers without what only reuse knows."""
    return [replace(one, key=None, oracle_key=None, kept=None, unaided=False) for one in answers]


@every_method
def test_kept_replies_are_those_that_would_be_computed(name: str, toys: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    method = attached(tiny_config(name), backbone)
    memories = [Memory({}) for _ in toys]
    kept = dict[tuple[int, str], int]()
    for learned in range(len(toys) + 1):
        if learned == 1 or (learned and method.config.data_scope == "each"):  # others do not go on to a second task
            learn(method, backbone, toys[learned - 1], updates=4)
            backbone.eval()
        for toy, memory in zip(toys, memories, strict=True):
            plain = memory.answers(method, backbone, toy, reuse=False, oracle=method.is_routed)
            first = memory.answers(method, backbone, toy, reuse=True, oracle=method.is_routed)
            again = memory.answers(method, backbone, toy, reuse=True, oracle=method.is_routed)
            assert said(first) == said(again) == said(plain)
            kept[learned, toy.info.name] = sum(one.kept is not None for one in first)
            assert all(one.kept is not None for one in again)
    if name in KEEPING:
        old = toys[0].info.name
        assert kept[2, old] == len(prompts(toys[0])), "no row of the first task is answered again after the second"


@pytest.mark.parametrize("name", ["continual_llava", "lcia", "cf_router", "disco", "modal_prompt"])
def test_rows_whose_slots_stay_keep_their_replies_however_many_come_after(name: str, encoded: list[Toy]) -> None:
    """Routed among its own task's slots, groups, branches or prompts, a row has the same ones after any task."""
    backbone = fresh_backbone().eval()
    method, memory = attached(tiny_config(name), backbone), Memory({})
    for index in range(6):
        toy = encoded[index % 2]
        info = replace(toy.info, index=index, name=toy.info.name if index < 2 else f"{toy.info.name} {index}")
        learn(method, backbone, replace(toy, info=info), updates=2)
        backbone.eval()
        for each in encoded[: index + 1]:
            plain = memory.answers(method, backbone, each, reuse=False, known=True)
            found = memory.answers(method, backbone, each, reuse=True, known=True)
            assert said(found) == said(plain)
            assert all((one.kept is None) == (each.info.name == info.name) for one in found)


def test_rows_of_several_tasks_in_one_batch_keep_theirs_when_tasks_follow(encoded: list[Toy]) -> None:
    """What later tasks have adds nothing to them, not even other rounding."""
    backbone, foreign = fresh_backbone().eval(), opposite_row("left")
    method = attached(replace(tiny_config("continual_llava"), alignment_min_updates=480), backbone)
    both = [*rows(encoded[0])[:2], *rows(encoded[1])[:2]]
    asked = [ENCODER.prompt_example(row) for row in both]
    mixed = replace(encoded[0], prompts=collate(asked, pad_id=ENCODER.pad_id, padding_side="left"))
    keys = []
    for index in range(4):
        if index < 2:
            learn(method, backbone, encoded[index], updates=2)
        else:
            words = " ".join(f"zx{index}{letter}" for letter in "qjwvkf")
            turns = (replace(foreign.turns[0], text=words), foreign.turns[1])
            learn(
                method,
                backbone,
                toy_tasks.toy(index, f"foreign {index}", [replace(foreign, turns=turns)], ENCODER),
                updates=2,
            )
        backbone.eval()
        keys.append(keys_of(method, backbone, mixed))
    with torch.inference_mode(), method.select(backbone, mixed.prompts) as selection:
        assert selection.routed_to == ["colours", "colours", "opposites", "opposites"]
    assert keys[0] != keys[1] == keys[2] == keys[3]


@every_method
def test_before_any_task_every_method_that_says_so_shares_the_backbones_replies(name: str, toys: list[Toy]) -> None:
    keys, bare = [], fresh_backbone().eval()
    frozen = attached(tiny_config("zero_shot"), bare)
    for seed in (1, 2):
        backbone = fresh_backbone().eval()
        method = attached(tiny_config(name), backbone, seed=seed)
        for toy in toys:
            found = [(one.key, one.unaided) for one in Memory({}).answers(method, backbone, toy, reuse=True)]
            same = torch.equal(logits_of(method, backbone, toy), logits_of(frozen, bare, toy))
            assert same or not any(unaided for _, unaided in found)
            keys.append(found)
    for toy, found in zip([*toys, *toys], keys, strict=True):
        expected = [one.key for one in Memory({}).answers(frozen, bare, toy, reuse=True)]
        shared = frozen.rows_leave == method.rows_leave  # else the frozen model multiplies other numbers of rows
        assert all((unaided and shared) == (key == same) for (key, unaided), same in zip(found, expected, strict=True))
    if name in METHODS:
        assert {unaided for found in keys for _, unaided in found} == {name not in ROUTED_INSIDE}


@every_method
def test_whatever_changes_an_answer_changes_its_key(name: str, toys: list[Toy]) -> None:
    """Each kind of tensor of the state is disturbed in turn; rows whose logits move must not keep their keys."""
    backbone = fresh_backbone().eval()
    method = attached(tiny_config(name), backbone)
    for toy in toys:
        learn(method, backbone, toy, updates=3)
    backbone.eval()
    state = method.state_dict(backbone)
    kinds: dict[str, str] = {}
    for key in sorted(state.tensors):  # one of each kind: of all layers' `down`, say, the first
        kinds.setdefault("".join(letter for letter in key if not letter.isdigit()), key)
    before = [(keys_of(method, backbone, toy), logits_of(method, backbone, toy)) for toy in toys]
    for key in list(kinds.values())[:12]:
        other_backbone = fresh_backbone().eval()
        other = attached(tiny_config(name), other_backbone, disturbed(state, key))
        other_backbone.eval()
        for toy, (keys, logits) in zip(toys, before, strict=True):
            if not torch.equal(logits_of(other, other_backbone, toy), logits):
                assert keys_of(other, other_backbone, toy) != keys, f"{key} moves answers and no key"


def disturbed(state: MethodState, key: str) -> MethodState:
    """The state with other numbers under one name."""
    tensor = state.tensors[key]
    changed = tensor * 1.5 + 0.1 if tensor.is_floating_point() else tensor + 1
    return MethodState(tensors={**state.tensors, key: changed}, structure=state.structure)


@pytest.mark.parametrize("part", [r"\.groups\.0\.down$", r"\.groups\.0\.up$", r"task_1", "shares"])
def test_a_constant_is_part_of_the_key(part: str, encoded: list[Toy]) -> None:
    """Rows of the second task alone are served by the first one's slots through the constant and nothing else."""
    backbone = fresh_backbone().eval()
    method = attached(tiny_config("continual_llava"), backbone)
    for toy in encoded:
        learn(method, backbone, toy, updates=3)
    backbone.eval()
    state, last = method.state_dict(backbone), told(encoded[1])
    key = next(name for name in sorted(state.tensors) if re.search(part, name))
    assert isinstance(method, ContinualLlava)
    with torch.inference_mode(), method.select(backbone, last.prompts):
        constant, scales = method.bank.mixing.constant, method.bank.mixing.scales
        assert constant is not None
        assert constant.groups == ["0"]
        assert "0" not in scales
    other_backbone = fresh_backbone()
    other = attached(method.config, other_backbone, disturbed(state, key))
    other_backbone.eval()
    assert not torch.equal(logits_of(other, other_backbone, last), logits_of(method, backbone, last))
    assert keys_of(other, other_backbone, last) != keys_of(method, backbone, last)


@every_method
def test_a_restored_method_makes_its_replies_of_the_same(name: str, toys: list[Toy]) -> None:
    """A run that was killed before a row was scored ends with the bits, and keys, of one that was not. Frozen groups
    may be multiplied as one, which rounds otherwise; so the same parameters are frozen, too.
    """
    backbone, restored = fresh_backbone().eval(), fresh_backbone().eval()
    method = attached(tiny_config(name), backbone)
    for toy in toys[: 2 if method.config.data_scope == "each" else 1]:
        learn(method, backbone, toy, updates=3)
    backbone.eval()
    other = attached(tiny_config(name), restored, method.state_dict(backbone))
    restored.eval()
    learning, learns_again = (
        {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for model in (backbone, restored)
    )
    assert learning == learns_again == set()
    both = [*rows(toys[0])[:2], *rows(toys[1])[:2]]  # of both tasks in one batch
    asked = collate([ENCODER.prompt_example(row) for row in both], pad_id=ENCODER.pad_id, padding_side="left")
    learned = collate([ENCODER.training_example(row) for row in both], pad_id=ENCODER.pad_id, padding_side="right")
    named = toys[0].prompts.oracle_task
    mixed = replace(toys[0], prompts=replace(asked, oracle_task=named), batch=replace(learned, oracle_task=named))
    assert keys_of(method, backbone, mixed) == keys_of(other, restored, mixed)
    assert torch.equal(logits_of(method, backbone, mixed), logits_of(other, restored, mixed))


def keys_of(method: Method, backbone: Backbone, toy: Toy) -> list[str]:
    reuse = Reuse(
        known={}, arithmetic="", state=state_digest(method.state_dict(backbone)), digests=Digests(), asked=["file"]
    )
    with torch.inference_mode(), method.test_file(toy.info.instructions), method.select(backbone, toy.prompts):
        return reuse.made(backbone, method, toy.prompts, "", 3).keys


def logits_of(method: Method, backbone: Backbone, toy: Toy) -> torch.Tensor:
    with torch.inference_mode(), method.test_file(toy.info.instructions), method.select(backbone, toy.batch):
        return backbone(toy.batch).logits


def test_a_subclass_that_selects_otherwise_is_not_trusted_with_what_its_base_says(encoded: list[Toy]) -> None:
    class Louder(Individual):
        def select(self, model, batch):  # type: ignore[no-untyped-def]
            return super().select(model, batch)

    class Told(Individual):
        def served(self, selection: Selection) -> Selection:
            return replace(selection, routed_to=["somebody"])

    class Growing(Individual):
        def grow(self, model: Backbone, index: int) -> None:
            super().grow(model, index)

    class Same(Individual):
        pass

    backbone = fresh_backbone()
    config = tiny_config("individual")
    assert isinstance(config, IndividualConfig)
    for kind, trusted in ((Same, True), (Louder, False), (Told, False), (Growing, False)):
        method = kind(config, seed=0)
        method.attach(backbone if kind is Same else fresh_backbone(), None)
        batch = replace(encoded[0].prompts, oracle_task="colours")
        with method.select(backbone, batch) as selection:
            assert isinstance(selection, Selection)
            assert (method.serving(backbone, batch, Digests()) is not None) == trusted


def test_the_seed_is_part_of_what_a_method_may_answer_with(encoded: list[Toy]) -> None:
    """DARE draws what it drops when a state is restored."""
    config = replace(tiny_config("merging"), rule="dare", drop_rate=0.5)
    backbone = fresh_backbone()
    method = attached(config, backbone)
    for toy in encoded:
        learn(method, backbone, toy, updates=3)
    state, keys = method.state_dict(backbone), []
    for seed in (0, 1, 1):
        other_backbone = fresh_backbone().eval()
        keys.append(keys_of(attached(config, other_backbone, state, seed=seed), other_backbone, encoded[0]))
    assert keys[0] != keys[1] == keys[2]


def test_a_method_that_says_nothing_may_look_at_questions_that_prompts_do_not_hold(encoded: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    method = attached(tiny_config("smolora"), backbone)
    cut = replace(encoded[0], prompts=replace(encoded[0].prompts, instructions=["whole", "b", "c", "d"]))
    assert keys_of(method, backbone, encoded[0]) != keys_of(method, backbone, cut)


def test_the_code_of_a_method_from_elsewhere_is_part_of_its_keys(tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 2):
        path = tmp_path / f"elsewhere_{len(found)}.py"
        path.write_text(f"from components.methods.frozen import Frozen\n\nclass Mine(Frozen):\n    number = {number}\n")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        found.append(foreign_code(module.Mine))
        del sys.modules[path.stem]
    assert found[0] != found[1] == found[2]
    assert foreign_code(Individual) == ""


def test_a_neighbour_or_the_order_of_a_batch_makes_another_computation(encoded: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    method = attached(tiny_config("zero_shot"), backbone)
    memory, examples = Memory({}), prompts(encoded[0])

    def keys(asked: list[Example], batch_size: int) -> list[str | None]:
        reuse = Reuse(known=memory.known, arithmetic=backbone.arithmetic(), state="", digests=Digests())
        found = answer(
            backbone,
            method,
            ENCODER,
            asked,
            batch_size=batch_size,
            max_new_tokens=3,
            device=torch.device("cpu"),
            reuse=reuse,
        )
        return [one.key for one in found]

    together, alone = keys(examples, 4), keys(examples, 1)
    assert len({*together, *alone}) == 2 * len(examples)
    assert keys(examples, 4) == together
    assert keys(examples[:3], 4) != together[:3]
    redder = replace(examples[0], input_ids=examples[0].input_ids.flip(0))
    assert keys([redder, *examples[1:]], 1)[1:] == alone[1:]
    assert keys([redder, *examples[1:]], 1)[0] != alone[0]
