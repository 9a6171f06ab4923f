"""Starting Ray inside this process, patiently: the training driver and the preparation of data do it alike."""

from __future__ import annotations

from typing import Any

import ray
from tenacity import retry, retry_if_exception_message, stop_after_attempt


@retry(
    retry=retry_if_exception_message(match=".*node timed out during startup"),
    stop=stop_after_attempt(3),
    before_sleep=lambda _: ray.shutdown(),
    reraise=True,
)
def start_ray(**options: Any) -> None:  # Any: ray.init's own options
    """Start Ray inside this process. Ray waits 30 s for its node, too short on a busy machine or a cold disk."""
    ray.init(address="local", include_dashboard=False, **options)
