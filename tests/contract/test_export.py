"""Exports of learned runs against plain transformers and plain peft, which know nothing of Littoral."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_tasks
from exported import adapter_logits, close, export, plain_logits, replies
from learned_runs import learned_run, told
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toy_tasks import OPPOSITES, Toy, logits, opposite_row
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from components.adapters.low_rank import Factors
from components.core.errors import ConfigError, ExportError
from components.data.batch import IGNORE
from components.exporting import load_bundle
from components.exporting.peft_folder import peft_logits, write_peft
from components.exporting.probe import agreement, probe_batch
from components.exporting.served import Served
from components.exporting.serving import serving_notes, vllm_rank
from components.methods.lcia import LciaConfig
from components.methods.merging import MergingConfig
from components.methods.o_lora import OLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.embedded.pocket import pocket_model, pocket_processor
from components.models.encoding import build_encoder
from pipelines.export import main

training_methods = pytest.mark.training_methods


@training_methods
def test_every_format_that_a_method_offers_answers_as_it_does(name: str, toys: list[Toy], tmp_path: Path) -> None:
    run, method, backbone = learned_run(tmp_path, name, toys)
    formats = method.config.export_formats
    groups = method.config.export_groups(method.structure()) if method.config.export == "hard" else {}
    assert formats[-1:] == ("bundle",)
    assert (formats == ("bundle",)) == (method.config.export == "soft")
    assert not groups or sorted(task for tasks in groups.values() for task in tasks) == sorted(method.tasks)
    bundle = load_bundle(export(run, "bundle", tmp_path / "bundle"))
    for toy in toys:
        assert torch.equal(logits(bundle.method, bundle.model, toy.batch), logits(method, backbone, toy.batch))
    if "peft" in formats:
        export(run, "peft", tmp_path / "peft")
    for group, tasks in (groups or {"": [None]}).items():
        for toy in toys:
            expected = logits(method, backbone, replace(toy.batch, oracle_task=tasks[0]))
            if "peft" in formats:
                close(adapter_logits(tmp_path / "peft" / group, toy.batch), expected)
        if "merged" in formats:
            folder = export(run, "merged", tmp_path / f"merged{group}", group=group or None)
            merged = AutoModelForImageTextToText.from_pretrained(folder)
            close(
                plain_logits(merged, toys[0].batch),
                logits(method, backbone, replace(toys[0].batch, oracle_task=tasks[0])),
            )


def test_sequential_lora_in_numbers(encoded: list[Toy], tmp_path: Path) -> None:
    config = SequentialLoraConfig(rank=6, alpha=9.0, targets="all_linear")
    run, _, _ = learned_run(tmp_path, config, encoded)
    folder = export(run, "peft", tmp_path / "out")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["task_type"]) == (6, 9, "CAUSAL_LM")
    assert written["base_model_name_or_path"] == "pocket"
    assert written["modules_to_save"] is None
    layers = [name for name in written["target_modules"] if name.endswith("q_proj")]
    assert layers == [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    assert len(written["target_modules"]) == 3 * 7
    stored = load_file(folder / "adapter_model.safetensors")
    assert stored[f"base_model.model.{layers[0]}.lora_A.weight"].shape == (6, 64)
    # CLIP's layers have the same names and stay as they are
    adapted = PeftModel.from_pretrained(pocket_model(), str(folder))
    assert {name for name, _ in adapted.named_parameters() if "lora_" in name and "language_model" not in name} == set()


def test_branches_add_up_to_one_rank(encoded: list[Toy], tmp_path: Path) -> None:
    run, _, _ = learned_run(tmp_path, OLoraConfig(rank=8, alpha=16.0), encoded)
    written = json.loads((export(run, "peft", tmp_path / "out") / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (16, 32)
    first = json.loads((export(run, "peft", tmp_path / "first", task="1") / "adapter_config.json").read_text())
    assert (first["r"], first["lora_alpha"]) == (8, 16)


def test_a_scale_that_no_whole_alpha_gives_is_in_the_weights(encoded: list[Toy], tmp_path: Path) -> None:
    config = MergingConfig(rank=8, alpha=16.0, rule="task_arithmetic", coefficient=0.3)
    run, method, backbone = learned_run(tmp_path, config, encoded)
    folder = export(run, "peft", tmp_path / "out")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (16, 16)
    close(adapter_logits(folder, encoded[0].batch), logits(method, backbone, encoded[0].batch))


@pytest.mark.parametrize("rule", ["ties", "dare"])
def test_a_dense_merge_is_no_lora_but_can_be_merged(rule: str, encoded: list[Toy], tmp_path: Path) -> None:
    run, method, backbone = learned_run(tmp_path, MergingConfig(rank=8, alpha=16.0, rule=rule), encoded)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be exported to peft; give --to merged or bundle"):
        export(run, "peft", tmp_path / "peft")
    merged = AutoModelForImageTextToText.from_pretrained(export(run, "merged", tmp_path / "merged"))
    close(plain_logits(merged, encoded[0].batch), logits(method, backbone, encoded[0].batch))


def test_a_trained_projector_goes_along(encoded: list[Toy], tmp_path: Path) -> None:
    config = SequentialLoraConfig(rank=8, alpha=16.0, train_projector=True)
    run, method, backbone = learned_run(tmp_path, config, encoded)
    expected = logits(method, backbone, encoded[0].batch)
    close(adapter_logits(export(run, "peft", tmp_path / "peft"), encoded[0].batch), expected)
    merged = AutoModelForImageTextToText.from_pretrained(export(run, "merged", tmp_path / "merged"))
    close(plain_logits(merged, encoded[0].batch), expected)


def test_groups_say_what_they_serve_and_why(encoded: list[Toy], tmp_path: Path) -> None:
    run, method, backbone = learned_run(tmp_path, LciaConfig(rank=8, alpha=16.0), encoded)
    folder = export(run, "peft", tmp_path / "out")
    routing = json.loads((folder / "routing.json").read_text())
    assert routing["groups"] == {"group-0": ["colours"], "group-1": ["opposites"]}
    assert routing["threshold"] == 0.9
    assert routing["strings"]["group-1"] == [f"Name the opposite of {word}." for word in ("left", "up", "yes", "small")]
    for toy in encoded:
        (group,) = [name for name, tasks in routing["groups"].items() if toy.info.name in tasks]
        close(adapter_logits(folder / group, toy.batch), logits(method, backbone, told(toy, toy.info.name).batch))
    with pytest.raises(ConfigError, match=r"needs --group; choose one of group-0 \(colours\); group-1 \(opposites\)"):
        export(run, "merged", tmp_path / "merged")
    with pytest.raises(ConfigError, match="has no group 'colours'"):
        export(run, "merged", tmp_path / "merged", group="colours")


def test_a_backbone_on_disk_in_bfloat16(encoded: list[Toy], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a 7B model is: a directory with a card of its own, half precision below float32 adapters."""
    base = tmp_path / "base model"
    pocket_model().save_pretrained(base)
    pocket_processor().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: llama2\n---\nAbout it.\n")
    backbone_config = BackboneConfig(name=str(base), dtype="bfloat16")
    run, method, backbone = learned_run(tmp_path, "o_lora", encoded, updates=12, backbone_config=backbone_config)
    expected = logits(method, backbone, encoded[0].batch).float()
    out = tmp_path / "out"
    main([str(run), "--to", "peft", "--out", str(out)])
    said = capsys.readouterr().out
    assert f"vllm serve '{base}' --enable-lora --max-lora-rank 16 --lora-modules toys={out}" in said
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    found = plain_logits(PeftModel.from_pretrained(plain, str(out)), encoded[0].batch).float()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.02 * float(expected.abs().max()))
    card = (out / "README.md").read_text()
    assert 'license: "llama2"' in card
    assert "--lora-modules toys=FOLDER\n" in card
    folder = export(run, "merged", tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    assert merged.dtype == torch.bfloat16
    found = plain_logits(merged, encoded[0].batch).float()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.05 * float(expected.abs().max()))
    # the base's own tokenizer, and a card that is the export's
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert "About it." not in (folder / "README.md").read_text()


