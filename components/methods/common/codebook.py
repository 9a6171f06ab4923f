"""Which group of tasks a text belongs to: the decisions made so far and the strings that each group has seen. No model.

Shape letters: n texts, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from components.core.errors import CheckpointError
from components.core.options import Json
from components.methods.common.codebook_options import CodebookOptions, Field
from components.methods.common.key_selection import evenly_spaced
from components.methods.common.tfidf import PairwiseTfidf

REMEMBERED = 100_000  # texts whose similarities are kept: evaluation asks for the same few again and again


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which group a task went to."""

    task: str
    group: int
    similarity: float | None  # to the most similar group; None for the first task
    reused: bool  # the group had learned a task before
    averaged: dict[str, float] | None = None  # `BalancedAverage.summary` of the task where it was averaged


class Codebook:
    """Per group a list of distinct strings, in order of their first use, and a decision per task begun."""

    def __init__(self, options: CodebookOptions) -> None:
        self.options = options
        self.groups: list[list[str]] = []  # of learned tasks: a task's strings join when it ends
        self.decisions: list[Decision] = []
        self._pairs: PairwiseTfidf | None = None
        self._known: dict[str, Tensor] = {}

    @property
    def num_groups(self) -> int:
        """Groups in use, with one whose first task is not over yet."""
        return max((decision.group for decision in self.decisions), default=-1) + 1

    def decide(self, task: str, instructions: Sequence[str]) -> Decision:
        """Retrain the most similar group, or expand by a new one. A task that was begun before keeps its decision."""
        for decision in self.decisions:
            if decision.task == task:
                return decision
        group, similarity = self.num_groups, None
        if self.groups:
            best, similarity = _best(self.similarity(self._distinct(instructions)).mean(dim=0))
            group = best if similarity >= self.options.threshold else group
        reused = group < self.num_groups
        self.decisions.append(Decision(task=task, group=group, similarity=similarity, reused=reused))
        return self.decisions[-1]

    def learned(self, instructions: Sequence[str], averaged: dict[str, float] | None) -> None:
        """Called when the task of the latest decision ends: its strings join its group."""
        decision = self.decisions[-1]
        if decision.group == len(self.groups):
            self.groups.append([])
        strings = self.groups[decision.group]
        self.groups[decision.group] = list(dict.fromkeys([*strings, *self._distinct(instructions)]))
        self.decisions[-1] = replace(decision, averaged=averaged)
        self._pairs, self._known = None, {}

    def allocate(self, instructions: Sequence[str]) -> tuple[list[int], list[bool]]:
        """The learned group that serves each instruction, and whether it reaches the threshold."""
        if self.options.allocation == "file":
            group, matched = self.allocate_file(instructions)
            return [group] * len(instructions), [matched] * len(instructions)
        texts = [compared_text(text, self.options.field) for text in instructions]
        served = [self._serving(row) for row in self.similarity(texts)]
        return [group for group, _ in served], [matched for _, matched in served]

    def allocate_file(self, instructions: Sequence[str]) -> tuple[int, bool]:
        """The one group that serves all rows of a test file with these instructions, and whether it is similar enough:
        as a task is decided on, by the mean over all pairs of distinct strings.
        """
        return self._serving(self.similarity(self._distinct(instructions)).mean(dim=0))

    def _serving(self, similarity: Tensor) -> tuple[int, bool]:
        """The serving group for these G similarities, and whether the best one reaches the threshold."""
        group, value = _best(similarity)
        matched = value >= self.options.threshold
        return group if matched or self.options.on_miss == "best" else len(self.groups) - 1, matched

    def similarity(self, texts: Sequence[str]) -> Tensor:
        """[n, G] float64: per text and group, the mean (or the largest) cosine with the group's strings."""
        if len(self._known) > REMEMBERED:
            self._known = {}
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            if self._pairs is None:
                self._pairs = PairwiseTfidf([text for group in self.groups for text in group])
            cosines = self._pairs.cosines(new).split([len(group) for group in self.groups], dim=1)
            mean = self.options.aggregation == "mean"
            reduced = [part.mean(dim=1) if mean else part.amax(dim=1) for part in cosines]
            self._known.update(zip(new, torch.stack(reduced, dim=1), strict=True))
        return torch.stack([self._known[text] for text in texts])

    def group_of(self, task: str) -> int | None:
        """The group that a task went to; None if it was never begun."""
        return next((decision.group for decision in self.decisions if decision.task == task), None)

    def newest_task(self, group: int, among: Sequence[str]) -> str:
        """The last of the tasks `among` that went to `group`."""
        return [decision.task for decision in self.decisions if decision.group == group and decision.task in among][-1]

    def tasks_by_group(self, among: Sequence[str]) -> dict[str, list[str]]:
        """The tasks `among` in each group, whose name is `group-0` and so on."""
        found: dict[str, list[str]] = {}
        for decision in self.decisions:
            if decision.task in among:
                found.setdefault(f"group-{decision.group}", []).append(decision.task)
        return found

    def rule(self) -> dict[str, Json]:
        """How `allocate` chooses, as plain JSON values for servers."""
        options, file = self.options, self.options.allocation == "file"
        missed = "the last group" if options.on_miss == "last" else "the most similar group all the same"
        return {
            "rule": f"{'All rows of a test file go' if file else 'A row goes'} to the group whose strings its text is "
            f"most similar to, by TF-IDF cosine; below the threshold {missed} serves.",
            "text": options.field,
            "aggregation": options.aggregation,
            "threshold": options.threshold,
            "strings": {f"group-{group}": [*strings] for group, strings in enumerate(self.groups)},
        }

    def to_json(self) -> dict[str, Json]:
        """The decisions and strings as plain JSON values."""
        decisions: list[Json] = [asdict(decision) for decision in self.decisions]
        groups: list[Json] = [list(strings) for strings in self.groups]
        return {"decisions": decisions, "groups": groups}

    def restore(self, state: Mapping[str, Json]) -> None:
        """The inverse of `to_json`; raises `CheckpointError` for anything else."""
        decisions, groups = state.get("decisions"), state.get("groups")
        if not isinstance(decisions, list) or not isinstance(groups, list):
            raise CheckpointError("the checkpoint's state has no decisions and groups; it is damaged, start a new run.")
        try:
            self.decisions = [Decision(**decision) for decision in decisions]  # type: ignore[arg-type]
            self.groups = [[str(text) for text in group] for group in groups]  # type: ignore[union-attr]
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's groups cannot be read ({error}); start a new run.") from error

    def forget(self, task: str) -> bool:
        """Take out a learned task that is alone in its group, with the group; later groups move up by one.

        Whether the next task opened a group, which may have started from this one's values.
        """
        place = next(place for place, decision in enumerate(self.decisions) if decision.task == task)
        group, following = self.decisions[place].group, self.decisions[place + 1 : place + 2]
        others = [decision for decision in self.decisions if decision.task != task]
        assert all(decision.group != group for decision in others), f"{task} shares its group"
        self.decisions = [replace(each, group=each.group - (each.group > group)) for each in others]
        del self.groups[group]
        self._pairs, self._known = None, {}
        return any(not decision.reused for decision in following)

    def _distinct(self, instructions: Sequence[str]) -> list[str]:
        """The distinct compared texts of a task, capped."""
        texts = dict.fromkeys(compared_text(text, self.options.field) for text in instructions)
        return evenly_spaced(list(texts), self.options.max_strings)


def compared_text(instruction: str, field: Field) -> str:
    """The part of a first human turn that is compared; the last line usually asks for a form of answer."""
    if field == "whole":
        return instruction
    line = (instruction.splitlines() or [""])[-1].strip()
    return line.partition(":")[0] if field == "last_line_to_colon" else line


def _best(similarity: Tensor) -> tuple[int, float]:
    """The group with the largest of G similarities, and that similarity; of equal ones the oldest, as the code."""
    values = similarity.tolist()
    best = values.index(max(values))
    return best, values[best]
