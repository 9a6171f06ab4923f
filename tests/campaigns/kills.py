"""The kill campaign: runs are killed at every stage, again and again, and must end with an undisturbed run's bits.

    python tests/campaigns/kills.py --kills 60 --seed 0                   about 40 minutes of two quiet cores
    python tests/campaigns/kills.py --kills 60 --seed 0 --minutes 20      stop after 20; the same command goes on

Stages, processes and signals are drawn from the seed. Each run is killed several times in its life and started again
by the same command until it ends with exit code 0. Exit code 1 when one of these happened: final bits differ; a run
cannot be continued or goes on from an older checkpoint than the newest; a traceback or a table is the last thing that
is said; a driver is still there 120 s after a kill and does not go on; processes are left after 180 s; the MLflow run
is not whole. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from killed_life import DELAYS_S, EARLY, LEFT_S, TASKS, Kill, Life, wait_for_leftovers
from run_processes import Leftovers, adopt_orphans

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("sequential_lora", "lcia", "continual_llava")
PER_LIFE = 6
STAGES = (
    *("imports", "preparation", "Ray starts", "worker starts", "zero-shot"),
    *(f"{kind} {task}" for task in range(1, len(TASKS) + 1) for kind in ("task", "checkpoint", "scoring", "MLflow")),
    "end",
)
Card = TypeVar("Card")
ALONE = ("driver", "group", "all")  # parts that there are before Ray has started
STARTING = (*ALONE, "raylet", "gcs")
PARTS = (*STARTING, "worker", "data", "controller", "mailbox")
WAYS = (
    *(("driver", "SIGKILL"), ("driver", "SIGTERM"), ("driver", "SIGINT"), ("group", "SIGINT"), ("group", "SIGTERM")),
    *(("all", "SIGKILL"), ("worker", "SIGKILL"), ("worker", "SIGTERM"), ("data", "SIGKILL"), ("mailbox", "SIGKILL")),
    *(("controller", "SIGKILL"), ("raylet", "SIGKILL"), ("raylet", "SIGTERM"), ("gcs", "SIGKILL")),
)


def planned(seed: int, life: int, count: int = PER_LIFE) -> list[Kill]:
    """The kills of one life, in the order of the run; over all lives every stage and every way comes equally often."""
    draw = random.Random(f"{seed} {life}")
    stages, ways = _dealt(seed, life, count, STAGES), _dealt(seed, life, count, WAYS)
    kills = [_kill(stage, way, draw) for stage, way in zip(stages, ways, strict=True)]
    ordered = sorted((kill for kill in kills if kill.kind not in EARLY), key=lambda kill: STAGES.index(kill.phase))
    for kill in (kill for kill in kills if kill.kind in EARLY):  # at any start
        ordered.insert(draw.randint(0, len(ordered)), kill)
    return sorted(ordered, key=lambda kill: kill.kind != "preparation")  # at the first start alone


def _dealt(seed: int, life: int, count: int, cards: tuple[Card, ...]) -> list[Card]:
    """The cards of this life, when a deck that is shuffled anew at its end goes around."""
    first = life * count
    decks = range((first + count) // len(cards) + 1)
    dealt = [card for deck in decks for card in random.Random(f"{seed} {cards[0]} {deck}").sample(cards, len(cards))]
    return dealt[first : first + count]


def _kill(stage: str, way: tuple[str, str], draw: random.Random) -> Kill:
    there = ALONE if stage in STAGES[:2] else STARTING if stage == "Ray starts" else PARTS
    part, number = way if way[0] in there else draw.choice([way for way in WAYS if way[0] in there])
    kind = stage.rstrip(" 0123456789")
    return Kill(phase=stage, part=part, signal=number, delay_s=round(draw.uniform(*DELAYS_S[kind]), 3))


class Campaign:
    """Lives one after another, written down in a file as they happen, so that the same command goes on."""

    def __init__(self, folder: Path, seed: int, methods: tuple[str, ...], until: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed, self.methods, self.until = folder.resolve(), seed, methods, until
        self.written = self.folder / "record.jsonl"
        lines = self.written.read_text(encoding="utf-8").splitlines() if self.written.is_file() else []
        self.events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.leftovers = Leftovers(LEFT_S)

    def log(self, event: dict[str, object]) -> None:
        self.events.append(event)
        with self.written.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        if event["kind"] != "left" or event["titles"]:
            shown = {name: value for name, value in event.items() if name not in ("bits", "delay_s", "reached")}
            print("  ".join(f"{name} {_short(value)}" for name, value in shown.items()), flush=True)

    def of(self, kind: str, life: str | None = None) -> list[dict[str, Any]]:
        return [each for each in self.events if each["kind"] == kind and life in (None, each.get("life"))]

    def run(self, kills: int) -> bool:
        """Go on until there were so many kills; whether there was time for all of them."""
        number = 0
        while len(self.of("kill")) < kills:
            method = self.methods[number % len(self.methods)]
            name = f"life-{number}-{method}"
            if not self.of("life", name):
                if time.monotonic() > self.until:
                    return False
                self._live(name, method, number, kills)
            number += 1
        return True

    def _live(self, name: str, method: str, number: int, kills: int) -> None:
        base = self._base(method)
        plan = planned(self.seed, number)
        done = len(self.of("kill", name)) + len(self.of("missed", name))
        pending = plan[done:][: kills - len(self.of("kill"))]
        own = any(kill.kind == "preparation" for kill in plan)
        life = self._life(name, method, self.folder / (f"cache-{name}" if own else "cache"), base)
        life.started = len(list((self.folder / "said").glob(f"{name}-*.out")))
        life.live(pending, self.until)

    def _base(self, method: str) -> dict[str, str]:
        name = f"base-{method}"
        if not self.of("life", name):
            self._life(name, method, self.folder / "cache", None).live([], self.until)
        (done,) = self.of("life", name)
        if not done["bits"]:
            sys.exit(f"the undisturbed run of {method} ended with {done['code']}; look into {self.folder / 'said'}")
        return done["bits"]

    def _life(self, name: str, method: str, cache: Path, base: dict[str, str] | None) -> Life:
        return Life(name, method, self.folder, cache, self.log, self.leftovers, base)

    def end(self) -> None:
        """Wait for what is still left over."""
        wait_for_leftovers(self._life("end", self.methods[0], self.folder / "cache", None))

    def summary(self) -> dict[str, object]:
        """Figures of the whole campaign."""
        kills, lives = self.of("kill"), [life for life in self.of("life") if not life["life"].startswith("base")]
        failures = Counter(str(failure["what"]) for failure in self.of("failure"))
        ended = [float(kill["driver_s"]) for kill in kills if kill["word"] not in ("killed", "went on")]
        return {
            "kills": len(kills),
            "missed": len(self.of("missed")),
            "lives": len(lives),
            "resumed": len(kills) - failures["cannot be continued"],
            "identical": f"{sum(life['identical'] for life in lives)} of {len(lives)}",
            "updates_lost": sum(life["updates_lost"] or 0 for life in lives),
            "most_updates_lost_by_a_kill": max((life["most_lost"] for life in lives), default=0),
            "seconds": round(sum(life["seconds"] for life in self.of("life"))),
            "driver_seconds_median_and_most": [round(statistics.median(ended), 1), round(max(ended), 1)]
            if ended
            else [],
            "longest_left_over_seconds": round(max((left["seconds"] for left in self.of("left")), default=0.0)),
            "last_words": dict(Counter(str(kill["word"]) for kill in kills)),
            "tracebacks": sum(kill["tracebacks"] for kill in kills),
            "failures": dict(failures),
        }

    def record(self) -> dict[str, object]:
        """What is kept of it: the figures, and every kill."""
        names = (
            "life",
            "phase",
            "part",
            "signal",
            "delay_s",
            "reached",
            "registered",
            "driver_s",
            "going_on_s",
            "code",
        )
        shown = [{name: kill.get(name) for name in (*names, "word", "tracebacks", "last")} for kill in self.of("kill")]
        lives = [
            {name: value for name, value in life.items() if name not in ("kind", "bits")} for life in self.of("life")
        ]
        failures = [{name: value for name, value in each.items() if name != "kind"} for each in self.of("failure")]
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        head = {"format": "littoral-kills/1", "date": date.today().isoformat(), "machine": machine, "seed": self.seed}
        content = {**head, "summary": self.summary(), "failures": failures, "lives": lives, "kills": shown}
        return json.loads(_anywhere(json.dumps(content), self.folder))


def _anywhere(text: str, folder: Path) -> str:
    """The text without what is this machine's alone: folders and its name."""
    names = {str(folder): "STORAGE", str(ROOT): ".", sys.prefix: "PYTHON", str(Path.home()): "~"}
    names[tempfile.gettempdir()] = "TEMP"
    for name, instead in names.items():
        text = text.replace(name, instead) if len(name) > 1 else text
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


def _short(value: object) -> object:
    return f"{value:.1f}" if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no kill after so long; then runs end")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--folder", type=Path, help="for the runs and the list of what happened (runs/kills-SEED)")
    parser.add_argument("--record", type=Path, help="where the record goes (docs/results/campaigns/kills-SEED.json)")
    options = parser.parse_args()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored, and would be by the runs too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    folder = options.folder or ROOT / "runs" / f"kills-{options.seed}"
    campaign = Campaign(folder, options.seed, tuple(options.methods), time.monotonic() + 60 * options.minutes)
    whole = campaign.run(options.kills)
    campaign.end()
    for name, value in campaign.summary().items():
        print(f"{name}: {value}")
    if not whole:
        print(f"stopped after {options.minutes:g} minutes; the same command goes on")
    path = options.record or ROOT / "docs" / "results" / "campaigns" / f"kills-{options.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(campaign.record(), indent=1) + "\n", encoding="utf-8")
    return 1 if campaign.of("failure") else 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the processes of the run end with it


if __name__ == "__main__":
    sys.exit(main())
