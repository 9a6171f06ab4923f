"""An archive of what the proof needs, for a machine that reaches nothing."""

from __future__ import annotations

import io
import subprocess
import tarfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("components", "pipelines", "tests/gpu", "tests/contract/toy_tasks.py", "tests/unit/llava_checkpoint.py")
NEEDED += ("tests/checkpoint_bits.py", "pyproject.toml", "constraints.txt", "LICENSE")
COMMIT = "COMMIT"  # the file in the archive that says what was packed
LIMIT = 60 * 10**6  # bytes
# What machines for deep learning tend to lack; its wheels go beside the archive.
OFTEN_MISSING = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection")


def pack(folder: Path) -> Path:
    """Write the archive to `folder`, which is made if need be, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "gpu-proof.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in NEEDED:
            tar.add(ROOT / name, arcname=f"gpu-proof/{name}", filter=_without_caches)
        text = commit().encode()
        entry = tarfile.TarInfo(f"gpu-proof/{COMMIT}")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    assert archive.stat().st_size < LIMIT, f"{archive} is larger than {LIMIT} bytes"
    return archive


def how_to_go_on(archive: Path) -> str:
    """The commands that bring the wheels beside the archive, and that run it there."""
    wheels = " ".join(f"{name}=={version(name)}" for name in OFTEN_MISSING)
    return (
        f"{archive}: {archive.stat().st_size / 10**6:.1f} MB\n\n"
        "Here, for a machine without pydantic (its Python's version after --python-version):\n\n"
        f"    pip download --no-deps --only-binary=:all: --python-version 3.12 -d {archive.parent}/wheels {wheels}\n\n"
        "There:\n\n"
        "    pip install --no-index --no-deps --target site wheels/*.whl\n"
        "    tar xzf gpu-proof.tar.gz\n"
        "    PYTHONPATH=$PWD/site python gpu-proof/tests/gpu/prove.py --out proof"
    )


def commit() -> str:
    """Of the checkout, or what the archive was made from; "unknown" where neither says."""
    packed = ROOT / COMMIT
    if packed.is_file():
        return packed.read_text(encoding="utf-8").strip()
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry
