"""LCIA (first drafts: LLaCA): reuse or open an adapter by instruction similarity, and average what is reused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.inject import inject_bank
from components.adapters.low_rank import Bank
from components.adapters.mixing import Scale
from components.adapters.serving import Digests, served_by_bank
from components.core.errors import ConfigError
from components.methods.base import (
    Engine,
    Forgotten,
    Json,
    Loss,
    Method,
    MethodState,
    Selection,
    TaskInfo,
    copy_tensors,
    load_parameters,
    target_pattern,
)
from components.methods.common.balance import BalancedAverage
from components.methods.common.codebook import Codebook, Decision
from components.methods.common.unlearning import GROUPS, place_of, renumbered, structure_without
from components.methods.options.lcia import LciaConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

IN_TASK = "in_task."  # in a mid-task state: what the averages need to continue


class Lcia(Method[LciaConfig]):
    """LCIA, Large Continual Instruction Assistant (LLaCA in its first drafts, CIA in its authors' later toolkit).

    Paper: Qiao et al., ICML 2025, PMLR 267:50189-50213; what is followed here is the released code and, for the
        formula, second-hand summaries checked by derivation. The authors' text was unavailable.
    Idea: tasks that ask for answers in the same words share an adapter; any other task gets its own. A shared adapter
        ends each later task as a moving average of its training, whose weight balances plasticity and stability.
    Objective: the language-model loss of the task at hand on its group's adapter. After every step, per tensor,
            theta* = v theta* + (1 - v) theta
            paper:          v = (lambda + |g|) |theta - theta_before| / (|theta - theta*| |g - g_before|)
            official_code:  1 - v = kappa (lambda + |g|) / (|theta - theta*| |g - g_before|)
        The two put their value on opposite sides and never mix. Outside (0, 1): v = constant_weight, counted.
        At the task's end theta* replaces theta. A new group is trained plainly.
    Grouping: TF-IDF cosine of the texts' `instruction_field`, over all pairs with a group's strings. A task whose mean
        reaches the threshold goes on with that group, any other opens one. At test a file's rows go by the same rule;
        below the threshold the last opened group serves them, and `Selection.matched` says so.
    Overrides: attach, begin_task, test_file, separate_rows, select, served_by, loss (counts only), step, end_task,
        state_dict, task_state, decisions, routing, owner, forget_task.
    Carried between tasks: one adapter per group, the groups' strings, the decisions and their statistics.
    Differs:
        - No projector is trained. Rank 32 on o_proj without dropout; the code has 128 on every linear layer, with 0.05.
        - Grouping decides by itself, by one field for all tasks. The released scripts fix its outcome by hand, with a
          field chosen per task: only grounding's last line is cut at its colon, and CoIN's others have none.
        - Rows that are answered outside a test file count as one file per batch.
        - Gradients are the step's own, reduced, accumulated and unclipped, under every ZeRO stage; the code finds none
          above stage 0 and silently takes the constant. The step is clipped at `max_grad_norm` 1, the code's is not.
        - Averages are float32: the code's bfloat16 ones stall.
        - Two strings without any term have similarity 0; the code stops with scikit-learn's error. The number of stored
          strings is limited.
    Beware: with `l1_sum` the value depends strongly on a tensor's size: small tensors stay in the fallback; large ones
        hardly move (code) or follow theta (paper).
    Controls: balance = "constant" with 0.99, 0.999, or 0 (grouping alone); "frozen" (with ema_start
        "task_start": the group stays as its first task left it); threshold = 0 (averaging alone).
    """

    rows_leave = rows_join = True

    def __init__(self, config: LciaConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.bank: Bank
        self.codebook = Codebook(config.codebook_options)
        self.current: Decision | None = None  # while a task is learned
        self.average: BalancedAverage | None = None  # while a reused group is trained
        self.interrupted: dict[str, Tensor] = {}  # averages of a state that was taken inside a task
        self.file: tuple[int, bool] | None = None  # while a test file is answered: its group, and whether that matched
        self.separate = False  # while each row of a batch is a test file of its own

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        self.bank = inject_bank(model, model.target_modules(target_pattern(self.config.targets)))
        if state is None:
            return
        self.restore(state)
        self.codebook.restore(state.structure)
        for group in range(self.codebook.num_groups):
            self._add(group)
        for key, value in state.tensors.items():
            if key.startswith(IN_TASK):
                self.interrupted[key.removeprefix(IN_TASK)] = value
        load_parameters(self.parameters(), {k: v for k, v in state.tensors.items() if not k.startswith(IN_TASK)})
        self.freeze()

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        self.check_next(task)
        if not task.instructions:
            raise ConfigError(f"task {task.name!r} has no instructions to compare; give it training rows.")
        self.freeze()
        parent = self.codebook.decisions[-1].group if self.codebook.decisions else None
        self.current = self.codebook.decide(task.name, task.instructions)
        name = str(self.current.group)
        if self.current.group == self._num_adapters:
            self._add(self.current.group, parent)
        self.bank.set_trainable(name, True)
        if self.current.reused:
            self.average = BalancedAverage(self.config.balance_options, self.bank.group_parameters(name))
            if self.interrupted:
                self.average.load(self.interrupted)
        self.interrupted = {}

    @contextmanager
    def test_file(self, instructions: Sequence[str]) -> Iterator[None]:
        if self.config.allocation == "file" and self.tasks and instructions:
            self.file = self.codebook.allocate_file(instructions)
        try:
            yield
        finally:
            self.file = None

    @contextmanager
    def separate_rows(self) -> Iterator[None]:
        self.separate = True
        try:
            yield
        finally:
            self.separate = False

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        names = [*self.tasks] if self.current is None else [*self.tasks, self.current.task]
        if not names:  # zero-shot: there is no group yet
            with self.bank.mixing.using({}):
                yield Selection()
            return
        groups, matched = self._allocate(batch)
        served = [self.codebook.newest_task(group, names) for group in groups]
        if self.current is None and batch.oracle_task in self.tasks:
            served = [batch.oracle_task] * len(batch)
        with self.bank.mixing.using(self._scales(groups)):
            yield Selection(slots=torch.tensor(groups).unsqueeze(1), routed_to=served, matched=matched)

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_bank(self.bank, digests)

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        return Loss(total=outputs.loss, parts={} if self.average is None else self.average.statistics())

    def step(self, engine: Engine) -> bool:
        average = self.average
        if average is None or not engine.at_boundary:
            return engine.step()
        gradients: dict[str, Tensor] = {}
        if average.balance.adaptive:  # copies: the engine's step clips and frees its own
            gradients = {name: gradient.detach().float().clone() for name, gradient in engine.gradients().items()}
        if not engine.step():
            return False
        if not engine.skipped:
            average.update(engine.parameters(), gradients)
        return True

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert self.current is not None, "end_task without begin_task"
        if self.average is not None:
            load_parameters(self.bank.group_parameters(str(self.current.group)), self.average.average)
        self.codebook.learned(task.instructions, None if self.average is None else self.average.summary())
        self.freeze()  # as `attach` leaves it: frozen groups are computed together, and so with other rounding
        self.current, self.average = None, None

    def state_dict(self, model: Backbone) -> MethodState:
        in_task = {f"{IN_TASK}{name}": tensor for name, tensor in self.task_state().items()}
        return MethodState(tensors=copy_tensors({**self.parameters(), **in_task}), structure=self.structure())

    def task_state(self) -> dict[str, Tensor]:
        return {} if self.average is None else copy_tensors(self.average.state())

    def load_task_state(self, tensors: Mapping[str, Tensor]) -> None:
        if self.average is not None:
            self.average.load(tensors)

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place_of(state, task)
        codebook = Codebook(self.config.codebook_options)
        codebook.restore(state.structure)
        group = codebook.group_of(task)
        assert group is not None, f"{task} was learned without a group"
        if sum(decision.group == group for decision in codebook.decisions) > 1:
            return super().forget_task(state, task)
        copied = codebook.forget(task) and self.config.new_group == "parent"
        structure = {**structure_without(state, task), **codebook.to_json()}
        return Forgotten(
            state=MethodState(tensors=renumbered(state.tensors, GROUPS, group), structure=structure),
            traces="the group after it started as its copy" if copied else "",
        )

    def structure(self) -> dict[str, Json]:
        return {**super().structure(), **self.codebook.to_json()}

    def decisions(self) -> dict[str, dict[str, Json]]:
        """group, similarity to the best group there was (null for the first task), reused; of an average its steps
        and, over them, the share of fallbacks and the weight of the old tensors.
        """
        found: dict[str, dict[str, Json]] = {}
        for decision in self.codebook.decisions:
            averaged = decision.averaged or {}
            if decision.task in self.tasks:
                found[decision.task] = {
                    "group": decision.group,
                    "similarity": decision.similarity,
                    "reused": decision.reused,
                    **averaged,
                    "ema_steps": int(averaged.get("ema_steps", 0)),
                }
        return found

    def routing(self) -> dict[str, Json]:
        return self.codebook.rule()

    def owner(self, task: str) -> str:
        group = self.codebook.group_of(task) if task in self.tasks else None
        return task if group is None else self.codebook.newest_task(group, self.tasks)

    @property
    def num_slots(self) -> int:
        return self._num_adapters

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.bank.parameters()

    # What the hooks are made of.

    @property
    def _num_adapters(self) -> int:
        return len(next(iter(self.bank.layers.values())).groups)

    def _add(self, group: int, parent: int | None = None) -> None:
        """Append an adapter; with a parent, and unless new groups start fresh, with that one's values."""
        config = self.config
        self.bank.add_group(
            str(group), num_pairs=1, rank=config.rank, init="kaiming", seed=self.seed, dropout=config.dropout
        )
        if parent is not None and config.new_group == "parent":
            pairs = zip(
                self.bank.group_parameters(str(group)).values(),
                self.bank.group_parameters(str(parent)).values(),
                strict=True,
            )
            with torch.no_grad():
                for parameter, value in pairs:
                    parameter.copy_(value)

    def _allocate(self, batch: Batch) -> tuple[list[int], list[bool]]:
        """The group that serves each sample, and whether it is similar enough."""
        if self.current is not None:
            return [self.current.group] * len(batch), [True] * len(batch)
        if batch.oracle_task in self.tasks:
            group = self.codebook.group_of(batch.oracle_task)
            assert group is not None, f"{batch.oracle_task} was learned without a group"
            return [group] * len(batch), [True] * len(batch)
        if self.file is not None:
            group, matched = self.file
            return [group] * len(batch), [matched] * len(batch)
        if self.separate:
            alone = [self.codebook.allocate([text]) for text in batch.instructions]
            return [groups[0] for groups, _ in alone], [matched[0] for _, matched in alone]
        return self.codebook.allocate(batch.instructions)

    def _scales(self, groups: Sequence[int]) -> dict[str, Scale]:
        scale = self.config.alpha / self.config.rank
        used = sorted(set(groups))
        if len(used) == 1:
            return {str(used[0]): scale}
        served_by = torch.tensor(groups, device=next(iter(self.bank.layers.values())).weight.device)
        return {str(group): (scale * (served_by == group).float()).view(-1, 1, 1) for group in used}
