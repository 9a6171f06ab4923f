"""What `ray job submit` tells the program that it starts. Light on purpose: no Ray."""

from __future__ import annotations

import json
import os

CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's; it holds the job's runtime environment and its metadata


def submission_id() -> str | None:
    """The id that the job of this process was submitted with, or that Ray made for it; None outside of a job."""
    try:
        found = json.loads(os.environ.get(CONFIG_VARIABLE, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
