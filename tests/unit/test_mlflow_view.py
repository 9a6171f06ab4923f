"""The layouts that are laid down for MLflow's UI; tests/integration/test_mlflow_ui.py opens them."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from components.tracking.charts import TAG, View, stream_view, sweep_view, view_link
from components.tracking.registry import registered_name
from components.tracking.store import program

DIGEST = "0123456789abcdef" * 4


def state_of(view: View) -> dict[str, Any]:
    """What the UI reads out of the tag."""
    key, value = view.tag
    assert key == TAG + view.key
    assert len(value) < 20_000  # MLflow's limit
    return json.loads(zlib.decompress(base64.b64decode(value.removeprefix("deflate;"))))


def test_a_trial_is_recorded_by_the_sweep_and_not_by_a_file_of_rays() -> None:
    started = ["/a/pipelines/coast.py", "", "/venv/ray/_private/workers/default_worker.py"]
    assert [program(each) for each in started] == ["coast.py", "littoral", "sweep.py"]


def test_a_streams_view_charts_every_task_and_stands_the_same_when_laid_down_again() -> None:
    tasks = [f"task {number}" for number in range(10)] + ["of/ten"]
    view = stream_view("my/stream", tasks, digest=DIGEST, backbone="my/model")
    assert view.key == f"stream-my_stream-{DIGEST[:8]}-my_model"
    state = state_of(view)
    charted = [card.get("metricKey") for card in state["compareRunCharts"]]
    assert [f"accuracy/{task}" for task in tasks[:-1]] + ["accuracy/of_ten"] == charted[4:15]
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    assert {card["metricSectionId"] for card in state["compareRunCharts"]} == set(sections)
    ids = [card["uuid"] for card in state["compareRunCharts"]]
    assert len(set(ids)) == len(ids)
    assert stream_view("my/stream", tasks, digest=DIGEST, backbone="my/model").tag == view.tag


def test_a_streams_view_holds_one_digest_and_one_backbone(tmp_path: Path) -> None:
    """MLflow's own search decides, over runs that differ in one of them, and a backbone whose path has a quote."""
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("one")
    for digest in (DIGEST, "1" + DIGEST[1:]):
        for backbone in ("smol", "pocket", "/models/bob's"):
            run = client.create_run(experiment, tags={"stream_digest": digest, "backbone": backbone, "stream": "s"})
            client.log_metric(run.info.run_id, "final_average", 1.0)
    for backbone in ("smol", "/models/bob's"):
        search = state_of(stream_view("s", ["a"], digest=DIGEST, backbone=backbone))["searchFilter"]
        (found,) = client.search_runs([experiment], search)
        assert (found.data.tags["stream_digest"], found.data.tags["backbone"]) == (DIGEST, backbone)


def test_registered_names_begin_with_the_method() -> None:
    tags = {"stream": "mini/coast", "stream_digest": DIGEST, "method": "lcia", "backbone": "my:model"}
    assert registered_name(tags) == f"lcia-mini_coast-{DIGEST[:8]}-my_model"


def test_a_sweeps_view_draws_contours_over_two_fields_and_none_over_one() -> None:
    kinds: list[list[str]] = []
    for fields in (["method.rank"], ["method.rank", "method.slots_per_task", "seed"]):
        state = state_of(sweep_view("s", "id", fields, ["final_average"]))
        kinds.append([card["type"] for card in state["compareRunCharts"]])
    assert [found.count("CONTOUR") for found in kinds] == [0, 1]
    assert [found.count("PARALLEL") for found in kinds] == [1, 1]


def test_a_link_leads_to_the_server_or_to_the_one_that_the_command_starts() -> None:
    rest = "/#/experiments/3/runs?compareRunsMode=CHART&viewStateShareKey=stream-x"
    assert view_link("sqlite:////runs/mlflow.db", "3", "stream-x") == f"http://127.0.0.1:5000{rest}"
    assert view_link("https://host/mlflow/", "3", "stream-x") == f"https://host/mlflow{rest}"
