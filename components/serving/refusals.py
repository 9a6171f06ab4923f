"""Refused requests, as OpenAI's clients expect them: a status and a JSON body with one sentence."""

from __future__ import annotations

from components.core.options import Json


class Refusal(Exception):
    """A request that is not answered. `param` is the part of the request that the sentence is about."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's word for errors of this status."""
        named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Json]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """A request that cannot be answered as it is, whoever asks and whenever."""
    return Refusal(400, message, code=code, param=param)
