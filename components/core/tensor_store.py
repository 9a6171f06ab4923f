"""The tensors that a run's checkpoints share: each is written once, into a file named by its content's SHA-256 digest.

    RUN/tensors/<digest>.safetensors     never changed once it is there
    RUN/checkpoints/02-b/state.json      names the files, and what it does not take from each

A task changes little of what a method carries. So a checkpoint costs what has changed, and the second one of the same
state costs nothing. No links are used, which an object store would not have.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from components.core.checkpoint import Checkpoint, save_tensors
from components.core.checkpoint_files import tensor_file
from components.core.files import file_sha256, partial_path, storing, sync
from components.core.location import Location, Place
from components.core.machine import temporary_prefix
from components.core.run_files import TENSORS
from components.core.tickets import require_not_lost

# Tensors that changed are likely to change again, new ones are not. Beyond this size, the former get a file of their
# own, or late checkpoints would read what was replaced long ago with what was not.
APART_FROM = 1 << 20


@dataclass(frozen=True)
class _Stored:
    """A tensor as it was written last."""

    tensor: Tensor
    version: int  # of its data, by torch's count
    digest: str  # of its file


@dataclass(frozen=True)
class _File:
    names: tuple[str, ...]
    size: int


class TensorStore:
    """One stem of a run's checkpoints; a single process writes it at a time.

    It remembers the tensors that it wrote or read last: what has the same bits is in its file already, and is neither
    hashed nor written. They are the caller's own, which are not to be changed in place; one that was is compared anew.
    """

    def __init__(self, run_dir: Place, stem: str) -> None:
        self._run_dir, self._stem = run_dir, stem
        self._stored: dict[str, _Stored] = {}
        self._files: dict[str, _File] = {}

    def remember(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint of the run was read from."""
        tensors = checkpoint.tensors.get(self._stem, {})
        for each in checkpoint.taken:
            if each.stem == self._stem:
                self._files[each.digest] = _File(each.names, each.size)
                for name in each.names:
                    if name not in each.left_out:
                        self._store(name, tensors[name], each.digest)

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these in memory, where they have the same bits, in place of those that were written."""
        for name, tensor in tensors.items():
            self._unchanged(name, _plain(tensor))

    def put(self, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Have all of these on disk; returns by file what is in it and not one of them."""
        tensors = {name: _plain(tensor) for name, tensor in tensors.items()}
        changed = {name for name, tensor in tensors.items() if not self._unchanged(name, tensor)}
        parts = [*self._parts({name: tensors[name] for name in tensors if name in changed})]
        # A file that was lost or cut meanwhile is seen by its length. What is still in memory is written again, by
        # itself: where that is all of the file, it is mended for older checkpoints, too.
        in_files: dict[str, dict[str, Tensor]] = {}
        for name in tensors.keys() - changed:
            in_files.setdefault(self._stored[name].digest, {})[name] = tensors[name]
        there = self._lengths(in_files)
        parts += [part for digest, part in in_files.items() if there.get(digest) != self._files[digest].size]
        for part in parts:
            self._write(part)
        self._stored = {name: self._stored[name] for name in tensors}
        return {
            digest: [name for name in self._files[digest].names if not self._is_in(name, digest)]
            for digest in dict.fromkeys(stored.digest for stored in self._stored.values())
        }

    def _is_in(self, name: str, digest: str) -> bool:
        return name in self._stored and self._stored[name].digest == digest

    def _unchanged(self, name: str, tensor: Tensor) -> bool:
        """Whether it has the bits that were written last; it is then the one to compare with."""
        stored = self._stored.get(name)
        if stored is None:
            return False
        as_it_was = stored.version == stored.tensor._version
        if tensor is stored.tensor:
            return as_it_was
        if not as_it_was or not same_bits(tensor, stored.tensor):
            return False
        self._store(name, tensor, stored.digest)
        return True

    def _store(self, name: str, tensor: Tensor, digest: str) -> None:
        self._stored[name] = _Stored(tensor, tensor._version, digest)

    def _lengths(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes of those files that are there. In a store by one request: what its listing lacks is put once more."""
        found: dict[str, int] = {}
        if isinstance(self._run_dir, Location):
            with suppress(OSError):
                for info in (self._run_dir / TENSORS).listing():
                    found[PurePosixPath(info.path).stem] = info.size or 0
            return found
        for digest in digests:
            with suppress(OSError):
                found[digest] = tensor_file(self._run_dir, digest).stat().st_size
        return found

    def _parts(self, tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """What goes into one file each."""
        before = {name: tensor for name, tensor in tensors.items() if name in self._stored}
        new = {name: tensor for name, tensor in tensors.items() if name not in self._stored}
        if new and sum(tensor.nbytes for tensor in before.values()) >= APART_FROM:
            yield from (before, new)
        elif tensors:
            yield tensors

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write one file. Its content is on disk before its name, and the name before this returns."""
        if isinstance(self._run_dir, Location):
            digest, size = _put(tensors, self._run_dir)
        else:
            digest, size = _placed(tensors, self._run_dir)
        self._files[digest] = _File(tuple(tensors), size)
        for name, tensor in tensors.items():
            self._store(name, tensor, digest)


def _put(tensors: Mapping[str, Tensor], run_dir: Location) -> tuple[str, int]:
    """Put one file into a store, and its digest and size.

    Also where it is there already: a file that nothing referred to for long would be removed as old.
    """
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("put")) as made:
        file = Path(made) / "new.safetensors"
        save_tensors(tensors, file)
        digest, size = file_sha256(file), file.stat().st_size
        target = tensor_file(run_dir, digest)
        require_not_lost(target)
        target.put(file)
    return digest, size


def _placed(tensors: Mapping[str, Tensor], run_dir: Path) -> tuple[str, int]:
    """Write one file into a folder of this machine, and its digest and size."""
    folder = run_dir / TENSORS
    partial = partial_path(folder / "new.safetensors")
    with storing(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync(run_dir)
        try:
            partial.touch()
            mode = stat.S_IMODE(partial.stat().st_mode)
            save_tensors(tensors, partial)
            partial.chmod(mode)  # safetensors gives its files to this user alone
            digest, size = file_sha256(partial), partial.stat().st_size
            path = tensor_file(run_dir, digest)
            if not path.is_file() or path.stat().st_size != size or file_sha256(path) != digest:
                sync(partial)
                partial.replace(path)
            else:  # by a process that may have died before it was on disk
                sync(path)
            sync(folder)
        finally:
            with suppress(OSError):  # of a storage that is gone: the error that was raised says more
                partial.unlink(missing_ok=True)
    return digest, size


def _plain(tensor: Tensor) -> Tensor:
    """Itself where nothing has to be copied, so that it is known again without a look at its numbers."""
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.requires_grad
    return tensor if plain else tensor.detach().cpu().contiguous()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two contiguous tensors on the CPU are equal to the bit: zeros by their sign too, and NaN to itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    word = torch.uint8 if one.nbytes % 8 else torch.int64
    return torch.equal(one.reshape(-1).view(word), other.reshape(-1).view(word))
