"""Streams without boundaries: which row is learned when, against loops of our own; what cannot be is one sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.core.errors import ConfigError, DataError
from components.data.mixture import Mixture, divided
from components.data.prepared import open_prepared, write_stream_json
from components.data.rows import ROW_GROUP_ROWS, Row, write_split
from components.data.segments import Segment
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream, segments
from components.methods import METHODS
from components.methods.base import MethodConfig
from components.methods.l2p import L2PConfig
from components.methods.replay import ReplayConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.methods.smolora import SmoloraConfig
from components.models.config import BackboneConfig
from components.training.config import ClusterConfig, RunConfig, TrainingConfig
from components.training.plan import Plan, plan_stream
from components.training.streaming import training_rows
from components.training.windows import Slice
from components.tuning.objective import parse_objective
from components.tuning.space import parse_axis
from components.tuning.sweep import most_tasks
from pipelines.presets import preset
from tests.unit.sample_rows import row

SIZES = {"a": 150, "b": 90, "c": 130}  # the first and the last need several row groups
WEIGHTS = {"a": (3.0, 1.0, 0.0, 0.0), "b": (0.0, 1.0, 1.0, 0.5), "c": (0.0, 0.0, 1.0, 4.0)}
KINDS = {
    "gaussian": Mixture(kind="gaussian", width=0.7, segments=4, seed=3),
    "as many as tasks": Mixture(kind="gaussian", width=0.2),
    "blurry": Mixture(kind="blurry", share=0.3, segments=5, seed=1),
    "table": Mixture(kind="table", weights=WEIGHTS),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "cache"))


def made(task: str, part: str, count: int) -> list[Row]:
    rows = [row(f"Which is {number} of {task}?", f"{task} {number}") for number in range(count)]
    return [
        replace(each, sample_id=f"{task}-{number}", task=task, split=part, source=f"{task}.json#{number}")
        for number, each in enumerate(rows)
    ]


def stream_of(folder: Path, sizes: Mapping[str, int] = SIZES, mixture: Mixture | None = None) -> StreamConfig:
    """A prepared stream of these tasks, with four test rows each."""
    for task, count in sizes.items():
        for part, rows in (("train", made(task, "train", count)), ("test", made(task, "test", 4))):
            write_split(iter(rows), folder / task / part, task=task, split=part)
    write_stream_json(folder, "mixed", dict.fromkeys(sizes, 4), mixture)
    return StreamConfig(name=str(folder))


def held(segment: Segment) -> list[str]:
    return [row.sample_id for row in segment.train.rows()]


def by_hand(mixture: Mixture, sizes: Mapping[str, int]) -> dict[str, int]:
    """The segment of every row, as the module's docstring says it: times are sorted, places are cut by fractions."""
    names, count = list(sizes), mixture.segments or len(sizes)
    clear = [(task, place) for task in range(len(names)) for place in range(sizes[names[task]])]
    timed: list[tuple[float, str, int]] = []
    for task, name in enumerate(names):
        random = np.random.default_rng([mixture.seed, task])
        own = random.permutation(sizes[name])
        shifts = random.standard_normal(sizes[name]) * mixture.width
        for number in range(sizes[name]):
            time = task + (own[number] + 0.5) / sizes[name] + shifts[number]
            timed.append((time, name, number))
    found: dict[str, int] = {}
    for (_, name, number), (task, place) in zip(sorted(timed), clear, strict=True):
        time = task + Fraction(2 * place + 1, 2 * sizes[names[task]])
        found[f"{name}-{number}"] = math.floor(time * count / len(names))
    return found


@pytest.mark.parametrize("name", ["gaussian", "as many as tasks"])
def test_a_gaussian_schedule_is_what_a_loop_gives(name: str) -> None:
    mixture = KINDS[name]
    assigned = mixture.assigned(SIZES)
    found = {f"{task}-{number}": int(segment) for task in SIZES for number, segment in enumerate(assigned[task])}
    assert found == by_hand(mixture, SIZES)


