"""clusters/local.sh --nodes: what a node is and sees, with a stand-in for Ray on PATH that says what it finds."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_files import CLUSTERS
from local_servers import free_ports

# Says what it was started with and where it may write; the head listens as Ray's would.
RAY = """#!/usr/bin/env bash
if [[ $1 == get-auth-token ]]; then
    [[ -n ${RAY_AUTH_TOKEN:-} ]] || { mkdir -p "$HOME/.ray"; echo secret >"$HOME/.ray/auth_token"; }
    exit
fi
echo "arguments $*"
env | sed 's/^/env /'
echo "user $(id -u)"
echo "host $(cat /proc/sys/kernel/hostname)"
for place in /tmp "$HOME" "$TMPDIR" /dev/shm WORK SHARED; do
    if (: >"$place/written") 2>/dev/null; then echo "writes $place"; fi
done
echo "Ray runtime started"
address=$(sed -E 's/.*--node-ip-address ([^ ]*).*/\\1/' <<<"$*")
[[ $* != *--head* ]] || python3 -c '
import socket, sys, time
held = [socket.create_server((sys.argv[1], int(port))) for port in sys.argv[2:]]
time.sleep(1000)' "$address" PORTS &
sleep 1000 &
trap 'kill $(jobs -p); exit 0' TERM
wait
"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        ports = free_ports(2)
        self.shared, self.dashboard = folder / "sha red", ports[1]
        programs = folder / "bin"
        programs.mkdir()
        stand_in = RAY.replace("WORK", str(folder)).replace("SHARED", f'"{self.shared}"')
        (programs / "ray").write_text(stand_in.replace("PORTS", " ".join(map(str, ports))))
        (programs / "python").write_text(
            f'#!/bin/sh\n[ $# -le 2 ] || {{ shift 2; exec {programs}/ray "$@"; }}\necho 2\n'
        )
        for program in programs.iterdir():
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "RAY_PORT": str(ports[0]),
            "DASHBOARD_PORT": str(ports[1]),
            "AWS_REGION": "here",
            "SECRET": "of this machine",
        }
        (folder / "home").mkdir()

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command = [str(CLUSTERS / "local.sh"), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def folder(self) -> Path:
        """Where the nodes' folders are."""
        noted = self.environment["HOME"] + f"/.cache/littoral/cluster-{self.dashboard}/nodes"
        found = re.search(r'work="(.+)"', Path(noted).read_text())
        assert found is not None
        return Path(found[1])

    def log(self, node: int) -> list[str]:
        return (self.folder / str(node) / "log").read_text().splitlines()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made("stop")


def isolated() -> bool:
    """Whether this process may make namespaces and networks, asked in another way than the script does."""
    command = (
        "ip netns add lt-test && ip netns exec lt-test unshare --mount --pid --fork true && ip netns delete lt-test"
    )
    return subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0


def network() -> str:
    """The machine's networks and their namespaces."""
    return subprocess.run("ip -br link; ip netns", shell=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not isolated(), reason="network namespaces need root and iproute2")
def test_nodes_have_nothing_in_common_but_what_is_given(cluster: Cluster) -> None:
    before = network()
    said = cluster("--nodes", "3", "--shared", str(cluster.shared), "--object-store-memory", "80000000")
    addresses = re.findall(r"^  \d  +(data|train)  +(10\.213\.\d+\.\d+) ", said, re.MULTILINE)
    assert [group for group, _ in addresses] == ["data", "train", "train"]
    assert f"clusters/submit.py --address http://{addresses[0][1]}:{cluster.dashboard} first pocket " in said
    assert (
        "--cluster.num-workers 2 --cluster.worker-labels ray-subcluster=train --cluster.data-labels ray-subcluster=data"
        in said
    )
    for node, (group, address) in enumerate(addresses, start=1):
        folder, log = cluster.folder / str(node), cluster.log(node)
        assert f"host littoral-{node}" in log
        writes = {line.removeprefix("writes ") for line in log if line.startswith("writes ")}
        assert writes == {f"{folder}/home", f"{folder}/tmp", "/dev/shm", str(cluster.shared)}
        arguments = next(line for line in log if line.startswith("arguments "))
        assert f"--node-ip-address {address} " in arguments
        assert f"--labels ray-subcluster={group} " in arguments
        assert "--object-store-memory 80000000" in arguments
        environment = dict(line.removeprefix("env ").split("=", 1) for line in log if line.startswith("env "))
        assert environment["AWS_REGION"] == "here"
        assert environment["LITTORAL_CACHE"] == f"{cluster.shared}/cache"
        assert environment["RAY_AUTH_MODE"] == "token"
        assert "SECRET" not in environment
        assert (folder / "home" / ".ray" / "auth_token").stat().st_mode & 0o077 == 0

    folder, of_2 = cluster.folder, tree(cluster.folder / "2")
    assert "end it first" in cluster("replace", "2", code=1)
    cluster("kill", "2")
    assert not any(map(lives, of_2))
    assert tree(cluster.folder / "3")  # still there
    cluster("replace", "2")
    assert "host littoral-2" in cluster.log(2)
    assert "there is no node '4'" in cluster("kill", "4", code=1)
    assert "runs already" in cluster("--nodes", "2", code=1)
    left = [process for node in (1, 2, 3) for process in tree(folder / str(node))]
    assert cluster("stop") == "stopped\n"
    assert not any(map(lives, left))
    assert not folder.exists()
    assert network() == before
    assert (cluster.shared / "written").exists()


@pytest.mark.skipif(not isolated() or shutil.which("setpriv") is None, reason="that needs root and setpriv")
def test_by_sudo_nodes_are_of_the_user(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid() or 65534)  # nobody, who has no home
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))  # not below pytest's, which is closed to others
    os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Cluster(folder)
    cluster.environment |= {"SUDO_UID": str(user.pw_uid), "SUDO_GID": str(user.pw_gid)}
    cluster.environment |= {"LITTORAL_STATE": str(folder / "state"), "RAY_AUTH_TOKEN": "secret"}
    try:
        said = cluster("--nodes", "2", "--shared", str(cluster.shared))
        assert "each with its own address" in said
        noted = (folder / "state" / f"cluster-{cluster.dashboard}" / "nodes").read_text()
        found = re.search(r'work="(.+)"', noted)
        assert found is not None
        for node in (1, 2):
            log = (Path(found[1]) / str(node) / "log").read_text().splitlines()
            assert f"user {user.pw_uid}" in log
            assert f"writes {cluster.shared}" in log
        assert (cluster.shared / "written").stat().st_uid == user.pw_uid
    finally:
        said = cluster("stop")
        shutil.rmtree(folder)
    assert said == "stopped\n"