def test_a_language_model_without_pictures(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tokenizer = pocket_processor().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    backbone_config = BackboneConfig(name=str(base))
    rows = [opposite_row(word) for word in OPPOSITES]
    task = toy_tasks.toy(0, "opposites", rows, build_encoder(backbone_config))
    run, method, backbone = learned_run(tmp_path, "o_lora", [task], backbone_config=backbone_config)
    expected = logits(method, backbone, task.batch)
    supervised = task.batch.labels[:, 1:] != IGNORE
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(export(run, "peft", tmp_path / "peft"))
    )
    merged = AutoModelForCausalLM.from_pretrained(export(run, "merged", tmp_path / "merged"))
    for model in (peft, merged):
        with torch.no_grad():
            found = model(input_ids=task.batch.input_ids, attention_mask=task.batch.attention_mask).logits
        close(found[:, :-1][supervised], expected)
    card = (tmp_path / "peft" / "README.md").read_text()
    assert 'pipeline_tag: "text-generation"' in card
    assert f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), FOLDER)' in card
    bundle = load_bundle(export(run, "bundle", tmp_path / "bundle"))
    assert bundle.answer("Name the opposite of up.", max_new_tokens=4).text == replies(method, backbone, task)[1]


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512), (513, None)])
def test_vllm_takes_some_ranks_only(rank: int, allowed: int | None) -> None:
    """The values of `MaxLoRARanks` in vllm/config/lora.py."""
    assert vllm_rank(rank) == allowed
    (note, *more) = serving_notes("a/b", {"x": "FOLDER"}, rank, projector=False)
    assert (f"--max-lora-rank {allowed} " in note) == bool(more) == (allowed is not None)
    assert allowed or "above the largest that vLLM takes (512); export it merged" in note


