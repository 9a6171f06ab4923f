"""A published suite becomes a folder that `--evaluation.suites` takes, and a report of what could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from components.core.location import Place
from components.data.benchmarks.raw import RawItem, SplitContext, check_item
from components.data.benchmarks.sampling import counted, distinct
from components.data.benchmarks.spec import rank
from components.data.formats.pictures import Orientation
from components.data.preparation import ALLOWED_LOSS, check_max_broken, prepare, release_refusal, release_root
from components.data.problems import Problem
from components.data.quality.report import FileReport, ImportReport
from components.data.rows import Row, write_split
from components.data.suite import write_suite_json
from components.data.suites.catalogue import SUITES, SuiteSpec


def prepare_suite(
    name: str,
    root: Path,
    out_dir: Place,
    *,
    max_broken: float = ALLOWED_LOSS,
    strict: bool = False,
    orientation: Orientation = "apply",
) -> ImportReport:
    """Write the suite `name`, a key of `SUITES`, from its release below `root`; what cannot be read is left out.

    Refused is a suite that loses a larger share of its rows than `max_broken` (see `release_refusal`); `strict` refuses
    when anything at all was reported. Refused: `out_dir` stays as it was and the report is `<out_dir>.report.json`.
    Raises `DataError` when a release is not below `root`, naming the layout that is expected. `orientation` "leave"
    takes pictures as they are stored, as LLaVA's released code does.
    """
    check_max_broken(max_broken)
    root = release_root(root, "the release")
    spec = SUITES[name]
    items = spec.read(root)  # before anything is written: a missing release is an error of its own
    report = FileReport(
        task=name,
        split="test",
        file=name,
        published=spec.published,
        licence=spec.licence,
        get=spec.get,
        by_rule=spec.by_rule,
    )

    def write(folder: Place) -> Iterator[FileReport]:
        card: dict[str, object] = {
            "name": name,
            "published_rows": list(spec.published),
            "drawn_rows": spec.use,
            "metric": spec.metric,
            "scoring": spec.scoring,
            "licence": spec.licence,
            "pictures": report.pictures,  # the card is written last, when all are counted
        }
        context = SplitContext(root=root, task=name, side="test", metric=spec.metric, boxes="", orientation=orientation)
        rows = _rows(name, spec, context, items, report)
        write_split(rows, folder / "test", task=name, split="test", card=card)
        yield report

    finish = partial(write_suite_json, name=name, scoring=spec.scoring, max_new_tokens=spec.max_new_tokens)
    refusal = partial(release_refusal, max_broken=max_broken, strict=strict)
    return prepare(name, out_dir, write, finish, refusal, leaks=())  # a suite is never trained on


def _rows(
    name: str, spec: SuiteSpec, context: SplitContext, items: Iterator[RawItem | Problem], report: FileReport
) -> Iterator[Row]:
    drawn = None if spec.use is None else _drawn(name, spec, context.root)
    for item in counted(distinct(items), report):
        if isinstance(item, Problem) or (drawn is not None and item.item_id not in drawn):
            continue
        checked = check_item(item, context)
        if isinstance(checked, Problem):
            report.leave_out(checked)
            continue
        report.keep(checked.row, checked.done)
        yield checked.row
    report.chosen = None if drawn is None else len(drawn)
    report.note_size()


def _drawn(name: str, spec: SuiteSpec, root: Path) -> set[str]:
    """The ids of the rows that are used: those whose hash is smallest, whatever their order in the release."""
    ids = {item.item_id for item in spec.read(root) if isinstance(item, RawItem)}
    return set(sorted(ids, key=lambda item_id: rank(0, name, "test", item_id))[: spec.use])
