"""Commands as a person pastes them: quoted for the shell, and run by the environment that Littoral runs in."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import components


def command_line(program: str, *arguments: object) -> str:
    """One line for a POSIX shell: every part quoted where it must be."""
    return shlex.join([program, *map(str, arguments)])


def pipeline_command(script: str, *arguments: object) -> str:
    """The line that runs pipelines/`script` from the present folder, with this interpreter or with `littoral`, as now.

    `pipeline_command("coast.py", "--stream.name", Path("/my data"))` ->
    `.venv/bin/python pipelines/coast.py --stream.name '/my data'`, or `littoral coast --stream.name '/my data'`.
    """
    if Path(sys.argv[0]).stem == "littoral":
        return tool_command("littoral", script.removesuffix(".py").replace("_", "-"), *arguments)
    return command_line(python(), _from_here(_root() / "pipelines" / script), *arguments)


def tool_command(name: str, *arguments: object) -> str:
    """The line that runs a command that was installed beside this interpreter, such as `mlflow` or `ray`."""
    return command_line(_program(name), *arguments)


def python() -> str:
    """This interpreter: `python` where the shell finds it so, else its path, as short as the present folder allows."""
    return _program("python")


def _program(name: str) -> str:
    """A program of this environment: its bare name where PATH finds it, or where it is installed elsewhere."""
    if not sys.executable:
        return name
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and Path(found).parent.resolve() == beside.parent.resolve():
        return name
    if name == "python" and not beside.exists():  # python3.11 alone, for one
        beside = Path(sys.executable)
    return _from_here(beside) if beside.exists() else name


def _root() -> Path:
    return Path(components.__path__[0]).resolve().parent


def _from_here(path: Path) -> str:
    """Relative to the present folder for a path inside it. Links are not resolved: a venv's python is one."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
