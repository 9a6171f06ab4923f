"""The published streams' specifications: pinned, in the published orders, with a draw that depends on ids alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import ConfigError
from components.data.benchmarks.catalogue import BENCHMARKS, COIN_ORDER
from components.data.benchmarks.raw import RawItem, question_and_answer
from components.data.benchmarks.readers import READERS
from components.data.benchmarks.sampling import select, selected
from components.data.benchmarks.spec import PartSpec, StreamSpec, held_out, rank
from components.data.generated import GENERATED_STREAMS
from components.data.problems import Problem
from components.data.quality.report import FileReport
from components.evaluation.ledger import benchmark_of

# Whoever changes what a stream holds changes its digest, and prepared copies of it stop being the same data: say so in
# the commit. Written by this program on the day the specifications were made.
DIGESTS = {
    "coast-domain": "c0f397300165013d388fad004c4fbb76aec6a7ec88aed19beb145b883c418b80",
    "coast-capability": "0818d29ec4a770f5de6129d9d1a1ec5926abe89fcaedf90c16e861295ec06e80",
    "coast-capability-table-order": "832f4a7c4d57c92bd32248cdf9ff882c2d3540bc2a0929c74ea83e0e0c4ad309",
    "coast-dataset": "9a8254b9b05d21f2f4e96e2a612173b8919d2445b058dfe53695a6e893213d34",
    "coin": "1f2efbed013192dbaa9b3056d03b667c28264b0d91774cec9c5f13184559cba2",
    "coin-alphabetical": "e6bad5c47d99a6aceb9a5d351e0d50024ef131f2e3b55612942e18ce95e120cd",
    "coin-reversed": "6cc11a3df7bb73ad64ba4de8a73a15992a13ab5c8e9759628dffb1dff210bea9",
    "coin-diverse": "6494f5e72d72fcde2e35ef3e6caca487fc3880386bbe0a753c46613a640ebc8b",
    "coin-10type": "47b11e0fe4275ea984f765791f31295f65945ef9ff2d4f2faeeffdb3b2e0f40b",
    "ucit": "36615c35182dbeafbd0cf78a8ccd57356c2f66d43dd3f504d3701a5fbcb1a384",
    "mllm-dcl": "8e8d1fc325b68583ef22ff02ecdce48083c7df6a2b0472ed6a0f6689ef1a0b88",
    "mllm-acl": "17d8075f755ed3447963ae801f31d35a32d119eaa0a7e93f0f735a9c1bb321f7",
    "trace": "d0ca00a44d9c0f8a57962d82ff37f216db0a5c53a58ea07e5ff4afb67c48ddc9",
    "vqacl": "42244127839f59656f55873c586e8837a24a73fe8cff8b0537f86f5b9dcc7874",
}

ORDERS = {
    "coast-domain": "chartqa docvqa iconqa medicalqa",  # COAST's task table
    "coast-capability": "conversation detail reasoning referring",  # as its introduction tells them
    "coast-capability-table-order": "referring detail reasoning conversation",
    "coast-dataset": "scienceqa textvqa imagenet gqa vizwiz grounding vqav2 ocrvqa",  # CoIN's table
    "coin": "scienceqa textvqa imagenet gqa vizwiz grounding vqav2 ocrvqa",
    "coin-alphabetical": "gqa grounding imagenet ocrvqa scienceqa textvqa vizwiz vqav2",  # CoIN's second order
    "coin-reversed": "ocrvqa vqav2 grounding vizwiz gqa imagenet textvqa scienceqa",  # LCIA's
    "ucit": "imagenet-r arxivqa vizwiz-caption iconqa clevr-math flickr30k",  # HiDe-LLaVA's
    "mllm-dcl": "remote-sensing medical driving science finance",
    "mllm-acl": "ocr math perception gui",
    "trace": "c-stance fomc meetingbank py150 scienceqa numglue-cm numglue-ds 20minuten",  # the released scripts'
    "vqacl": "recognition location judge commonsense count action color type subcategory causal",  # the released code's
}


def _items(ids: list[str]) -> list[RawItem | Problem]:
    turns = question_and_answer("q", "a")
    return [
        RawItem(item_id=item_id, turns=turns, answers=("a",), file="f", number=at)
        for at, item_id in enumerate(ids, start=1)
    ]


def _drawn(ids: list[str], use: int, seed: int = 0) -> list[str]:
    """Ids that a stream with `use` training rows takes of a source with `ids`."""
    task = replace(BENCHMARKS["coast-domain"].tasks[0], train=PartSpec(source="train", use=use))
    stream = StreamSpec(name="s", tasks=(task,), seed=seed)
    report = FileReport(task=task.name, split="train", file="f")
    selection = select(_items(ids), stream, task, "train", report)
    drawn = [item.item_id for item in selected(_items(ids), selection, stream, task, "train")]
    assert report.chosen == len(drawn)
    return drawn


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_are_pinned(name: str) -> None:
    assert BENCHMARKS[name].digest == DIGESTS[name]


def test_every_pinned_stream_is_there_and_no_name_is_taken() -> None:
    assert set(DIGESTS) <= set(BENCHMARKS)
    assert set(BENCHMARKS) & set(GENERATED_STREAMS) == set()
    assert len({stream.digest for stream in BENCHMARKS.values()}) == len(BENCHMARKS)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_the_published_ones(name: str) -> None:
    assert BENCHMARKS[name].task_names == tuple(ORDERS[name].split())


def test_coin_has_three_wordings_three_orders_and_two_lengths_of_tests() -> None:
    coin = {name: stream for name, stream in BENCHMARKS.items() if name.split("-")[0] == "coin"}
    assert len(coin) == 18
    assert {stream.tasks[0].variant for stream in coin.values()} == {"original", "diverse", "10type"}
    assert all(sorted(stream.task_names) == sorted(COIN_ORDER) for stream in coin.values())
    uses = {task.name: task.test.use for task in coin["coin"].tasks}
    assert {name for name, use in uses.items() if use is None} == {"scienceqa", "grounding"}
    assert {use for use in uses.values() if use is not None} == {4000}
    assert all(task.test.use is None for task in coin["coin-full"].tasks)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_specification_is_plain_json_that_names_its_readers(name: str) -> None:
    stream = BENCHMARKS[name]
    plain = json.loads(stream.canonical())
    assert [task["name"] for task in plain["tasks"]] == list(stream.task_names)
    assert {task.family for task in stream.tasks} <= set(READERS)


def test_the_digest_follows_every_part_of_the_specification() -> None:
    stream = BENCHMARKS["coast-domain"]
    task = stream.tasks[0]
    others = [
        replace(stream, seed=1),
        replace(stream, tasks=stream.tasks[::-1]),
        replace(stream, tasks=(replace(task, max_new_tokens=task.max_new_tokens + 1), *stream.tasks[1:])),
        replace(stream, tasks=(replace(task, prompts=("Answer.",)), *stream.tasks[1:])),
        replace(stream, tasks=(replace(task, train=replace(task.train, use=1)), *stream.tasks[1:])),
    ]
    assert len({stream.digest, *(other.digest for other in others)}) == 1 + len(others)


@settings(deadline=None)  # a busy machine is no failure
@given(st.sets(st.text(min_size=1, max_size=8), max_size=30), st.integers(1, 12), st.randoms())
def test_the_draw_depends_on_the_ids_alone(ids: set[str], use: int, random: object) -> None:
    ordered = sorted(ids)
    shuffled = list(ordered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    drawn = _drawn(ordered, use)
    assert sorted(_drawn(shuffled, use)) == drawn
    assert drawn == sorted(sorted(ids, key=lambda item_id: rank(0, "chartqa", "train", item_id))[:use])


def test_a_larger_draw_holds_the_smaller_one_and_the_seed_changes_it() -> None:
    ids = [str(at) for at in range(200)]
    assert set(_drawn(ids, 20)) < set(_drawn(ids, 50))
    assert _drawn(ids, 20) != _drawn(ids, 20, seed=1)
    assert _drawn(ids, 500) == ids


def test_unreadable_items_take_no_place_in_the_draw() -> None:
    ids = [str(at) for at in range(40)]
    task = replace(BENCHMARKS["coast-domain"].tasks[0], train=PartSpec(source="train", use=10))
    stream = StreamSpec(name="s", tasks=(task,))
    broken = Problem(kind="empty answer", file="f", row=1, detail="nothing")
    report = FileReport(task=task.name, split="train", file="f")
    select([broken, *_items(ids), *_items(ids[:3])], stream, task, "train", report)
    assert (report.rows, report.chosen) == (44, 10)
    assert report.counts == {"empty answer": 1, "duplicate id": 3}


def test_one_picture_in_twenty_is_held_out() -> None:
    share = sum(held_out(str(number), 20) for number in range(20_000)) / 20_000
    assert 0.045 < share < 0.055


@pytest.mark.parametrize(
    "change",
    [{"metric": "blue"}, {"max_new_tokens": 0}],
)
def test_a_wrong_task_is_one_sentence(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(BENCHMARKS["coast-domain"].tasks[0], **change)  # type: ignore[arg-type]


def test_a_task_is_named_once() -> None:
    task = BENCHMARKS["coast-domain"].tasks[0]
    with pytest.raises(ConfigError, match="each once"):
        StreamSpec(name="s", tasks=(task, task))
    with pytest.raises(ConfigError, match="at least 1"):
        PartSpec(source="train", use=0)


def test_a_part_is_a_stream_of_its_own() -> None:
    whole = BENCHMARKS["coast-domain"]
    part = whole.part(["iconqa", "chartqa"])
    assert part.name == "part-of-coast-domain-chartqa-iconqa"
    assert part.tasks == (whole.tasks[0], whole.tasks[2]), "in the stream's order, whatever the order of the names"
    assert part.digest not in {stream.digest for stream in BENCHMARKS.values()}
    assert whole.part(whole.task_names) == whole
    for stream in BENCHMARKS.values():
        assert benchmark_of(stream.part(stream.task_names[:1]).name) is None, "no published row is of a part"
    with pytest.raises(ConfigError, match=r"no task 'iconq'; its tasks are chartqa, .* Did you mean iconqa\?"):
        whole.part(["iconq"])
