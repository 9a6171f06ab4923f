"""Which deaths are worth another try, and what users read of them: from Ray's own exceptions."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from components.core.errors import DataError, LittoralError, LostError, TrainingError
from components.training.deaths import SNAPSHOT_FILE, RetryLost, Tries, explained, is_lost
from components.training.entry import travelling

# As Ray 2.60 gave them, shortened: a worker that was sent SIGKILL, one that its memory monitor ended, a lost node.
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed"
)
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 1393cf0d) "
    "was 22.71GB used / 23.54GB limit (0.964741)\nOOM kill reason: Memory usage 24384162432B exceeded threshold"
)
NODE = "The actor is dead because its owner has died. Owner worker exit type: SYSTEM_ERROR Owner's node has crashed."
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:25672"


def died(text: str, name: str = "RayTrainWorker") -> ActorDiedError:
    context = ActorDiedErrorContext(
        class_name=name, actor_id=b"\1" * 16, pid=4711, node_ip_address="10.0.0.7", error_message=text
    )
    return ActorDiedError(context)


def unhealthy(cause: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", cause)


def group(**failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("[Rank 0 Error Snippet]: ...", {int(rank[1:]): each for rank, each in failures.items()})


class NoPickle(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class NoUnpickling(Exception):
    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} is {reason}")


def failed(error: Exception) -> RayError:
    """As Ray hands it from a task to whoever waits for it."""
    told = f"Traceback (most recent call last):\n  File ...\n{type(error).__name__}: {error}\n"
    return RayError.from_bytes(RayTaskError("map", told, error).to_bytes())


CASES = {
    "killed": (group(r1=unhealthy(died(KILLED))), LostError, "worker process (rank 1), process 4711 on 10.0.0.7, was"),
    "only one": (died(KILLED, "LocalWorker"), LostError, "the worker process, process 4711 on 10.0.0.7, was lost"),
    "controller": (died(KILLED, "TrainController"), LostError, "Ray Train's controller process, process 4711 on"),
    "peer": (group(r0=RuntimeError(GLOO), r1=unhealthy(died(KILLED))), LostError, "a worker process (rank 1), process"),
    "only the peer": (group(r0=RuntimeError(GLOO)), LostError, "of the run was lost (Connection closed by peer"),
    "memory": (
        group(r0=unhealthy(OutOfMemoryError(MEMORY))),
        LostError,
        "Ray ended a worker process (rank 0), because the machine ran out of memory (22.71 of 23.54 GB were used); "
        "lower training.micro-batch-size, evaluation.batch-size or cluster.num-workers",
    ),
    "node": (group(r0=unhealthy(NodeDiedError("node died"))), LostError, "a node with a worker process (rank 0) was"),
    "its node": (group(r0=unhealthy(died(NODE))), LostError, "a node with a worker process (rank 0) was lost"),
    "silent": (group(r0=WorkerHealthCheckTimeoutError("...")), LostError, "(rank 0) did not answer any more"),
    "start": (ControllerError(WorkerGroupStartupTimeoutError(2)), LostError, "workers could not be started on the"),
    "code": (group(r0=ValueError("two\nlines")), TrainingError, "failed with ValueError (two); details are in "),
    "GPU": (
        group(r0=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
        TrainingError,
        "a worker ran out of memory (CUDA out of memory. Tried to allocate 2 GiB); lower training.micro-batch-size",
    ),
    "host memory": (group(r0=MemoryError()), TrainingError, "a worker ran out of memory; lower training.micro-batch"),
    "task": (failed(ValueError("odd row")), TrainingError, "with ValueError (odd row)"),
    "no pickle": (failed(NoPickle()), TrainingError, "with RayError (NoPickle: held)"),
    "no unpickling": (failed(NoUnpickling(7, "odd")), TrainingError, "(NoUnpickling: row 7 is odd)"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_death_is_one_sentence(case: str, tmp_path: Path) -> None:
    error, kind, clause = CASES[case]
    run_dir = tmp_path / "first"
    run_dir.mkdir()
    said = explained(error, run_dir, logs=Path("/tmp/ray/session/logs"))
    assert type(said) is kind
    assert clause in str(said)
    assert len(str(said).splitlines()) == 1
    assert str(said).endswith("the same command with --run-id first goes on from the last checkpoint.")
    assert is_lost(error) == (kind is LostError) or case == "start"
    kept = (run_dir / "failure.txt").read_text()
    assert "Ray's logs: /tmp/ray/session/logs" in kept
    assert str(run_dir / "failure.txt") in str(said)


def test_the_traceback_of_a_worker_is_kept(tmp_path: Path) -> None:
    error = ValueError("bad")
    error.add_note("Traceback of the worker: line 7 in step of s3://key:secret@shop")
    sent = cloudpickle.loads(cloudpickle.dumps(group(r0=error)))  # type: ignore[attr-defined]
    explained(sent, tmp_path, logs=None)
    kept = (tmp_path / "failure.txt").read_text()
    assert "line 7 in step of s3://***@shop" in kept
    assert "secret" not in kept


@pytest.mark.parametrize("error", [NoPickle(), NoUnpickling(7, "odd")])
def test_what_a_worker_raises_can_be_read_elsewhere(error: Exception) -> None:
    told = travelling(error)
    assert (type(told), str(told)) == (RuntimeError, f"{type(error).__name__}: {error}")
    assert travelling(told) is told


def test_a_sentence_of_our_own_stays_as_it_is(tmp_path: Path) -> None:
    own = DataError("row 7 of chartqa is broken; mend it.")
    for error in (
        group(r0=own),
        group(r0=RayTaskError("map", "Traceback", own)),
        group(r0=own, r1=unhealthy(died(KILLED))),
    ):
        assert explained(error, tmp_path, logs=None) is own
        assert not is_lost(error)
    lost = LostError("Ray was lost: its raylet ended")
    assert str(explained(lost, tmp_path, logs=None)).startswith("Ray was lost: its raylet ended; the same command with")


def test_a_folder_that_cannot_be_written_still_gives_the_sentence(tmp_path: Path) -> None:
    said = explained(group(r0=ValueError("bad")), tmp_path / "gone", logs=Path("/tmp/logs"))
    assert "ValueError (bad); Ray's logs are in /tmp/logs" in str(said)


def decisions(policy: RetryLost, error: Exception, number: int) -> list[FailureDecision]:
    return [policy.make_decision(error) for _ in range(number)]  # type: ignore[arg-type]


def test_lost_processes_get_as_many_tries_as_given_and_again_after_a_checkpoint(tmp_path: Path) -> None:
    told: list[str] = []
    policy = RetryLost(FailureConfig(max_failures=2), Tries(tmp_path, 2), told.append)
    lost = group(r0=unhealthy(died(KILLED)))
    retry, end = FailureDecision.RETRY, FailureDecision.RAISE
    assert decisions(policy, lost, 3) == [retry, retry, end]
    (tmp_path / SNAPSHOT_FILE).write_text("{}")
    assert decisions(policy, lost, 3) == [retry, retry, end]
    assert [re.findall(r"try \d of \d", each) for each in told] == [["try 1 of 2"], ["try 2 of 2"]] * 2


def test_a_place_for_the_workers_is_waited_for_and_not_without_end(tmp_path: Path) -> None:
    told: list[str] = []
    policy = RetryLost(FailureConfig(max_failures=0, controller_failure_limit=0), Tries(tmp_path, 2), told.append)
    none = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert decisions(policy, none, 15) == [FailureDecision.RETRY] * 14 + [FailureDecision.RAISE]
    assert told[0] == "the cluster has no place for the workers yet; waiting for one (minute 2)"
    decisions(policy, group(r0=unhealthy(died(KILLED))), 1)  # there was a place in between
    assert decisions(policy, none, 1) == [FailureDecision.RETRY]


@pytest.mark.parametrize("error", [ValueError("bad"), LittoralError("own")])
def test_an_error_of_the_code_is_not_tried_again(error: Exception, tmp_path: Path) -> None:
    policy = RetryLost(FailureConfig(max_failures=3), Tries(tmp_path, 3), print)
    assert decisions(policy, group(r0=error), 1) == [FailureDecision.RAISE]
