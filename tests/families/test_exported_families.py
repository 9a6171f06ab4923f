"""Exports of every model type, loaded by peft and transformers alone, predict what the method does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from components.core.errors import ConfigError
from components.data.batch import IGNORE, collate
from components.exporting.learned import check_export, read_learned
from components.exporting.writing import write_export
from components.methods import method_config
from components.methods.base import ExportFormat, TaskInfo
from components.methods.o_lora import OLoraConfig
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.source import model_source
from tests.contract.learned_runs import learned_run
from tests.contract.toy_tasks import Toy
from tests.families import reference, tiny
from tests.families.talks import rows
from tests.families.test_families import Opened, sent

# One of each kind that adds to the model in another way, with the nearest format to plain weights that it has.
KINDS = ("sequential_lora", "o_lora", "merging", "lcia", "moelora", "l2p", "hide", "eproj")
ALWAYS = ("llava", "qwen2_5_vl", "llama")  # the others where the table is made


@pytest.mark.shows("export")
@pytest.mark.parametrize("method_name", KINDS)
@pytest.mark.parametrize("name", tiny.NAMES)
def test_each_kind_is_exported(
    name: str,
    method_name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """`write_export` compares what it wrote, loaded by plain peft or transformers, with the method."""
    if name not in ALWAYS and not request.config.getoption("--record-families"):
        pytest.skip("exports of every kind: --record-families")
    config = BackboneConfig(name=str(tiny.write(name, tmp_path / "base")))
    options, kind = method_config(method_name).tiny(), model_source(config).family_class()
    if options.name == "eproj" and kind.projector is None:
        record_property("refused", True)
        with pytest.raises(ConfigError, match="choose another method"):
            options.check_family(kind, backbone=name)
        return
    encoder = build_encoder(config)
    toys = []
    for index, task in enumerate(("first", "second")):
        batch = collate(
            [encoder.training_example(each) for each in rows(name)[:2]], pad_id=encoder.pad_id, padding_side="right"
        )
        info = TaskInfo(index=index, name=task, instructions=[f"{task} {text}" for text in batch.instructions])
        toys.append(Toy(info=info, batch=batch, prompts=batch))
    run, method, _ = learned_run(tmp_path, options, toys, backbone_config=config)
    to = options.export_formats[0]
    group = next(iter(options.export_groups(method.structure()))) if options.export == "hard" else None
    learned, group = read_learned(run, None, None), group if to == "merged" else None
    check_export(learned, to, group, tmp_path / "out")
    seen = write_export(learned, to, group, tmp_path / "out").agreement
    assert seen.effect > 0


@pytest.mark.shows("export")
@pytest.mark.parametrize("name", tiny.params())
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
