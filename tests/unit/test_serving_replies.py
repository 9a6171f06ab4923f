"""Replies of a server from a model in this process: streams, stops, samples, bounds, swaps and shadows."""

from __future__ import annotations

import asyncio
import json
import math
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from components.core.errors import ConfigError
from components.data.batch import Picture
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.serving.keys import digest_of
from components.serving.metrics import Family, Metrics, exposition
from components.serving.options import Batching, Limits
from components.serving.plan import Place, Plan
from components.serving.schema import ChatRequest, Decoding, Wanted
from components.serving.service import Service
from components.serving.shelf import Version
from components.serving.steering import Growing, sampled
from components.serving.web import Guard, Web

CONFIG = BackboneConfig(name="pocket", max_length=300)
FIRST, SECOND = Place("toys", 1, "a"), Place("toys", 2, "b")
KEY = "a key of sixteen signs or more"


def version(place: Place) -> Version:
    """A method whose weights are drawn by the number of the place, as if it had learned that many tasks."""
    model, method = load_backbone(CONFIG), SequentialLoraConfig(rank=4, alpha=64.0).build(seed=place.number)
    method.attach(model, None)
    generator = torch.Generator().manual_seed(place.number)
    for parameter in method.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    method.tasks = ["a", "b"][: place.number]
    model.eval()
    return Version(place=place, model=model, method=method, encoder=build_encoder(CONFIG))


@pytest.fixture(scope="module")
def versions() -> dict[Place, Version]:
    return {place: version(place) for place in (FIRST, SECOND)}


class Alone:
    """Control of a service without other replicas."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def change(self, wanted: Wanted) -> Plan:
        known = {"1": FIRST, "2": SECOND}
        if wanted.serve not in known:
            raise ConfigError(f"there is no task {wanted.serve}.")
        await self.service.swap(Plan(primary=known[wanted.serve]))
        return self.service.plan

    async def families(self) -> list[Family]:
        return self.service.metrics.families()


class Server:
    """A service and its web, in a thread of the test client."""

    def __init__(self, versions: dict[Place, Version], plan: Plan, guard: Guard, **options: Any) -> None:
        given: dict[str, Any] = {"limits": Limits(), "batching": Batching(wait_ms=200), **options}
        self.service = Service(plan, versions.__getitem__, metrics=Metrics("one"), **given)
        self.web = Web(self.service, Alone(self.service), guard)
        self.client = TestClient(self.web.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    def ask(self, **changed: Any) -> Any:
        content = {"model": "toys", "messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 6}
        return self.client.post("/v1/chat/completions", json={**content, **changed})

    def figure(self, name: str, **labels: str) -> float:
        """The sum of a figure's samples with these labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = (
            sample for family in families for sample in family.samples if sample.name == f"littoral_serve_{name}"
        )
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.fixture
def server(versions: dict[Place, Version]) -> Iterator[Server]:
    made = Server(versions, Plan(primary=FIRST), Guard(admin_key=digest_of(KEY)))
    with made.client:
        yield made
    made.service.close(10)


def started(versions: dict[Place, Version], plan: Plan, guard: Guard | None = None, **options: Any) -> Server:
    return Server(versions, plan, guard or Guard(), **options)


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events(response: Any) -> list[dict[str, Any]]:
    *lines, last = [line.removeprefix("data: ") for line in response.text.strip().split("\n\n")]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def streamed(response: Any) -> str:
    return "".join(part["choices"][0]["delta"].get("content", "") for part in events(response) if part["choices"])


