"""Option names of coast.py are an interface: users' scripts hold them."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.methods import METHODS
from pipelines.cli import parse
from pipelines.presets import DEFAULT_PRESET, FORMER, PRESETS

ROOT = Path(__file__).resolve().parents[2]
STABLE = (
    "--run-id",
    "--storage",
    "--seed",
    "--print-config",
    "--dry-run",
    "--debug",
    "--stream.name",
    "--stream.size",
    "--stream.order",
    "--backbone.name",
    "--backbone.dtype",
    "--training.epochs",
    "--training.updates-per-task",
    "--training.global-batch-size",
    "--training.micro-batch-size",
    "--training.zero-stage",
    "--training.checkpoint-every-updates",
    "--training.optimizer.learning-rate",
    "--evaluation.batch-size",
    "--evaluation.oracle-routing",
    "--cluster.num-workers",
    "--cluster.use-gpu",
    "--cluster.address",
    "--tracking.uri",
)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option that --help-all lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stop:
        parse([DEFAULT_PRESET, "--help-all"], program="coast.py", description="Learn a stream.")
    assert stop.value.code == 0
    return set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", text.getvalue()))


def test_stable_options_are_there(options: set[str]) -> None:
    assert set(STABLE) - options == set()


def test_the_documented_command_is_understood() -> None:
    arguments = ["pocket", "--run-id", "first", "--storage", "/data/runs", "--seed", "3", "--stream.order", "iconqa"]
    command = parse(arguments, program="coast.py", description="")
    assert (command.run.run_id, command.run.storage, command.run.seed) == ("first", Path("/data/runs"), 3)
    assert command.run.stream.order == ("iconqa",)
    assert command.run.backbone.name == "pocket"
    assert (command.dry_run, command.print_config, command.debug) == (False, False, False)


@pytest.mark.parametrize("spelled", [*METHODS, *(name.replace("_", "-") for name in METHODS if "_" in name)])
def test_methods_are_chosen_by_name(spelled: str) -> None:
    command = parse(["--method", spelled], program="coast.py", description="")
    assert command.run.method.name == spelled.replace("-", "_")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_configuration(name: str) -> None:
    command = parse([name, "--run-id", "x"], program="coast.py", description="")
    restored = type(command.run).from_json(command.run.to_json())
    assert restored.to_json() == command.run.to_json()
    assert (PRESETS[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", FORMER)
def test_a_former_preset_is_its_options_and_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    former = parse([name, "--seed", "1"], program="coast.py", description="").run
    options = f"coast-domain {FORMER[name]}"
    assert options in capsys.readouterr().err
    assert former == parse([*options.split(), "--seed", "1"], program="coast.py", description="").run


def test_a_mistyped_preset_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="Did you mean pocket"):
        parse(["poket"], program="coast.py", description="")


def test_a_commands_start_does_not_wait_for_a_model_library() -> None:
    commands = ", ".join(f"pipelines.{name}" for name in ("coast", "sweep", "report", "rescore"))
    code = f"import sys, {commands}; sys.exit('transformers' in sys.modules or 'deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


LARGE = {
    *("torch", "scipy", "matplotlib", "ray", "transformers", "mlflow", "deepspeed", "pandas", "sklearn", "plotly"),
    *("numpy", "pyarrow", "PIL", "rapidfuzz"),
}
NEEDED = {  # score matrices are of numpy, replies are in Parquet files, and metrics have libraries of their own
    **{name: {"numpy"} for name in ("report", "status", "list")},
    "judge": {"numpy", "pyarrow"},
    "rescore": {"numpy", "pyarrow", "PIL", "rapidfuzz"},
}
RECORDS = ("mini-coin/coin-lcia-s0.json", "mini-coin/coin-moelora-s0.json")


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("coast", "--help"),
        ("coast", "--help", "methods"),
        ("coast", "pocket", "--method", "lcia", "--print-config"),
        ("report", "--help"),
        ("report", *(str(ROOT / "docs/results" / each) for each in RECORDS)),
        ("report", str(ROOT / "docs/results" / RECORDS[0]), "--markdown"),
        ("status", "--storage", str(ROOT / "docs")),
        ("list", "--storage", str(ROOT / "docs")),
        ("methods", "--help"),
        ("judge", "--help"),
        ("rescore", "--help"),
    ],
    ids=" ".join,
)
def test_commands_that_only_read_json_start_without_the_large_libraries(words: tuple[str, ...]) -> None:
    code = (
        "import sys; from pipelines.littoral import main; sys.argv = ['littoral', *sys.argv[1:]]; code = main()\n"
        f"print('\\nimported:', *sorted({LARGE - NEEDED.get(words[0], set())} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "imported:"), done.stderr
