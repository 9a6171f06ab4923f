"""Exports of every model type, loaded by peft and transformers alone, predict what the method does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from components.data.batch import IGNORE, collate
from components.exporting.learned import check_export, read_learned
from components.exporting.writing import write_export
from components.methods.base import ExportFormat, TaskInfo
from components.methods.o_lora import OLoraConfig
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from tests.contract.learned_runs import learned_run
from tests.contract.toy_tasks import Toy
from tests.families import reference, tiny
from tests.families.talks import rows
from tests.families.test_families import Opened, sent


@pytest.mark.parametrize("name", tiny.NAMES)
def test_an_export_is_a_model_of_its_type(name: str, tmp_path: Path) -> None:
    base = tiny.write(name, tmp_path / "base")
    config = BackboneConfig(name=str(base), pad_to_square=False)
    encoder = build_encoder(config)
    examples = [encoder.training_example(each) for each in rows(name)]
    batch = collate(examples, pad_id=encoder.pad_id, padding_side="right")
    task = Toy(info=TaskInfo(index=0, name="talk", instructions=batch.instructions), batch=batch, prompts=batch)
    options = OLoraConfig(rank=4, alpha=8.0, targets="all_linear")
    run, method, backbone = learned_run(tmp_path, options, [task], backbone_config=config)
    plain = reference.load(base)
    inputs = sent(Opened(name=name, backbone=backbone, encoder=encoder, reference=plain), examples)
    with torch.no_grad(), method.select(backbone, batch):
        outputs = backbone(batch)

    def written(to: ExportFormat) -> Path:
        learned = read_learned(run, None, None)
        check_export(learned, to, None, tmp_path / to)
        write_export(learned, to, None, tmp_path / to)
        return tmp_path / to

    merged: Any = reference.load(written("merged")).model
    adapted: Any = PeftModel.from_pretrained(plain.model, str(written("peft"))).eval()
    written("bundle")
    for model in (adapted, merged):
        for index, (each, example) in enumerate(zip(inputs, examples, strict=True)):
            with torch.no_grad():
                found = model(**each).logits[0][:-1][example.labels[1:] != IGNORE]
            torch.testing.assert_close(found, outputs.logits[outputs.rows == index], rtol=1e-3, atol=1e-3)
