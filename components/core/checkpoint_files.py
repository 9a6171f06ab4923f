"""Whether the files of a checkpoint are what its `state.json` says. Light on purpose (no torch, no ray)."""

from __future__ import annotations

from pathlib import Path

from components.core.errors import CheckpointError
from components.core.files import file_sha256
from components.core.reading import ODD, parse_json, read_object, why
from components.core.run_files import STATE_FILE

FORMAT = "littoral-checkpoint/1"
ADVICE = "use another checkpoint"
_HEADER_BYTES = 100_000_000  # of a safetensors file, as its library bounds it


def checked(path: Path, *, digest_up_to: float = float("inf")) -> tuple[dict[str, object], list[Path]]:
    """The state of a checkpoint and its tensor files; raises `CheckpointError` that names what is missing or damaged.

    Files of at most `digest_up_to` bytes must have their checksums. Of larger ones the length is compared with what
    their own header says, which takes no time and finds what was cut.
    """
    if not (path / STATE_FILE).is_file():
        raise CheckpointError(f"{path} has no {STATE_FILE}; it is not a finished Littoral checkpoint.")
    state = read_object(path / STATE_FILE, CheckpointError, ADVICE)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')!r:.80}, this version reads {FORMAT!r}.")
    digests = state.pop("files", None)
    if not isinstance(digests, dict):
        raise CheckpointError(f"{path / STATE_FILE} lists no files; {ADVICE}.")
    files: list[Path] = []
    for name, digest in digests.items():
        if len(name) > 255:
            raise CheckpointError(f"{path / STATE_FILE} names a file that cannot be, {name!r:.80}; {ADVICE}.")
        file = path / Path(name).name
        try:
            if not file.is_file() or (file.stat().st_size <= digest_up_to and file_sha256(file) != digest):
                raise CheckpointError(f"{file} is missing or differs from the checksum in {STATE_FILE}; {ADVICE}.")
            if file.stat().st_size > digest_up_to and file.stat().st_size != _length(file):
                raise CheckpointError(f"{file} is not as long as its header says; {ADVICE}.")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({why(error)}); {ADVICE}.") from error
        files.append(file)
    return state, files


def _length(file: Path) -> int:
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