def test_layers_that_differ_share_one_scale(tmp_path: Path) -> None:
    """Servers read r and lora_alpha of the whole adapter; peft's patterns must not be needed for the scale."""
    torch.manual_seed(0)
    names = [f"model.language_model.layers.{layer}.self_attn.o_proj" for layer in range(2)]
    parts = {
        names[0]: [drawn(4, scale=0.7), drawn(2, scale=2.0)],
        names[1]: [drawn(3, scale=0.5)],
    }
    served = Served(name="", tasks=["a"], layers=parts, projector={}, logits=torch.zeros(0))
    assert write_peft(tmp_path, served, base="pocket") == 6
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (6, 6)
    assert written["rank_pattern"] == written["alpha_pattern"] == {names[1]: 3}
    plain = PeftModel.from_pretrained(pocket_model(), str(tmp_path)).merge_and_unload()
    for name, factors in parts.items():
        expected = sum((each.scale * each.up @ each.down for each in factors), torch.zeros(64, 64))
        change = plain.get_parameter(f"{name}.weight") - pocket_model().get_parameter(f"{name}.weight")
        torch.testing.assert_close(change.detach(), expected, rtol=1e-4, atol=1e-4)


def drawn(rank: int, *, scale: float) -> Factors:
    return Factors(down=torch.randn(rank, 64), up=torch.randn(64, rank), scale=scale)


# ---- the probe ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # all that peft says
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda name: name.replace("language_model.", ""), "do not fit the model"),
        (lambda name: name.replace("base_model.model.", "base_model."), "do not fit the model"),
    ],
)
def test_an_adapter_under_other_names_is_not_passed_over(
    wrong: object, said: str, encoded: list[Toy], tmp_path: Path
) -> None:
    """peft itself warns and answers as the backbone does."""
    run, _, _ = learned_run(tmp_path, "sequential_lora", encoded[:1])
    folder = export(run, "peft", tmp_path / "out")
    renamed = {wrong(name): each for name, each in load_file(folder / "adapter_model.safetensors").items()}  # type: ignore[operator]
    save_file(renamed, folder / "adapter_model.safetensors")
    batch = encoded[0].batch
    assert torch.equal(adapter_logits(folder, batch), plain_logits(pocket_model(), batch))
    with pytest.raises(ExportError, match=said):
        peft_logits(load_backbone(BackboneConfig(name="pocket")), folder, batch)


def test_predictions_are_compared_with_the_backbones_and_the_methods() -> None:
    base, ours = torch.zeros(2, 3), torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    seen = agreement(ours + 1e-5, ours, base, dtype="float32", what="it")
    assert (seen.effect, seen.error) == (2.0, pytest.approx(1e-5, rel=1e-2))
    with pytest.raises(ExportError, match="it changes no prediction of the backbone: it is ignored"):
        agreement(base, ours, base, dtype="float32", what="it")
    with pytest.raises(ExportError, match="nothing to export"):
        agreement(base, base, base, dtype="float32", what="it")
    with pytest.raises(ExportError, match="differ from the run's own"):
        agreement(ours * 0.99, ours, base, dtype="float32", what="it")
    # an effect as small as bfloat16's rounding: half of it lost is too much, however small
    with pytest.raises(ExportError, match="lost in bfloat16"):
        agreement(base + 100.0, base + 100.1, base + 100.05, dtype="bfloat16", what="it")


def test_the_probe_has_pictures_and_answers() -> None:
    batch = probe_batch(BackboneConfig(name="pocket"))
    assert len(batch) == 3
    assert (batch.labels != IGNORE).any(dim=1).all()
    image = pocket_model().config.image_token_id
    assert (batch.input_ids == image).any(dim=1).tolist() == [True, True, False]