@pytest.mark.parametrize("name", KINDS)
def test_every_row_is_in_one_segment_once(name: str, tmp_path: Path) -> None:
    mixture = KINDS[name]
    config = stream_of(tmp_path / "s", mixture=mixture)
    stream = open_stream(config)
    made_of = segments(config, stream)
    assert [segment.name for segment in made_of] == [f"segment-{number + 1}" for number in range(len(made_of))]
    seen = Counter(sample for segment in made_of for sample in held(segment))
    assert seen == Counter(f"{task}-{number}" for task, count in SIZES.items() for number in range(count))
    assigned = mixture.assigned(SIZES)
    for number, segment in enumerate(made_of):
        expected = {
            f"{task}-{place}" for task in SIZES for place in range(SIZES[task]) if assigned[task][place] == number
        }
        assert set(held(segment)) == expected
        assert segment.rows == Counter(sample.partition("-")[0] for sample in expected)
    whole = {each.sample_id: each for task in stream.tasks for each in task.train.rows()}
    assert all(each == whole[each.sample_id] for segment in made_of for each in segment.train.rows())


def test_segments_are_as_large_as_with_clear_boundaries() -> None:
    """Width and share move rows, never the cuts, so runs of any width have one budget."""
    equal = {"a": 64, "b": 64, "c": 64, "d": 64}
    for mixture in (KINDS["gaussian"], KINDS["blurry"], Mixture(kind="gaussian", width=50.0, segments=8)):
        sizes = np.bincount(np.concatenate(list(mixture.assigned(equal).values())))
        count = mixture.segments or 4
        clear = Counter(math.floor(Fraction(2 * place + 1, 128) * count / 4) for place in range(256))
        assert sizes.tolist() == [clear[number] for number in range(count)]


@pytest.mark.parametrize(
    "mixture",
    [
        Mixture(kind="gaussian", width=0.0),
        Mixture(kind="blurry", share=0.0),
        Mixture(kind="table", weights={"a": (1.0, 0.0, 0.0), "b": (0.0, 5.0, 0.0), "c": (0.0, 0.0, 0.1)}),
    ],
    ids=lambda mixture: mixture.kind,
)
def test_a_mixture_that_mixes_nothing_is_the_ordinary_stream(mixture: Mixture, tmp_path: Path) -> None:
    config = stream_of(tmp_path / "s", mixture=mixture)
    stream = open_stream(config)
    found = segments(config, stream)
    assert [segment.train for segment in found] == [task.train for task in stream.tasks]
    plain = planned(tmp_path, stream_of(tmp_path / "plain"))
    mixed = planned(tmp_path, config)
    for one, other in zip(plain.schedule, mixed.schedule, strict=True):
        assert [split.digest for split in one.splits] == [split.digest for split in other.splits]
        assert one.num_updates == other.num_updates
    assert mixed.stream.digest != plain.stream.digest, "the rows of its matrix are other points in time"


def test_a_share_leaks_evenly() -> None:
    """Of T equal tasks, a leaked row comes back into its own segment once in T times."""
    count, share, tasks = 5000, 0.4, 4
    sizes = dict.fromkeys("abcd", count)
    assigned = Mixture(kind="blurry", share=share, seed=5).assigned(sizes)
    for number, name in enumerate(sizes):
        away = int((assigned[name] != number).sum())
        expected, deviation = share * count * (1 - 1 / tasks), math.sqrt(share * count * 0.75 * 0.25)
        assert abs(away - expected) < 4 * deviation
        elsewhere = np.bincount(assigned[name], minlength=tasks)
        assert all(elsewhere[other] > 0.7 * away / 3 for other in range(tasks) if other != number)


def test_a_wider_schedule_mixes_more_and_keeps_the_order_of_peaks() -> None:
    sizes = dict.fromkeys("abcde", 2000)
    own = []
    for width in (0.0, 0.2, 0.5, 1.0, 3.0):
        assigned = Mixture(kind="gaussian", width=width).assigned(sizes)
        own.append(np.mean([(assigned[name] == number).mean() for number, name in enumerate(sizes)]))
        means = [assigned[name].mean() for name in sizes]
        assert means == sorted(means)
    assert own == sorted(own, reverse=True)
    assert own[0] == 1.0
    assert own[-1] < 0.4


def test_a_seed_and_a_row_decide() -> None:
    first, second = (Mixture(kind="gaussian", width=0.5, seed=seed).assigned(SIZES) for seed in (0, 1))
    again = Mixture(kind="gaussian", width=0.5, seed=0).assigned(SIZES)
    assert all(np.array_equal(first[task], again[task]) for task in SIZES)
    assert any(not np.array_equal(first[task], second[task]) for task in SIZES)


