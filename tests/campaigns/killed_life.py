"""One run's life in the kill campaign: it is killed at several points, and started again until it ends with 0."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil
from run_processes import Leftovers, descendants, end_with_parent, of_part, own_children, send
from run_view import View, different, final_bits, last_word, statuses, updates_made

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chartqa", "docvqa")
EVERY = 4  # updates between checkpoints
OPTIONS = ("pocket", "--stream.order", *TASKS, "--training.epochs", "6", "--evaluation.suites", "mini-constraints")
OPTIONS += ("--training.checkpoint-every-updates", str(EVERY))
ALIVE_S = 120.0  # a driver that is neither gone nor going on so long after a kill hangs
LEFT_S = 180.0  # after a kill, for all of its processes
STILL_S = 300.0  # without a sign of life where nothing was killed
WHOLE = ("driver", "group", "all")  # kills that the driver cannot survive
EARLY = ("imports", "preparation", "Ray starts", "worker starts")  # points of every start
DELAYS_S = {  # how long after its beginning a point may be hit, from and to
    "imports": (0.5, 4.0),
    "preparation": (0.0, 2.0),
    "Ray starts": (0.0, 6.0),
    "worker starts": (0.0, 8.0),
    "zero-shot": (0.0, 0.5),
    "task": (0.0, 2.5),
    "checkpoint": (0.0, 0.12),
    "scoring": (0.0, 0.8),
    "MLflow": (0.0, 0.3),
    "end": (0.0, 4.0),
}
Log = Callable[[dict[str, object]], None]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """`phase`: a name of `DELAYS_S`, with the task's number where it has one. `part`: see `run_processes`."""

    phase: str
    part: str
    signal: str
    delay_s: float

    @property
    def kind(self) -> str:
        return self.phase.rstrip(" 0123456789")

    @property
    def task(self) -> int:
        digits = self.phase.removeprefix(self.kind).strip()
        return int(digits) if digits else 0


