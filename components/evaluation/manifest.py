"""SHA-256 of a run's predictions, noted when a file is whole: what the scores were computed from can be checked later.

manifest.json: {"format": ..., "files": {path in the run's folder: digest}}. Runs of earlier versions have none.
"""

from __future__ import annotations

from collections.abc import Iterable

from components.core.errors import DataError
from components.core.files import file_sha256, write_json
from components.core.location import Place, name_inside
from components.core.options import from_plain
from components.core.reading import read_object, understood

MANIFEST_FILE, FORMAT = "manifest.json", "littoral-manifest-1"
_ADVICE = "delete it to go on without the checksums of the predictions"


def digests(run_dir: Place) -> dict[str, str]:
    """By path in the run's folder; empty without a manifest. Raises `DataError` for a broken one."""
    path = run_dir / MANIFEST_FILE
    if not path.is_file():
        return {}
    content = read_object(path, DataError, _ADVICE)
    with understood(path, DataError, _ADVICE):
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.80}")
        return from_plain(dict[str, str], content["files"], "files")


def is_as_noted(run_dir: Place, file: Place) -> bool:
    """Whether a file has the digest that was noted for it; False without a whole manifest."""
    try:
        return digests(run_dir).get(name_inside(file, run_dir)) == file_sha256(file)
    except DataError:
        return False


def note_digests(run_dir: Place, files: Iterable[Place]) -> None:
    """Note the digests of files that are whole now."""
    noted = {name_inside(path, run_dir): file_sha256(path) for path in files}
    write_json(run_dir / MANIFEST_FILE, {"format": FORMAT, "files": {**digests(run_dir), **noted}})
