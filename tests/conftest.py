"""Before any test imports a library: no hub access, no progress bars, one tokenizer thread, as a run itself sets it."""

from __future__ import annotations

import os

from pipelines.command import quiet_environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything a test loads is built in code or installed
quiet_environment()
