"""The files that clusters/render.py writes, as tests look at them, and the options of other programs' commands."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
renderer = runpy.run_path(str(CLUSTERS / "render.py"))
OPTIONS: dict[str, dict[str, Any]] = renderer["options"]()
VERSIONS: dict[str, str] = renderer["versions"]()


@cache
def texts() -> dict[str, str]:
    """Rendered files by their path in clusters/; of the page by its path in the repository."""
    files: dict[Path, str] = renderer["rendered"]()
    return {
        str(path.relative_to(CLUSTERS if path.is_relative_to(CLUSTERS) else ROOT)): text for path, text in files.items()
    }


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(texts()[name]))


def document(name: str, kind: str, ending: str = "") -> dict[str, Any]:
    """The one object of a kind in a Kubernetes file, of several the one whose name ends so."""
    (found,) = (each for each in documents(name) if each["kind"] == kind and each["metadata"]["name"].endswith(ending))
    return found


def ray_cluster(name: str) -> dict[str, Any]:
    """The specification of the Ray cluster in a file."""
    spec = documents(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(node: Any, found: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Specifications of pods in an object, wherever they are, with the path to each."""
    if isinstance(node, Mapping):
        if "containers" in node:
            yield "/".join(found), dict(node)
        else:
            for key, value in node.items():
                yield from pods(value, (*found, str(key)))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from pods(value, (*found, str(number)))


def nightly_script() -> str:
    """What the nightly job's container runs."""
    (container,) = dict(pods(documents("kuberay/nightly.yaml")))["0/spec/jobTemplate/spec/template/spec"]["containers"]
    assert container["command"] == ["bash", "-c"]
    (script,) = container["args"]
    return script


def commands(text: str, program: str) -> list[list[str]]:
    """The words behind each call of a program, which is a regular expression, in a shell script, YAML or Markdown."""
    joined = re.sub(r"^#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    joined = re.sub(r"\$\(\([^()]*\)\)", "8", joined)  # arithmetic
    found = [match[1] for match in re.finditer(rf"(?<![\w/.-]){program}(?![\w-])([^\n#|`&>]*)", joined)]
    return [[word for word in shlex.split(words) if word not in ("...", "$@")] for words in found]


def _source(module: str) -> ast.Module:
    """Of a module of an installed package, which is not imported: Ray's takes seconds, and MLflow's too."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]).joinpath(*inner)
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def click_options(module: str, function: str, shared: str | None = None) -> frozenset[str]:
    """Options that a command of another package takes; `shared` is the module of decorators that have a name there."""
    (command,) = (
        node
        for node in ast.walk(_source(module))
        if isinstance(node, ast.FunctionDef) and node.name == function and node.decorator_list
    )
    used: list[ast.expr] = list(command.decorator_list)
    if shared is not None:
        names = {node.attr for node in used if isinstance(node, ast.Attribute)}
        used += [
            node.value
            for node in _source(shared).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names
        ]
    return frozenset(
        part
        for decorator in used
        for constant in ast.walk(decorator)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
        for part in constant.value.split("/")
        if part.startswith("--")
    )


def long_options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
