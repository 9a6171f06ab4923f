"""Stage 1: train the projector to express in the language model's embedding space what the frozen tower sees.

Tower and language model stay frozen, only the two-layer projector learns, on short captions. Two phases:

1. Words (cheap, the language model is not run): for each picture, `logit(w) = logsumexp_v h_v . e_w` over its visual
   tokens h_v and the caption vocabulary's embeddings e_w; cross entropy against the caption's words, rarer ones
   weighted higher (inverse document frequency). It puts visual tokens near the embeddings of words that fit.
2. Captions (LLaVA's stage 1, Liu et al. 2023, arXiv 2304.08485): cross entropy of the caption given the picture through
   the frozen language model. Order and numbers come in here.

Phase 1 stands in for the half million captions that LLaVA aligns on and that a laptop cannot run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from components.core.errors import ConfigError, DataError
from components.core.files import whole_file
from components.data.batch import IGNORE, Batch, Example, Picture, collate
from components.data.rows import Row
from components.models.backbone import Backbone
from components.models.config import VisionLayer
from components.models.embedded.efficientnet import GRID, TAPS
from components.models.encoding import Encoder
from components.models.families.base import FEATURES

ENCODE_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class StageOneConfig:
    """How long and how fast the projector learns.

    The defaults made the shipped file, in 35 minutes on 2 cores that others used too (about 15 alone: an estimate).
    """

    word_updates: int = 500
    """Updates on single words and their pictures, the first phase."""
    word_batch_size: int = 64
    """Words in a batch of the first phase."""
    caption_updates: int = 300
    """Updates on captions, the second phase."""
    caption_batch_size: int = 8
    """Captions in a batch of the second phase."""
    learning_rate: float = 1e-3  # LLaVA's stage-1 value; cosine to zero in each phase
    gradient_clip: float = 1.0
    """Largest norm of a gradient; longer ones are shortened to it."""
    held_out: int = 48  # captions never trained on
    evaluate_every: int = 50
    """Updates between measurements of the held-out captions' loss."""
    seed: int = 0
    """Seed of the projector's start and of the order of batches."""

    def __post_init__(self) -> None:
        if min(self.word_updates, self.caption_updates) < 0 or min(self.word_batch_size, self.caption_batch_size) < 1:
            raise ConfigError("stage 1 needs non-negative numbers of updates and positive batch sizes.")
        if self.held_out < 2 or self.evaluate_every < 1:
            raise ConfigError(
                "stage 1 needs held_out >= 2 (pictures are swapped to test their use), evaluate_every >= 1."
            )


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out caption loss (nats per token) with the right pictures and with each caption given another's picture."""

    loss: float
    swapped_loss: float

    @property
    def gap(self) -> float:
        """How much the pictures help; near zero means the model ignores them."""
        return self.swapped_loss - self.loss


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Encoded captions with standardised tower features (float16 to keep thousands in memory)."""

    examples: list[Example]
    feature_mean: Tensor  # [channels]
    feature_std: Tensor  # [channels]


def encode_captions(
    rows: Sequence[Row], backbone: Backbone, encoder: Encoder, *, vision_layer: VisionLayer
) -> Captions:
    """Run the frozen tower once over all captions and measure its channel statistics.

    `backbone` must have been assembled without statistics (`smol_directory(..., untrained_projector_seed=...)`).
    """
    examples: list[Example] = []
    for start in range(0, len(rows), ENCODE_BATCH):
        encoded = [encoder.training_example(row) for row in rows[start : start + ENCODE_BATCH]]
        pictures = [picture for example in encoded for picture in example.pictures]
        if len(pictures) != len(encoded):
            raise DataError("stage 1 learns from captions of pictures; its split holds rows without a picture.")
        features = backbone.picture_features(pictures)
        examples += [_with_features(e, f.half()) for e, f in zip(encoded, features, strict=True)]
    channels = TAPS[vision_layer].channels
    cell = (TAPS[vision_layer].side // GRID) ** 2  # space to depth keeps a channel's pixels side by side
    sums, squares, count = torch.zeros(channels), torch.zeros(channels), 0
    for example in examples:
        values = _features(example).float().unflatten(1, (channels, cell))
        sums, squares = sums + values.sum(dim=(0, 2)), squares + values.square().sum(dim=(0, 2))
        count += values.shape[0] * cell
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()  # a constant channel stays finite
    wide_mean, wide_std = mean.repeat_interleave(cell), std.repeat_interleave(cell)
    standardised = [_with_features(e, ((_features(e).float() - wide_mean) / wide_std).half()) for e in examples]
    return Captions(examples=standardised, feature_mean=mean, feature_std=std)


def learn_words(
    backbone: Backbone, examples: Sequence[Example], config: StageOneConfig, report: Callable[[int, float], None]
) -> None:
    """Phase 1; `report(update, loss)` is called every `evaluate_every` updates."""
    projector = backbone.projector
    vocabulary, targets = _word_targets(examples)
    embeddings = backbone.language_model.get_input_embeddings()(vocabulary).detach().float()
    length = embeddings.norm(dim=1).mean()

    def loss_of(indices: list[int]) -> Tensor:
        features = torch.stack([_features(examples[index]) for index in indices]).float()
        visual = projector(features)
        logits = torch.logsumexp(visual @ embeddings.T, dim=1)
        words = torch.stack([targets[index] for index in indices])
        # Visual tokens keep the length of word embeddings: longer ones would drown the text.
        return F.cross_entropy(logits, words) + 0.1 * (visual.norm(dim=-1) - length).square().mean()

    batches = _index_batches(len(examples), config.word_batch_size, config.word_updates, seed=config.seed)
    _optimise(projector, batches, loss_of, config, num_updates=config.word_updates, report=report)


def learn_captions(
    backbone: Backbone,
    examples: Sequence[Example],
    config: StageOneConfig,
    *,
    pad_id: int,
    report: Callable[[int, float], None],
) -> None:
    """Phase 2; `report(update, loss)` is called every `evaluate_every` updates."""
    projector = backbone.projector
    lengths = [len(example.input_ids) for example in examples]

    def loss_of(indices: list[int]) -> Tensor:
        return backbone(_batch([examples[index] for index in indices], pad_id)).loss

    batches = _index_batches(
        len(examples), config.caption_batch_size, config.caption_updates, seed=config.seed + 1, lengths=lengths
    )
    _optimise(projector, batches, loss_of, config, num_updates=config.caption_updates, report=report)


@torch.no_grad()
def held_out_loss(backbone: Backbone, examples: Sequence[Example], *, pad_id: int) -> HeldOut:
    """Token-weighted caption loss with right and with swapped pictures."""
    half = len(examples) // 2  # rows come grouped by nothing in particular; half a turn pairs each with a stranger
    swapped = [
        _with_features(example, _features(examples[(index + half) % len(examples)]))
        for index, example in enumerate(examples)
    ]
    return HeldOut(loss=_mean_loss(backbone, examples, pad_id), swapped_loss=_mean_loss(backbone, swapped, pad_id))


def save_projector(
    path: Path, backbone: Backbone, captions: Captions, *, metadata: dict[str, str], dtype: torch.dtype = torch.float16
) -> str:
    """Write weights (in `dtype`: half precision keeps the file under 5 MB) and statistics; returns its SHA-256."""
    weights = backbone.projector.state_dict()
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in weights.items()}
    tensors |= {"feature_mean": captions.feature_mean, "feature_std": captions.feature_std}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata=metadata)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _optimise(
    projector: nn.Module,
    batches: Iterator[list[int]],
    loss_of: Callable[[list[int]], Tensor],
    config: StageOneConfig,
    *,
    num_updates: int,
    report: Callable[[int, float], None],
) -> None:
    """AdamW with a short linear warm-up and a cosine to zero; the projector is frozen again afterwards."""
    projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=config.learning_rate, weight_decay=0.0)
    warm_up = max(1, num_updates // 30)

    def scale(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_updates - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    recent: list[float] = []
    for update, indices in enumerate(batches, start=1):
        loss = loss_of(indices)
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent.append(float(loss.detach()))
        if update % config.evaluate_every == 0 or update == num_updates:
            report(update, sum(recent) / len(recent))
            recent.clear()
    projector.requires_grad_(False)


def _word_targets(examples: Sequence[Example]) -> tuple[Tensor, list[Tensor]]:
    """The caption vocabulary [W] and for each caption a distribution [W] over its words by inverse frequency."""
    captions = [sorted(set(example.labels[example.labels != IGNORE].tolist())) for example in examples]
    vocabulary = sorted({token for caption in captions for token in caption})
    place = {token: index for index, token in enumerate(vocabulary)}
    counts = torch.zeros(len(vocabulary))
    for caption in captions:
        counts[[place[token] for token in caption]] += 1
    rarity = torch.log(len(captions) / counts)  # zero for what every caption holds: full stop, end of turn
    targets: list[Tensor] = []
    for caption in captions:
        words = torch.zeros(len(vocabulary))
        chosen = [place[token] for token in caption]
        words[chosen] = rarity[chosen]
        total = words.sum()
        if not float(total) > 0:
            raise DataError("a caption holds no word that tells it from the others; give captions that differ.")
        targets.append(words / total)
    return torch.tensor(vocabulary), targets


def _index_batches(
    count: int, batch_size: int, num_batches: int, *, seed: int, lengths: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """`num_batches` shuffled index lists, epoch after epoch; with `lengths`, rows of like length share a batch."""
    rng = Random(seed)
    made = 0
    while made < num_batches:
        order = rng.sample(range(count), count)
        if lengths is not None:
            window = batch_size * 8
            order = [
                index
                for start in range(0, count, window)
                for index in sorted(order[start : start + window], key=lengths.__getitem__)
            ]
        groups = [order[start : start + batch_size] for start in range(0, count, batch_size)]
        rng.shuffle(groups)
        for group in groups[: num_batches - made]:
            made += 1
            yield group


def _mean_loss(backbone: Backbone, examples: Sequence[Example], pad_id: int) -> float:
    total, count = 0.0, 0
    for start in range(0, len(examples), 16):
        outputs = backbone(_batch(examples[start : start + 16], pad_id))
        total += float(outputs.loss) * outputs.num_targets
        count += outputs.num_targets
    return total / count


def _batch(examples: Sequence[Example], pad_id: int) -> Batch:
    return collate(examples, pad_id=pad_id, padding_side="right")


def _features(example: Example) -> Tensor:
    return example.pictures[0].tensors[FEATURES]


def _with_features(example: Example, features: Tensor) -> Example:
    picture = Picture(tensors={FEATURES: features}, num_tokens=len(features))
    return replace(example, pictures=(picture,))
