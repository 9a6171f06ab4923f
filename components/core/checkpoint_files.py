"""Whether the files of a checkpoint are what its `state.json` says. Light on purpose (no torch, no ray).

A checkpoint of format 1 is whole by itself: all its tensors are in files beside `state.json`. One of format 2 belongs
to a run: it also takes tensors from files in the run's folder `tensors/`, which other checkpoints take them from, too.
Such a file is named by the digest of its content, so nothing outside that folder can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.core.errors import CheckpointError
from components.core.files import file_sha256
from components.core.location import AnyPlace, Location, Place
from components.core.reading import ODD, parse_json, read_object, why
from components.core.run_files import KEPT_CHECKPOINTS, LOCK_FILE, REJECTED, STATE_FILE, TENSORS

WHOLE, SHARING = "littoral-checkpoint/1", "littoral-checkpoint/2"
ADVICE = "use another checkpoint"
FILES, SHARED = "files", "shared"  # keys of `state.json`: files beside it, and files in the run's tensors/
OLD_S = 3600.0  # by far longer than a listing lags
_HEADER_BYTES = 100_000_000  # of a safetensors file, as its library bounds it
_DIGEST = re.compile(r"[0-9a-f]{64}")

Shared = Mapping[str, Mapping[str, list[str]]]  # stem -> digest of a file -> names of its tensors that are not taken


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a checkpoint consists of."""

    state: dict[str, object]  # without what follows
    own: Mapping[Place, object]  # file beside `state.json` -> its digest
    shared: Shared
    run_dir: Place

    def in_run(self, digest: str) -> Place:
        """Where a shared file is."""
        return tensor_file(self.run_dir, digest)

    def size(self) -> int:
        """Bytes of all its tensor files that are there."""
        paths = {*self.own, *(self.in_run(digest) for files in self.shared.values() for digest in files)}
        return sum(path.stat().st_size for path in paths if path.is_file())


def tensor_file(run_dir: AnyPlace, digest: str) -> AnyPlace:
    """The file of a run's `tensors/` that has this digest."""
    return run_dir / TENSORS / f"{digest}.safetensors"


def listed(path: Place, run_dir: Place | None = None) -> Files:
    """What the checkpoint in the folder `path` says that it consists of; raises `CheckpointError`.

    Without `run_dir` the folder's place tells the run: it lies in there, or in `checkpoints/` or `rejected/` of it.
    """
    file = path / STATE_FILE
    if not file.is_file():
        raise CheckpointError(f"{path} has no {STATE_FILE}; it is not a finished Littoral checkpoint.")
    state = read_object(file, CheckpointError, ADVICE)
    if state.get("format") not in (WHOLE, SHARING):
        known = f"{WHOLE!r} and {SHARING!r}"
        raise CheckpointError(f"{path} has format {state.get('format')!r:.80}, this version reads {known}.")
    digests, shared = state.pop(FILES, None), state.pop(SHARED, {})
    if not isinstance(digests, dict):
        raise CheckpointError(f"{file} lists no files; {ADVICE}.")
    _check_shared(file, shared)
    for name in digests:
        if len(name) > 255:
            raise CheckpointError(f"{file} names a file that cannot be, {name!r:.80}; {ADVICE}.")
    own = {path / Path(name).name: digest for name, digest in digests.items()}
    return Files(state=state, own=own, shared=shared, run_dir=run_dir or _run_of(path))


def checked(
    path: Place,
    *,
    run_dir: Place | None = None,
    digest_up_to: float = float("inf"),
    seen: dict[Place, str] | None = None,
) -> Files:
    """The same, with all files there and undamaged; raises `CheckpointError` that names what is missing or damaged.

    Files of at most `digest_up_to` bytes must have their checksums. Of larger ones the length is compared with what
    their own header says, which takes no time and finds what was cut. `seen` keeps what is wrong with a shared file
    ("": nothing), for whoever checks several checkpoints of a run.
    """
    files = listed(path, run_dir)
    for file, digest in files.own.items():
        if wrong := _wrong(file, digest, digest_up_to, f"the checksum in {STATE_FILE}"):
            raise CheckpointError(f"{file} {wrong}; {ADVICE}.")
    seen = {} if seen is None else seen
    for digest in (digest for taken in files.shared.values() for digest in taken):
        file = files.in_run(digest)
        if file not in seen:
            seen[file] = _wrong(file, digest, digest_up_to, "the checksum in its name")
        if seen[file]:
            raise CheckpointError(f"{file} {seen[file]}; {ADVICE}.")
    return files


