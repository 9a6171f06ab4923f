"""A job of `ray job submit` and its run have one name."""

from __future__ import annotations

import json

import pytest

from components.core.errors import Terminated
from components.core.job import CONFIG_VARIABLE, submission_id
from pipelines import coast
from pipelines.littoral import guarded

# As Ray 2.60's JobSupervisor sets it.
OF_A_JOB = json.dumps(
    {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_7a", "job_name": "raysubmit_7a"}}
)


@pytest.mark.parametrize("value", [None, "", "{", "[]", '{"metadata": null}', '{"metadata": {"job_submission_id": 3}}'])
def test_outside_of_a_job_there_is_no_id(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(CONFIG_VARIABLE, value)
    assert submission_id() is None


def test_a_run_without_an_id_has_its_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, OF_A_JOB)
    for options, expected in (((), "raysubmit_7a"), (("--run-id", "first"), "first")):
        assert coast.main(["pocket", *options, "--print-config"]) == 0
        assert json.loads(capsys.readouterr().out)["run_id"] == expected


def test_a_jobs_id_that_no_run_can_have_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, OF_A_JOB.replace("raysubmit_7a", "a/b"))
    assert guarded(lambda: coast.main(["pocket", "--print-config"])) == 1
    assert capsys.readouterr().err.startswith("error: run id 'a/b' may hold letters")


def test_a_stopped_job_is_told_that_its_id_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> int:
        raise Terminated

    monkeypatch.setenv(CONFIG_VARIABLE, OF_A_JOB)
    assert guarded(stopped) == 143
    said = "run the same command with the same --run-id to continue"
    as_job = "as a job under another submission id than raysubmit_7a"
    assert capsys.readouterr().err == f"terminated: {said}; {as_job}\n"
