"""The web side: OpenAI's paths, health, figures, the page to try it with. Errors are JSON, whatever went wrong.

The order in a request matters: the key before anything is read, a place inside before the body is, the body's bytes
while they come, and only then what it says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from components.core.errors import LittoralError
from components.core.options import Json
from components.serving.batching import failed
from components.serving.keys import opens
from components.serving.metrics import Family, exposition
from components.serving.options import MIB
from components.serving.plan import Plan
from components.serving.refusals import Refusal, bad_request
from components.serving.replies import Said
from components.serving.schema import ChatRequest, Wanted, read_body
from components.serving.service import Service, Visit
from components.serving.steering import Done, Piece

logger = logging.getLogger("littoral.serving")
ADMIN_BYTES = 1 << 16
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Control(Protocol):
    """What knows of the other replicas."""

    async def change(self, wanted: Wanted) -> Plan:
        """Answer by another plan, here at once and soon on all replicas; raises `LittoralError` where it cannot be."""
        ...

    async def families(self) -> list[Family]:
        """Figures of all replicas."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Digests of keys, None without one, and whether only this machine can ask."""

    api_key: bytes | None = None
    admin_key: bytes | None = None
    local: bool = True

    def let_in(self, request: Request, key: bytes | None) -> None:
        """Raise `Refusal` for a wrong key, or without one for a request that a foreign web page may have sent.

        A page that has its own name lead to this machine would be of one origin with the server, but for that name.
        """
        if key is not None:
            if not opens(request.headers.get("authorization"), key):
                raise Refusal(
                    401, "the key is missing or wrong; send Authorization: Bearer KEY.", code="invalid_api_key"
                )
        elif self.local and (request.url.hostname or "").strip("[]") not in LOCAL_NAMES:
            raise Refusal(
                403, "without a key, only requests to this machine's own name are answered.", code="wrong_host"
            )


