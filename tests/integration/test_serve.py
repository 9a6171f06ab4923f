"""A run is served: asked by the `openai` client, by plain HTTP and in a browser, changed under load, and ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

from components.data.rows import Row
from components.data.streams import open_stream
from components.runs.results import read_run
from tests.unit.test_serving_requests import bomb, inflating, png, url

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chartqa", "iconqa")
RUN = (
    *("pocket", "--run-id", "first", "--stream.order", *TASKS, "--evaluation.limit", "12", "--evaluation.no-zero-shot"),
    *("--training.optimizer.learning-rate", "0.01"),
)
KEY, ADMIN = "key-of-the-users", "key-of-the-admins"


@dataclass(frozen=True)
class Served:
    """A server with a key, and the run that it serves."""

    run: Path
    port: int
    process: subprocess.Popen[str]
    log: Path

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=120)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json", **named})
        response = connection.getresponse()
        return response.status, response.read()

    def change(self, **wanted: object) -> dict[str, Any]:
        status, content = self.send(
            "PUT", "/admin/serving", json.dumps(wanted).encode(), Authorization=f"Bearer {ADMIN}"
        )
        assert status == 200, content
        return json.loads(content)


def littoral(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.littoral", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    done = littoral("coast", *RUN, "--storage", str(storage))
    assert done.returncode == 0, done.stderr[-2000:]
    return storage / "first"


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "said.txt"
    command = [sys.executable, "-m", "pipelines.littoral", "serve", str(run), "--port", str(port)]
    keys = {"LITTORAL_API_KEY": KEY, "LITTORAL_ADMIN_KEY": ADMIN}
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **keys}, stdout=said, stderr=said, text=True)
    found = Served(run, port, process, log)
    try:
        end = time.monotonic() + 240
        while not is_ready(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


def is_ready(served: Served) -> bool:
    try:
        return served.send("GET", "/readyz")[0] == 200
    except OSError:
        return False


def messages(row: Row) -> list[Any]:
    parts: list[Any] = [{"type": "text", "text": row.instruction}]
    if row.image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": url(row.image)}})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def asked(run: Path) -> list[tuple[Row, int, dict[str, Any]]]:
    """Rows of both tasks in turn, how many tokens a reply may have, and what the run predicted at its end."""
    known = {
        row["sample_id"]: row for row in pq.read_table(run / "predictions").to_pylist() if row["after"] == TASKS[-1]
    }
    tasks = [task for task in open_stream(read_run(run).config.stream).tasks if task.name in TASKS]
    rows = [
        [(row, task.max_new_tokens, known[row.sample_id]) for row in task.test.rows() if row.sample_id in known]
        for task in tasks
    ]
    assert sum(map(len, rows)) == len(known) == 24
    return [each for pair in zip(*rows, strict=True) for each in pair]


def test_replies_are_the_runs_predictions(served: Served, asked: list[tuple[Row, int, dict[str, Any]]]) -> None:
    client = served.client
    assert [model.id for model in client.models.list()] == ["first"]

    def reply(question: tuple[Row, int, dict[str, Any]]) -> Any:
        return client.chat.completions.create(model="first", messages=messages(question[0]), max_tokens=question[1])

    with ThreadPoolExecutor(12) as pool:
        replies = [*pool.map(reply, asked)]
    assert [each.choices[0].message.content for each in replies] == [known["prediction"] for _, _, known in asked]
    assert [each.littoral["task"] for each in replies] == [known["routed_to"] for _, _, known in asked]
    assert [each.littoral["slots"] for each in replies] == [known["slots"] for _, _, known in asked]
    assert {each.littoral["task"] for each in replies} == set(TASKS), "mixed routes"
    assert {each.littoral["checkpoint"] for each in replies} == {"first/02-iconqa"}
    assert max(each.littoral["batch_rows"] for each in replies) > 1


def test_streams_say_the_same(served: Served, asked: list[tuple[Row, int, dict[str, Any]]]) -> None:
    for row, tokens, known in asked[:4]:
        stream = served.client.chat.completions.create(
            model="first",
            messages=messages(row),
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [*stream]
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == known["prediction"]
        assert parts[-2].littoral["task"] == known["routed_to"]  # type: ignore[attr-defined]
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens <= tokens


def test_bad_requests_are_refused_and_good_ones_go_on(served: Served) -> None:
    client = served.client
    good: list[Any] = [{"role": "user", "content": "What is it?"}]

    def picture(address: str) -> list[Any]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]

    with pytest.raises(NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt-4o", messages=good)
    with pytest.raises(AuthenticationError, match="key is missing or wrong"):
        client.with_options(api_key="guessed").chat.completions.create(model="first", messages=good)
    with pytest.raises(BadRequestError, match="too many pixels") as error:
        client.chat.completions.create(model="first", messages=picture(url(bomb())))
    assert (error.value.code, error.value.param) == ("image_too_large", "messages.0.content.0")
    with pytest.raises(BadRequestError, match="no address is fetched"):
        client.chat.completions.create(model="first", messages=picture("http://127.0.0.1:1/a.png"))
    with pytest.raises(BadRequestError, match="shorten it"):
        client.chat.completions.create(model="first", messages=[{"role": "user", "content": "why " * 9000}])
    key = {"Authorization": f"Bearer {KEY}"}
    path = "/v1/chat/completions"
    whole = json.dumps({"model": "first", "messages": good, "max_tokens": 1}).encode()
    for body, status, code in (
        (b"no json", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (whole[:-5], 400, "invalid_json"),
        (b"[" * 200_000, 400, "invalid_json"),
        (whole.replace(b"What", b"\xff"), 400, "invalid_json"),
        (whole.replace(b"What", b"\\ud800"), 400, "invalid_json"),  # half a character
        (whole.replace(b'"max_tokens": 1', b'"temperature": NaN'), 400, "invalid_value"),
        (whole.replace(b'"max_tokens": 1', b'"max_tokens": 1e99'), 400, "invalid_value"),
        (b"\0" * (21 << 20), 413, "request_too_large"),
        (json.dumps({"model": "first", "messages": picture(url(png()[:50]))}).encode(), 400, "invalid_value"),
        (json.dumps({"model": "first", "messages": picture(url(inflating()))}).encode(), 400, "invalid_image"),
    ):
        got, content = served.send("POST", path, body, **key)
        assert (got, json.loads(content)["error"]["code"]) == (status, code), body[:200]
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        got, content = served.send("POST", path, whole, Content_Type=kind, **key)
        assert (got, json.loads(content)["error"]["code"]) == (415, "unsupported_media_type"), kind
    assert served.send("POST", path, whole, Content_Type="application/json; charset=utf-8", **key)[0] == 200
    for scheme in ("", "Bearer", "Bearer \u00e9", f"Basic {KEY}", f"Bearer {KEY} {KEY}", f"bearer{KEY}"):
        got, content = served.send("POST", path, whole, Authorization=scheme)
        assert (got, json.loads(content)["error"]["code"]) == (401, "invalid_api_key"), scheme
    assert served.send("GET", "/v1/models/..%2f..%2fetc%2fpasswd", None, **key)[0] == 404
    assert served.send("PUT", "/admin/serving", b"{}", **key)[0] == 401, "users may not change what is served"
    assert client.chat.completions.create(model="first", messages=good, max_tokens=4).choices[0].message.content


def test_checkpoints_change_under_load_and_no_request_is_lost(
    served: Served, asked: list[tuple[Row, int, dict[str, Any]]]
) -> None:
    client, ended = served.client, threading.Event()
    seen: list[str] = []

    def load(number: int) -> int:
        count = 0
        while not ended.is_set():
            row, tokens, _ = asked[(number + count) % len(asked)]
            reply: Any = client.chat.completions.create(model="first", messages=messages(row), max_tokens=tokens)
            seen.append(reply.littoral["checkpoint"])
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(load, number) for number in range(8)]
        try:
            for task in ("1", "iconqa", "first/1", "2"):
                time.sleep(0.5)
                served.change(serve=task)
                answered = len(seen)
            while len(seen) < answered + 20 and not any(each.done() for each in clients):
                time.sleep(0.05)
        finally:
            ended.set()
        assert sum(each.result() for each in clients) == len(seen), "an error would have been raised"
    assert set(seen) == {"first/01-chartqa", "first/02-iconqa"}
    assert set(seen[-8:]) == {"first/02-iconqa"}


def test_a_canary_answers_the_same_requests_every_time(served: Served) -> None:
    told = served.change(serve="2", canary="1", canary_share=0.5)
    assert (told["canary"], told["canary_share"]) == ("first/01-chartqa", 0.5)

    def role(number: int) -> str:
        asked: list[Any] = [{"role": "user", "content": f"Question {number}?"}]
        reply: Any = served.client.chat.completions.create(model="first", messages=asked, max_tokens=1)
        expected = "first/01-chartqa" if reply.littoral["role"] == "canary" else "first/02-iconqa"
        assert reply.littoral["checkpoint"] == expected
        return reply.littoral["role"]

    roles = [role(number) for number in range(24)]
    assert set(roles) == {"primary", "canary"}
    assert [role(number) for number in range(24)] == roles
    served.change(serve="2")


def test_health_and_figures(served: Served) -> None:
    assert served.send("GET", "/healthz") == (200, b'{"status":"ok"}')
    assert served.send("GET", "/metrics")[0] == 401
    status, content = served.send("GET", "/metrics", Authorization=f"Bearer {KEY}")
    assert status == 200
    found = dict(re.findall(r"^(littoral_serve_\w+)\{[^}]*\} ([\d.e+]+)$", content.decode(), re.MULTILINE))
    assert float(found["littoral_serve_batch_rows_count"]) > 0
    assert float(found["littoral_serve_swaps_total"]) >= 4
    assert 'task="chartqa"' in content.decode()


def test_only_this_machine_reaches_it(served: Served) -> None:
    tree = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
    listening = {
        each.laddr.ip.removeprefix("::ffff:")
        for process in tree
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.browser
def test_the_page_asks_and_shows_what_served(
    served: Served, asked: list[tuple[Row, int, dict[str, Any]]], browser: Browser, tmp_path: Path
) -> None:
    row, tokens, known = next(each for each in asked if each[0].image is not None)
    picture = tmp_path / "picture.png"
    picture.write_bytes(row.image or b"")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(f"http://127.0.0.1:{served.port}/")
    page.locator("#model", has_text="the key is missing; give the server's in the field Key").wait_for()
    troubles.clear()  # the browser says of a 401 what the page says, too
    page.fill("#key", KEY)
    page.locator("#key").blur()
    page.locator("#model", has_text="first/02-iconqa").wait_for()
    page.fill("#question", row.instruction)
    page.set_input_files("#picture", picture)
    page.fill("#tokens", str(tokens))
    page.click("#send")
    page.locator("#served dd", has_text="first/02-iconqa").wait_for()
    assert page.inner_text("#reply") == known["prediction"]
    assert known["routed_to"] in page.inner_text("#served")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert troubles == []
    page.fill("#tokens", "2000")
    page.click("#send")
    page.locator("#error", has_text="at most 1024 are generated here").wait_for()
    assert page.locator("#served").is_hidden(), "it is of the reply before"
    page.close()


def test_sigterm_lets_requests_that_are_inside_end(served: Served) -> None:
    """The last test of this server."""
    asked: list[Any] = [{"role": "user", "content": "Say much."}]

    def long(seed: int) -> Any:
        return served.client.chat.completions.create(
            model="first", messages=asked, max_tokens=400, temperature=2.0, seed=seed
        )

    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(long, seed) for seed in range(4)]
        time.sleep(0.4)
        served.process.send_signal(signal.SIGTERM)
        while (late := served.send(*late_request(), Authorization=f"Bearer {KEY}"))[0] == 200:
            time.sleep(0.02)
        assert (late[0], json.loads(late[1])["error"]["code"]) == (503, "ending")
        ended = [reply.result() for reply in replies]
    assert {reply.littoral["checkpoint"] for reply in ended} == {"first/02-iconqa"}
    assert max(reply.usage.completion_tokens for reply in ended) == 400
    statuses = [late[0]]
    with suppress(OSError, http.client.HTTPException):  # then nothing listens any more
        while served.process.poll() is None:
            statuses.append(served.send(*late_request(), Authorization=f"Bearer {KEY}")[0])
    assert {*statuses} == {503}, "Ray's proxy says 404 once the application is deleted"
    assert served.process.wait(120) == 143
    said = served.log.read_text()
    assert said.count("\n") == 4, said
    assert "requests that are inside are still answered" in said
    assert KEY not in said
    assert ADMIN not in said


def late_request() -> tuple[str, str, bytes]:
    asked = {"model": "first", "messages": [{"role": "user", "content": "Too late?"}], "max_tokens": 1}
    return "POST", "/v1/chat/completions", json.dumps(asked).encode()
