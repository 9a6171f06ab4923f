"""Submit a run to a Ray cluster as a job with the run's id, or go on with it there.

    python clusters/submit.py [--address URL] [--entrypoint-num-cpus N] [--no-wait] RUN_ID [ARGUMENTS OF COAST ...]

A cluster takes an id once: where it has had a job of this run, the next one is RUN_ID~2. While one runs, none is
submitted. Its lines are printed until it has ended, and the exit code is that of the run. Ctrl-C leaves it running.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed

import argparse
import asyncio
import itertools
import logging
import os
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import ConfigError
from components.core.location import is_uri
from components.core.naming import require_id
from components.core.visible import print_text
from pipelines.littoral import guarded, importing

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "http://127.0.0.1:8265"
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
STOP_WAIT_S = "120"  # Ray's own 3 s let no run write a checkpoint
LOOK_EVERY_S = 2.0  # whether a job whose lines have ended has ended, too


def main(arguments: Sequence[str]) -> int:
    """Submit the run and follow it; the run's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default=ADDRESS, help=f"of the cluster's dashboard; default {ADDRESS}")
    parser.add_argument(
        "--entrypoint-num-cpus",
        type=float,
        default=0.0,
        help="CPUs to keep for the run's command, which is then placed where they are free; 0: on the head",
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    parser.add_argument("run_id", metavar="RUN_ID", help="the run's id, and the job's")
    parser.add_argument("coast", nargs=argparse.REMAINDER, metavar="ARGUMENTS", help="of coast: preset and options")
    given = parser.parse_args(arguments)
    require_id(given.run_id)
    storage = storage_of(given.coast)
    if not is_uri(storage) and not Path(storage).expanduser().is_absolute():
        raise ConfigError(
            f"a job works in a copy that is thrown away, and --storage is {storage!r}; give an absolute folder that "
            "every node sees, or a URI."
        )
    if not given.address.startswith(("http://", "https://")):  # Ray would look for one of its other servers there
        raise ConfigError(f"--address is {given.address!r}; give http://HOST:PORT, that of the cluster's dashboard.")
    if any(each.partition("=")[0] in ("--run-id", "--run_id") for each in given.coast):
        raise ConfigError("the run's id is given twice; give it once, before the arguments of coast.")
    token = "" if "RAY_AUTH_MODE" in os.environ else "RAY_AUTH_MODE=token "  # what a shell needs for `ray job`, too
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with importing():
        from ray.job_submission import JobSubmissionClient
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what is left out of the upload, line by line, and more
    try:
        client = JobSubmissionClient(given.address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no cluster takes jobs at {given.address} ({_line(error)}); give --address, which `clusters/local.sh` "
            "prints, and look at RAY_AUTH_MODE and the token."
        ) from error
    return submitted(client, given, shell=f"{token}ray job {{}} --address {given.address}")


def storage_of(coast: Sequence[str]) -> str:
    """What arguments of coast give for --storage; empty without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--storage", nargs="?", const="", default="")
    return str(parser.parse_known_args(coast)[0].storage)


def submitted(client: JobSubmissionClient, given: argparse.Namespace, *, shell: str) -> int:
    """Submit through `client` what was `given`, and follow it; the exit code. `shell`: a command on jobs to type."""
    name = free_name(client, given.run_id, shell)
    entrypoint = shlex.join(["python", "pipelines/coast.py", *given.coast, "--run-id", given.run_id])
    try:
        with tempfile.TemporaryDirectory() as folder:
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S}
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=name,
                runtime_env={"working_dir": str(package(Path(folder))), "env_vars": environment},
                entrypoint_num_cpus=given.entrypoint_num_cpus or None,
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the cluster at {given.address} does not take job {name} ({_line(error)}).") from error
    print_text(f"job {name}: {entrypoint}")
    if given.no_wait:
        return 0
    try:
        return asyncio.run(followed(client, name))
    except KeyboardInterrupt:
        print_text(f"job {name} goes on; `{shell.format('stop')} {name}` stops it in order")
        raise


def package(folder: Path) -> Path:
    """What `ray job submit --working-dir .` would upload, as a zip file in `folder`: Ray's own is not compressed."""
    from ray._private.runtime_env.packaging import create_package

    plain, small = folder / "plain.zip", folder / "littoral.zip"
    create_package(str(ROOT), plain, include_gitignore=True, logger=logging.getLogger("ray"))
    with zipfile.ZipFile(plain) as read, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as written:
        for entry in read.infolist():
            written.writestr(entry, read.read(entry), zipfile.ZIP_DEFLATED)
    return small


def free_name(client: JobSubmissionClient, run_id: str, shell: str) -> str:
    """The run's id, or on a cluster that has had such a job `ID~2`, `ID~3`: a cluster takes an id once.

    Raises `ConfigError` while a job of this run goes on.
    """
    for number in itertools.count(1):
        name = run_id if number == 1 else f"{run_id}~{number}"  # no run's id has such a letter
        status = status_of(client, name)
        if status is None:
            return name
        if status not in ENDED:
            raise ConfigError(
                f"job {name} is {status.lower()}; follow it with `{shell.format('logs')} -f {name}`, or stop it with "
                f"`{shell.format('stop')} {name}` and give the same command again."
            )
    raise AssertionError


def status_of(client: JobSubmissionClient, name: str) -> str | None:
    """What the cluster says of a job; None where it knows none of this name."""
    try:
        return str(client.get_job_status(name))
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise ConfigError(f"the cluster does not say what became of job {name} ({_line(error)}).") from error


async def followed(client: JobSubmissionClient, name: str) -> int:
    """Print the job's lines until it has ended; the exit code of its command, 1 where it has none.

    Ray may stop sending lines while the job goes on, so the status decides, and what was printed is left out then.
    """
    printed = 0
    while True:
        ended = status_of(client, name) in ENDED  # before the lines: the last ones are there when it has ended
        with suppress(RuntimeError, OSError):
            sent = 0
            async for lines in client.tail_job_logs(name):
                fresh = lines[max(0, printed - sent) :]
                sent += len(lines)
                if fresh:
                    print_text(fresh.removesuffix("\n"), flush=True)
                printed = max(printed, sent)
        if ended:
            break
        await asyncio.sleep(LOOK_EVERY_S)
    found = client.get_job_info(name)
    if found.driver_exit_code is None and str(found.status) != "SUCCEEDED":
        print_text(f"job {name} is {str(found.status).lower()}: {' '.join((found.message or '').split())[:500]}")
    return 0 if str(found.status) == "SUCCEEDED" else found.driver_exit_code or 1


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(". ")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), after_interrupt="the job goes on"))
