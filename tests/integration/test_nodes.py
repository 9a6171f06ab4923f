"""A stream over three Ray nodes that have nothing in common but a folder: split, killed, replaced, under pressure.

python -m pytest tests/integration/test_nodes.py -m long
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkpoint_bits import learned_bits
from local_cluster import ROOT, LocalCluster
from local_servers import SOMEBODY, s3_client, s3_server
from mlflow_server import Store
from pyarrow import fs
from recorded_whole import differences

RUN_TIMEOUT_S = 900
IN_THE_MIDDLE_S = 4  # of a task, which takes ten or more
STORE_BYTES = 80_000_000  # Ray's smallest is 75 MiB
STREAM = (
    *("pocket", "--seed", "3", "--stream.order", "chartqa", "iconqa", "--training.epochs", "40"),
    *("--training.checkpoint-every-updates", "16", "--training.cache-features", "off", "--evaluation.limit", "16"),
    *("--cluster.num-workers", "2", "--cluster.threads-per-worker", "1"),
)
PLACED = ("--cluster.worker-labels", "ray-subcluster=train", "--cluster.data-labels", "ray-subcluster=data")
# Holds nearly all of every node's object store, so that what the run puts there is spilled to disk.
HOG = """
import ray, numpy, time
ray.init()
@ray.remote(num_cpus=0)
class Hog:
    def take(self):
        self.held = [ray.put(numpy.full(1_000_000, each, dtype=numpy.uint8)) for each in range(74)]
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
hogs = [Hog.options(label_selector={"ray.io/node-id": node}).remote() for node in nodes]
ray.get([hog.take.remote() for hog in hogs])
print("all stores are full", flush=True)
time.sleep(3600)
"""
pytestmark = [pytest.mark.cluster, pytest.mark.long]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(tmp_path / "state")
    try:
        yield made
    finally:
        said = made("stop")
    assert said == "stopped\n"


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a cluster."""
    storage = tmp_path_factory.mktemp("direct")
    command = [sys.executable, "pipelines/coast.py", *STREAM, "--run-id", "run", "--storage", str(storage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return storage / "run"


def read_until(process: subprocess.Popen[str], *texts: str) -> list[str]:
    """The lines up to the first one that holds all of the texts."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if all(text in line for text in texts):
            return lines
    raise AssertionError(f"no line with {texts}: {''.join(lines)[-5000:]}")


def same(run: Path, expected: Path) -> None:
    """Matrices, every reply, and every learned tensor are the same bits."""
    for name in ("score_matrix.json", "oracle_matrix.json"):
        assert json.loads((run / name).read_text()) == json.loads((expected / name).read_text()), name
    files = sorted(path.relative_to(expected) for path in (expected / "predictions").glob("*.parquet"))
    assert files
    for file in files:
        assert pq.read_table(run / file).equals(pq.read_table(expected / file)), file
    assert learned_bits(run) == learned_bits(expected)


def test_a_stream_over_nodes_outlives_one_and_ends_as_the_direct_run(
    cluster: LocalCluster, direct: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    cluster.start("--nodes", "3", "--shared", str(shared), "--object-store-memory", str(STORE_BYTES))
    seen: dict[int, set[str]] = defaultdict(set)
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.3):
            for node in (1, 2, 3):
                seen[node] |= cluster.processes(node)

    (tmp_path / "hog").mkdir()
    (tmp_path / "hog" / "hog.py").write_text(HOG)
    cluster.job("submit", "--no-wait", "--working-dir", str(tmp_path / "hog"), "--", "python", "hog.py")
    threading.Thread(target=look, daemon=True).start()
    try:
        run = cluster.submit("first", *STREAM, *PLACED, "--storage", str(shared / "runs"))
        read_until(run, "Task 2/2")
        time.sleep(IN_THE_MIDDLE_S)
        cluster("kill", "3")
        cluster("replace", "3")
        lines = read_until(run, "going on from the last checkpoint (try 1 of 3)")
        assert "lost" in lines[-1]
        assert not any("After iconqa" in line for line in lines)
        said, _ = run.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        done.set()
    assert run.returncode == 0, said[-3000:]
    same(shared / "runs" / "first", direct)
    trains = [node for node in seen if any("RayTrainWorker" in title for title in seen[node])]
    reads = [node for node in seen if any("Map" in title for title in seen[node])]
    assert (sorted(trains), reads) == ([2, 3], [1]), seen
    spilled = [path for node in (1, 2, 3) for path in cluster.folder(node).rglob("ray_spilled_objects_*/*")]
    assert spilled


def test_a_run_goes_on_after_its_head_is_lost(cluster: LocalCluster, direct: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    cluster.start("--nodes", "3", "--shared", str(shared))
    arguments = (*STREAM, *PLACED, "--storage", str(shared / "runs"))
    run = cluster.submit("first", *arguments, options=("--no-wait",))
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    checkpoints, deadline = shared / "runs" / "first" / "checkpoints", time.monotonic() + RUN_TIMEOUT_S
    while not (checkpoints / "01-chartqa" / "state.json").is_file():
        assert time.monotonic() < deadline, cluster.job("logs", "first")
        time.sleep(0.3)
    cluster("kill", "1")
    cluster("stop")
    cluster.start("--nodes", "3", "--shared", str(shared))
    run = cluster.submit("first", *arguments)
    said, _ = run.communicate(timeout=RUN_TIMEOUT_S)
    assert run.returncode == 0, said[-3000:]
    assert "continuing" in said
    same(shared / "runs" / "first", direct)


def test_nothing_is_shared_but_a_store_and_a_server(cluster: LocalCluster, direct: Path, tmp_path: Path) -> None:
    cluster.environment |= SOMEBODY
    said = cluster.start("--nodes", "3")
    if "plain processes" in said:
        pytest.skip("namespaces need root")
    here = cluster.host.rpartition(".")[0] + ".1"  # this machine, as the nodes see it
    (tmp_path / "mlflow").mkdir()
    server = Store(tmp_path / "mlflow", host=here)
    try:
        with s3_server(tmp_path, "bucket", host=here) as port:
            query = f"?endpoint_override={here}:{port}&scheme=http"
            storage = f"s3://bucket/runs{query}"
            given = (*STREAM, *PLACED, "--storage", storage, "--tracking.uri", server.uri)
            run = cluster.submit("first", *given)
            read_until(run, "Task 2/2")
            time.sleep(IN_THE_MIDDLE_S)
            cluster("kill", "2")
            cluster("replace", "2")
            lines = read_until(run, "going on from the last checkpoint (try 1 of 3)")
            assert "lost" in lines[-1]
            said, _ = run.communicate(timeout=RUN_TIMEOUT_S)
            assert run.returncode == 0, said[-3000:]

            fs.copy_files("bucket/runs/first", str(tmp_path / "first"), source_filesystem=s3_client(port, host=here))
            same(tmp_path / "first", direct)
            assert differences(tmp_path / "first", server.uri) == []
            report = [sys.executable, "pipelines/report.py", f"s3://bucket/runs/first{query}"]
            shown = subprocess.run(report, cwd=ROOT, env=cluster.environment, capture_output=True, text=True)
            assert shown.returncode == 0, shown.stderr
            last = json.loads((direct / "score_matrix.json").read_text())["rows"][-1]["scores"]
            assert all(task in shown.stdout and f"{score:.1f}" in shown.stdout for task, score in last.items())
    finally:
        server.kill()
