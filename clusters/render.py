"""Write the files that start Littoral elsewhere, from options.toml, pyproject.toml and constraints.txt.

python clusters/render.py            writes them
python clusters/render.py --check    says which would change, and exits with 1 if any would
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "clusters" / "templates"
PAGE = ROOT / "docs" / "guides" / "cluster.md"
BEGIN, END = "<!-- by clusters/render.py -->\n\n", "\n<!-- end -->\n"  # what is written of the page
NOTE = "Written by clusters/render.py from clusters/options.toml: change it there."


def options() -> dict[str, Any]:  # Any: as TOML has it
    return tomllib.loads((ROOT / "clusters" / "options.toml").read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """Of what the files name, as the tests run with it: packages by name, `python` and `littoral`."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", constraints, re.MULTILINE))
    python = re.search(r"Python (\d+\.\d+)", constraints)
    if python is None:
        raise ValueError("the first line of constraints.txt names no Python version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {**found, "python": python[1], "littoral": project["version"]}


def derived(given: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """What several templates say: images, the folder's paths, and the command as a list of words."""
    image, run, gpu = given["image"], given["run"], given["gpu"]
    stem = f"{image['repository']}:{known['littoral']}-ray{known['ray']}-py{known['python'].replace('.', '')}"
    mlflow = f"{image['repository']}-mlflow:{known['mlflow']}-{image['build']}"
    workers = gpu["machines"] * gpu["gpus"]
    storage = f"{run['shared']}/runs"
    command = ["littoral", "coast", run["preset"], "--run-id", run["run_id"], "--storage", storage]
    command += ["--cluster.num-workers", str(workers), "--cluster.use-gpu", "true"]
    return {
        "images": {kind: f"{stem}-{kind}-{image['build']}" for kind in ("cuda", "cpu")} | {"mlflow": mlflow},
        "storage": storage,
        "workers": workers,
        "command": command,
        "tracking": f"http://{given['names']['cluster']}-mlflow:5000",
        # Of the user in the image, who owns what is written to the shared folder too.
        "user": 1000,
        "home": "/home/littoral",
    }


def rendered(given: Mapping[str, Any] | None = None) -> dict[Path, str]:
    """Every file by its path. Raises `jinja2.UndefinedError` for an option that is missing."""
    given, known = options() if given is None else given, versions()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    values = {**given, **derived(given, known), "versions": known, "note": NOTE}
    files = {
        ROOT / "clusters" / name.removesuffix(".j2"): environment.get_template(name).render(values)
        for name in environment.list_templates()
        if not Path(name).name.startswith("_")
    }
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    files[PAGE] = (
        before + BEGIN + environment.get_template("_table.j2").render({**values, "here": "clusters/"}) + END + after
    )
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    changed = {
        path: text
        for path, text in rendered().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        print(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
