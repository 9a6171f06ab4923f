"""Learned prompts: where their numbers live, and how they are read.

What a module here owns is read in its own `forward` only, since ZeRO-3 gathers a module's parameters around that. All
parameters are float32.

Shape letters: B batch, Q query, N prompts of a pool, K chosen, L tokens of one prompt, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KEY_BOUND = 0.01  # of new keys: only a key's direction counts, and Adam turns a short one within a few updates


class PromptPool(nn.Module):
    """N prompts and the keys they are found by."""

    def __init__(self, *, keys: Tensor, prompts: Tensor) -> None:
        """keys [N, Q], prompts [N, L, D]."""
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.prompts = nn.Parameter(prompts)

    def forward(self, queries: Tensor, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """queries [B, Q] -> cosines of the chosen keys [B, K], chosen ids [B, K], their prompts in a row [B, K*L, D].

        `choose` gets all cosines [B, N] without gradient and returns the ids.
        """
        cosines = F.normalize(queries, dim=1) @ F.normalize(self.keys, dim=1).T
        chosen = choose(cosines.detach())
        return cosines.gather(1, chosen), chosen, self.prompts[chosen].flatten(1, 2)


def new_keys(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Short keys in every direction, drawn on the CPU."""
    return torch.empty(shape).uniform_(-KEY_BOUND, KEY_BOUND, generator=generator)


def random_words(embedding: nn.Embedding, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings [count, D] of random tokens, float32: prompts that start where the model expects its inputs."""
    ids = torch.randint(embedding.num_embeddings, (count,), generator=generator)
    with torch.no_grad():
        return embedding(ids.to(embedding.weight.device)).float()