def test_without_the_right_they_are_plain_processes(cluster: Cluster) -> None:
    said = cluster("--nodes", "2", "--plain", "--groups", "data,eval")
    assert "as plain processes on loopback that share its files" in said
    assert [line.split()[1:3] for line in said.splitlines() if line.startswith("  ") and line[2] in "12"] == [
        ["data", "127.0.0.1"],
        ["eval", "127.0.0.1"],
    ]
    folder = cluster.folder
    head, other = tree(folder / "1"), tree(folder / "2")
    cluster("kill", "2")
    assert all(map(lives, head))
    assert not any(map(lives, other))
    left = [*head, *other]
    assert cluster("stop") == "stopped\n"
    assert not any(map(lives, left))
    assert not folder.exists()


def tree(folder: Path) -> list[psutil.Process]:
    """The process of a node and all below it."""
    top = psutil.Process(int((folder / "pid").read_text()))
    return [top, *top.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--nodes", "1"), "--nodes is '1'; give a number from 2 to 99."),
        (("--nodes", "many"), "--nodes is 'many'"),
        (("--nodes",), "--nodes needs a value"),
        (("--nodes=",), "--nodes needs a value"),  # `--nodes=$N` without N must not start one node
        (("--nodes", "2", "--cpus", "0"), "--cpus is '0'"),
        (("--nodes", "2", "--shared", "/etc/passwd"), "--shared is '/etc/passwd', which is no folder"),
        (("--nodes", "2", "--groups", "data,gpu"), "--groups is 'data,gpu'; give data, train or eval"),
        (("--nodes", "3", "--groups", "data,train"), "not one for each of 3 nodes"),
        (("--shared", "/x"), "give --nodes N too"),
        (("kill", "2"), "no nodes started by"),
        (("kill",), "give kill the number of a node"),
        (("stop", "3"), "stop ends the whole cluster and takes nothing behind it; one node is ended by: "),
        (("begin",), "unknown command 'begin'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_starts_nothing(
    cluster: Cluster, arguments: tuple[str, ...], expected: str
) -> None:
    said = cluster(*arguments, code=1)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said


def test_help_names_every_option() -> None:
    said = subprocess.run([CLUSTERS / "local.sh", "--help"], capture_output=True, text=True).stdout
    assert {"--nodes", "--groups", "--cpus", "--shared", "--plain", "kill", "replace", "stop"} <= set(
        re.findall(r"(?:--)?[a-z]+", said)
    )
    assert "set -e" not in said