def test_a_stream_says_what_one_piece_says(server: Server) -> None:
    whole = server.ask(max_tokens=20)
    stream = server.ask(max_tokens=20, stream=True, stream_options={"include_usage": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    parts = events(stream)
    assert streamed(stream) == text_of(whole) != ""
    assert len(parts) > 4, "it comes in pieces"
    assert parts[-1]["usage"] == whole.json()["usage"]
    assert parts[-2]["littoral"]["checkpoint"] == "toys/01-a" == whole.json()["littoral"]["checkpoint"]
    assert parts[-2]["choices"][0]["finish_reason"] == whole.json()["choices"][0]["finish_reason"]


def test_stops_cut_and_limits_end(server: Server) -> None:
    text = text_of(server.ask(max_tokens=20))
    at = next(place for place in range(3, len(text) - 2) if text.index(text[place : place + 2]) == place)
    stop = text[at : at + 2]
    for stream in (False, True):
        cut = server.ask(max_tokens=20, stop=[stop, "never said"], stream=stream)
        assert (streamed(cut) if stream else text_of(cut)) == text[:at].rstrip()
    short = server.ask(max_tokens=3).json()
    assert short["usage"]["completion_tokens"] == 3
    assert short["choices"][0]["finish_reason"] == "length"
    assert text.startswith(short["choices"][0]["message"]["content"])


def test_samples_follow_their_seed_and_differ_without(server: Server) -> None:
    hot = {"temperature": 1.5, "max_tokens": 12}
    assert text_of(server.ask(**hot, seed=5)) == text_of(server.ask(**hot, seed=5))
    assert len({text_of(server.ask(**hot, seed=seed)) for seed in range(4)}) > 1
    assert text_of(server.ask(temperature=0.01, max_tokens=6)) == text_of(server.ask())


def test_requests_of_all_kinds_share_a_batch(server: Server) -> None:
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 2},
        {"max_tokens": 9},
        {"temperature": 1.0, "seed": 3},
        {"stream": True},
        {"messages": [{"role": "user", "content": "A longer question, of several words?"}]},
    ]
    one_by_one = [server.ask(**kind) for kind in kinds]
    with ThreadPoolExecutor(len(kinds)) as pool:
        together = [*pool.map(lambda kind: server.ask(**kind), kinds)]
    say = [streamed(reply) if "data:" in reply.text[:6] else text_of(reply) for reply in (*one_by_one, *together)]
    assert say[: len(kinds)] == say[len(kinds) :]
    rows = [reply.json()["littoral"]["batch_rows"] for reply in together if "data:" not in reply.text[:6]]
    assert max(rows) > 1


def test_the_key_is_asked_for_before_anything_is_read(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST), Guard(api_key=digest_of(KEY), local=False))
    with server.client as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            for answer in (
                client.post("/v1/chat/completions", content=b"no json", headers=headers),
                client.get("/metrics", headers=headers),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert "wrong" not in answer.text.replace("missing or wrong", "")
        client.headers["authorization"] = f"Bearer {KEY}"
        assert text_of(server.ask())
        assert client.get("/v1/models").json()["data"][0]["id"] == "toys"
        assert server.figure("refused_total", code="invalid_api_key") == 6
    for path in ("/healthz", "/readyz", "/"):
        assert server.client.get(path, headers={"authorization": ""}).status_code == 200
    server.service.close(10)


def test_foreign_pages_do_not_reach_a_server_without_a_key(server: Server) -> None:
    """Neither under a name of their own that leads here, nor by a form, which cannot send JSON."""
    assert server.client.get("/v1/models", headers={"host": "evil.example"}).json()["error"]["code"] == "wrong_host"
    form = server.client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "access-control-allow-origin" not in form.headers


def test_bodies_have_bounds(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST), limits=Limits(request_mib=0.01))
    headers = {"content-type": "application/json"}
    with server.client as client:
        declared = client.post("/v1/chat/completions", content=b"x" * 20_000, headers=headers)
        unsaid = client.post("/v1/chat/completions", content=iter([b"x" * 6000] * 3), headers=headers)
        for answer in (declared, unsaid):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        too_long = server.ask(messages=[{"role": "user", "content": "why " * 400}])
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "max_length = 300; shorten it." in too_long.json()["error"]["message"]
        assert text_of(server.ask())
        assert server.service.inside == 0
    server.service.close(10)


def test_errors_are_json_everywhere(server: Server) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/x", 404),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    wrong = server.client.delete("/v1/models")
    assert (wrong.headers["allow"], wrong.json()["error"]["code"]) == ("GET, HEAD", "method_not_allowed")
    assert wrong.json()["error"]["message"] == "this path takes GET, HEAD and no other method."
    unknown = server.ask(model="gpt-4o")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "toys" in unknown.json()["error"]["message"]


def test_more_requests_than_may_wait_are_told_when_to_come_again(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST), limits=Limits(waiting=2), batching=Batching(rows=1))
    with server.client:
        visits = [server.service.enter() for _ in range(3)]
        full = server.ask()
        assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_requests")
        assert int(full.headers["retry-after"]) >= 1
        assert server.client.get("/readyz").status_code == 503
        visits[0].leave()
        visits[0].leave()  # counts once
        assert server.service.inside == 2
        assert text_of(server.ask())
    server.service.close(10)


