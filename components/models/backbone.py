"""The frozen vision-language model that every method adds its adapters to.

Any LLaVA-shaped Hugging Face model works: a vision tower, a projector, a decoder-only language model and an output
layer. The same code serves the embedded `smol` and `pocket` models and LLaVA-1.5 from a directory or the hub.

Shape letters: B batch, T tokens, P prefix, N pictures, V visual tokens per picture, C vision channels, D hidden, S
supervised positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from components.core.errors import ConfigError
from components.data.batch import IGNORE, Batch
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.source import DTYPES, model_source


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Predictions at the supervised positions only: the output layer is never run elsewhere.

    Row s of `logits` predicts `targets[s]`, the token that follows its position in sample `rows[s]` of the batch.
    """

    logits: Tensor  # [S, vocabulary]
    targets: Tensor  # [S] int64
    rows: Tensor  # [S] int64
    weights: Tensor | None = None  # [S] float32, of each prediction's loss; None: all 1

    @property
    def num_targets(self) -> int:
        return len(self.targets)

    @property
    def loss(self) -> Tensor:
        """Mean cross entropy in float32 over the S positions, of which there must be at least one.

        With weights it is the weighted mean: the sum of weight times cross entropy over the sum of weights.
        """
        assert self.num_targets > 0, "the batch has no supervised position"
        if self.weights is None:
            return F.cross_entropy(self.logits.float(), self.targets)
        each = F.cross_entropy(self.logits.float(), self.targets, reduction="none")
        return (each * self.weights).sum() / self.weights.sum()

    @property
    def total_weight(self) -> float:
        """What `loss` is divided by: the number of targets, or the sum of their weights."""
        return float(self.num_targets) if self.weights is None else float(self.weights.sum())