def test_a_table_divides_to_the_row() -> None:
    assigned = KINDS["table"].assigned(SIZES)
    sizes = {task: np.bincount(segments, minlength=4).tolist() for task, segments in assigned.items()}
    # 150 in 3:1, 90 in 1:1:1/2, 130 in 1:4; 112.5 and 37.5 are equal fractions, and the first gets the row
    assert sizes == {"a": [113, 37, 0, 0], "b": [0, 36, 36, 18], "c": [0, 0, 26, 104]}
    assert divided(7, [1.0, 1.0, 1.0]) == [3, 2, 2]
    assert divided(2, [0.1, 0.8, 0.1]) == [0, 2, 0]


def test_rows_of_a_segment_are_interleaved(tmp_path: Path) -> None:
    """A shuffle reaches a thousand rows or so; before it, a task's rows lie evenly over their segment."""
    mixture = Mixture(kind="table", weights={"a": (1.0,), "b": (1.0,), "c": (1.0,)})
    config = stream_of(tmp_path / "s", mixture=mixture)
    (segment,) = segments(config, open_stream(config))
    first_half = Counter(sample.partition("-")[0] for sample in held(segment)[: sum(SIZES.values()) // 2])
    assert all(abs(first_half[task] - count / 2) <= 1 for task, count in SIZES.items())


def planned(
    folder: Path,
    stream: StreamConfig,
    *,
    method: MethodConfig | None = None,
    workers: int = 1,
    training: TrainingConfig | None = None,
) -> Plan:
    return plan_stream(
        RunConfig(
            run_id="r",
            storage=folder / "runs",
            stream=stream,
            backbone=BackboneConfig(name="pocket"),
            method=SequentialLoraConfig(rank=4) if method is None else method,
            training=training or TrainingConfig(global_batch_size=8),
            cluster=ClusterConfig(num_workers=workers),
        )
    )


def order_over_workers(plan: Plan, world_size: int) -> list[str]:
    """Sample ids by position, from what each worker reads."""
    (scheduled, *_), places = plan.schedule, dict[int, str]()
    for rank in range(world_size):
        own = Slice(rank=rank, world_size=world_size, micro_batch_size=8 // world_size)
        blocks = training_rows(
            scheduled.splits,
            plan.config.backbone,
            slice=own,
            epochs=scheduled.num_epochs(8),
            num_rows=scheduled.num_updates * 8,
            seed=plan.config.seed,
            cache=None,
            block_rows=own.micro_batch_size,
        ).here()
        for block in blocks:
            places.update(zip(block["position"].to_pylist(), block["sample_id"].to_pylist(), strict=True))
    assert sorted(places) == list(range(len(places)))
    return [places[place] for place in sorted(places)]


def test_one_worker_and_eight_see_one_order(tmp_path: Path) -> None:
    plan = planned(tmp_path, stream_of(tmp_path / "s", mixture=KINDS["gaussian"]))
    alone = order_over_workers(plan, 1)
    assert alone == order_over_workers(plan, 8)
    assert {sample.partition("-")[0] for sample in alone} == {"a", "b", "c"}, "the width reaches all tasks"


def test_updates_are_those_of_clear_boundaries(tmp_path: Path) -> None:
    """By epochs each segment has its own; a fixed number per task is divided evenly, to the update."""
    mixture = Mixture(kind="gaussian", width=0.5, segments=7)
    stream = stream_of(tmp_path / "s", mixture=mixture)
    sizes = np.bincount(np.concatenate(list(mixture.assigned(SIZES).values())))
    plan = planned(tmp_path, stream, training=TrainingConfig(global_batch_size=8, epochs=2))
    assert [each.num_updates for each in plan.schedule] == [math.ceil(2 * size / 8) for size in sizes]
    plan = planned(tmp_path, stream, training=TrainingConfig(updates_per_task=10))
    assert [each.num_updates for each in plan.schedule] == [4, 4, 4, 5, 4, 4, 5]


def test_replay_stores_rows_of_every_segment(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "s", mixture=KINDS["gaussian"])
    plan = planned(tmp_path, stream, method=ReplayConfig(samples_per_task=6))
    assert [[split.num_rows for split in each.splits[1:]] for each in plan.schedule] == [[], [6], [6, 6], [6, 6, 6]]
    assert plan.fitted.tokens["segment-2 train"].longest >= plan.fitted.tokens["b train"].longest - 1


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_need_boundaries_are_refused_by_name(name: str, tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "s", mixture=KINDS["as many as tasks"])
    kind = METHODS[name]
    if kind.is_task_free:
        assert planned(tmp_path, stream, method=kind.tiny()).schedule[0].task.name == "segment-1"
        return
    able = ", ".join(each for each, other in METHODS.items() if other.is_task_free)
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, stream, method=kind.tiny())
    assert str(refused.value) == (
        f"method {name} needs to know where each task begins and ends, and the stream mixed has no boundaries between "
        f"its tasks; methods that learn such a stream are {able}."
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "option"),
    [(L2PConfig(diversify=True), "diversify"), (SmoloraConfig(router="straight_through"), "router")],
)
def test_an_option_that_needs_boundaries_is_refused(method: MethodConfig, option: str, tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "s", mixture=KINDS["as many as tasks"])
    with pytest.raises(ConfigError, match=rf"^{method.name}\.{option} needs to know where a task ends, .*default\.$"):
        planned(tmp_path, stream, method=replace(method, sentence_encoder="hash"))


def test_a_sweep_is_as_long_as_its_segments_and_names_what_cannot_be(tmp_path: Path) -> None:
    """The methods that the space names count, and not the one that they take the place of."""
    stream = stream_of(tmp_path / "s", mixture=KINDS["gaussian"])
    base = replace(preset("pocket"), stream=stream, storage=tmp_path / "runs")
    able = [parse_axis("method=moelora,replay")]
    assert most_tasks(base, able, [parse_objective("average_over_time"), parse_objective("forgetting")]) == 4
    with pytest.raises(ConfigError, match="method lcia needs to know where each task begins"):
        most_tasks(base, [parse_axis("method=moelora,lcia")])
    with pytest.raises(ConfigError, match=r"^the stream mixed has no boundaries between its tasks, so it has no bwt; "):
        most_tasks(base, able, [parse_objective("bwt")])
    plain = replace(base, stream=stream_of(tmp_path / "plain"))
    with pytest.raises(ConfigError, match=r"^the stream mixed has boundaries .* no average_over_time; choose another"):
        most_tasks(plain, able, [parse_objective("average_over_time")])


def test_the_claim_is_not_inherited() -> None:
    class Mine(SequentialLoraConfig):
        """It may consolidate after every task."""

    assert SequentialLoraConfig.is_task_free
    assert not Mine.is_task_free


def toml(folder: Path, mixture: str, source: str = "plain") -> StreamConfig:
    path = folder / "blurred.toml"
    path.write_text(f'name = "blurred"\nfrom = "{source}"\n{mixture}')
    return StreamConfig(name=str(path))


def test_a_file_mixes_the_tasks_of_another_stream(tmp_path: Path) -> None:
    plain = open_stream(stream_of(tmp_path / "plain"))
    config = toml(tmp_path, '[mixture]\nkind = "gaussian"\nwidth = 1\nsegments = 6\nseed = 2\n')
    stream = open_stream(config)
    assert (stream.name, stream.tasks) == ("blurred", plain.tasks)
    assert stream.mixture == Mixture(kind="gaussian", width=1.0, segments=6, seed=2)
    assert stream.steps == [f"segment-{number}" for number in range(1, 7)]
    assert open_stream(replace(config, order=("c", "a"))).task_names == ["c", "a"]
    others = {open_stream(toml(tmp_path, f"[mixture]\nkind = 'gaussian'\nwidth = {w}\n")).digest for w in (0, 1, 2)}
    assert len(others | {stream.digest, plain.digest}) == 5


def test_a_named_stream_can_be_mixed(tmp_path: Path) -> None:
    config = toml(tmp_path, '[mixture]\nkind = "blurry"\nshare = 0.5\n', source="mini-coast-domain")
    stream = open_stream(replace(config, size="nano", order=("iconqa", "docvqa")))
    assert stream.task_names == ["iconqa", "docvqa"]
    assert [sum(segment.rows.values()) for segment in segments(config, stream)] == [32, 32]


def test_a_prepared_stream_keeps_its_mixture(tmp_path: Path) -> None:
    for name, mixture in KINDS.items():
        opened = open_prepared(Path(stream_of(tmp_path / name, mixture=mixture).name))
        assert opened.mixture == mixture
    content = json.loads((tmp_path / "table" / "stream.json").read_text())
    assert content["format"] == "littoral-stream/2", "an older version must not overlook the mixture"
    content["mixture"]["width"] = -1
    (tmp_path / "table" / "stream.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"stream\.json has no readable mixture"):
        open_prepared(tmp_path / "table")


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ("", "mixes nothing; add \\[mixture\\]"),
        ("mixture = 3", "must write its mixture as a table"),
        ("[mixture]\nwidth = 1", "without its field 'kind'|mixture.kind is missing"),
        ("[mixture]\nkind = 'square'\nwidth = 1", "mixture.kind is 'square'"),
        ("[mixture]\nkind = 'gaussian'", "of kind 'gaussian' without its field 'width'"),
        ("[mixture]\nkind = 'gaussian'\nwidth = -1", "mixture.width is -1"),
        ("[mixture]\nkind = 'gaussian'\nwidth = nan", "mixture.width is"),
        ("[mixture]\nkind = 'gaussian'\nwidth = 1\nsegments = 0", "mixture.segments is 0"),
        ("[mixture]\nkind = 'gaussian'\nwidth = 1\nshare = 0.5", "mixture.share belongs to kind 'blurry'"),
        ("[mixture]\nkind = 'gaussian'\nwidths = 1", "unknown field mixture.widths.*Did you mean width"),
        ("[mixture]\nkind = 'blurry'\nshare = 2", "mixture.share is 2"),
        ("[mixture]\nkind = 'table'\nweights = {a = [1, 0], b = [1]}", "lists of 1, 2 weights"),
        ("[mixture]\nkind = 'table'\nweights = {a = [0, 0], b = [1, 1]}", "weights of a are all 0"),
        ("[mixture]\nkind = 'table'\nsegments = 3\nweights = {a = [1, 0], b = [1, 0]}", "mixture.segments is 3"),
        ("[mixture]\nkind = 1979-05-27\nwidth = 1", "mixture"),
        ("ids = 'renew'\n[mixture]\nkind = 'gaussian'\nwidth = 1", "cannot state 'ids'"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_sentence(mixture: str, said: str, tmp_path: Path) -> None:
    stream_of(tmp_path / "plain")
    with pytest.raises(ConfigError, match=said) as refused:
        open_stream(toml(tmp_path, mixture))
    assert "\n" not in str(refused.value)
    assert "blurred.toml" in str(refused.value)


def test_what_a_file_mixes_must_be_there_and_unmixed(tmp_path: Path) -> None:
    mixture = '[mixture]\nkind = "gaussian"\nwidth = 1\n'
    with pytest.raises(ConfigError, match=r"from = 'nothing', which is not the folder of a prepared stream; the named"):
        open_stream(toml(tmp_path, mixture, source="nothing"))
    stream_of(tmp_path / "mixed", mixture=KINDS["table"])
    with pytest.raises(ConfigError, match="which is mixed already"):
        open_stream(toml(tmp_path, mixture, source="mixed"))


@pytest.mark.parametrize(
    ("mixture", "options", "said"),
    [
        (
            Mixture(kind="table", weights={"a": (1.0,), "z": (1.0,)}),
            {},
            "names the tasks a, z, and the stream has a, b, c",
        ),
        (
            Mixture(kind="gaussian", width=1.0, segments=400),
            {},
            "segment .* of 400 would have no training row; use fewer",
        ),
        (Mixture(kind="gaussian", width=1.0, segments=90), {}, "^segment-1 has too few training rows .* use fewer"),
        (
            Mixture(kind="gaussian", width=1.0, segments=90),
            {"workers": 8},
            "fewer than cluster.num_workers 8, .*segments",
        ),
    ],
    ids=["other tasks", "empty segments", "no update", "workers"],
)
def test_too_few_rows_for_a_segment_are_one_sentence(
    mixture: Mixture, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, stream_of(tmp_path / "s", mixture=mixture), **options)


def test_the_stream_needs_several_row_groups() -> None:
    """Else the tests above would not see rows of later groups."""
    assert max(SIZES.values()) > 2 * ROW_GROUP_ROWS
