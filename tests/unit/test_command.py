"""What a user can get wrong: one clear sentence, a non-zero exit, no traceback, nothing half-written.

python -m pytest tests/unit/test_command.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from components.data.stream_config import StreamConfig
from components.runs import execute as recording
from components.training.config import RunConfig
from components.training.plan import plan_stream
from pipelines import coast
from pipelines.cli import parse
from pipelines.littoral import COMMANDS, guarded
from pipelines.presets import PRESETS
from pipelines.words import in_sentences

ROOT = Path(__file__).resolve().parents[2]


class Refusal:
    """Runs coast.py in this process and returns what it said when it refused."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        code = guarded(lambda: coast.main(arguments))
        said = self._capsys.readouterr()
        assert code == 1, said.out
        assert "still at it" not in [thread.name for thread in threading.enumerate()]  # it would go on printing
        return " ".join((said.err + said.out).split())


def test_output_that_nobody_reads_to_its_end() -> None:
    """As `coast.py --help | head -1` has it: no traceback."""
    talks = "import sys; from pipelines.littoral import guarded; sys.exit(guarded(lambda: print('line\\n' * 100_000)))"
    command = subprocess.Popen([sys.executable, "-c", talks], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "line\n"
    command.stdout.close()
    _, said = command.communicate(timeout=300)
    assert said == "stopped: the reader of this command's output closed it\n"
    assert command.returncode == 1


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("coast-domian", "--dry-run"), "Did you mean coast-domain?"),
        (("pocket", "--method", "continual-lava", "--dry-run"), "continual_llava"),
        (("pocket", "--method.rnk", "3", "--dry-run"), "--method.rnk"),
        (("pocket", "--method.top-m", "9", "--dry-run"), "top_m"),
        (("pocket", "--stream.order", "chartqa", "docqa", "--dry-run"), "docvqa"),
        (("pocket", "--stream.name", "mini-cost-domain", "--dry-run"), "mini-coast-domain"),
        (("pocket", "--stream.size", "huge", "--dry-run"), "nano"),
        (("pocket", "--run-id", "a/b", "--dry-run"), "run id"),
        (("pocket", "--training.epochs", "0", "--dry-run"), "training.epochs"),
        (
            ("pocket", "--training.global-batch-size", "7", "--cluster.num-workers", "2", "--dry-run"),
            "global_batch_size",
        ),
        (("pocket", "--training.global-batch-size", "128", "--dry-run"), "fewer training rows"),
        (("pocket", "--tracking.uri", "mlruns", "--dry-run"), "tracking.uri"),
        (("pocket", "--evaluation.beside-labels", "a=b", "--dry-run"), "beside_labels (a=b) names nodes for"),
    ],
)
def test_refused_before_anything_starts(
    refused: Refusal, arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert expected in refused(*arguments, "--storage", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_missing_field_of_a_stream_file(refused: Refusal, tmp_path: Path) -> None:
    stream = tmp_path / "stream.toml"
    stream.write_text('name = "mine"\n[[task]]\nname = "shop"\ntrain = "train.json"\n')
    message = refused("pocket", "--stream.name", str(stream), "--storage", str(tmp_path / "new"), "--dry-run")
    assert "shop" in message
    assert "test" in message


def test_a_changed_shard(refused: Refusal, tmp_path: Path) -> None:
    options = ("pocket", "--stream.data-dir", str(tmp_path / "data"), "--storage", str(tmp_path / "new"))
    options += ("--stream.order", "iconqa")
    arguments = parse(list(options), program="coast.py", description="")
    plan_stream(arguments.run.__class__(**{**vars(arguments.run), "run_id": "x"}))
    shard = next((tmp_path / "data").rglob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert shard.name in refused(*options, "--dry-run")


def test_unwritable_output(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "--storage" in refused("pocket", "--storage", str(tmp_path / "file"), "--run-id", "x")


def test_mlflow_unreachable(refused: Refusal, tmp_path: Path) -> None:
    arguments = ("pocket", "--storage", str(tmp_path), "--run-id", "x", "--tracking.uri", "http://127.0.0.1:9")
    assert "MLflow" in refused(*arguments)
    assert not (tmp_path / "x").exists()


def test_other_settings_under_the_same_id(refused: Refusal, tmp_path: Path) -> None:
    options = ["pocket", "--storage", str(tmp_path), "--run-id", "x"]
    config = parse(options, program="coast.py", description="").run
    recording.claim_run_dir(plan_stream(config))
    message = refused(*options, "--method.rank", "3", "--tracking.no-enabled")
    assert "method.rank = 8" in message
    assert "--run-id" in message


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_reloads_to_itself(name: str) -> None:
    config = parse([name, "--seed", "3", "--stream.order", "iconqa", "docvqa"], program="", description="").run
    assert config.stream.order == ("iconqa", "docvqa")
    reloaded = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert reloaded.to_json() == config.to_json()
    assert reloaded.stream == StreamConfig(**{**vars(config.stream)})


def test_an_older_file_keeps_what_the_method_did_then() -> None:
    """Files without a rate of the scalars' own were run at the run's rate."""
    plain = parse(["coast-domain"], program="", description="").run.to_json()
    method = plain["method"]
    assert isinstance(method, dict)
    assert method.pop("contextual_learning_rate") == 0.05
    assert RunConfig.from_json(plain).method.options()["contextual_learning_rate"] is None


def test_the_learning_rate_follows_the_method() -> None:
    continual = parse(["coast-domain"], program="", description="").run
    sequential = parse(["coast-domain", "--method", "sequential-lora"], program="", description="").run
    assert continual.optimizer.learning_rate == continual.method.default_learning_rate
    assert (
        sequential.optimizer.learning_rate
        == sequential.method.default_learning_rate
        != continual.optimizer.learning_rate
    )


def outside(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command as a user starts it: from any folder, Littoral neither installed nor on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_script_runs_its_own_checkout_beside_an_installed_copy(tmp_path: Path) -> None:
    for name in ("components", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the other copy')")
    done = outside(str(ROOT / "pipelines" / "rescore.py"), "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_options_and_wrong_names_have_the_same_exit_code(tmp_path: Path) -> None:
    script = str(ROOT / "pipelines" / "rescore.py")
    option = outside(script, "--predictoins", "x", cwd=tmp_path)
    name = outside(script, "--task", "nonesuch", "--predictions", "x", cwd=tmp_path)
    command = outside(str(ROOT / "pipelines" / "littoral.py"), "rescor", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert [done.returncode for done in (option, name, command)] == [1, 1, 1]
    assert "Did you mean rescore?" in command.stderr
    assert all("Traceback" not in done.stderr for done in (option, name, command))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "list s3://bucket/runs",
            "does not know what 's3://bucket/runs' is for; `coast.py --help` shows what it takes. "
            "A storage is given as --storage s3://bucket/runs.",
        ),
        ("methods lcia", "does not know what 'lcia' is for; `coast.py --help` shows what it takes."),
        ("status first second", "does not know what 'second' is for"),
        ("coast pocket docs", "A storage is given as --storage docs."),
        ("coast pocket --dry-run=5", "does not know what '5' is for; `coast.py --help` shows what it takes.\n"),
        ("export", "error: RUN, --to and --out must be given; `export.py --help-all` says what there is.\n"),
        ("export runs/first --to zip --out x", "--to is 'zip', and can be peft, merged or bundle;"),
        ("coast pocket --seed", "--seed needs a value behind it;"),
        ("coast pocket --seed 1.5", "--seed is '1.5'; give a whole number;"),
        ("coast pocket --evaluation.limit few", "--evaluation.limit is 'few'; give a whole number;"),
        ("coast pocket --training.optimizer.learning-rate fast", "learning-rate is 'fast'; give a number;"),
        ("serve runs/first --port web", "--port is 'web'; give a whole number;"),
        ("coast pocket --stream.nam=x", "has no option --stream.nam;"),
        ("coast pocket --rank 4", "Did you mean --method.rank?"),
        (f"report {'x' * 300}", "xxx'... is too long a name; give a shorter one."),
        (f"sweep --storage {'x' * 300} --dry-run", "xxx'... is too long a name"),
        ("list --jsn", "`coast.py --help-all` shows all that it has. Did you mean --json?"),
        ("coast s3://bucket/runs", "s3://bucket/runs is a place and no preset; give a storage as --storage s3://"),
        ("sweep --evaluation.beside-labels a=b", "evaluation.beside_labels (a=b) names nodes for"),
        ("sweep components", "components is a place and no preset; give a storage as --storage components"),
    ],
)
def test_a_word_that_a_command_does_not_know_is_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command, *rest = words.split()
    assert guarded(lambda: import_module(f"pipelines.{command}").main(rest)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence.replace("coast.py", f"{command}.py") in said
    assert said.count("\n") == 1


def test_without_tyros_hook_its_own_box_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("tyro._errors.on_parse_error")
    assert guarded(lambda: coast.main(["pocket", "--seed", "few"])) == 1
    said = capsys.readouterr().err
    assert "Error parsing --seed: invalid literal for int() with base 10: 'few'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["MissingArgs", "InvalidChoice", "BadValue", "InstantiationFailure"])
def test_what_tyro_tells_in_other_fields_is_left_to_it(kind: str) -> None:
    with in_sentences("coast.py"):
        tyro._errors._fire(type(kind, (), {})())  # returns: then tyro prints its box


def test_the_list_of_commands_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.littoral import COMMANDS, guarded, show_commands; guarded(show_commands); "
        "sys.exit(bool({'torch', 'tyro', 'ray', 'numpy'} & set(sys.modules)))"
    )
    done = outside("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT), COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert all(f"  {name.replace('_', '-')} " in done.stdout for name in COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_ctrl_c_during_imports_is_one_sentence_even_where_a_library_swallows_it(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    done = outside(str(ROOT / "pipelines" / "rescore.py"), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing was begun\n")


def test_ctrl_c_during_a_command_says_how_to_go_on(tmp_path: Path) -> None:
    code = (
        "import importlib, os, signal, sys, time, types; from pipelines import littoral\n"
        "stopped = lambda arguments: os.kill(os.getpid(), signal.SIGINT) or time.sleep(60)\n"
        "importlib.import_module = lambda name: types.SimpleNamespace(main=stopped)\n"
        "sys.exit(littoral.run('sweep', []))"
    )
    done = outside("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    said = "interrupted: run the same command with the same --sweep-id to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)
