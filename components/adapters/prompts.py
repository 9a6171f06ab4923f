"""Learned prompts: where their numbers live, how they are read, and how key-value prefixes enter attention.

What a module here owns is read in its own `forward` only, since ZeRO-3 gathers a module's parameters around that. All
parameters are float32 and so is their arithmetic, which is small; prompts are cast where they join the model.

Shape letters: B batch, T tokens, Q query, N prompts of a pool, K chosen, L tokens of one prompt or pairs of one prefix,
D hidden, S layers with a prefix, W width of a layer's keys and of its values (or D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.compute import shared
from components.adapters.options import Penalty, Space
from components.adapters.present import present
from components.core.errors import ConfigError

Pairs = tuple[Tensor, Tensor]  # keys and values [B, P, W]

UNIT_WORDS = 512  # random tokens, a sample of the vocabulary
ATTENTION = ("self_attn.k_proj", "self_attn.v_proj", "input_layernorm")  # of a decoder layer, what prefixes call
KEY_BOUND = 0.01  # of new keys: only a key's direction counts, and Adam turns a short one within a few updates


class PromptPool(nn.Module):
    """N prompts and the keys they are found by."""

    def __init__(self, *, keys: Tensor, prompts: Tensor, unit: float) -> None:
        """keys [N, Q], prompts [N, L, D] in units of `unit`."""
        super().__init__()
        self.unit = unit
        self.keys = nn.Parameter(keys)
        self.prompts = nn.Parameter(prompts)

    def forward(self, queries: Tensor, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """queries [B, Q] -> cosines of the chosen keys [B, K], chosen ids [B, K], their prompts in a row [B, K*L, D].

        `choose` gets all cosines [B, N] without gradient and returns the ids.
        """
        cosines = F.normalize(queries, dim=1) @ F.normalize(self.keys, dim=1).T
        chosen = choose(cosines.detach())
        # an embedding, since the gradient of plain indexing is summed in any order
        found = F.embedding(chosen, self.prompts.flatten(1)).view(len(queries), -1, self.prompts.shape[2])
        return cosines.gather(1, chosen), chosen, found * self.unit


class GeneralAndExpertPrefixes(nn.Module):
    """One prefix for every sample, and one prefix and key per task."""

    def __init__(self, general: Tensor) -> None:
        """general [S, 2, L, W]: keys and values of S layers."""
        super().__init__()
        self.general = nn.Parameter(general)

    def add_task(self, index: int, *, key: Tensor, expert: Tensor) -> None:
        """Append task `index`: key [Q], expert [S, 2, L, W] of other layers, with another L."""
        assert f"key_{index}" not in self._parameters, f"task {index} has an expert already"
        self.register_parameter(f"key_{index}", nn.Parameter(key))
        self.register_parameter(f"expert_{index}", nn.Parameter(expert))

    def set_trainable(self, index: int) -> None:
        """Let the general prefix and what task `index` owns train, and nothing else."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in ("general", f"key_{index}", f"expert_{index}"))

    def forward(
        self, queries: Tensor, num_tasks: int, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """queries [B, Q] -> cosines [B, num_tasks], chosen tasks [B], general and expert [B, S, 2, L, W].

        `choose` gets the cosines without gradient and returns the task whose expert serves each sample.
        """
        keys = torch.stack([self.get_parameter(f"key_{index}") for index in range(num_tasks)])
        cosines = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
        chosen = choose(cosines.detach())
        experts = torch.stack([self.get_parameter(f"expert_{index}") for index in range(num_tasks)])
        return (
            cosines,
            chosen,
            self.general.repeat(len(queries), 1, 1, 1, 1),
            F.embedding(chosen, experts.flatten(1)).unflatten(1, experts.shape[1:]),
        )


class PromptComponents(nn.Module):
    """Components that a sample's prefix is mixed of, M more with every task; each layer has its own.

    Component m has a key K_m and an attention vector A_m [Q] and a prompt P_m [L, W].
    """

    PARTS = ("keys", "attention", "prompts")

    def add_task(self, index: int, *, keys: Tensor, attention: Tensor, prompts: Tensor) -> None:
        """Append the components of task `index`: keys and attention [S, M, Q], prompts [S, M, L, W]."""
        assert f"keys_{index}" not in self._parameters, f"task {index} has components already"
        for part, value in zip(self.PARTS, (keys, attention, prompts), strict=True):
            self.register_parameter(f"{part}_{index}", nn.Parameter(value))

    def set_trainable(self, index: int) -> None:
        """Let only the components of task `index` train."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in [f"{part}_{index}" for part in self.PARTS])

    def part(self, name: str, num_tasks: int) -> Tensor:
        """All components' keys, attention or prompts [S, num_tasks * M, ...]."""
        return torch.cat([self.get_parameter(f"{name}_{index}") for index in range(num_tasks)], dim=1)

    def forward(self, queries: Tensor, num_tasks: int, penalty: Penalty) -> tuple[Tensor, Tensor, Tensor]:
        """queries [B, Q] -> weights [S, B, N], prompts [S, B, L, W], and how far components are from orthonormal.

        weights: cos(q * A_m, K_m); prompts: sum_m weight_m P_m; the third is the sum of `gram_distance` over parts.
        """
        keys, attention, prompts = (self.part(name, num_tasks) for name in self.PARTS)
        # cos(q * A, K) without the [B, N, Q] products: both sums run over Q
        dots = torch.einsum("bq,snq->sbn", queries, attention * F.normalize(keys, dim=2))
        lengths = torch.einsum("bq,snq->sbn", queries.square(), attention.square()).clamp_min(1e-24).sqrt()
        weights = dots / lengths
        mixed = torch.einsum("sbn,snlw->sblw", weights, prompts)
        distances = [gram_distance(part, penalty) for part in (keys, attention, prompts.flatten(2))]
        return weights, mixed, torch.stack(distances).sum()


def gram_distance(rows: Tensor, penalty: Penalty) -> Tensor:
    """rows [S, N, X] -> sum over S of the size of X X^T - I, which is zero for orthonormal rows.

    "paper": the Frobenius norm. "mean_square": the mean squared entry. "first_release": a millionth of that.
    """
    residual = rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device)
    if penalty == "paper":
        return torch.linalg.vector_norm(residual, dim=(1, 2)).sum()
    mean = residual.square().mean(dim=(1, 2)).sum()
    return mean * 1e-6 if penalty == "first_release" else mean


