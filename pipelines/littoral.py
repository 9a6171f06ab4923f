"""The `littoral` command, and the door that every command goes through: imports, errors, Ctrl-C and closed pipes.

    littoral COMMAND [ARGUMENTS ...]               once installed, from any folder
    python pipelines/COMMAND.py [ARGUMENTS ...]    this checkout's code, whatever else is installed

Exit codes: 0 when all went well, 1 after an error (one sentence on stderr), 130 after Ctrl-C, 143 after SIGTERM.

Light on purpose: it imports the standard library alone, so that Ctrl-C is handled before the long imports begin and
`littoral --help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import NoReturn, TypeVar

from components.core.errors import ConfigError, LittoralError, Terminated
from components.core.job import submission_id
from components.core.runtime import fast_imports, print_anything
from components.core.secrets import without_secrets
from components.core.visible import print_text, visible

ENDINGS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # unless ignored, as below nohup
AFTER_SIGNALS = {128 + number for number in ENDINGS}
STORE_THREADS = {"activity", "lock", "stop"}  # those of components/ that write to or look into a store
OptionsT = TypeVar("OptionsT")
HERE = Path(__file__).resolve().parent
COMMANDS = {  # modules of this folder, and what to do after Ctrl-C
    "coast": "run the same command with the same --run-id to continue",
    "sweep": "run the same command with the same --sweep-id to continue",
    "list": "run the same command again",
    "status": "run the same command again",
    "prepare": "nothing half-written is left; run the same command again",
    "report": "run the same command again",
    "judge": "run the same command again; it keeps the verdicts that it has",
    "rescore": "run the same command again",
    "export": "nothing half-written is left; run the same command again",
    "serve": "requests that were inside were answered; run the same command again to serve",
    "nightly": "run the same command again; it continues, and nothing in production has changed",
    "unlearn": "run the same command again; it continues",
    "methods": "run the same command again",
    "train_projector": "the projector file holds the state at the last held-out figures",
    "completion": "run the same command again",
}


def main() -> int:
    """The console script `littoral`."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        return guarded(show_commands)
    if name in ("-V", "--version"):
        return guarded(show_version)
    return run(name.replace("-", "_"), rest)


def run(name: str, arguments: Sequence[str] | None = None) -> int:
    """Import the command `name`, run its `main` on `arguments` (default: those of the process); the exit code.

    While libraries are imported, Ctrl-C and SIGTERM end the process on the spot: nothing was begun, and an exception
    that is raised inside somebody's import may be swallowed there.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    caught = [number for number, default in ENDINGS.items() if signal.getsignal(number) is default]
    for number in caught:
        signal.signal(number, _nothing_begun)

    def imported_and_run() -> int:
        command = _import(name)
        for number in caught:
            signal.signal(number, _interrupt)
        return command(given)

    try:
        code = guarded(imported_and_run, after_interrupt=COMMANDS.get(name, ""))
    finally:
        for number in caught:  # libraries shut down after this, and their tracebacks would follow a second Ctrl-C
            signal.signal(number, signal.SIG_DFL)
    if code in AFTER_SIGNALS or _asks_a_store():
        _leave(code)
    return code


def guarded(main: Callable[[], int], *, after_interrupt: str = COMMANDS["coast"]) -> int:
    """Run `main`; an error a user can act on becomes one sentence on stderr. Returns the exit code."""
    print_anything()
    atexit.register(gc.freeze)  # the interpreter's last collection would look through all libraries for seconds
    debug = "--debug" in sys.argv
    lines = logging.StreamHandler()
    lines.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("littoral").setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        try:
            code = main()
        except SystemExit as stop:  # tyro's way out: 0 after --help, 2 after an option that it does not know
            code = 1 if stop.code else 0
            if isinstance(stop.code, str):
                print_text(stop.code, to=sys.stderr)
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last moments
        return code
    except LittoralError as error:
        if debug:
            raise
        print_text(f"error: {without_secrets(str(error))}", to=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head`, for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the rest is flushed into the pipe at exit
        print_text("stopped: the reader of this command's output closed it", to=sys.stderr)
        return 1
    except OSError as error:
        if debug or error.errno != errno.ENAMETOOLONG:
            raise
        name = max(Path(str(error.filename)).parts, key=len, default="")
        print_text(f"error: {name[:40]!r}... is too long a name; give a shorter one.", to=sys.stderr)
        return 1
    except KeyboardInterrupt as end:
        terminated = isinstance(end, Terminated)
        job = submission_id()  # a cluster takes an id once
        other = f"; as a job under another submission id than {job}" if job and "--run-id" in after_interrupt else ""
        print_text(f"{'terminated' if terminated else 'interrupted'}: {after_interrupt}{other}", to=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


class LineFormatter(logging.Formatter):
    """Lines of a log, neutralised and without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(without_secrets(super().format(record)))


def program(name: str) -> str:
    """How the command `name` was called, for its own help: `littoral coast` or `coast.py`."""
    return f"littoral {name.replace('_', '-')}" if Path(sys.argv[0]).stem == "littoral" else f"{name}.py"


