"""Keys and instruction embeddings: which slots serve a sample, with which weights. Plain float32 on the CPU.

Shape letters: n texts, B batch, D embedding, G key groups, N slots, M chosen slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.methods.common.pool_options import Alignment, SelectionRule, Weighting

COSINE_FLOOR = 1e-4  # the ratio of cosines needs positive ones


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Chosen slots and their weights, which sum to 1 for every sample."""

    slots: Tensor  # [B, M] int64
    alpha: Tensor  # [B, M] float32
    num_clamped: int  # chosen cosines below COSINE_FLOOR that were raised to it

    def spread(self, num_slots: int) -> Tensor:
        """The weights as [B, num_slots], zero where a slot was not chosen."""
        return torch.zeros(len(self.slots), num_slots).scatter_(1, self.slots, self.alpha)


def normalize_groups(vectors: Tensor, groups: int) -> Tensor:
    """[n, D] -> [n, D] with each of G slices of length 1 / sqrt(G): dot products are then means of G cosines."""
    slices = F.normalize(vectors.unflatten(1, (groups, -1)), dim=2)
    return slices.flatten(1) / math.sqrt(groups)


def orthogonal_keys(num_slots: int, dim: int, groups: int, generator: torch.Generator) -> Tensor:
    """Keys [N, D], orthonormal within each of G slices (as far as N <= D / G allows)."""
    slices = [torch.empty(num_slots, dim // groups) for _ in range(groups)]
    for piece in slices:
        nn.init.orthogonal_(piece, generator=generator)
    return torch.cat(slices, dim=1)


def choose(
    similarity: Tensor,
    *,
    top_m: int,
    weighting: Weighting,
    temperature: float,
    rule: SelectionRule = "instance",
) -> Choice:
    """The M most similar of N slots per sample, or one set for the whole batch.

    similarity [B, N]: mean cosines; -inf takes a slot out of the competition (at least M must be finite).
    """
    shared = similarity.mean(dim=0, keepdim=True) if rule == "batch" else similarity
    cosines, slots = shared.topk(top_m, dim=1)
    num_clamped = 0
    if weighting == "softmax":
        alpha = (cosines / temperature).softmax(dim=1)
    else:
        num_clamped = int((cosines < COSINE_FLOOR).sum())
        cosines = cosines.clamp(min=COSINE_FLOOR)
        alpha = cosines / cosines.sum(dim=1, keepdim=True)
    size = (len(similarity), -1)
    return Choice(slots=slots.expand(size), alpha=alpha.expand(size), num_clamped=num_clamped)


def align_keys(
    keys: Tensor,
    queries: Tensor,
    samples: Tensor,
    *,
    groups: int,
    top_m: int,
    rule: SelectionRule,
    plan: Alignment,
    generator: torch.Generator,
) -> Tensor:
    """Pull keys to the instructions that choose them: minimise minus the mean cosine with the M nearest keys.

    keys [N, D]; queries [n, D], distinct texts; samples [s] int64, which text each training sample has. Returns the
    trained keys. The choice carries no gradient. Deterministic given `generator`.
    """
    keys = keys.clone().requires_grad_(True)
    targets = normalize_groups(queries, groups)
    optimizer = torch.optim.AdamW([keys], lr=plan.learning_rate, weight_decay=plan.weight_decay)
    updates = max(math.ceil(len(samples) / plan.batch_size), math.ceil(plan.min_updates / plan.epochs))
    for _ in range(plan.epochs):
        passes = math.ceil(updates * min(plan.batch_size, len(samples)) / len(samples))
        order = torch.cat([torch.randperm(len(samples), generator=generator) for _ in range(passes)])
        for batch in order.split(min(plan.batch_size, len(samples)))[:updates]:
            similarity = targets[samples[batch]] @ normalize_groups(keys, groups).T
            detached = similarity.detach()
            if rule == "batch":
                detached = detached.mean(dim=0, keepdim=True).expand_as(detached)
            chosen = detached.topk(top_m, dim=1).indices
            loss = -similarity.gather(1, chosen).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([keys], plan.clip)
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= plan.decay
    return keys.detach()


def evenly_spaced(texts: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of `texts`, evenly spaced over the sequence, in order."""
    if len(texts) <= limit:
        return list(texts)
    return [texts[index * len(texts) // limit] for index in range(limit)]
