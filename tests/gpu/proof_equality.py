"""All methods on tiny models: the device against the CPU in float32, and bfloat16 against float32 on the device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from llava_checkpoint import write_checkpoint
from proof_record import Record
from proof_scale import Scale
from torch import Tensor
from toy_tasks import COLOURS, OPPOSITES, Toy, attached, colour_row, learn, logits, opposite_row, tiny_config, told, toy

from components.methods import METHODS, method_config
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.engine import TorchEngine

UPDATES, REPLY_TOKENS = 2, 4
# Relative differences above which a method counts as wrong. Both sides sum in float32 in another order; the updates
# amplify that, because AdamW divides by the size of a gradient however small it is.
LOSS, GRADIENT, LOGITS = 1e-4, 1e-3, 1e-3
BFLOAT16_LOSS = 0.05  # eight bits of mantissa through a few layers


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a method does in two tasks: losses of all updates, gradients of the first one, what it says afterwards."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    replies: list[list[list[int]]] = field(default_factory=list)


def tiny_backbones(folder: Path) -> dict[str, BackboneConfig]:
    """By name: the pocket model, and a checkpoint in LLaVA-1.5's layout."""
    return {
        "pocket": BackboneConfig(name="pocket"),
        "llava": BackboneConfig(name=str(write_checkpoint(folder / "llava", layers=3))),
    }


def tasks_for(name: str, config: BackboneConfig) -> list[Toy]:
    """Two tasks as the method can learn them: with pictures in all rows where it learns from nothing else."""
    encoder, kind = build_encoder(config), method_config(name)
    pictures = [None if kind.learns_from_text else colour_row(colour).image for colour in COLOURS]
    rows = {
        "colours": [colour_row(colour) for colour in COLOURS],
        "opposites": [opposite_row(word, picture) for word, picture in zip(OPPOSITES, pictures, strict=True)],
    }
    toys = [toy(index, task, of_task, encoder) for index, (task, of_task) in enumerate(rows.items())]
    return [told(each) for each in toys] if kind.needs_task_id else toys


def seen(name: str, config: BackboneConfig, device: torch.device) -> Seen:
    """Both tasks learned on `device`."""
    found = Seen()
    model = load_backbone(config).to(device)
    method = attached(tiny_config(name), model)

    def watch(engine: TorchEngine) -> None:
        if not found.gradients:
            found.gradients.update({key: value.detach().float().cpu() for key, value in engine.gradients().items()})

    for task in tasks_for(name, config):
        there = replace(task, batch=task.batch.to(device), prompts=task.prompts.to(device))
        found.losses.extend(learn(method, model, there, updates=UPDATES, watch=watch))
        found.logits.append(logits(method, model, there.batch).float().cpu())
        with method.select(model, there.prompts):
            found.replies.append(model.generate(there.prompts, max_new_tokens=REPLY_TOKENS))
    return found


def exact_products() -> None:
    """No TF32: it would round float32 matrices and convolutions to ten bits."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def differences(one: Seen, other: Seen) -> dict[str, object]:
    """Relative differences, of a sum of squares where there are many numbers; and whether all replies are equal."""
    assert one.gradients.keys() == other.gradients.keys(), "they have gradients of different parameters"
    return {
        "losses": max((abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True)), default=0.0),
        "gradients": _relative(list(one.gradients.values()), list(other.gradients.values())),
        "logits": _relative(one.logits, other.logits),
        "replies_equal": one.replies == other.replies,
    }


def _relative(these: list[Tensor], those: list[Tensor]) -> float:
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(these, those, strict=True))
    whole = sum(float(a.double().square().sum()) for a in these)
    return (apart / whole) ** 0.5 if whole else apart**0.5


def require_equal(found: dict[str, object]) -> None:
    """Raise `AssertionError` unless two float32 sides agree as far as their rounding lets them."""
    limits = {"losses": LOSS, "gradients": GRADIENT, "logits": LOGITS}
    # written so that a difference which is no number fails, too
    above = [f"{name} differ by {found[name]:.1e}" for name, limit in limits.items() if not found[name] <= limit]  # type: ignore[operator]
    above += [] if found["replies_equal"] else ["replies differ"]
    assert not above, "; ".join(above)


def equality(record: Record, scale: Scale, folder: Path) -> None:
    """A line a model and method."""
    exact_products()
    device = torch.device(scale.device)
    for model, config in tiny_backbones(folder).items():
        for name in METHODS:
            with record.measuring(f"{model}, {name}", budget_s=15) as facts:
                single = seen(name, config, device)
                facts |= differences(seen(name, config, torch.device("cpu")), single)
                half = seen(name, replace(config, dtype="bfloat16"), device)
                first = zip(single.losses[:1], half.losses[:1], strict=True)
                facts["bfloat16_loss"] = apart = max((abs(a - b) / abs(a) for a, b in first), default=0.0)
                facts["bfloat16_replies_equal"] = half.replies == single.replies
                require_equal(facts)
                assert apart <= BFLOAT16_LOSS, f"the first loss in bfloat16 differs by {apart:.1e}"
