"""The pages' commands, run in the order of the menu, in one folder, where each finds what those before it left.

The quickstart's run by default, those of all pages with `-m long`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documented import ROOT, Block, blocks

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
MODULE, FUNCTION = SCRIPTS["littoral"].split(":")
RUN = [block for block in blocks() if not block.title]


def numbered(run: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "block", run, ids=[f"{number:02}-{Path(block.page).stem}" for number, block in enumerate(run)]
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def place_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("pages"))


def prepared(folder: Path) -> Path:
    """A folder in which the repository's own paths are found."""
    for name in ("docs", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    command = folder / "bin" / "littoral"  # as pip writes it, whether Littoral is installed or not
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom {MODULE} import {FUNCTION}\nsys.exit({FUNCTION}())\n")
    command.chmod(0o755)
    return folder


@numbered([block for block in RUN if Path(block.page).stem == "quickstart"])
def test_the_quickstart(block: Block, place: Path) -> None:
    works(block, place)


@pytest.mark.long
@numbered(RUN)
def test_a_page(block: Block, place_of_all: Path) -> None:
    works(block, place_of_all)


def works(block: Block, place: Path) -> None:
    path = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
