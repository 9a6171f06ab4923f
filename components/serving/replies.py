"""Replies in OpenAI's form, with an object `littoral` that says what served."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from components.core.options import Json
from components.serving.schema import ChatRequest
from components.serving.service import Asked
from components.serving.steering import Done, Piece


@dataclass(frozen=True, kw_only=True)
class Said:
    """What all parts of a reply have in common."""

    id: str
    created: int
    model: str
    asked: Asked
    usage: bool  # whether a stream ends with what it used

    @classmethod
    def of(cls, asked: Asked, request: ChatRequest) -> Said:
        """For a request that is being answered."""
        options = request.stream_options
        return cls(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=request.model,
            asked=asked,
            usage=options is not None and options.include_usage,
        )

    def completion(self, done: Done) -> dict[str, Json]:
        """The reply in one piece."""
        message: dict[str, Json] = {"role": "assistant", "content": done.text, "refusal": None}
        choice: dict[str, Json] = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish}
        used, served = self._used(done), self._served(done)
        return {**self._head("chat.completion"), "choices": [choice], "usage": used, "littoral": served}

    def opening(self) -> dict[str, Json]:
        """The first part of a stream."""
        return self._part({"role": "assistant", "content": ""}, None)

    def chunk(self, piece: Piece) -> dict[str, Json]:
        """A part of a stream."""
        return self._part({"content": piece.text}, None)

    def closing(self, done: Done) -> Iterator[dict[str, Json]]:
        """The last parts of a stream."""
        yield {**self._part({}, done.finish), "littoral": self._served(done)}
        if self.usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self._used(done)}

    def _head(self, kind: str) -> dict[str, Json]:
        fingerprint = str(self.asked.job.version.place)
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint,
        }

    def _part(self, delta: dict[str, Json], finish: str | None) -> dict[str, Json]:
        choice: dict[str, Json] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _used(self, done: Done) -> Json:
        prompt = self.asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": done.tokens, "total_tokens": prompt + done.tokens}

    def _served(self, done: Done) -> Json:
        """Which checkpoint answered, and which of its tasks and slots; None where the method does not say."""
        job, route = self.asked.job, done.route
        return {
            "checkpoint": str(job.version.place),
            "version": job.version.place.version or None,
            "role": self.asked.role,
            "method": job.version.method.config.name,
            "task": job.known_task if route.task is None else route.task,
            "slots": None if route.slots is None else [*route.slots],
            "matched": route.matched,
            "batch_rows": done.rows,
        }