def read_options(
    kind: type[OptionsT],
    arguments: Sequence[str],
    *,
    name: str,
    description: str | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> OptionsT:
    """The options of a command as its dataclass `kind`; `description`: its module's docstring.

    `renamed`: options by the names that they had in the last release; such a name works, with a note on stderr.
    """
    import tyro

    from components.console.tables import wrapped
    from components.core.options import require_paths
    from pipelines.words import in_sentences, understood

    given = ["--help" if argument == "--help-all" else argument for argument in arguments]
    for place, argument in enumerate(given):
        old, equals, value = argument.partition("=")
        if old in renamed:
            print_text(f"Note: {old} is {renamed[old]} now; the old name goes with the next release", to=sys.stderr)
            given[place] = f"{renamed[old]}{equals}{value}"
    paragraphs = [part if part.startswith(" ") else wrapped(part) for part in (description or "").split("\n\n")]
    called = program(name)
    about = "\n\n".join(paragraphs)
    with in_sentences(called):
        parsed = tyro.cli(kind, prog=called, description=about, args=given, return_unknown_args=True)
    options = understood(*parsed, called=called)
    require_paths(options)
    return options


def show_commands() -> int:
    """Every command with the first sentence of its module."""
    from components.console.tables import listed

    print_text("usage: littoral COMMAND [ARGUMENTS ...]\n\nMultimodal continual instruction tuning.\n\nCommands:")
    print_text(listed({name.replace("_", "-"): summary(name) for name in COMMANDS}))
    print_text("\nMore: littoral COMMAND --help, littoral --version")
    return 0


def summary(name: str) -> str:
    """The first sentence of a command's docstring, read without importing it."""
    import ast

    said = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    sentence = " ".join(said.partition("\n\n")[0].split()).partition(". ")[0]
    return sentence.rstrip(".")


def show_version() -> int:
    """The version, and the folder that the code is imported from."""
    from importlib import metadata

    try:
        version = metadata.version("littoral")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    print_text(f"littoral {version} from {HERE.parent}")
    return 0


def _import(name: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a command; raises `ConfigError` where there is none or where its libraries cannot be loaded."""
    if name not in COMMANDS:
        from components.core.options import suggest

        known, given = [command.replace("_", "-") for command in COMMANDS], name.replace("_", "-")
        raise ConfigError(f"unknown command {given!r}; there are {', '.join(known)}.{suggest(given, known)}")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.home() raises instead
        raise ConfigError(
            "this process has no home folder (HOME is not set, and its user is in no list); set HOME to a folder that "
            "can be written, such as HOME=/tmp/home."
        )
    import components

    if Path(components.__path__[0]).resolve().parent != HERE.parent:
        raise ConfigError(
            f"the command is {HERE / name}.py, but `components` is imported from {components.__path__[0]}; remove the "
            "other copy from PYTHONPATH, or uninstall it."
        )
    if (HERE.parent / "pyproject.toml").is_file():
        # For Ray's workers on this machine, which would otherwise import an installed copy, or find none.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    with importing():
        importlib.import_module("tyro")  # what `read_options` needs
        return importlib.import_module(f"pipelines.{name}").main


@contextmanager
def importing() -> Iterator[None]:
    """Imports in here are quick, end at once at a signal, and fail with a sentence.

    A command's module imports at its top what reading its arguments needs, and in its `main`, inside this, the large
    libraries of the work itself. So help, configurations and mistyped options come in half a second. Raises
    `ConfigError` where a library cannot be loaded.
    """
    caught = [number for number in ENDINGS if signal.getsignal(number) is _interrupt]
    for number in caught:
        signal.signal(number, _nothing_begun)
    try:
        with fast_imports():
            yield
    except ModuleNotFoundError as error:
        if "--debug" in sys.argv:
            raise
        raise ConfigError(f"a library is missing ({error}); install what Littoral needs: pip install -e .") from error
    except (RuntimeError, OSError) as error:  # several ask for a home folder or a temporary one when imported
        if "--debug" in sys.argv:
            raise
        said = " ".join(str(error).split())
        raise ConfigError(f"the libraries cannot be loaded ({said}); look at HOME and TMPDIR.") from error
    finally:
        for number in caught:
            signal.signal(number, _interrupt)


def _asks_a_store() -> bool:
    """Whether a thread still waits for a store that does not answer: pyarrow would wait for it at the end, for ever."""
    waiting = any(thread.name in STORE_THREADS for thread in threading.enumerate())
    finalize = getattr(sys.modules.get("pyarrow.fs"), "ensure_s3_finalized", None)
    if waiting and finalize is not None:
        atexit.unregister(finalize)
    return waiting


def _leave(code: int) -> NoReturn:
    """End without waiting for threads: one may wait for a server, or be inside a Ray that is no longer there."""
    with suppress(OSError):
        sys.stdout.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _nothing_begun(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"%s: nothing was begun\n" % (b"terminated" if signum == signal.SIGTERM else b"interrupted"))
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if _in_lock_of_logging(frame):
        again = threading.Timer(0.02, signal.pthread_kill, [threading.main_thread().ident, signum])
        again.daemon = True
        again.start()
        return
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


def _in_lock_of_logging(frame: FrameType | None) -> bool:
    """Whether logging takes or gives back its lock just now, as it does around every fork.

    An exception would be swallowed there, and the lock stay held: every later line of the log would wait for ever.
    """
    while frame is not None:
        if frame.f_code.co_filename == logging.__file__ and frame.f_code.co_name in ("_acquireLock", "_releaseLock"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    sys.exit(main())
