"""Search spaces: how they are written, which are refused, which trials they make.

python -m pytest tests/unit/test_sweep_space.py
"""

from __future__ import annotations

import pytest

from components.core.errors import ConfigError
from components.methods.lcia import LciaConfig
from components.training.config import RunConfig
from components.tuning.space import Axis, configured, orders_axis, parse_axis, points, require_space, trial_name


@pytest.mark.parametrize(
    ("text", "kind", "arguments"),
    [
        ("method.rank=grid(4, 8)", "grid", (4, 8)),
        ("method.rank=4,8", "grid", (4, 8)),
        ("method.rank = 4", "grid", (4,)),
        ("method=choice(sequential_lora, lcia)", "choice", ("sequential_lora", "lcia")),
        ("method=sequential-lora,lcia", "grid", ("sequential-lora", "lcia")),
        ("stream.order=grid(('a', 'b'), ('b', 'a'))", "grid", (("a", "b"), ("b", "a"))),
        ("evaluation.oracle_routing=True,False", "grid", (True, False)),
        ("training.optimizer.learning_rate=loguniform(1e-4, 1e-2)", "loguniform", (1e-4, 1e-2)),
    ],
)
def test_a_space_is_read(text: str, kind: str, arguments: tuple[object, ...]) -> None:
    axis = parse_axis(text)
    assert (axis.field, axis.kind, axis.arguments) == (text.partition("=")[0].strip(), kind, arguments)


@pytest.mark.parametrize(
    ("spaces", "said"),
    [
        ((), "varies nothing"),
        (("method.rank",), "write FIELD=VALUES"),
        (("method.rank=grid()",), "is empty"),
        (("method.rank=grid(4, 4)",), "twice"),
        (("method.rank=4,8", "method.rank=2,3"), "method.rank twice"),
        (("method.rank=normal(0, 1)",), "known are grid, choice"),
        (("method.rank=randint(8, 4)",), "is empty"),
        (("method.dropout=loguniform(0, 1)",), "not a search space"),
        (("method.rank=4,(8",), "cannot be read"),
        (("method.rank=4,__import__('os')",), "is not a value"),
        (("method.rnk=4,8",), "Did you mean rank?"),
        (("seed.low=4,8",), "has no fields of its own"),
        (("method.rank=4,eight",), "rank is 'eight'; it should be a valid integer"),
        (("method.rank=uniform(4, 8)",), "it should be a valid integer"),
        (("method.rank=True,4",), "rank is True; it should be a valid integer"),
        (("method.top_m=2,99",), "top_m is 99"),
        (("method=lcia,lora",), "lora"),
        (("method=lcia,ewc", "method.kappa=0.5,1.0"), "kappa"),
        (("cluster.num_workers=1,2",), "cannot be swept"),
        (("storage=a,b",), "cannot be swept"),
        (("training.engine=deepspeed,jax",), "training.engine is 'jax'; it should be 'deepspeed' or 'torch'"),
    ],
)
def test_a_space_that_cannot_be_is_one_sentence(spaces: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        require_space(RunConfig(), [parse_axis(text) for text in spaces])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_grids_are_combined_in_order() -> None:
    axes = [parse_axis("method.rank=4,8"), parse_axis("seed=0,1,2")]
    found = points(axes, num_samples=7, seed=0)
    assert found == [{"method.rank": rank, "seed": seed} for rank in (4, 8) for seed in (0, 1, 2)]


def test_draws_depend_on_the_seed_only_and_stay_inside() -> None:
    axes = [parse_axis("seed=0,1"), parse_axis("training.optimizer.learning_rate=loguniform(1e-4, 1e-2)")]
    found = points(axes, num_samples=50, seed=3)
    assert found == points(axes, num_samples=50, seed=3) != points(axes, num_samples=50, seed=4)
    assert [values["seed"] for values in found] == [0] * 50 + [1] * 50
    rates = [values["training.optimizer.learning_rate"] for values in found]
    assert all(isinstance(rate, float) and 1e-4 <= rate <= 1e-2 for rate in rates)
    small = sum(float(str(rate)) < 1e-3 for rate in rates)
    assert 30 < small < 70  # half of a logarithmic range lies below its geometric mean
    for values in found:
        configured(RunConfig(), values)


def test_orders_by_number_and_by_name() -> None:
    tasks = ("c", "a", "b")
    assert orders_axis(("own", "reversed", "alphabetical"), tasks, seed=0).arguments == (
        ("c", "a", "b"),
        ("b", "a", "c"),
        ("a", "b", "c"),
    )
    six = orders_axis(("6",), tasks, seed=0).arguments
    assert six[0] == tasks
    assert len(set(six)) == 6
    assert orders_axis(("3",), tasks, seed=0).arguments == six[:3]
    for words, said in (
        (("7",), "3 tasks have 6 orders"),
        (("own", "1"), "twice"),
        (("0",), "has '0'"),
        (("x",), "'x'"),
    ):
        with pytest.raises(ConfigError, match=said):
            orders_axis(words, tasks, seed=0)


def test_a_method_comes_with_its_own_options() -> None:
    config = configured(RunConfig(), {"method.kappa": 0.5, "method": "lcia", "training.optimizer.weight_decay": 1})
    assert config.method == LciaConfig(kappa=0.5)
    assert config.training.optimizer.weight_decay == 1


def test_equal_values_have_equal_names_and_different_ones_different() -> None:
    several = [
        {"method.rank": 4},
        {"method.rank": 8},
        {"method.rank": -4},
        {"method.alpha": 1e-05},
        {"training.optimizer.learning_rate": 0.001, "method.rank": 4},
        {"method": "sequential_lora"},
        {"method": "sequential-lora"},
        {"stream.order": ("a", "b")},
        {"stream.order": ("a-b",)},
        {"stream.name": "my/stream.toml"},
        {"stream.name": "my-stream.toml"},
        {"method.name": "x" * 200},
        {"method.name": "x" * 201},
        {"one.rank": 1, "two.rank": 2},
        {"one.rank": 2, "two.rank": 1},
    ]
    names = [trial_name(values) for values in several]
    assert len(set(names)) == len(names)
    assert names == [trial_name(dict(values)) for values in several]
    assert names[0] == "rank-4"
    assert names[4] == "learning_rate-0.001_rank-4"
    for name in names:
        RunConfig(run_id=name)  # a legal id


def test_the_ends_of_whole_numbers_are_values() -> None:
    assert Axis(field="method.rank", kind="randint", arguments=(2, 9)).ends() == (2, 8)
