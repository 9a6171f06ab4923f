"""A published suite becomes a folder that `--evaluation.suites` takes, and a report of what could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.core.errors import ConfigError
from components.data.benchmarks.raw import Place, RawItem, check_item
from components.data.benchmarks.sampling import counted, distinct
from components.data.benchmarks.spec import rank
from components.data.formats.pictures import Orientation
from components.data.preparation import ALLOWED_LOSS, check_max_broken, refusal
from components.data.prepared import whole_or_nothing
from components.data.quality.report import FileReport, ImportReport, Problem, refused_report_path
from components.data.rows import Row, write_split
from components.data.suites.catalogue import SUITES, SuiteSpec
from components.data.suites.suite import write_suite_json


class _Refused(Exception):
    """Leaves `whole_or_nothing` without a result."""


def prepare_suite(
    name: str,
    root: Path,
    out_dir: Path,
    *,
    max_broken: float = ALLOWED_LOSS,
    strict: bool = False,
    orientation: Orientation = "apply",
) -> ImportReport:
    """Write the suite `name`, a key of `SUITES`, from its release below `root`; what cannot be read is left out.

    Refused is a suite that loses a larger share of its rows than `max_broken` (see `preparation.refusal`); `strict`
    refuses when anything at all was reported. Refused: `out_dir` stays as it was and the report lies in
    `<out_dir>.report.json`. Raises `DataError` when the release is not below `root`. `orientation` "leave" takes
    pictures as they are stored.
    """
    check_max_broken(max_broken)
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--root {root} is no folder; give the folder that holds the release.")
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
    refused: str | None = None
    try:
        with whole_or_nothing(out_dir) as scratch:
            card: dict[str, object] = {
                "name": name,
                "published_rows": list(spec.published),
                "drawn_rows": spec.use,
                "metric": spec.metric,
                "scoring": spec.scoring,
                "licence": spec.licence,
                "pictures": report.pictures,  # written when all are counted
            }
            place = Place(root=root, task=name, side="test", metric=spec.metric, boxes="", orientation=orientation)
            rows = _rows(name, spec, place, items, report)
            write_split(rows, scratch / "test", task=name, split="test", card=card)
            refused = refusal((report,), max_broken=max_broken, strict=strict)
            if refused is not None:
                raise _Refused
            write_suite_json(scratch, name, scoring=spec.scoring, max_new_tokens=spec.max_new_tokens)
            whole = ImportReport(stream=name, out_dir=out_dir, files=(report,), refused=None, leaks=())
            whole.write(scratch / "report.json")
            return whole
    except _Refused:
        result = ImportReport(stream=name, out_dir=out_dir, files=(report,), refused=refused)
        result.write(refused_report_path(out_dir))
        return result


def _rows(
    name: str, spec: SuiteSpec, place: Place, items: Iterator[RawItem | Problem], report: FileReport
) -> Iterator[Row]:
    drawn = None if spec.use is None else _drawn(name, spec, place.root)
    for item in counted(distinct(items), report):
        if isinstance(item, Problem) or (drawn is not None and item.item_id not in drawn):
            continue
        checked = check_item(item, place)
        if isinstance(checked, Problem):
            report.leave_out(checked)
            continue
        report.kept += 1
        report.with_image += checked.row.image is not None
        report.pictures.update(checked.done)
        yield checked.row
    report.chosen = None if drawn is None else len(drawn)
    if spec.published and report.rows not in spec.published:
        sizes = " or ".join(f"{size:,}" for size in spec.published)
        detail = f"the source holds {report.rows:,} rows, published are {sizes}"
        report.note(Problem(kind="count", file=name, row=None, detail=detail))


def _drawn(name: str, spec: SuiteSpec, root: Path) -> set[str]:
    """The ids of the rows that are used: those whose hash is smallest, whatever their order in the release."""
    ids = {item.item_id for item in spec.read(root) if isinstance(item, RawItem)}
    return set(sorted(ids, key=lambda item_id: rank(0, name, "test", item_id))[: spec.use])
