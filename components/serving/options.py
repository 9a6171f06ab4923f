"""What a server allows, and which checkpoints it answers with. Light on purpose (no torch, no Ray)."""

from __future__ import annotations

from dataclasses import dataclass

from components.core.options import Count, CountOrZero, Positive, Share, check_options

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for. What is above is refused before it costs anything."""

    request_mib: Positive = 20.0
    """Bytes of a request's body, in MiB."""
    picture_mib: Positive = 10.0
    """Bytes of a picture's file, in MiB."""
    picture_megapixels: Positive = 16.0
    """Width times height of a picture, which a small file may declare huge, in millions."""
    pictures: CountOrZero = 8
    """Pictures in a request; the backbone may take fewer."""
    messages: Count = 32
    """Messages in a request."""
    characters: Count = 50_000
    """Characters of all texts of a request; how many tokens fit, the run's backbone.max-length says."""
    tokens: Count = 1024
    """Tokens of a reply that a request may ask for."""
    default_tokens: Count = 256
    """Tokens of a reply where a request does not say."""
    waiting: Count = 128
    """Requests that wait while a batch is answered; more are sent away with 429 and Retry-After."""
    seconds: Positive = 120.0
    """Seconds that a request may take, from its first byte to its last word."""

    def __post_init__(self) -> None:
        check_options(self, "limits")


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests are answered together. They may be served by different tasks' parameters."""

    rows: Count = 16
    """Requests in a batch."""
    tokens: Count | None = None
    """Tokens in a batch, those to come and padding counted; without it, as many as `rows` allows."""
    wait_ms: Positive = 40.0
    """Milliseconds that a batch waits at most for requests that are on their way."""

    def __post_init__(self) -> None:
        check_options(self, "batching")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A second checkpoint, beside the one that serves. It is named as --task is, or as RUN-ID/TASK."""

    canary: str | None = None
    """A checkpoint that answers a part of the requests."""
    canary_share: Share = 0.05
    """The part of the requests, 0 to 1, that the canary answers; the same request always goes the same way."""
    shadow: str | None = None
    """A checkpoint that answers greedy requests a second time when nobody waits; its replies are logged, not sent."""
    shadow_share: Share = 1.0
    """The part of the requests, 0 to 1, that the shadow answers, too."""

    def __post_init__(self) -> None:
        check_options(self, "traffic")
