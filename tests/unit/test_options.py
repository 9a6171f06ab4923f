"""Bounds that options state are checked, for every configuration class alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.options import Count, Share, check_options
from components.data.stream_config import StreamConfig
from components.methods import METHODS
from components.methods.base import MethodConfig
from components.methods.lcia import LciaConfig
from components.methods.merging import MergingConfig
from components.models.config import BackboneConfig
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig, TrainingConfig
from components.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Own(MethodConfig):
    """A method of somebody else."""

    name = "own"
    share: Share = 0.5
    most: Count | None = None


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (LciaConfig, {"kappa": 0.0}, "lcia.kappa is 0.0; it should be greater than 0."),
        (LciaConfig, {"kappa": math.nan}, "lcia.kappa is nan; it should be a finite number."),
        (LciaConfig, {"rank": 8.5}, "lcia.rank is 8.5; it should be a valid integer."),
        (LciaConfig, {"rank": True}, "lcia.rank is True; it should be a valid integer."),
        (LciaConfig, {"balance": "papr"}, "lcia.balance is 'papr'; it should be "),
        (LciaConfig, {"dropout": 1.0}, "lcia.dropout is 1.0; it should be less than 1."),
        (MergingConfig, {"keep": 0.0}, "merging.keep is 0.0; it should be greater than 0."),
        (MergingConfig, {"coefficient": -1.0}, "merging.coefficient is -1.0; it should be greater than 0."),
        (OptimizerConfig, {"beta2": 1.0}, "training.optimizer.beta2 is 1.0; it should be less than 1."),
        (OptimizerConfig, {"learning_rate": "1e-3"}, "training.optimizer.learning_rate is '1e-3'; it should be a"),
        (TrainingConfig, {"updates_per_task": 0}, "training.updates_per_task is 0; it should be greater than or equal"),
        (EvaluationConfig, {"suites": "pope"}, "evaluation.suites is 'pope'; it should be a valid tuple."),
        (ClusterConfig, {"num_workers": 0}, "cluster.num_workers is 0; it should be greater than or equal to 1."),
        (StreamConfig, {"train_limit": 0}, "stream.train_limit is 0; it should be greater than or equal to 1."),
        (
            BackboneConfig,
            {"dtype": "float16"},
            "backbone.dtype is 'float16'; it should be 'auto', 'float32' or 'bfloat16'.",
        ),
        (RunConfig, {"seed": -1}, "run.seed is -1; it should be greater than or equal to 0."),
        (Own, {"share": 2}, "own.share is 2; it should be less than or equal to 1."),
        (Own, {"most": 0}, "own.most is 0; it should be greater than or equal to 1."),
    ],
)
def test_a_wrong_option_is_one_sentence(kind: type, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**options)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_bounds_themselves_and_none_are_allowed() -> None:
    assert Own(share=0, most=None).share == 0
    assert Own(share=1.0, most=1).most == 1


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_options_are_checked(name: str) -> None:
    """No method's own check leaves this one out: a wrong type anywhere is refused."""
    options = METHODS[name]()
    check_options(options, name)
    for field in options.options():
        with pytest.raises(ConfigError, match=rf"^{name}\.{field} is \[None\]; it should be"):
            METHODS[name](**{field: [None]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("s3://bucket/runs", "run.storage is s3://bucket/runs, a URI; give a path of this machine"),
        ("gs://bucket", "run.storage is gs://bucket, a URI; "),
        ("abfss://a@b/c", "run.storage is abfss://***@b/c, a URI; "),
        ("S3:/bucket", "run.storage is S3://bucket, a URI; "),
        ("hdfs:", "run.storage is hdfs:/, a URI; "),
        ("https://me:secret@host/x", "run.storage is https://***@host/x, a URI; "),
        ("file:///data/my%20runs", "run.storage is file://data/my%20runs, a URI; give the path itself, /data/my runs."),
    ],
)
def test_a_uri_is_no_folder(given: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig(storage=Path(given))
    assert str(refused.value).startswith(sentence)
    with pytest.raises(ConfigError, match=r"^stream\.data_dir is "):
        StreamConfig(data_dir=Path(given))


@pytest.mark.parametrize("given", ["runs", "/a/s3:/b", "a:b", "./x", "~/x", "50%41 #1?x", "..", "C"])
def test_a_path_is_one(given: str) -> None:
    assert RunConfig(storage=Path(given)).storage == Path(given)
