"""Ray Data writes the same bytes as threads do: a published stream and a user's own, with faults in both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import benchmark_trees as trees
import pytest

from components.data.benchmarks.preparing import prepare_benchmark
from components.data.formats.parallel_map import SERIAL, OrderedMap
from components.data.formats.ray_map import ray_cluster
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.quality.report import ImportReport

STREAM = """name = "mine"
[[task]]
name = "shop"
train = "train.json"
test = "test.json"
images = "images"
metric = "exact"
max_new_tokens = 16
"""


@pytest.fixture(scope="module")
def on_ray() -> Iterator[OrderedMap]:
    with ray_cluster(None) as in_order:
        yield in_order


def shop(root: Path) -> Path:
    """Fifty rows in several blocks; every seventh picture is missing."""
    items = [{"id": str(at), "image": f"{at}.png", "conversations": trees.talk("What?", "tea")} for at in range(50)]
    trees.put_json(root / "train.json", items)
    trees.put_json(root / "test.json", items[1:3])
    for at in range(50):
        if at % 7:
            trees.put_picture(root / "images" / f"{at}.png")
    (root / "stream.toml").write_text(STREAM)
    return root / "stream.toml"


def outcome(report: ImportReport) -> tuple[str, list[str]]:
    assert report.refused is None
    return open_prepared(report.out_dir).digest, [str(problem) for problem in report.problems]


def test_both_paths_write_the_same_shards(on_ray: OrderedMap, tmp_path: Path) -> None:
    trees.chartqa(tmp_path / "downloads")
    trees.pathvqa(tmp_path / "downloads")
    (tmp_path / "downloads/ChartQA Dataset/train/png/train_human_1.png").unlink()
    published = trees.only("coast-domain", "chartqa", "medicalqa")
    stream = read_stream_file(shop(tmp_path / "shop"))
    found = []
    for name, in_order in (("threads", SERIAL), ("ray", on_ray)):
        out = tmp_path / name
        own = import_stream(stream, out / "own", max_broken=0.5, in_order=in_order)
        release = prepare_benchmark(
            published, tmp_path / "downloads", out / "published", max_broken=0.5, in_order=in_order
        )
        found.append([outcome(own), outcome(release)])
    assert found[0] == found[1]
    (_, missing), (_, lost) = found[0]
    assert (len(missing), len(lost)) == (8, 2)  # the release's count is noted, too
