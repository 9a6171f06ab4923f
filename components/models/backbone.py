"""The frozen vision-language model that every method adds its adapters to.

Any model works whose type has a `Family` (components/models/families): the family says where its parts are and what
its language model is called with. The same code serves the embedded `smol` and `pocket` models and those from a
directory or the hub.

Shape letters: B batch, T tokens, P prefix, N pictures, V tokens of one picture, C channels of its features, D hidden, S
supervised positions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from components.adapters.present import present
from components.core.errors import ConfigError
from components.core.fingerprint import code_fingerprint
from components.core.machine import cpu_model
from components.data.batch import Batch, Limits, Picture
from components.models.config import BackboneConfig
from components.models.decoding import Steering, greedy
from components.models.encoding import build_encoder
from components.models.families.base import FEATURES, Family, ModelInputs, joined, submodule
from components.models.option_scores import Ids, log_likelihoods
from components.models.pixels import unpacked
from components.models.products import quick_products
from components.models.refilling import refilled
from components.models.source import CPU, model_source, torch_dtype


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
    """A frozen model. Everything in it has `requires_grad=False`; adapters are added by methods."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        family: Family,
        config: BackboneConfig,
        fingerprint: str,
        end_id: int | None = None,
    ) -> None:
        """`end_id` is the token that training teaches as the end of an answer: see `Encoder.end_id`."""
        super().__init__()
        for part in (family.language_model, family.head, *family.towers, *filter(None, [family.projector])):
            submodule(model, part, of=config.name)
        self.model = model
        self.family = family
        self.config = config
        self.fingerprint = fingerprint
        self._prefix: Tensor | None = None
        self.end_id = end_id
        self.model.requires_grad_(False)
        self.eval()
        if config.gradient_checkpointing:
            # Non-reentrant checkpointing needs no gradient on its inputs: frozen embeddings stay frozen. Its check that
            # recomputed tensors have the saved ones' shapes fails under ZeRO-3, which empties parameters in between.
            options = {"use_reentrant": False, "determinism_check": "none"}
            self.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    @property
    def language_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model.get_submodule(self.family.language_model))

    @property
    def projector(self) -> nn.Module:
        """The map from pictures' features to the language model's width."""
        return self.get_submodule(self.projector_name)

    @property
    def projector_name(self) -> str:
        """Its full name in this module; raises `ConfigError` where the family keeps none apart from its tower."""
        if self.family.projector is None:
            raise ConfigError(
                f"backbone {self.config.name!r} has no projector that can be trained apart from its tower; choose a "
                "method and options that leave it alone, or a LLaVA-1.5 style model."
            )
        return f"model.{self.family.projector}"

    @property
    def hidden_size(self) -> int:
        return self.family.config.get_text_config().hidden_size

    @property
    def picture_width(self) -> int:
        """C: channels of a picture's features."""
        return self.family.picture_width

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for the language model and adapters; what encodes pictures stays in evaluation mode."""
        super().train(mode)
        for name in (*self.family.towers, *filter(None, [self.family.projector])):
            self.model.get_submodule(name).eval()
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

    @property
    def prefix(self) -> Tensor | None:
        """The embeddings [B, P, D] that `prefixed` has put in front; None outside."""
        return self._prefix

    def forward(self, batch: Batch) -> Outputs:
        """Predictions at supervised positions of a right- or left-padded batch (positions follow the mask)."""
        inputs = self.inputs(batch)
        hidden = self.decode(inputs.embeddings, self.family.call(self.model, inputs), use_cache=False)
        hidden = hidden[:, inputs.prefix :]  # a prefix predicts nothing
        places = batch.predicting
        return Outputs(
            logits=self.family.logits(self.model, hidden.flatten(0, 1).index_select(0, places)),
            targets=batch.labels.flatten()[places + 1],
            rows=places // batch.labels.shape[1],
            weights=None if batch.weights is None else batch.weights.flatten()[places + 1],
        )

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        steering: Steering | None = None,
        rows_leave: bool = False,
        refill: Limits | None = None,
    ) -> list[list[int]]:
        """Greedy answers of a left-padded batch, one id list per row, cut before the first token that ends an answer.
        With `steering`, answers of the tokens that it chooses, each until it needs no more.

        These are the token that training teaches as the end and those of the model's generation configuration. Nothing
        else of that configuration counts: penalties for repetition would change greedy answers. With `rows_leave` a row
        is computed until its answer has ended, and not until all have: all adapters must read by `present` what they
        hold of each row. With `refill` too, so many rows are answered at once and the next ones take free places.

        The loop is our own because transformers' `generate` goes through the whole model, whose types each want other
        arguments, and some keep positions of an earlier batch; the language model takes the same ones in all of them.
        """
        assert bool(batch.attention_mask[:, -1].all()), "generation needs a left-padded batch"
        with self.answering():
            if refill is not None and rows_leave and steering is None:
                return refilled(self, batch, max_new_tokens=max_new_tokens, limits=refill)
            return greedy(
                self, self.inputs(batch), max_new_tokens=max_new_tokens, rows_leave=rows_leave, steering=steering
            )

    @torch.no_grad()
    def log_likelihoods(
        self, batch: Batch, options: Sequence[Sequence[Ids]], *, limits: Limits, rows_leave: bool = False
    ) -> list[list[float]]:
        """By row of a left-padded batch, the log-likelihood of each of its options, given as tokens.

        `rows_leave` as in `generate`; without it, a pass over options has all rows and knows no `limits`.
        """
        assert bool(batch.attention_mask[:, -1].all()), "options need a left-padded batch"
        with self._evaluating(), quick_products(self.config.float32_kernels, self.device):
            return log_likelihoods(self, self.inputs(batch), options, limits=limits, rows_leave=rows_leave)

    @torch.no_grad()
    def picture_features(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """The frozen encoder's features [V, C] of each picture, computed unless they are cached."""
        if not pictures:
            return []
        if FEATURES in pictures[0].tensors:
            return [picture.tensors[FEATURES] for picture in pictures]
        whole = [replace(picture, tensors=unpacked(picture.tensors)) for picture in pictures]
        tensors = {
            name: tensor.to(self.device, self._dtype) if tensor.is_floating_point() else tensor.to(self.device)
            for name, tensor in joined(whole).items()
        }
        features = list(self.family.features(self.model, tensors))
        if [len(each) for each in features] != [picture.num_tokens for picture in pictures]:
            raise ConfigError(
                f"pictures take {', '.join(str(picture.num_tokens) for picture in pictures)} tokens in their rows, but "
                f"the model gives {', '.join(str(len(each)) for each in features)} features: the processor's files do "
                "not belong to this model's weights; give a complete model directory."
            )
        return features

    def arithmetic(self) -> str:
        """All that decides an answer beside what rows give and what a method adds: weights, precision, kernels,
        libraries and machine. Where two are equal, equal inputs have equal outputs.
        """
        config, device = asdict(self.config), self.device
        # Of the rows they decide, which are known by themselves, or of training alone.
        for name in ("name", "template", "pad_to_square", "max_length", "too_long", "gradient_checkpointing"):
            del config[name]
        # Kernels are chosen by the processor's kind, and two kinds with the same instructions may have others.
        cpu = [torch.backends.cpu.get_cpu_capability(), cpu_model()]
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        files = hashlib.sha256(b"".join(path.read_bytes() for path in model_source(self.config).tokenizer_files()))
        libraries = [torch.__version__, transformers.__version__, code_fingerprint()]
        threads = 0 if device.type == "cuda" else torch.get_num_threads()
        ends = self.end_ids()
        return json.dumps([self.fingerprint, config, ends, files.hexdigest(), libraries, device.type, machine, threads])

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
        prefix = f"model.{self.family.language_model}."
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
        return torch_dtype(self.config)

    def decode(self, embeddings: Tensor, call: Mapping[str, Any], **options: object) -> Tensor:
        """Hidden states [B, T, D] of the language model."""
        language_model: Any = self.language_model
        return language_model(inputs_embeds=embeddings, **call, **options).last_hidden_state

    def inputs(self, batch: Batch) -> ModelInputs:
        """What the language model is called with: the rows, after the current prefix if any."""
        embeddings = self.language_model.get_input_embeddings()(batch.input_ids)
        features = [each.to(embeddings.dtype) for each in self.picture_features(batch.flat_pictures)]
        visual, extra = self.family.embed(self.model, features)
        image_mask = batch.input_ids == self.family.image_token_id
        embeddings = embeddings.masked_scatter(image_mask.unsqueeze(-1), visual.to(embeddings.dtype))
        mask, prefix = batch.attention_mask, None if self._prefix is None else present(self._prefix)
        if prefix is not None:
            assert len(prefix) == len(batch), f"a prefix for {len(prefix)} rows, but the batch has {len(batch)}"
            embeddings = torch.cat([prefix.to(embeddings.dtype), embeddings], dim=1)
            mask = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        return ModelInputs(
            batch=batch,
            embeddings=embeddings,
            mask=mask,
            prefix=0 if prefix is None else prefix.shape[1],
            image_mask=image_mask,
            extra=extra,
        )

    def end_ids(self) -> list[int]:
        """The tokens that end an answer, the taught one first."""
        generation = getattr(self.model, "generation_config", None)
        ends = generation.eos_token_id if generation is not None else None
        ends = self.family.config.get_text_config().eos_token_id if ends is None else ends
        named = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        found = list(dict.fromkeys(([] if self.end_id is None else [self.end_id]) + named))
        if not found:
            raise ConfigError("the model has no end-of-text token; set eos_token_id in generation_config.json.")
        return found

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A scope in which prompts are answered: evaluation mode, and the kernels for it."""
        with self._evaluating(), quick_products(self.config.float32_kernels, self.device):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while: gradient checkpointing and adapter dropout are for training only."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def load_backbone(config: BackboneConfig, device: torch.device = CPU, *, decoder: bool = True) -> Backbone:
    """Load the frozen model onto `device`; raises `ConfigError` when it cannot be found or its type is not supported.

    Without its `decoder` it can encode pictures and nothing else, and a large model loads in a tenth of the memory.
    """
    source, encoder = model_source(config), build_encoder(config)
    if not decoder:
        config = replace(config, gradient_checkpointing=False)
    return Backbone(
        source.model(device, decoder=decoder),
        family=encoder.family,
        config=config,
        fingerprint=source.fingerprint(),
        end_id=encoder.end_id,
    )
