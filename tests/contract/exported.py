"""Exporting learned runs, and the predictions of what was written by plain transformers and plain peft."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from toy_tasks import Toy

from components.data.batch import IGNORE, Batch
from components.exporting.learned import check_export, read_learned
from components.exporting.writing import write_export
from components.methods.base import ExportFormat, Method
from components.models.backbone import Backbone
from components.models.embedded.pocket import pocket_model
from components.models.encoding import build_encoder
from tests.pictures import pixels_of


def export(run: Path, to: ExportFormat, out: Path, *, group: str | None = None, task: str | None = None) -> Path:
    learned = read_learned(run, task, None)
    check_export(learned, to, group, out)
    write_export(learned, to, group, out)
    return out


def plain_logits(model: nn.Module, batch: Batch) -> Tensor:
    """transformers' own forward, at the positions that predict an answer."""
    model.eval()
    with torch.no_grad():
        found = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels_of(batch)
        ).logits
    return found[:, :-1][batch.labels[:, 1:] != IGNORE]


def adapter_logits(folder: Path, batch: Batch) -> Tensor:
    return plain_logits(PeftModel.from_pretrained(pocket_model(), str(folder)), batch)


def replies(method: Method, backbone: Backbone, toy: Toy) -> list[str]:
    """What the method that learned says to the toy's prompts, four tokens at most."""
    with method.select(backbone, toy.prompts):
        generated = backbone.generate(toy.prompts, max_new_tokens=4)
    return [build_encoder(backbone.config).decode(ids) for ids in generated]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
