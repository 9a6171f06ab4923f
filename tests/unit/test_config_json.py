"""A run's configuration as JSON: what is written, and what is read of it, also by another version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError
from components.data.stream_config import StreamConfig
from components.methods import METHODS
from components.methods.ewc import EwcConfig
from components.tracking.config import TrackingConfig
from components.training.config import RunConfig, read_config
from components.training.optimizer import OptimizerConfig
from pipelines.presets import PRESETS

WRITTEN = """
{"run_id": null, "storage": "runs", "seed": 3,
 "stream": {"name": "mini-coast-domain", "size": "nano", "order": ["docvqa", "iconqa"], "data_dir": "/data",
            "data_seed": 0, "train_limit": null, "test_limit": null, "validation": 0.0},
 "training": {"epochs": 1, "updates_per_task": null, "global_batch_size": 8, "micro_batch_size": null,
              "optimizer": {"learning_rate": 0.0001, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999,
                            "epsilon": 1e-08, "warmup_ratio": 0.03, "max_grad_norm": 1.0},
              "engine": "deepspeed", "zero_stage": 2, "checkpoint_every_updates": 100, "cache_features": "auto",
              "feature_cache_gb": 8.0, "skip_bad_updates": 5},
 "cluster": {"num_workers": 1, "use_gpu": "auto", "worker_labels": [], "data_labels": [], "address": null,
             "threads_per_worker": null, "max_failures": 3, "hang_minutes": 0.0}}
"""


def test_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions read these files: a name or a form that changes here makes theirs unreadable."""
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    optimizer = OptimizerConfig(learning_rate=1e-4, weight_decay=0)
    stream = StreamConfig(size="nano", order=("docvqa", "iconqa"), data_dir=Path("/data"))
    run = RunConfig(seed=3, stream=stream, method=EwcConfig(rank=4), tracking=TrackingConfig(enabled=False))
    plain = replace(run, training=replace(run.training, optimizer=optimizer)).to_json()
    wanted: dict[str, Any] = json.loads(WRITTEN)
    assert {name: plain[name] for name in wanted} == wanted
    order = "run_id storage seed stream backbone method training evaluation cluster tracking"
    assert list(plain) == order.split()
    method = plain["method"]
    assert isinstance(method, dict)
    assert (next(iter(method)), method["name"], method["rank"]) == ("name", "ewc", 4)
    assert plain["tracking"] == {"uri": None, "experiment": "littoral", "enabled": False, "wait_s": 120.0}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_back_as_it_was(name: str) -> None:
    plain = PRESETS[name]().to_json()
    assert RunConfig.from_json(json.loads(json.dumps(plain))).to_json() == plain


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_options_are_read_back(name: str) -> None:
    run = RunConfig(method=METHODS[name].tiny())
    assert RunConfig.from_json(json.loads(json.dumps(run.to_json()))).method == run.method


def test_unknown_and_absent_fields_are_told(tmp_path: Path) -> None:
    plain: dict[str, Any] = RunConfig().to_json()
    plain["backbone"]["colour"] = "red"
    del plain["evaluation"]["oracle_routing"]
    (tmp_path / "run.json").write_text(json.dumps(plain), encoding="utf-8")
    stored = read_config(tmp_path / "run.json")
    assert (stored.config, stored.unknown, stored.absent) == (
        RunConfig.from_json(plain),
        ("backbone.colour",),
        ("evaluation.oracle_routing",),
    )


def test_the_switch_for_gpus_as_earlier_versions_wrote_it() -> None:
    plain: dict[str, Any] = RunConfig().to_json()
    for written in (False, True, "auto"):
        plain["cluster"]["use_gpu"] = written
        assert RunConfig.from_json(plain).cluster.use_gpu is written or written == "auto"
    plain["cluster"]["use_gpu"] = "yes"
    with pytest.raises(ConfigError, match=r"cluster\.use_gpu.* is 'yes'"):
        RunConfig.from_json(plain)


@pytest.mark.parametrize(
    ("section", "field", "value", "said"),
    [
        ("training", "epochs", "2", r"training\.epochs is '2'; it should be a valid integer\."),
        ("training", "epochs", 0, r"training\.epochs is 0; it should be greater than or equal to 1\."),
        ("method", "rank", 1.5, r"method\.rank is 1\.5; it should be a valid integer"),
        ("stream", "order", "docvqa", r"stream\.order is 'docvqa'; it should be a valid"),
    ],
)
def test_a_wrong_value_is_named(section: str, field: str, value: object, said: str) -> None:
    plain: dict[str, Any] = RunConfig().to_json()
    plain[section][field] = value
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_json(plain)
    plain[section] = [1]
    with pytest.raises((ConfigError, TypeError), match=r"\[1\]"):
        RunConfig.from_json(plain)


def test_a_secret_among_the_options_is_refused_and_not_repeated() -> None:
    for stream in (StreamConfig(name="s3://key:abc@bucket/shop.toml"), StreamConfig(order=("a", "hf_" + "abc" * 10))):
        with pytest.raises(ConfigError, match=r"^stream\.(name|order) holds a secret") as refused:
            RunConfig(stream=stream)
        assert "abc" not in str(refused.value)
    config = RunConfig(tracking=TrackingConfig(uri="http://me:abc@host"))
    assert "abc" not in json.dumps(config.to_json())