def orthonormal_rows(count: int, old: Tensor, generator: torch.Generator) -> Tensor:
    """`count` random orthonormal rows [count, X], orthogonal to all of `old` [n, X] while X has room for both.

    `count` must not exceed X. Drawn and computed on the CPU in double precision.
    """
    num_old, size = old.shape
    assert count <= size, f"{count} orthonormal rows do not fit {size} dimensions"
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64)
    if num_old and num_old + count <= size:
        basis = torch.linalg.qr(old.detach().cpu().double().T).Q  # [X, n]
        rows = rows - rows @ basis @ basis.T
    return torch.linalg.qr(rows.T).Q.T.float().contiguous()


class Cache(Protocol):
    """What an attention layer calls of a Hugging Face cache."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> Pairs: ...

    def get_seq_length(self, layer_idx: int) -> int: ...


class PrefixedCache:
    """Stands in for a layer's cache during one call of its attention: the prefix comes before what is cached.

    The prefix is handed out with every call and never stored, so generation step n reads it once, as step 1 did.
    """

    def __init__(self, cache: Cache | None, keys: Tensor, values: Tensor) -> None:
        """keys, values [B, heads, P, W / heads]."""
        self.cache = cache
        self.keys = keys
        self.values = values

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> Pairs:
        if self.cache is not None:
            key_states, value_states = self.cache.update(key_states, value_states, layer_idx, *args, **kwargs)
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)


class PrefixedAttention:
    """Puts learned key-value pairs in front of what chosen attention layers read. Not a module: it has no parameters.

    Works with decoders whose attention takes `past_key_values` and `attention_mask` by name, as Llama's does, and on
    every call: training, recomputation under gradient checkpointing, both steps of generation. Tokens keep their
    positions. The pairs join after the rotary embedding and are not rotated: every token sees them at position 0.

    Space "projected": what is learned are keys and values. "hidden": attention inputs, which the layer's own
    projections turn into keys and values. Learned numbers count in units of the root mean square that words have
    there: a layer's keys may be thirty times as large as its values, and Adam moves every number equally far.
    """

    def __init__(self, language_model: nn.Module, layers: Sequence[int], space: Space) -> None:
        needed = [f"layers.{index}.{part}" for index in layers for part in ATTENTION]
        lacking = {"embed_tokens", *needed} - {name for name, _ in language_model.named_modules()}
        if lacking:
            raise ConfigError(
                f"key-value prefixes need attention with separate projections, as Llama's, and "
                f"{type(language_model).__name__} has no {min(lacking)}; choose a method that adapts linear layers."
            )
        self.space: Space = space
        self.layers = {index: language_model.get_submodule(f"layers.{index}") for index in layers}
        self.pairs: Mapping[int, Pairs] = {}
        embedding = language_model.get_submodule("embed_tokens")
        assert isinstance(embedding, nn.Embedding)
        words = unit_words(embedding)
        self.units = {index: [rms(part) for part in self._read(index, words.expand(2, -1, -1))] for index in layers}
        for index in layers:
            self.attention(index).register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)

    def attention(self, index: int) -> nn.Module:
        return self.layers[index].get_submodule("self_attn")

    def projections(self, index: int) -> tuple[nn.Linear, nn.Linear]:
        """The frozen maps to keys and to values."""
        keys, values = (self.attention(index).get_submodule(name) for name in ("k_proj", "v_proj"))
        assert isinstance(keys, nn.Linear)
        assert isinstance(values, nn.Linear)
        return keys, values

    @property
    def width(self) -> int:
        """W: learned numbers per key and per value."""
        keys, _ = self.projections(next(iter(self.layers)))
        return keys.out_features if self.space == "projected" else keys.in_features

    def words(self, index: int, words: Tensor) -> Tensor:
        """Token embeddings [2, L, D] as the numbers [2, L, W] whose pairs layer `index` would make of them."""
        return torch.stack(
            [part / unit for part, unit in zip(self._read(index, words), self.units[index], strict=True)]
        )

    @contextmanager
    def using(self, prefixes: Mapping[int, Tensor]) -> Iterator[None]:
        """Put prefixes [B, 2, P, W] in force for layers by index; the previous ones are restored on exit."""
        before, self.pairs = self.pairs, {index: self._pairs(index, prefix) for index, prefix in prefixes.items()}
        try:
            yield
        finally:
            self.pairs = before

    def tensors(self) -> dict[str, Tensor]:
        """The keys and values in force, by layer."""
        return {
            f"{index} {part}": value
            for index, pair in self.pairs.items()
            for part, value in zip(("keys", "values"), pair, strict=True)
        }

    def _pairs(self, index: int, prefix: Tensor) -> Pairs:
        keys, values = (part * unit for part, unit in zip(prefix.unbind(1), self.units[index], strict=True))
        if self.space == "projected":
            return keys, values
        to_keys, to_values = self.projections(index)
        return to_keys(keys.to(to_keys.weight.dtype)), to_values(values.to(to_values.weight.dtype))

    def _read(self, index: int, words: Tensor) -> Pairs:
        """Token embeddings [2, n, D] as layer `index` sees them in this space, twice [n, W] float32."""
        to_keys, to_values = self.projections(index)
        with torch.no_grad():
            first, second = self.layers[index].get_submodule("input_layernorm")(words.to(to_keys.weight.dtype))
            pair = (to_keys(first), to_values(second)) if self.space == "projected" else (first, second)
        return pair[0].float(), pair[1].float()

    def _enter(
        self, index: int, attention: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        """Before a call of layer `index`'s attention: its cache hands out the pairs, its mask makes them visible."""
        if index not in self.pairs:
            return None
        hidden, head_size = cast(Tensor, kwargs["hidden_states"]), cast(int, attention.head_dim)
        cache, mask = cast("Cache | None", kwargs["past_key_values"]), cast("Tensor | None", kwargs["attention_mask"])
        pairs = [shared(present(part), hidden.dtype) for part in self.pairs[index]]
        keys, values = (part.unflatten(2, (-1, head_size)) for part in pairs)
        assert len(keys) == len(hidden), f"a prefix for {len(keys)} rows, but the batch has {len(hidden)}"
        prefixed = PrefixedCache(cache, keys.transpose(1, 2), values.transpose(1, 2))
        mask = _widened(mask, keys.shape[1], hidden, cache, index)
        return args, {**kwargs, "past_key_values": prefixed, "attention_mask": mask}