@dataclass
class Life:
    """A run from its first start to its exit code 0. `base`: what an undisturbed run ended with; None for that one."""

    name: str
    method: str
    folder: Path  # holds the runs
    cache: Path
    log: Log
    leftovers: Leftovers
    base: Mapping[str, str] | None = None
    bits: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    started: int = 0
    _last: dict[str, object] | None = None  # the last kill of this start, not yet written down

    @property
    def run_dir(self) -> Path:
        return self.folder / self.name

    def live(self, kills: list[Kill], until: float) -> None:
        """Kill and start again until exit code 0; no kill any more after `until`, in seconds of the monotonic clock."""
        pending, by_itself, began = list(kills), 0, time.monotonic()
        most_lost = 0
        while True:
            if time.monotonic() > until:
                pending.clear()
            made = updates_made(self.run_dir)
            view, code, killed = self._start(pending)
            place = self._place(view)
            if place is not None and made is not None:
                most_lost = max(most_lost, sum(position > place for position in set(made)))
            if code == 0:
                break
            if not killed:
                by_itself += 1
                self._fail("cannot be continued", code=code, said=view.complaints()[-1:])
                if by_itself == 3:
                    break
        for kill in pending:
            self.log({"kind": "missed", "life": self.name, **asdict(kill)})
        made = updates_made(self.run_dir)
        lost = None if made is None else len(made) - len(set(made))
        self._end(code, seconds=time.monotonic() - began, lost=lost, most_lost=most_lost)

    def _end(self, code: int, *, seconds: float, lost: int | None, most_lost: int) -> None:
        wrong: list[str] = []
        found: list[str] = []
        if code == 0:
            self.bits = final_bits(self.run_dir)
            wrong = [] if self.base is None else different(self.base, self.bits)
            found = statuses(self.folder, self.run_dir)
            if wrong:
                self._fail("final bits differ", files=wrong)
            if set(found) != {"FINISHED"} or len(found) != 1 + len(TASKS):
                self._fail("MLflow's record is not whole", statuses=found)
        facts = {"life": self.name, "method": self.method, "code": code, "starts": self.started, "seconds": seconds}
        facts |= {"updates_lost": lost, "most_lost": most_lost, "identical": code == 0 and not wrong}
        self.log({"kind": "life", **facts, "bits": self.bits if self.base is None else {}})

    def _start(self, pending: list[Kill]) -> tuple[View, int, bool]:
        """One start of the command until it ends. Whether it was killed, and by the last of these kills ended."""
        self.started += 1
        stem = self.folder / "said" / f"{self.name}-{self.started}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        view = View(self.run_dir, stem.with_suffix(".out"), stem.with_suffix(".err"))
        floor = view.registered()
        began = time.monotonic()
        with view.out.open("wb") as out, view.err.open("wb") as err:
            driver = subprocess.Popen(
                self._command(),
                cwd=ROOT,
                env={**os.environ, "LITTORAL_CACHE": str(self.cache), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        own_children.add(driver.pid)
        killed_at = 0.0
        try:
            killed_at = self._follow(driver, view, pending, began)
        finally:
            if driver.poll() is None:
                send(signal.SIGKILL, self.leftovers.others())
                driver.wait()
            own_children.discard(driver.pid)
            self.leftovers.watch(stem.name, killed_at or time.monotonic())
        code = driver.returncode
        blamed = self._last is not None and time.monotonic() - killed_at < ALIVE_S
        self._note_kill(view, code)
        place = self._place(view)
        if floor is not None and place is not None and place < floor:
            self._fail("went back", registered=floor, continued=place)
        return view, code, blamed

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "pipelines/coast.py", *OPTIONS, "--method", self.method),
            *("--storage", str(self.folder), "--run-id", self.name),
        ]

    def _follow(self, driver: subprocess.Popen[bytes], view: View, pending: list[Kill], began: float) -> float:
        """Wait for the driver's end and kill meanwhile; when the last kill was, or 0."""
        killed_at, moved_at, before, looked = 0.0, began, view.progress(), began
        while driver.poll() is None:
            now = time.monotonic()
            if now - looked > 2.0:
                looked, after = now, view.progress()
                if after != before:
                    before, moved_at = after, now
                elif now - max(moved_at, killed_at) > STILL_S:
                    self._fail("stands still without a kill", said=view.complaints()[-1:])
                    send(signal.SIGKILL, self.leftovers.others())
                for left in self.leftovers.gone():
                    self.note_left(left)
            if pending and pending[0].kind in EARLY and view.at_work():
                pending.append(pending.pop(0))  # at another start
            elif pending and _passed(pending[0], view):
                self.log({"kind": "missed", "life": self.name, **asdict(pending.pop(0))})
            elif pending and self._reached(pending[0], view, began):
                self._note_kill(view, None)
                kill = pending.pop(0)
                time.sleep(max(0.0, kill.delay_s - (time.monotonic() - began if kill.kind == "imports" else 0.0)))
                if driver.poll() is not None:
                    self.log({"kind": "missed", "life": self.name, **asdict(kill)})
                    break
                killed_at = self._kill(driver, view, kill)
                before = view.progress()
                moved_at = time.monotonic()
            # Looking through all processes takes time that the run would have.
            time.sleep(0.25 if pending and pending[0].kind in ("Ray starts", "worker starts") else 0.02)
        return killed_at

    def _reached(self, kill: Kill, view: View, began: float) -> bool:
        said = view.said()
        match kill.kind:
            case "imports":
                return True
            case "preparation":
                return self.cache.is_dir() and any(self.cache.iterdir())
            case "Ray starts":
                return bool(of_part("gcs", self.leftovers.others()))
            case "worker starts":
                return bool(of_part("worker", self.leftovers.others()))
            case "zero-shot":
                return "scoring before training" in said
            case "task":
                return f"Task {kill.task}/" in said
            case "checkpoint":
                return f"Task {kill.task}/" in said and bool(view.checkpoints() - view.known_checkpoints)
            case "scoring":
                return view.learned() >= kill.task and view.at_work()
            case "MLflow":
                return view.rows() > kill.task
            case _:
                return view.rows() > len(TASKS)

    def _kill(self, driver: subprocess.Popen[bytes], view: View, kill: Kill) -> float:
        """Send the signal and wait until the driver has ended or goes on."""
        others, part = self.leftovers.others(), kill.part
        targets = [psutil.Process(driver.pid)] if part in ("driver", "group") else others
        if part not in WHOLE and not (targets := of_part(part, others)):
            kill = replace(kill, part="driver")  # there is no such process at this moment
            targets = [psutil.Process(driver.pid)]
        number = signal.Signals[kill.signal]
        before, registered = view.progress(), view.registered()
        at = time.monotonic()
        if kill.part == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, number)
            reached = 1
        else:
            reached = send(number, targets)
        self._last = {**asdict(kill), "reached": reached, "registered": registered}
        while driver.poll() is None and time.monotonic() - at < ALIVE_S:
            time.sleep(0.05)
            if kill.part in WHOLE or time.monotonic() - at < 1.5:
                continue
            if "going_on_s" not in self._last and view.progress() != before:
                before = view.progress() if time.monotonic() - at < 3.0 else before
                if time.monotonic() - at >= 3.0:  # before that it may be what was on its way
                    self._last["going_on_s"] = time.monotonic() - at
                    break
        self._last["driver_s"] = time.monotonic() - at
        if driver.poll() is None and "going_on_s" not in self._last:
            self._fail("driver alive after the kill", **asdict(kill))
            send(signal.SIGKILL, self.leftovers.others())
            driver.wait()
            self._last["hung"] = True
        return at

    def _note_kill(self, view: View, code: int | None) -> None:
        """Write down the last kill, once it is known how the driver took it; `code` None: it goes on."""
        if self._last is None:
            return
        kill, self._last = self._last, None
        lines = view.complaints()
        silent = kill["signal"] == "SIGKILL" and kill["part"] in ("driver", "all")
        word = "went on" if code in (None, 0) else "killed" if silent or kill.get("hung") else last_word(lines)
        traces = sum("Traceback (most recent call last)" in line for line in lines)
        last = lines[-1].replace(str(self.folder), "STORAGE").replace(str(ROOT), ".")[:300] if lines else ""
        facts = {"code": code, "word": word, "tracebacks": traces, "lines": len(lines), "last": last}
        self.log({"kind": "kill", "life": self.name, "start": self.started, **kill, **facts})
        if word in ("a traceback", "a table"):
            self._fail(f"{word} as the last word", phase=kill["phase"], part=kill["part"], said=last)

    def _place(self, view: View) -> tuple[int, int] | None:
        """Where this start went on from; None where its workers did not get so far."""
        return view.continued_at() if view.at_work() else None

    def note_left(self, left: object) -> None:
        """Write down that nothing, or something, was left of a start."""
        facts = vars(left)
        self.log({"kind": "left", **{**facts, "titles": list(facts["titles"])}})
        if facts["titles"]:
            self._fail("processes left over", **facts)

    def _fail(self, what: str, **facts: object) -> None:
        self.failures.append(what)
        self.log({"kind": "failure", "life": self.name, "start": self.started, "what": what, **facts})


def _passed(kill: Kill, view: View) -> bool:
    """Whether the run is beyond the point, so that this start cannot meet it any more."""
    match kill.kind:
        case "preparation":
            return "stream:" in view.said()
        case "zero-shot":
            return view.rows() > 0
        case "task" | "checkpoint":
            return view.learned() >= kill.task
        case "scoring":
            return view.rows() > kill.task
        case "MLflow":
            return view.known_rows > kill.task
        case "end":
            return view.finished()
        case _:
            return False


def wait_for_leftovers(life: Life) -> None:
    """Until nothing is left of any start, or for too long."""
    while life.leftovers.some:
        for left in life.leftovers.gone():
            life.note_left(left)
        time.sleep(0.5)
    descendants()