def _check_shared(file: Place, shared: object) -> None:
    """Raise `CheckpointError` unless this is what `Shared` says."""
    if isinstance(shared, dict) and all(isinstance(taken, dict) for taken in shared.values()):
        named = [one for taken in shared.values() for one in taken.items()]
        if all(_DIGEST.fullmatch(digest) and _are_names(names) for digest, names in named):
            return
    raise CheckpointError(f"{file} names no tensors of its run as it should; {ADVICE}.")


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _wrong(file: Place, digest: object, digest_up_to: float, which: str) -> str:
    """What is wrong with a tensor file; raises `CheckpointError` where it cannot be read at all, but may be whole."""
    try:
        if not file.is_file() or (file.stat().st_size <= digest_up_to and file_sha256(file) != digest):
            return f"is missing or differs from {which}"
        if file.stat().st_size > digest_up_to and file.stat().st_size != _length(file):
            return "is not as long as its header says"
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({why(error)}); {ADVICE}.") from error
    return ""


def _run_of(checkpoint: Place) -> Place:
    above = checkpoint.absolute().parent if isinstance(checkpoint, Path) else checkpoint.parent
    return above.parent if above.name in (KEPT_CHECKPOINTS, REJECTED) else above


def remove_unreferenced(run_dir: Place) -> None:
    """Remove the tensor files that no checkpoint of the run refers to, whole or not, set aside or not.

    Of a store's, those alone that are over an hour older than its newest file: its listing may lack a new checkpoint.

    Its caller holds the run's lock, and none of its workers is alive: one may be about to refer to what it has written.
    Where a `state.json` cannot be read, all files stay, since it may become readable again.
    """
    wanted: set[str] = set()
    for state in _states(run_dir):
        try:
            wanted |= {digest for taken in listed(state.parent, run_dir).shared.values() for digest in taken}
        except (CheckpointError, OSError):
            return
    files = [*(run_dir / TENSORS).glob("*.safetensors")]
    if isinstance(run_dir, Location):
        files = _old(files, run_dir)
    for path in files:
        if _DIGEST.fullmatch(path.stem) and path.stem not in wanted:
            with suppress(OSError):  # it costs room, and nothing else
                path.unlink()


def _states(run_dir: Place) -> list[Place]:
    """The markers of all checkpoints; in a store by one request, and not one for each of the run's folders."""
    if isinstance(run_dir, Path):
        return [*run_dir.glob(f"*/{STATE_FILE}"), *run_dir.glob(f"*/*/{STATE_FILE}")]
    names = [PurePosixPath(name) for name in run_dir.files_below()]
    return [run_dir / str(name) for name in names if name.name == STATE_FILE and len(name.parts) in (2, 3)]


def _old(files: Iterable[Place], run_dir: Location) -> list[Place]:
    """Those of the files that are old by the store's own clock; none where it does not tell times."""
    written = {file: file.stat().st_mtime for file in files}
    # The ticket of the lock was written a moment ago.
    newest = max([*written.values(), *(each.stat().st_mtime for each in run_dir.glob(f"{LOCK_FILE}/*"))], default=0.0)
    return [file for file, time in written.items() if 0 < time < newest - OLD_S]


def _length(file: Place) -> int:
    """How many bytes a safetensors file should have; 0 where its header cannot be read.

    The format: a length of 8 bytes, a JSON header of that length, which says where each tensor ends, the tensors.
    """
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        if header > _HEADER_BYTES:
            return 0
        content = opened.read(header)
    try:
        ends = [one["data_offsets"][1] for name, one in parse_json(content).items() if name != "__metadata__"]
        return 8 + header + max(ends, default=0)
    except ODD:
        return 0
