"""The lock files agree with constraints.txt, with pyproject.toml, with each other and with what packages ask for.

Nothing is installed or asked for: the files are parsed, and requirements are those of the packages in this environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("cpu", "cuda")
# The lock files' own environment, whatever runs the tests.
LINUX = {**default_environment(), "python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"}
LINUX |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
LINUX |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[\w.+!]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")


def pinned(name: str) -> dict[str, Version]:
    """Name -> version of a file whose every line is one pinned package with its digests."""
    text = re.sub(r" \\\n\s*", " ", (ROOT / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert [line for line, pin in zip(lines, found, strict=True) if pin is None] == []
    versions = {pin["name"]: Version(pin["version"]) for pin in found if pin is not None}
    assert len(versions) == len(lines), "a package comes twice"
    return versions


def public(version: Version) -> str:
    return version.public  # without +cpu


def constraints() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def asked_for() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for texts in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from (Requirement(text) for text in texts if not text.startswith("littoral["))


@pytest.mark.parametrize("lock", LOCKS)
def test_it_has_the_versions_of_constraints(lock: str) -> None:
    locked = pinned(f"locks/{lock}.txt")
    assert {name: public(locked[name]) for name in constraints() if name in locked} == constraints()


@pytest.mark.parametrize("lock", LOCKS)
def test_it_has_all_that_pyproject_asks_for(lock: str) -> None:
    locked = pinned(f"locks/{lock}.txt")
    assert [str(asked) for asked in asked_for() if not fits(asked, locked)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_it_has_all_that_its_packages_ask_for(lock: str) -> None:
    """Of the packages that are installed here in the locked version: nearly all of them.

    torch only where the one installed is built for what the lock is for: the two builds ask for different packages.
    """
    locked = pinned(f"locks/{lock}.txt")
    extras = {canonicalize_name(asked.name): asked.extras for asked in asked_for()}
    known, missing = [], []
    for name, version in locked.items():
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(package.version) != version:
            continue
        known.append(name)
        for asked in map(Requirement, package.requires or ()):
            wanted = ("", *extras.get(name, ()))
            due = asked.marker is None or any(asked.marker.evaluate({**LINUX, "extra": extra}) for extra in wanted)
            if due and not fits(asked, locked):
                missing.append(f"{name} wants {asked}")
    assert missing == []
    assert {"ray", "transformers", "mlflow", "deepspeed"} <= set(known)


def test_the_two_differ_in_what_torch_is_built_for() -> None:
    cpu, cuda = pinned("locks/cpu.txt"), pinned("locks/cuda.txt")
    assert (str(cpu["torch"]), str(cuda["torch"])) == (f"{cuda['torch']}+cpu", public(cpu["torch"]))
    of_cuda = cuda.keys() - cpu.keys()
    assert all(re.fullmatch(r"nvidia-.*|cuda-.*|triton", name) for name in of_cuda)
    assert len(of_cuda) > 10
    assert {name: version for name, version in cuda.items() if name not in of_cuda | {"torch"}} == {
        name: version for name, version in cpu.items() if name != "torch"
    }


def test_the_embedded_models_have_digests() -> None:
    assert len(pinned("assets.txt")) == 4


def test_a_pin_without_a_digest_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "lock.txt"
    for text in ("torch==2.13.0\n", "torch>=2 \\\n    --hash=sha256:" + "0" * 64 + "\n", "torch==2 --hash=md5:0\n"):
        file.write_text(text)
        with pytest.raises(AssertionError):
            pinned(str(file))
    assert not fits(Requirement("torch>=3"), {"torch": Version("2.13.0")})
    assert not fits(Requirement("jax"), {"torch": Version("2.13.0")})


def fits(asked: Requirement, locked: dict[str, Version]) -> bool:
    version = locked.get(canonicalize_name(asked.name))
    return version is not None and asked.specifier.contains(version, prereleases=True)