class Web:
    """The paths of one replica."""

    def __init__(
        self,
        service: Service,
        control: Control,
        guard: Guard,
        beside: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> None:
        """`beside` runs beside the requests, in their event loop, until the end."""
        self._beside = beside
        self.service, self.control, self.guard = service, control, guard
        self.started = int(time.time())
        self.app = Starlette(
            routes=[
                Path("/v1/chat/completions", self._path(self.chat), methods=["POST"]),
                Path("/v1/models", self._path(self.models), methods=["GET"]),
                Path("/v1/models/{name:path}", self._path(self.model), methods=["GET"]),
                Path("/admin/serving", self._path(self.admin), methods=["GET", "PUT"]),
                Path("/healthz", self._path(self.health), methods=["GET"]),
                Path("/readyz", self._path(self.ready), methods=["GET"]),
                Path("/metrics", self._path(self.figures), methods=["GET"]),
                *(Path(path, self._path(self.page), methods=["GET"]) for path in PAGE),
            ],
            exception_handlers={HTTPException: _not_there},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None, None]:
        task = None if self._beside is None else asyncio.create_task(self._beside())
        yield
        if task is not None:
            task.cancel()

    def _path(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """`answer`, with what it raises as a response, counted."""

        async def counted(request: Request) -> Response:
            try:
                response = await answer(request)
            except Refusal as refusal:
                response = self.refused(refusal)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:
                logger.exception("a request to %s failed", request.scope["route"].path)
                response = self.refused(failed())
            self.service.metrics.requests.labels(path=request.scope["route"].path, status=response.status_code).inc()
            return response

        return counted

    def refused(self, refusal: Refusal) -> Response:
        """The response to a request that is not answered."""
        self.service.metrics.refused.labels(code=refusal.code).inc()
        headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(refusal.body(), refusal.status, headers)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        self.guard.let_in(request, self.guard.api_key)
        require_json(request)
        visit = self.service.enter()
        try:
            body = await read_bytes(request, int(self.service.limits.request_mib * MIB), visit.deadline)
            wanted = read_body(ChatRequest, body)
            asked = await visit.ask(wanted)
            events = self.service.events(asked)
            said = Said.of(asked, wanted)
            event = await anext(events)  # a refusal before the first word still has a status of its own
            if wanted.stream:
                self.service.metrics.first.observe(visit.seconds)
                return _Streamed(self._lines(said, event, events, visit), visit)
            async with aclosing(events):
                while not isinstance(event, Done):
                    event = await anext(events)
            self.service.metrics.seconds.labels(stream="no").observe(visit.seconds)
            response = JSONResponse(said.completion(event), headers={"Cache-Control": "no-store"})
        except BaseException:
            visit.leave()
            raise
        visit.leave()
        return response

    async def _lines(
        self, said: Said, event: Piece | Done, events: AsyncGenerator[Piece | Done, None], visit: Visit
    ) -> AsyncGenerator[str, None]:
        """Server-sent events, from the first event on."""
        yield _line(said.opening())
        try:
            async with aclosing(events):
                while not isinstance(event, Done):
                    yield _line(said.chunk(event))
                    event = await anext(events)
        except Refusal as refusal:
            self.service.metrics.refused.labels(code=refusal.code).inc()
            yield _line(refusal.body())
            return
        for part in said.closing(event):
            yield _line(part)
        self.service.metrics.seconds.labels(stream="yes").observe(visit.seconds)
        yield "data: [DONE]\n\n"

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.guard.let_in(request, self.guard.api_key)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.service.models()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self.guard.let_in(request, self.guard.api_key)
        name = self.service.known(request.path_params["name"])
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Json]:
        version = self.service.version
        told: dict[str, Json] = {
            "checkpoint": str(version.place),
            "method": version.method.config.name,
            "tasks": [*version.tasks],
        }
        return {"id": name, "object": "model", "created": self.started, "owned_by": "littoral", "littoral": told}

    async def admin(self, request: Request) -> Response:
        """GET and PUT /admin/serving: which checkpoints answer."""
        if self.guard.admin_key is None:
            raise Refusal(
                403,
                "there is no admin key, so nothing can be changed; start with $LITTORAL_ADMIN_KEY.",
                code="no_admin",
            )
        self.guard.let_in(request, self.guard.admin_key)
        plan = self.service.plan
        if request.method == "PUT":
            require_json(request)
            body = await read_bytes(request, ADMIN_BYTES, time.monotonic() + self.service.limits.seconds)
            wanted = read_body(Wanted, body)
            require_used(wanted, notes_shadows=self.service.notes_shadows)
            try:
                plan = await self.control.change(wanted)
            except LittoralError as error:
                raise bad_request(f"nothing was changed: {error}", code="not_served") from error
        return JSONResponse(told_plan(plan))

    async def health(self, request: Request) -> Response:
        """GET /healthz: the process lives and its model's thread does."""
        if not self.service.batcher.alive:
            raise failed()
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: whether a request would be taken now."""
        if not self.service.batcher.alive or self.service.full or self.service.ending:
            raise Refusal(503, "no more requests are taken now.", code="not_ready", retry_after_s=1)
        return JSONResponse({"status": "ready", "checkpoint": str(self.service.plan.primary)})

    async def figures(self, request: Request) -> Response:
        """GET /metrics."""
        self.guard.let_in(request, self.guard.api_key)
        return Response(exposition(await self.control.families()), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """GET / and what it needs."""
        name, media_type = PAGE[request.scope["route"].path]
        content = resources.files("components.serving").joinpath("pages", name).read_bytes()
        return Response(content, media_type=media_type, headers=SAFE)


class _Streamed(StreamingResponse):
    """A stream that makes room when it ends, however it does, also before its first line."""

    def __init__(self, lines: AsyncGenerator[str, None], visit: Visit) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._lines, self._visit = lines, visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._visit.leave()
            await self._lines.aclose()


def require_json(request: Request) -> None:
    """Raise `Refusal` for another content type. A foreign web page cannot send this one without asking first."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise Refusal(415, f"the content type is {given[:60]!r}; send application/json.", code="unsupported_media_type")


async def read_bytes(request: Request, most: int, deadline: float) -> bytes:
    """The body; raises `Refusal` as soon as it is known to be too large, and for one that comes too slowly."""
    too_large = Refusal(413, f"the body has more than {most} bytes; make it smaller.", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError as error:
        raise Refusal(408, "the body came too slowly; send it at once.", code="timeout") from error
    return bytes(body)


def require_used(wanted: Wanted, *, notes_shadows: bool) -> None:
    """Raise `Refusal` for what would be passed over: a share of nothing, or a shadow whose replies nobody notes."""
    for who, place, share in (
        ("canary", wanted.canary, wanted.canary_share),
        ("shadow", wanted.shadow, wanted.shadow_share),
    ):
        if place is None and share and f"{who}_share" in wanted.model_fields_set:
            raise bad_request(f"{who}_share is given and no {who}; name its checkpoint, too.", param=f"{who}_share")
    if wanted.shadow is not None and not notes_shadows:
        raise bad_request("a shadow needs a server that was started with --shadow-log FILE.", param="shadow")


def told_plan(plan: Plan) -> dict[str, Json]:
    """The plan as JSON."""
    return {
        "serve": str(plan.primary),
        "canary": None if plan.canary is None else str(plan.canary),
        "canary_share": plan.canary_share,
        "shadow": None if plan.shadow is None else str(plan.shadow),
        "shadow_share": plan.shadow_share,
    }


def _line(content: Mapping[str, Json]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers["Allow"] = ", ".join(sorted(headers.get("Allow", "").split(", ")))  # starlette has a set
        refusal = Refusal(405, f"this path takes {allowed} and no other method.", code="method_not_allowed")
    else:
        there = "there is no such path; there are POST /v1/chat/completions and GET /v1/models."
        refusal = Refusal(error.status_code, there, code="unknown_url")
    return JSONResponse(refusal.body(), error.status_code, headers)
