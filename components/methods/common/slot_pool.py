"""The routing half of a slot pool: keys, their owners, what each task selected. CPU tensors only, no model.

Two layouts of the bank's K columns, G slots per group:
    owned:  group "0", "1", ... one per task; slot n is column n.
    shared: group "pool" with G = N slots, then "0", "1", ... frozen copies taken after each task but the last.

Shape letters: B batch, N slots that can be chosen, K columns of the bank, T tasks begun, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.methods.common import key_selection
from components.methods.common.key_selection import Choice, normalize_groups
from components.methods.common.pool_options import PoolOptions, SelectionRule

SHARED = "pool"  # the one group of a shared pool


class SlotPool:
    """Keys [N, D], shares [learned tasks, G] (mean weight of each competing slot) and the layout of the bank."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.keys = torch.empty(0, 0)
        self.shares = torch.empty(0, options.group_size)

    def competing(self, index: int) -> slice:
        """The slots that compete while task `index` trains."""
        size = self.options.group_size
        return slice(index * size, (index + 1) * size) if self.options.owned else slice(0, size)

    def align(self, index: int, queries: Tensor, samples: Tensor, generator: torch.Generator) -> None:
        """Stage 1 of task `index`: new orthogonal keys (a shared pool has them already), pulled to its instructions.

        queries [n, D]: distinct texts; samples [s]: the text of each sample.
        """
        options, place = self.options, self.competing(index)
        if options.owned or index == 0:
            fresh = key_selection.orthogonal_keys(options.group_size, queries.shape[1], options.key_groups, generator)
            self.keys = torch.cat([self.keys, fresh]) if len(self.keys) else fresh
        trained = key_selection.align_keys(
            self.keys[place],
            queries,
            samples,
            groups=options.key_groups,
            top_m=options.top_m,
            rule=options.selection,
            plan=options.alignment,
            generator=generator,
        )
        self.keys = self.keys.clone()
        self.keys[place] = trained

    def route(self, queries: Tensor, *, allowed: slice, rule: SelectionRule = "instance") -> Choice:
        """Choose among the slots in `allowed` for queries [B, D]; slot ids count over the whole pool."""
        options = self.options
        normalized = normalize_groups(queries, options.key_groups)
        # One product a task: in a larger one the last bits of a similarity would depend on how many tasks there are,
        # and a row whose slots are still the same could not keep its reply.
        similarity = torch.cat(
            [
                normalized @ normalize_groups(keys, options.key_groups).T
                for keys in self.keys[allowed].split(options.group_size)
            ],
            dim=1,
        )
        choice = key_selection.choose(
            similarity,
            top_m=options.top_m,
            weighting=options.weighting,
            temperature=options.temperature,
            rule=rule,
        )
        return Choice(slots=choice.slots + (allowed.start or 0), alpha=choice.alpha, num_clamped=choice.num_clamped)

    def record_shares(self, index: int, queries: Tensor, samples: Tensor) -> None:
        """Append cbar of task `index`: the mean weight of each competing slot over its samples (0 if not chosen)."""
        options, place = self.options, self.competing(index)
        total = torch.zeros(options.group_size, dtype=torch.float64)
        for batch in samples.split(options.alignment.batch_size):
            choice = self.route(queries[batch], allowed=place, rule=options.selection)
            total += choice.spread(len(self.keys))[:, place].double().sum(dim=0)
        self.shares = torch.cat([self.shares, (total / len(samples)).float().unsqueeze(0)])

    def owner_mass(self, choice: Choice, num_tasks: int) -> Tensor:
        """Total weight per owning task [B, T]; a shared pool's slots all count for the latest task."""
        if not self.options.owned:
            return F.one_hot(torch.full((len(choice.slots),), num_tasks - 1), num_tasks).float()
        owners = choice.slots // self.options.group_size
        return torch.zeros(len(owners), num_tasks).scatter_add_(1, owners, choice.alpha)

    def column_shares(self, num_tasks: int, num_columns: int) -> Tensor:
        """The shares of tasks 0 .. T-2 on the bank's columns [T - 1, K]: what task T-1's context may weigh."""
        size = self.options.group_size
        placed = torch.zeros(num_tasks - 1, num_columns)
        for index in range(num_tasks - 1):
            start = (index if self.options.owned else index + 1) * size
            placed[index, start : start + size] = self.shares[index]
        return placed


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Distinct texts in order of first use, and which of them each text is [s] int64."""
    position: dict[str, int] = {}
    samples = torch.tensor([position.setdefault(text, len(position)) for text in texts], dtype=torch.long)
    return list(position), samples