class Backbone(nn.Module):
    """A frozen LLaVA-shaped model. Everything in it has `requires_grad=False`; adapters are added by methods."""

    def __init__(
        self, model: PreTrainedModel, *, config: BackboneConfig, fingerprint: str, end_id: int | None = None
    ) -> None:
        """`end_id` is the token that training teaches as the end of an answer: see `Encoder.end_id`."""
        super().__init__()
        inner = getattr(model, "model", None)
        parts = ("vision_tower", "multi_modal_projector", "language_model")
        if inner is None or not all(hasattr(inner, part) for part in parts) or not hasattr(model, "lm_head"):
            raise ConfigError(
                f"{config.name} is a {type(model).__name__}, which is not LLaVA-shaped (vision tower, multi-modal "
                "projector, language model); choose a LLaVA-1.5 style checkpoint."
            )
        self.model = model
        self.config = config
        self.fingerprint = fingerprint
        self._prefix: Tensor | None = None
        self.end_id = end_id
        self.model.requires_grad_(False)
        self.eval()
        # generate() gives it a slice over the last positions. On a CPU, torch would copy the whole output weight once
        # per row of the batch to multiply with that.
        self.model.lm_head.register_forward_pre_hook(_contiguous)
        if config.gradient_checkpointing:
            # Non-reentrant checkpointing needs no gradient on its inputs: frozen embeddings stay frozen. Its check that
            # recomputed tensors have the saved ones' shapes fails under ZeRO-3, which empties parameters in between.
            options = {"use_reentrant": False, "determinism_check": "none"}
            self.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model.model.language_model

    @property
    def projector(self) -> nn.Module:
        """The two-layer map from vision channels to the language model's width."""
        return self.model.model.multi_modal_projector

    @property
    def hidden_size(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def vision_channels(self) -> int:
        """C: what the projector reads per visual token."""
        return cast(nn.Linear, self.projector.linear_1).in_features

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for the language model and adapters; the tower and the projector stay in evaluation mode."""
        super().train(mode)
        self.model.model.vision_tower.eval()
        self.projector.eval()
        return self

    @contextmanager
    def prefixed(self, prefix: Tensor) -> Iterator[None]:
        """Put the embeddings `prefix` [B, P, D] in front of the rows in `forward` and `generate`, until the scope ends.

        Gradients flow back to `prefix`. In a left-padded row the padding lies between prefix and text. It is masked
        and positions follow the mask, so every row is prefix (positions 0 to P - 1) and text (from P on) to the model.
        """
        before, self._prefix = self._prefix, prefix
        try:
            yield
        finally:
            self._prefix = before

    def forward(self, batch: Batch) -> Outputs:
        """Predictions at supervised positions of a right- or left-padded batch (positions follow the mask)."""
        embeddings, mask = self._inputs(batch)
        hidden = self.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=_positions(mask), use_cache=False
        ).last_hidden_state
        hidden = hidden[:, hidden.shape[1] - batch.labels.shape[1] :]  # a prefix predicts nothing
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        return Outputs(
            logits=cast(nn.Module, self.model.lm_head)(hidden[:, :-1][supervised]),
            targets=targets[supervised],
            rows=supervised.nonzero()[:, 0],
            weights=None if batch.weights is None else batch.weights[:, 1:][supervised],
        )

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_new_tokens: int, synced_gpus: bool = False) -> list[list[int]]:
        """Greedy answers of a left-padded batch, one id list per row, cut before the first token that ends an answer.

        These are the token that training teaches as the end and those of the model's generation configuration. Nothing
        else of that configuration counts: penalties for repetition would change greedy answers.
        `synced_gpus` keeps all workers in step until the slowest is done; ZeRO-3 needs it.
        """
        assert bool(batch.attention_mask[:, -1].all()), "generation needs a left-padded batch"
        ends = self._end_ids()
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], use_cache=True
        )
        embeddings, mask = self._inputs(batch)
        with self._evaluating(), self._without_defaults():
            tokens = cast(Callable[..., Tensor], self.model.generate)(
                inputs_embeds=embeddings, attention_mask=mask, generation_config=config, synced_gpus=synced_gpus
            )
        return [_before_end(row, ends) for row in tokens.tolist()]

    @torch.no_grad()
    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """The frozen tower's features [N, V, C] of `pixel_values` [N, 3, H, W], before the projector."""
        tower = self.model.model.vision_tower
        states = tower(pixel_values.to(self.device, self._dtype), output_hidden_states=True).hidden_states
        layers = self.model.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        # "default" drops the class token, as LLaVA does with CLIP.
        first = 1 if self.model.config.vision_feature_select_strategy == "default" else 0
        return torch.cat([states[layer][:, first:] for layer in layers], dim=-1)

    def target_modules(self, pattern: str) -> dict[str, nn.Linear]:
        """Linear layers of the language model whose name inside a decoder layer fully matches the regex `pattern`.

        Keys are full names from this module (for `get_submodule`/`set_submodule`). Anchored on the language model:
        CLIP towers call their layers `q_proj` too and must never match. Raises `ConfigError` when nothing matches.
        """
        try:
            matcher = re.compile(rf"(?:.*\.)?\d+\.(?:{pattern})")
        except re.error as error:
            raise ConfigError(f"the target module pattern {pattern!r} is not a regular expression: {error}.") from error
        linears = {
            name: module for name, module in self.language_model.named_modules() if isinstance(module, nn.Linear)
        }
        prefix = "model.model.language_model."
        found = {prefix + name: module for name, module in linears.items() if matcher.fullmatch(name)}
        if not found:
            kinds = sorted({re.sub(r"^.*?\d+\.", "", name) for name in linears})
            raise ConfigError(
                f"the target module pattern {pattern!r} matches no linear layer of the language model; its layers "
                f"have {', '.join(kinds)}."
            )
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.config.dtype]

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P + T, D] and attention mask [B, P + T] of the rows, after the current prefix if any."""
        embeddings, mask, prefix = self._embed(batch), batch.attention_mask, self._prefix
        if prefix is None:
            return embeddings, mask
        assert len(prefix) == len(batch), f"a prefix for {len(prefix)} rows, but the batch has {len(batch)}"
        embeddings = torch.cat([prefix.to(embeddings.dtype), embeddings], dim=1)
        return embeddings, torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)

    def _embed(self, batch: Batch) -> Tensor:
        """Token embeddings [B, T, D] with projected picture features at the image tokens."""
        embeddings = self.language_model.get_input_embeddings()(batch.input_ids)
        features = batch.features
        if features is None and batch.pixel_values is not None:
            features = self.vision_features(batch.pixel_values)
        places = batch.input_ids == self.image_token_id
        num_features = 0 if features is None else features.shape[0] * features.shape[1]
        if int(places.sum()) != num_features:
            raise ConfigError(
                f"the batch has {int(places.sum())} image tokens but {num_features} picture features: the processor's "
                "files do not belong to this model's weights; give a complete model directory."
            )
        if features is None:
            # No picture: the projector still runs, on no rows. Under ZeRO all workers must gather it in each pass, and
            # the gradient of a trained projector must be zero, not missing.
            features = embeddings.new_zeros(0, 1, self.vision_channels)
        projected = self.projector(features.to(embeddings.dtype))
        return embeddings.masked_scatter(places.unsqueeze(-1), projected.to(embeddings.dtype))

    def _end_ids(self) -> list[int]:
        """The tokens that end an answer, the taught one first."""
        generation = getattr(self.model, "generation_config", None)
        ends = generation.eos_token_id if generation is not None else None
        ends = self.model.config.text_config.eos_token_id if ends is None else ends
        named = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        found = list(dict.fromkeys(([] if self.end_id is None else [self.end_id]) + named))
        if not found:
            raise ConfigError("the model has no end-of-text token; set eos_token_id in generation_config.json.")
        return found

    @contextmanager
    def _without_defaults(self) -> Iterator[None]:
        """Empties the model's generation configuration for a while: transformers would fill gaps in ours from it."""
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            yield
        finally:
            self.model.generation_config = own

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while: gradient checkpointing and adapter dropout are for training only."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def load_backbone(config: BackboneConfig) -> Backbone:
    """Build the frozen model on the CPU; raises `ConfigError` when it cannot be found or is not LLaVA-shaped."""
    source, end_id = model_source(config), build_encoder(config).end_id
    return Backbone(source.model(), config=config, fingerprint=source.fingerprint(), end_id=end_id)


def _positions(attention_mask: Tensor) -> Tensor:
    """Position ids [B, T] that start at 0 with each row's first real token, whatever the padding side."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A forward pre-hook that gives a module its input in one piece."""
    return (inputs[0].contiguous(),)


def _before_end(tokens: list[int], ends: list[int]) -> list[int]:
    stops = [index for index, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens
