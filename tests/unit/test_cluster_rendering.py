"""clusters/: the files are what render.py gives, from the versions that are tested; what they name and call exists."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from cluster_files import (
    CLUSTERS,
    OPTIONS,
    ROOT,
    VERSIONS,
    click_options,
    commands,
    documents,
    long_options,
    pods,
    ray_cluster,
    renderer,
    texts,
)

from pipelines.cli import StreamCommand, parse
from pipelines.nightly import Nightly

LEAVES = [(section, name) for section, values in OPTIONS.items() for name in values]
BY_HAND = {"options.toml", "render.py", "submit.py", "local.sh", "local_node.sh", "local_nodes.sh"}
FILES = [name for name in texts() if not name.endswith(".md")]
RAY_FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
LAUNCHER_FILES = ("launcher/aws.yaml", "launcher/gcp.yaml", "launcher/onprem.yaml")
# Where Ray's commands are defined.
OTHERS = {
    "ray start": ("ray.scripts.scripts", "start"),
    "ray job submit": ("ray.dashboard.modules.job.cli", "submit"),
    "ray symmetric-run": ("ray.scripts.symmetric_run", "symmetric_run"),
}


@cache
def rendered() -> dict[Path, str]:
    return renderer["rendered"]()


def changed(value: Any) -> Any:
    if isinstance(value, list):
        return [*value, "10.1.0.13"]
    return value + 1 if isinstance(value, int) else f"{value}x"


def test_the_files_are_what_the_script_gives() -> None:
    """After a change of an option or a version: python clusters/render.py"""
    assert [str(path) for path, text in renderer["rendered"]().items() if path.read_text() != text] == []


def test_nothing_else_is_there() -> None:
    made = {str(path) for path in CLUSTERS.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {str(CLUSTERS / name) for name in BY_HAND | {name for name in texts() if not name.startswith("docs/")}}
    assert {name for name in made - expected if "/templates/" not in name} == set()


@pytest.mark.parametrize(("section", "name"), LEAVES)
def test_every_option_changes_a_file_and_is_asked_for(section: str, name: str) -> None:
    other = copy.deepcopy(OPTIONS)
    other[section][name] = changed(other[section][name])
    assert renderer["rendered"](other) != rendered()
    del other[section][name]
    with pytest.raises((jinja2.UndefinedError, KeyError)):
        renderer["rendered"](other)


def test_the_check_sees_an_edited_file(tmp_path: Path) -> None:
    """`--check` on a copy of the repository's files in which one line was changed by hand."""
    for name in ("constraints.txt", "pyproject.toml", "docs/guides/cluster.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(CLUSTERS, tmp_path / "clusters")
    script = runpy.run_path(str(tmp_path / "clusters" / "render.py"))["main"]
    assert script(["--check"]) == 0
    edited = tmp_path / "clusters" / "kuberay" / "rayjob.yaml"
    text = edited.read_text()
    edited.write_text(text.replace("backoffLimit: 3", "backoffLimit: 4"))
    assert script(["--check"]) == 1
    assert edited.read_text() != text
    assert script([]) == 0
    assert edited.read_text() == text


@pytest.mark.parametrize("name", [name for name in texts() if not name.startswith("docs/")])
def test_every_run_is_understood_by_the_programs_own_parser(name: str) -> None:
    found = [words for words in commands(texts()[name], r"(?:littoral coast|python pipelines/coast\.py)") if words]
    nights = commands(texts()[name], "littoral nightly")
    starts = ("kuberay/rayjob.yaml", "kuberay/nightly.yaml", "slurm/coast.sbatch", "anyscale/job.yaml", "README.md")
    assert bool(found or nights) == (name in starts)
    assert bool(nights) == (name in ("kuberay/nightly.yaml", "README.md"))
    for words in (*found, *nights):
        known = [re.sub(r"\$\w+", "x", word) for word in words]  # what only the shell knows
        if words in nights:
            known.insert(0, OPTIONS["run"]["preset"])  # else what is in production is the preset
        run = parse(known, program="", description="", kind=Nightly if words in nights else StreamCommand).run
        assert words[words.index("--storage") + 1].startswith(("/", "$"))  # a job's own folder is lost
        assert run.cluster.num_workers == OPTIONS["gpu"]["machines"] * OPTIONS["gpu"]["gpus"]
        assert run.cluster.use_gpu is True


def test_the_preset_can_be_split_over_the_workers() -> None:
    words = renderer["derived"](OPTIONS, VERSIONS)["command"]
    run = parse(words[2:], program="coast", description="", kind=StreamCommand).run
    assert run.training.micro_size(run.cluster.num_workers) >= 1


@pytest.mark.parametrize("command", OTHERS)
def test_every_option_of_rays_commands_exists(command: str) -> None:
    known = click_options(*OTHERS[command]) | {"--help"}
    if command == "ray symmetric-run":  # what it does not know it hands to `ray start`
        known |= click_options(*OTHERS["ray start"]) - {"--head", "--port", "--node-ip-address", "--block"}
    assert len(known) > 10
    called = [words for text in texts().values() for words in commands(text, command.replace(" ", " +"))]
    assert called
    for words in called:
        own = words[: words.index("--")] if "--" in words else words
        assert long_options(own) <= known


def test_every_option_of_the_mlflow_server_exists() -> None:
    known = click_options("mlflow.cli", "server", "mlflow.utils.cli_args")
    (container,) = (
        container
        for document in documents("kuberay/mlflow.yaml")
        for _, pod in pods(document)
        for container in pod["containers"]
        if container["name"] == "mlflow"
    )
    assert container["command"] == ["mlflow", "server"]
    assert len(container["args"]) == 6
    assert long_options(container["args"]) <= known


def test_images_have_the_versions_that_are_tested() -> None:
    python = VERSIONS["python"]
    for name in FILES:
        for tag in re.findall(r"littoral:(\S+)", texts()[name]):
            assert re.fullmatch(
                rf"{VERSIONS['littoral']}-ray{VERSIONS['ray']}-py{python.replace('.', '')}-(cuda|cpu)-1", tag
            )
        for version in re.findall(r"^FROM python:(\S+?)-", texts()[name], re.MULTILINE):
            assert version == python
    assert f"python:{python}" in texts()["Dockerfile"]
    assert f"FROM anyscale/ray:{VERSIONS['ray']}-slim-py{python.replace('.', '')}" in texts()["anyscale/Containerfile"]
    assert f"mlflow=={VERSIONS['mlflow']} " in texts()["Dockerfile.mlflow"]
    assert {ray_cluster(name)["rayVersion"] for name in RAY_FILES} == {VERSIONS["ray"]}


def test_every_image_is_built_by_a_command_on_the_page() -> None:
    built = dict(re.findall(r"docker build -f clusters/(\S+) -t (\S+) \.", texts()["README.md"]))
    assert set(built) == {"Dockerfile", "Dockerfile.cpu", "Dockerfile.mlflow"}
    used = {
        container["image"]
        for name in FILES
        if name.startswith("kuberay/")
        for document in documents(name)
        for _, pod in pods(document)
        for container in pod["containers"]
    }
    used |= {documents(name)[0]["docker"]["image"] for name in LAUNCHER_FILES}
    assert used == {*built.values(), f"postgres:{OPTIONS['mlflow']['postgres']}-bookworm"}
    assert all(f"-t {image} " in texts()[file] for file, image in built.items())


@pytest.mark.parametrize("name", [name for name in FILES if "Dockerfile" in name or "Containerfile" in name])
def test_what_an_image_copies_is_there(name: str) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", texts()[name], re.MULTILINE)
    assert [path for words in copied for path in words.split() if not (ROOT / path).exists()] == []
    assert copied or name == "Dockerfile.mlflow"


@pytest.mark.parametrize("name", [*texts()])
def test_paths_of_the_repository_exist(name: str) -> None:
    named = re.findall(r"(?<![\w/])(?:clusters|pipelines|components|docs|locks)/[\w./-]*\w", texts()[name])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_file_is_in_the_table_of_both_pages() -> None:
    for page, here in (("README.md", ""), ("docs/guides/cluster.md", "clusters/")):
        rows = "\n".join(line for line in texts()[page].splitlines() if line.startswith("| `"))
        assert [name for name in [*FILES, "local.sh"] if f"`{here}{name}`" not in rows] == []