def _widened(mask: Tensor | None, num_pairs: int, hidden: Tensor, cache: Cache | None, index: int) -> Tensor | None:
    """The mask [B or 1, 1, T, cached + T], additive or boolean, with `num_pairs` visible columns in front.

    sdpa gets no mask when the rows are unpadded, and then would take the pairs for the first tokens of a causal row.
    """
    if mask is None:
        length = hidden.shape[1]
        if length == 1:
            return None  # one token sees everything
        cached = 0 if cache is None else cache.get_seq_length(index)
        mask = torch.ones(1, 1, length, cached + length, dtype=torch.bool, device=hidden.device).tril(cached)
    return F.pad(mask, (num_pairs, 0), value=1.0 if mask.dtype == torch.bool else 0.0)


def rms(values: Tensor) -> float:
    """Root mean square to three digits, so that every machine finds the same number."""
    return float(f"{float(values.detach().square().mean().sqrt()):.3g}")


def new_keys(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Short keys in every direction, drawn on the CPU."""
    return torch.empty(shape).uniform_(-KEY_BOUND, KEY_BOUND, generator=generator)


def random_words(embedding: nn.Embedding, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings [count, D] of random tokens, float32: prompts that start where the model expects its inputs."""
    ids = torch.randint(embedding.num_embeddings, (count,), generator=generator)
    # Hugging Face's gradient checkpointing makes an embedding's output ask for gradients, even here
    return embedding(ids.to(embedding.weight.device)).detach().float()


def unit_words(embedding: nn.Embedding) -> Tensor:
    """Embeddings [UNIT_WORDS, D] that sizes are measured with: the same for every method and seed."""
    return random_words(embedding, UNIT_WORDS, torch.Generator().manual_seed(0))