def test_a_server_that_ends_takes_no_more_requests(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST))
    with server.client as client:
        visit = server.service.enter()
        server.service.ending = True
        refused = server.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ending")
        assert refused.headers["retry-after"] == "1"
        assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)
        assert server.service.inside == 1
        visit.leave()
    server.service.close(10)


def test_a_request_has_an_end_in_time(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST), limits=Limits(seconds=0.02, tokens=4000))
    with server.client:
        late = server.ask(max_tokens=4000)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert server.service.inside == 0
    server.service.close(10)


def test_the_fault_of_one_request_costs_the_others_nothing(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST))
    encoder, broken = (
        versions[FIRST].encoder,
        Picture(tensors={"pixel_values": torch.zeros(1, 3, 32, 32)}, num_tokens=7),
    )

    class Breaking:
        """An encoder that gives one question a picture that its text has no place for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def prompt_example(self, row: Any) -> Any:
            example = encoder.prompt_example(row)
            return replace(example, pictures=(broken,)) if "bad" in row.instruction else example

    server.service._versions = {FIRST: replace(versions[FIRST], encoder=Breaking())}  # type: ignore[arg-type]
    questions = [{"messages": [{"role": "user", "content": text}]} for text in ("good one", "a bad one", "good two")]
    with server.client, ThreadPoolExecutor(3) as pool:
        replies = [*pool.map(lambda question: server.ask(**question), questions)]
        assert [reply.status_code for reply in replies] == [200, 500, 200]
        assert replies[1].json()["error"]["message"] == "the reply failed; the server's log says why."
        assert server.client.get("/healthz").status_code == 200
    server.service.close(10)


def test_requests_that_are_inside_end_with_the_checkpoint_they_began_with(versions: dict[Place, Version]) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(place: Place) -> Version:
        if place == SECOND:
            loading.set()
            assert go_on.wait(30)
        return versions[place]

    server = Server(versions, Plan(primary=FIRST), Guard(admin_key=digest_of(KEY)), limits=Limits(tokens=250))
    server.service._load = load
    headers = {"authorization": f"Bearer {KEY}"}
    with server.client as client, ThreadPoolExecutor(4) as pool:
        assert client.put("/admin/serving", json={"serve": "2"}).status_code == 401
        swap = pool.submit(lambda: client.put("/admin/serving", json={"serve": "2"}, headers=headers))
        assert loading.wait(30)
        before = text_of(server.ask())  # while the other one is being loaded
        long = pool.submit(lambda: server.ask(max_tokens=250, temperature=2.0, seed=1))
        while not server.service.inside:
            time.sleep(0.001)
        time.sleep(0.05)
        go_on.set()
        assert swap.result().json()["serve"] == "toys/02-b"
        after = server.ask()
        assert after.json()["littoral"]["checkpoint"] == "toys/02-b"
        assert text_of(after) != before, "they have other weights"
        assert long.result().json()["littoral"]["checkpoint"] == "toys/01-a"
        assert [version.place for version in server.service._versions.values()] == [SECOND]
        wrong = client.put("/admin/serving", json={"serve": "9"}, headers=headers)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "not_served")
        assert client.get("/admin/serving", headers=headers).json()["serve"] == "toys/02-b"
    server.service.close(10)


def test_without_an_admin_key_nothing_can_be_changed(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST))
    with server.client as client:
        answer = client.put("/admin/serving", json={"serve": "2"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_admin")
    server.service.close(10)


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        ({"canary_share": 0.5}, "canary_share", "canary_share is given and no canary; name its checkpoint, too."),
        ({"shadow_share": 1.0}, "shadow_share", "shadow_share is given and no shadow; name its checkpoint, too."),
        ({"shadow": "2"}, "shadow", "a shadow needs a server that was started with --shadow-log FILE."),
    ],
)
def test_what_would_be_passed_over_is_refused(server: Server, wanted: dict[str, Any], param: str, said: str) -> None:
    """What GET says of a plan without either is taken back."""
    headers = {"authorization": f"Bearer {KEY}"}
    now = server.client.get("/admin/serving", headers=headers).json()
    answer = server.client.put("/admin/serving", json={"serve": "1", **wanted}, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, said)
    assert server.client.put("/admin/serving", json={**now, "serve": "1"}, headers=headers).json() == now


def test_a_shadow_is_noted_and_never_sent(versions: dict[Place, Version], tmp_path: Path) -> None:
    log = tmp_path / "shadow.jsonl"
    plan = Plan(primary=FIRST, shadow=SECOND, shadow_share=1.0)
    server = started(versions, plan, shadow_log=log)
    with server.client:
        replies = [server.ask(messages=[{"role": "user", "content": f"Which {word}?"}]) for word in ("one", "two")]
        server.ask(temperature=1.0)  # a sample cannot agree, so it has no shadow
        end = time.monotonic() + 20
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["reply"] for line in lines] == [text_of(reply) for reply in replies]
        assert {(line["served"], line["shadow"]) for line in lines} == {("toys/01-a", "toys/02-b")}
        assert [line["equal"] for line in lines] == [line["reply"] == line["shadow_reply"] for line in lines]
        assert server.figure("shadow_replies_total") == 2
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert {reply.json()["littoral"]["checkpoint"] for reply in replies} == {"toys/01-a"}
    server.service.close(10)


def test_figures_count_what_happened(server: Server) -> None:
    for _ in range(3):
        server.ask()
    server.ask(stream=True)
    server.ask(model="none")
    assert server.figure("requests_total", path="/v1/chat/completions", status="200") == 4
    assert server.figure("requests_total", status="404") == 1
    assert server.figure("reply_tokens_total") > 0
    assert server.figure("served_total", checkpoint="toys/01-a", role="primary") == 4
    assert server.figure("request_seconds_count", stream="no") == 3
    assert server.figure("checkpoint", checkpoint="toys/01-a", role="primary") == 1


def test_figures_of_several_replicas_are_one_page() -> None:
    one, two = Metrics("one"), Metrics("two")
    one.swaps.inc()
    two.swaps.inc(2)
    text = exposition([*one.families(), *two.families()]).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    samples = found["littoral_serve_swaps"].samples
    assert {(sample.labels["replica"], sample.value) for sample in samples} == {("one", 1.0), ("two", 2.0)}
    assert text.count("# TYPE littoral_serve_swaps_total counter") == 1


WORDS = st.text(st.sampled_from("ab \nxé�"), max_size=4)


@given(st.lists(WORDS, max_size=12), st.lists(st.text("ab \nx", min_size=1, max_size=3), max_size=2))
def test_what_grows_begins_what_it_becomes(words: list[str], stops: list[str]) -> None:
    """Against the plain rule: decode everything, strip it, cut it at the first stop that is ever seen."""

    def decode(ids: list[int]) -> str:
        return "".join(words[index] for index in ids).strip()

    growing, sent = Growing(decode, stops), ""
    for index in range(len(words)):
        growing.add(index, look=True)
        if growing.stopped:
            break
        new = growing.grown()
        sent += new
        assert not any(stop in sent for stop in stops)
    text = growing.finish()
    sent += growing.grown(whole=True)
    seen = decode([*range(len(growing.ids))])
    cuts = [seen.index(stop) for stop in stops if stop in seen]
    assert text == (seen[: min(cuts)].rstrip() if cuts else seen)
    assert sent == text


def test_samples_are_drawn_as_their_probabilities_say() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -30.0])
    generator = torch.Generator().manual_seed(0)
    decoding = Decoding(max_tokens=1, temperature=0.5)
    counts = torch.stack([sampled(logits, decoding, generator) for _ in range(4000)]).bincount(minlength=4)
    weights = [math.exp(value / 0.5) for value in logits.tolist()]
    for count, weight in zip(counts.tolist(), weights, strict=True):
        share = weight / sum(weights)
        assert abs(count / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000) + 1e-3
    few = replace(decoding, top_p=0.5)  # the first alone has 0.87
    assert {int(sampled(logits, few, generator)) for _ in range(200)} == {0}


def test_a_request_that_nobody_waits_for_ends(versions: dict[Place, Version]) -> None:
    server = started(versions, Plan(primary=FIRST), limits=Limits(tokens=100_000))

    async def gone() -> float:
        visit = server.service.enter()
        request = {"model": "toys", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000}
        asked = await visit.ask(ChatRequest.model_validate({**request, "temperature": 2.0, "stream": True}))
        events = server.service.events(asked)
        await anext(events)
        visit.leave()
        started = time.monotonic()
        other = server.service.enter()
        second = await other.ask(ChatRequest.model_validate({**request, "max_tokens": 2}))
        async for _ in server.service.events(second):
            pass
        other.leave()
        return time.monotonic() - started

    assert asyncio.run(gone()) < 10, "100 000 tokens would take minutes"
    server.service.close(10)
