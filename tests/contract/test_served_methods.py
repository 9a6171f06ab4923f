"""What every method's run says when it is served: requests of both tasks in one batch, each as it is answered alone."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_tasks import COLOURS, OPPOSITES, Toy, colour_row, opposite_row

from components.core.errors import ConfigError
from components.data.rows import Row
from components.evaluation.generation import Answer, answer
from components.evaluation.matrix import ScoreMatrix
from components.exporting.bundle import attached
from components.exporting.learned import read_learned
from components.methods.base import Method, MethodState
from components.methods.lcia import LciaConfig
from components.models.backbone import Backbone, load_backbone
from components.models.encoding import build_encoder
from components.serving.metrics import Metrics
from components.serving.options import Batching, Limits
from components.serving.plan import Plan
from components.serving.running import Running
from components.serving.schema import ChatRequest, Decoding
from components.serving.service import Service
from components.serving.shelf import Shelf, Version
from components.serving.steering import Done, Event, Job
from components.serving.watching import Follower, Watcher
from components.tracking.aliases import Registered
from pipelines.serve import main
from tests.contract.learned_runs import POCKET, learned_run

CPU = torch.device("cpu")
TOKENS = 5


def rows(*, pictured: bool) -> list[Row]:
    """Rows of both tasks in turn."""
    colours = [colour_row(name) for name in COLOURS]
    opposites = [opposite_row(word, colours[0].image if pictured else None) for word in OPPOSITES]
    return [row for pair in zip(colours, opposites, strict=True) for row in pair]


def requested(row: Row, model: str) -> ChatRequest:
    """The request that asks a row."""
    parts: list[dict[str, object]] = [{"type": "text", "text": row.instruction}]
    if row.image is not None:
        url = "data:image/png;base64," + base64.b64encode(row.image).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    message = {"role": "user", "content": parts}
    return ChatRequest.model_validate({"model": model, "messages": [message], "max_tokens": TOKENS})


def alone(method: Method, backbone: Backbone, row: Row, task: str | None) -> Answer:
    """As evaluation answers it, in a batch and a test file of its own."""
    encoder = build_encoder(POCKET)
    example = encoder.prompt_example(row)
    with method.test_file([example.instruction]):
        (found,) = answer(
            backbone, method, encoder, [example], batch_size=1, max_new_tokens=TOKENS, device=CPU, known_task=task
        )
    return found


async def served(service: Service, requests: list[ChatRequest]) -> list[Done]:
    async def one(request: ChatRequest) -> Done:
        visit = service.enter()
        try:
            asked = await visit.ask(request)
            async for event in service.events(asked):
                if isinstance(event, Done):
                    return event
        finally:
            visit.leave()
        raise AssertionError("no last event")

    return [*await asyncio.gather(*map(one, requests))]


def on_a_shelf(path: Path, rows_in_a_batch: int = 8) -> tuple[Shelf, Service]:
    shelf = Shelf(path.parent, POCKET, CPU)
    batching = Batching(rows=rows_in_a_batch, wait_ms=30_000)  # a busy machine takes long to encode
    plan = Plan(primary=shelf.find("2", path.name))
    return shelf, Service(plan, shelf.load, limits=Limits(), batching=batching, metrics=Metrics("test"))


def stored(path: Path, task: str) -> tuple[Method, Backbone]:
    """The run after a task, on a backbone that nothing else uses."""
    learned = read_learned(path, task, None)
    backbone = load_backbone(POCKET)
    state = MethodState(tensors=learned.checkpoint.tensors["method"], structure={**learned.structure})
    return attached(learned.config, backbone, state), backbone


@pytest.fixture(scope="module")
def toys_run(encoded: list[Toy], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_run(tmp_path_factory.mktemp("served"), "sequential_lora", encoded)[0]


@pytest.mark.training_methods
def test_mixed_requests_are_answered_as_each_alone(name: str, toys: list[Toy], tmp_path: Path) -> None:
    path, _, _ = learned_run(tmp_path, name, toys, updates=6)
    method, backbone = stored(path, "2")
    _, service = on_a_shelf(path)
    asked = rows(pictured=not method.config.learns_from_text)
    told = [row.task if method.config.needs_task_id else None for row in asked]
    models = [path.name if task is None else f"{path.name}:{task}" for task in told]
    found = asyncio.run(served(service, [requested(row, model) for row, model in zip(asked, models, strict=True)]))
    expected = [alone(method, backbone, row, task) for row, task in zip(asked, told, strict=True)]
    assert [done.text for done in found] == [each.text for each in expected]
    assert [done.route.task for done in found] == [each.routed_to for each in expected]
    assert [done.route.slots for done in found] == [each.slots for each in expected]
    assert {done.rows for done in found} == {4 if method.config.needs_task_id else 8}
    if service.version.method.rows_join:
        task = told[0]
        some = [(row, each) for row, each, of in zip(asked, expected, told, strict=True) if of == task]
        joined = one_after_another(service.version, [row for row, _ in some], task)
        assert [(done.text, done.route.task, done.route.slots) for done in joined] == [
            (each.text, each.routed_to, each.slots) for _, each in some
        ]
    service.close(10)


def one_after_another(version: Version, asked: list[Row], task: str | None) -> list[Done]:
    """Replies when rows join a batch that has begun: one, then two more, then the rest; the first leave before."""
    posts: list[list[Event]] = [[] for _ in asked]
    jobs = [
        Job(
            version=version,
            example=version.encoder.prompt_example(row),
            decoding=Decoding(max_tokens=TOKENS),
            post=own.append,
            known_task=task,
        )
        for row, own in zip(asked, posts, strict=True)
    ]
    with Running(version, task) as running:
        for joining in (jobs[:1], jobs[1:3], jobs[3:]):
            running.join(joining)
            running.step()
            running.step()
        while running.jobs:
            running.step()
    return [event for (event,) in posts if isinstance(event, Done)]


def test_checkpoints_share_the_frozen_tensors_and_nothing_else(encoded: list[Toy], tmp_path: Path) -> None:
    path, _, _ = learned_run(tmp_path, "continual_llava", encoded, updates=6)
    shelf = Shelf(path.parent, POCKET, CPU)
    first, second = shelf.load(shelf.find("1", path.name)), shelf.load(shelf.find("opposites", path.name))
    frozen = {tensor.data_ptr() for tensor in shelf.base.parameters()}
    for version, task in ((first, "1"), (second, "2")):
        own = {tensor.data_ptr() for tensor in version.model.parameters()} - frozen
        assert frozen <= {tensor.data_ptr() for tensor in version.model.parameters()}
        assert own == {tensor.data_ptr() for tensor in version.method.parameters().values()}
        method, backbone = stored(path, task)
        for row in rows(pictured=False)[:4]:
            assert alone(version.method, version.model, row, None) == alone(method, backbone, row, None)


def test_requests_to_lcia_are_files_of_their_own(encoded: list[Toy], tmp_path: Path) -> None:
    """By the released rule one group serves a whole test file: requests that share a batch are none."""
    config = replace(LciaConfig.tiny(), allocation="file", threshold=0.9, on_miss="best")
    path, _, _ = learned_run(tmp_path, config, encoded, updates=6)
    _, service = on_a_shelf(path)
    asked = rows(pictured=False)
    found = asyncio.run(served(service, [requested(row, path.name) for row in asked]))
    assert [done.route.task for done in found] == [row.task for row in asked]
    assert {done.rows for done in found} == {8}
    service.close(10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "lets other machines ask"),
        (("--host", "no.such.host.invalid", "--api-key-file", "KEY"), "nothing can listen on"),
        (("--task", "9"), "has not learned task '9'"),
        (("--traffic.canary", "nosuch"), "has not learned task 'nosuch'"),
        (("--traffic.canary", "../toys/1"), "is no run's id"),
        (("--traffic.canary", "others/1"), "is not the folder of a run"),
        (("--traffic.canary", "1", "--traffic.canary-share", "2"), "traffic.canary_share is 2"),
        (("--traffic.shadow", "1"), "needs --shadow-log"),
        (("--traffic.shadow", "1", "--shadow-log", "nosuch/log"), "--shadow-log nosuch/log is in no folder"),
        (("--backbone", "smol"), "are not those that run toys was trained on"),
        (("--limits.seconds", "0"), "limits.seconds is 0"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(
    toys_run: Path, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LITTORAL_API_KEY", raising=False)
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("a-key-of-sixteen-signs")
    given = [str(key) if argument == "KEY" else argument for argument in arguments]
    with pytest.raises(ConfigError, match=re.escape(said)):
        main([str(toys_run), "--port", "18999", *given])


def test_a_port_that_is_taken_is_said(toys_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"nothing can listen on 127.0.0.1:{port}"):
            main([str(toys_run), "--port", str(port)])


def test_a_further_task_is_noticed_once_it_is_scored_and_stays(toys_run: Path, tmp_path: Path) -> None:
    """As a run goes on: a checkpoint first, then its row; and what the budget rolls back is gone after its row."""
    run = tmp_path / "toys"
    shutil.copytree(toys_run, run)
    later, matrix = run / "checkpoints" / "02-opposites", run / "score_matrix.json"
    both, kept = matrix.read_text(), tmp_path / "kept"
    first = ScoreMatrix(["colours", "opposites"], [[60.0, 10.0]], zero_shot=False)
    first.write(matrix, stream="toys", method="sequential_lora", backbone="pocket", seed=0)
    one = matrix.read_text()
    later.rename(kept)
    shelf = Shelf(tmp_path, POCKET, CPU)
    watcher = Watcher(shelf, "toys", shelf.find("1", "toys"))
    assert [watcher.newer() for _ in range(3)] == [None] * 3
    kept.rename(later)
    assert [watcher.newer() for _ in range(3)] == [None] * 3, "it is not scored yet"
    matrix.write_text(both)
    assert watcher.newer() is None, "it may still be rolled back"
    later.rename(kept)
    assert [watcher.newer() for _ in range(3)] == [None] * 3, "it was"
    matrix.write_text(one)
    assert [watcher.newer() for _ in range(2)] == [None] * 2
    kept.rename(later)
    matrix.write_text(both)
    assert [str(found) for found in (watcher.newer(), watcher.newer(), watcher.newer())] == [
        "None",
        "toys/02-opposites",
        "None",
    ]


def test_an_alias_is_followed_back_and_forth_and_trouble_is_no_end(
    toys_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(toys_run.parent, POCKET, CPU)
    first = Registered(name="shop", version="1", storage="s3://elsewhere/runs", run="toys", learned=1, task="colours")
    second = replace(first, version="2", learned=2, task="opposites")
    now: list[Registered | ConfigError | None] = [first]

    def named() -> Registered | None:
        if isinstance(now[0], ConfigError):
            raise now[0]
        return now[0]

    follower = Follower(shelf, named, first)
    follower.every_s = 0.0

    def newer(found: Registered | ConfigError | None) -> list[str | None]:
        now[0] = found
        return [None if place is None else f"{place} {place.version}" for place in (follower.newer(), follower.newer())]

    assert newer(first) == [None, None]
    assert newer(second) == ["toys/02-opposites shop/2", None]
    assert newer(first) == ["toys/01-colours shop/1", None]
    for trouble in (None, ConfigError("away"), replace(second, task="other"), replace(second, run="gone")):
        assert newer(trouble) == [None, None]
    assert [line.split(": ")[0] for line in caplog.messages] == [f"answers go on from {first}"] * 3
    assert newer(second) == ["toys/02-opposites shop/2", None]
    assert str(shelf.load(shelf.registered(second)).place.version) == "shop/2"
