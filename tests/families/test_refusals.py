"""What a model type cannot serve is one sentence of the plan: before any process starts or anything is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import transformers as hf

from components.adapters.prompts import PrefixedAttention
from components.core.errors import CheckpointError, ConfigError, LittoralError
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.models.source import model_source
from components.runs.execute import run_and_record
from components.training.plan import Plan, plan_stream
from components.training.run_folder import check_run_dir, claim_run_dir
from pipelines import coast
from pipelines.presets import pocket
from tests.families import tiny


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("qwen2_5_vl", "qwen3"):
        tiny.write(name, folder / name)
    for name, config in {"unknown": {"model_type": "nonesuch"}, "nameless": {"hidden_size": 8}}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("qwen2_5_vl", ("--method", "eproj"), "none stands apart .*; choose another method or a model of the LLaVA"),
        ("qwen3", ("--method", "eproj"), "takes no pictures; choose another method or a vision-language model"),
        (
            "qwen3",
            ("--method", "cf-router", "--method.features", "picture"),
            r"takes no pictures; choose both, instruction or hidden\.",
        ),
        ("qwen2_5_vl", ("--method", "sequential-lora", "--method.train-projector"), "no projector that can be trained"),
        ("qwen2_5_vl", ("--method", "dual-prompt"), "expert_layers 2-4 need 5 layers, the language model has 3"),
        ("qwen3", ("--method", "sequential-lora"), "takes no pictures, and 192 rows have more: chartqa train row 1 "),
        ("unknown", (), "of the type 'nonesuch', which is not supported; give a model of one of these types: gemma3, "),
        ("nameless", (), "its config.json names no model_type"),
    ],
)
def test_the_plan_refuses(name: str, options: tuple[str, ...], said: str, checkpoints: Path, tmp_path: Path) -> None:
    command = ["pocket", *options, "--backbone.name", str(checkpoints / name), "--storage", str(tmp_path / "runs")]
    with pytest.raises(LittoralError, match=said) as error:
        coast.main(command)
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "runs").exists()
    assert not ray.is_initialized()


def test_prefixes_need_separate_keys_and_values() -> None:
    """GPT-2 has one projection for queries, keys and values."""
    model = hf.GPT2Model(hf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    with pytest.raises(ConfigError, match=r"and GPT2Model has no embed_tokens; choose a method that adapts linear"):
        PrefixedAttention(model, [0], "projected")


@pytest.fixture
def begun(checkpoints: Path, tmp_path: Path) -> Plan:
    """A run of one learned task on Qwen2.5-VL."""
    folder = shutil.copytree(checkpoints / "qwen2_5_vl", tmp_path / "model")
    config = replace(
        pocket(),
        run_id="begun",
        storage=tmp_path / "runs",
        backbone=BackboneConfig(name=str(folder)),
        method=SequentialLoraConfig(rank=4),
    )
    plan = plan_stream(config)
    claim_run_dir(plan)
    kept = plan.run_dir / "checkpoints" / "01-chartqa"
    kept.mkdir(parents=True)
    (kept / "state.json").write_text(json.dumps({"backbone": model_source(config.backbone).fingerprint()}))
    return plan


def test_another_rank_or_family_does_not_continue_a_run(begun: Plan, checkpoints: Path) -> None:
    check_run_dir(begun)
    other_rank = replace(begun, config=replace(begun.config, method=SequentialLoraConfig(rank=8)))
    with pytest.raises(ConfigError, match=r"exists with method\.rank = 4, this command has 8"):
        check_run_dir(other_rank)
    other = BackboneConfig(name=str(checkpoints / "qwen3"))
    with pytest.raises(ConfigError, match=r"exists with backbone\.name = .*/model, this command has .*/qwen3"):
        check_run_dir(replace(begun, config=replace(begun.config, backbone=other)))


def test_other_weights_under_the_same_name_do_not_continue_a_run(begun: Plan, checkpoints: Path) -> None:
    folder = Path(begun.config.backbone.name)
    shutil.rmtree(folder)
    shutil.copytree(checkpoints / "qwen3", folder)
    with pytest.raises(CheckpointError, match=r"learned 01-chartqa with other weights than .*/model.* has now"):
        run_and_record(begun, lambda _: None)
    assert not ray.is_initialized()
