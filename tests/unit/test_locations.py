"""Files and folders that URIs name: what is there, what is written whole or not at all, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from failing_store import Store

from components.core.errors import ConfigError, StorageError
from components.core.files import file_sha256, whole_file, whole_folder, write_bytes, write_json, write_text
from components.core.location import Location, Place, fetched, here, locate, place

KINDS = pytest.mark.parametrize("whole_puts", [True, False], ids=["puts", "moves"])
SAID = re.compile(r"test://b/runs/\.?costs\.json\S* cannot be (written|read) \(lost (before|after)")
MOST = 200  # operations that a test waits for


@pytest.fixture(params=["folder", "file://", "memory://", "puts", "moves"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty storage of each kind."""
    if request.param == "memory://":
        yield place("memory://unit-locations/runs")
        fsspec.filesystem("memory").store.clear()
    elif request.param == "file://":
        yield place(f"file://{tmp_path}")
    else:
        yield tmp_path if request.param == "folder" else Store(whole_puts=request.param == "puts").place("b/runs")


def test_what_is_written_is_there_by_the_same_questions(storage: Place) -> None:
    run = storage / "first"
    assert (run.exists(), (run / "config.json").is_file(), [*run.glob("*.json")]) == (False, False, [])
    with pytest.raises(FileNotFoundError):
        (run / "config.json").read_bytes()
    write_json(run / "config.json", {"a": 1})
    write_json(run / "config.json", {"a": 2})
    write_text(run / "checkpoints" / "01-a" / "state.json", "Ünï")
    write_bytes(run / "empty", b"")
    with whole_file(run / "predictions" / "01-a.parquet") as partial:
        partial.write_bytes(b"rows" * 1000)
    assert json.loads((run / "config.json").read_bytes()) == {"a": 2}
    assert (run / "checkpoints" / "01-a" / "state.json").read_text(encoding="utf-8") == "Ünï"
    assert ((run / "empty").read_bytes(), (run / "empty").is_file(), (run / "empty").is_dir()) == (b"", True, False)
    assert (run.is_dir(), run.is_file(), run.exists(), run.name, run.parent) == (True, False, True, "first", storage)
    assert sorted(each.name for each in run.iterdir()) == ["checkpoints", "config.json", "empty", "predictions"]
    assert [each.parent.name for each in run.glob("checkpoints/[!.]*/state.json")] == ["01-a"]
    assert [each.name for each in run.glob("predictions/*.parquet")] == ["01-a.parquet"]
    assert [*run.glob("nothing/*.json")] == []
    file = run / "predictions" / "01-a.parquet"
    assert (file.stat().st_size, file.stem) == (4000, "01-a")
    assert file_sha256(file) == hashlib.sha256(b"rows" * 1000).hexdigest()
    with fetched(file) as near, file.open("rb") as opened:
        assert near.read_bytes() == opened.read() == b"rows" * 1000
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()


def test_sizes_and_times_are_the_stores_own() -> None:
    store = Store(whole_puts=True)
    write_text(store.place("b/a"), "four")
    found = store.place("b/a").stat()
    assert (found.st_size, found.st_mtime) == (4, store.written["b/a"].timestamp())
    memory = place("memory://unit-locations/a")
    write_text(memory, "four")
    assert memory.stat().st_mtime == fsspec.filesystem("memory").modified("/unit-locations/a").timestamp()
    fsspec.filesystem("memory").store.clear()


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("gone", [False, True], ids=["once", "gone"])
def test_a_file_is_replaced_whole_whatever_fails(whole_puts: bool, after: bool, gone: bool, tmp_path: Path) -> None:
    """The oracle: at every failure, some place that the rules name holds all of the old or of the new bytes."""
    old, new = b"old content", b"a new content that is longer"
    (tmp_path / "new").write_bytes(new)
    for content in (new, tmp_path / "new"):
        for number in range(1, MOST):
            store = Store(whole_puts=whole_puts)
            target = store.place("b/runs/costs.json")
            target.put(old)
            said = ""
            with store.failing(number, after=after, gone=gone):
                try:
                    target.put(content)
                except StorageError as error:
                    said = str(error)
            assert SAID.match(said) if said else store.files["b/runs/costs.json"] == new
            seen = store.files.get("b/runs/costs.json")
            if whole_puts:
                assert seen in (old, new)
                assert [*store.files] == ["b/runs/costs.json"]
            else:
                assert seen in (old, new) or (seen is None and store.files["b/runs/.costs.json.older"] == old)
                assert seen is not None or gone
            if number > len(store.done):
                break
        else:
            pytest.fail("it never ended")


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_a_folder_counts_when_its_marker_is_there(whole_puts: bool, after: bool, replace: bool) -> None:
    """Whatever fails: where a reader finds the marker, all that it lists is there, of one and the same version."""
    seen: set[str] = set()
    for number in range(1, MOST):
        store = Store(whole_puts=whole_puts)
        folder = store.place("b/checkpoints/01-a")
        if replace:
            _write(folder, "old", replace=False)
        with store.failing(number, after=after, gone=True):
            try:
                _write(folder, "new", replace=replace)
                ended = True
            except StorageError:
                ended = False
        found = _read(store.place("b/checkpoints/01-a"))
        assert found in (("new",) if ended else ("new", "old", "nothing"))
        seen.add(found)
        if number > len(store.done):
            break
    assert seen >= {"new", "nothing"} | ({"old"} if replace else set())


def _write(folder: Location, version: str, *, replace: bool) -> None:
    with whole_folder(folder, replace=replace, last="state.json") as made:
        files = {f"{version}.safetensors": version, "shared": version, "deep/x": version}
        for name, text in files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)
        write_json(made / "state.json", files)


def _read(folder: Location) -> str:
    if not (folder / "state.json").is_file():
        return "nothing"
    listed = json.loads((folder / "state.json").read_bytes())
    found = {(folder / name).read_text() for name in listed}
    assert found == {*listed.values()}
    return found.pop()


@KINDS
def test_a_replaced_folder_keeps_nothing_of_the_old_one_and_is_not_replaced_unasked(whole_puts: bool) -> None:
    store = Store(whole_puts=whole_puts)
    folder = store.place("b/01-a")
    _write(folder, "old", replace=False)
    with pytest.raises(OSError, match="not empty"):
        _write(folder, "new", replace=False)
    assert _read(folder) == "old"
    _write(folder, "new", replace=True)
    assert folder.files_below() == ["deep/x", "new.safetensors", "shared", "state.json"]
    with pytest.raises(ZeroDivisionError), whole_folder(folder, replace=True, last="state.json"):
        raise ZeroDivisionError
    assert _read(folder) == "new"


def test_a_marker_alone_is_replaced_in_one_step() -> None:
    """As of a checkpoint whose tensors are all shared: the old one counts until the new one does."""
    for number in range(1, MOST):
        store = Store(whole_puts=True)
        folder = store.place("b/01-a")
        for version in ("old", "new"):
            with store.failing(number if version == "new" else 0, after=False, gone=True):
                try:
                    with whole_folder(folder, replace=True, last="state.json") as made:
                        write_text(made / "state.json", version)
                except StorageError:
                    assert version == "new"
        assert (folder / "state.json").read_text() in ("old", "new")
        if number > len(store.done):
            break


def test_a_kill_in_the_middle_commits_nothing() -> None:
    """A stream of S3 that is closed, by whatever, commits what it has; so it never has a part alone."""
    store = Store(whole_puts=True)
    with pytest.raises(ZeroDivisionError), whole_file(store.place("b/a")) as partial:
        partial.write_bytes(b"ha" * (1 // partial.write_bytes(b"")))
    assert store.files == {}


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "a/../../b", "a//b", "a/", "./a", "a\0b"])
def test_a_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a file inside test://b/runs"):
        _ = Store(whole_puts=True).place("b/runs") / name


def test_a_uri_cannot_lead_up_and_a_path_can() -> None:
    for given in ("memory://bucket/runs/../other", "s3://bucket/..", "memory://./x"):
        with pytest.raises(ConfigError, match="leads up"):
            place(given)
    assert place("../runs") == Path("../runs")


def test_paths_are_paths_and_uris_are_not(tmp_path: Path) -> None:
    assert place(str(tmp_path)) == place(f"file://{tmp_path}") == tmp_path
    assert place("~/runs") == Path.home() / "runs"
    assert place("C:runs") == Path("C:runs")
    found = place("memory://unit-locations/runs/")
    assert isinstance(found, Location)
    assert (str(found), found.name, str(found.parent)) == (
        "memory://unit-locations/runs",
        "runs",
        "memory://unit-locations",
    )
    with pytest.raises(ConfigError, match=r"'runs' is no URI"):
        locate("runs")


def test_what_is_no_path_is_never_taken_for_one() -> None:
    with pytest.raises(TypeError):
        Path(place("memory://unit-locations/runs"))  # pyright: ignore[reportArgumentType]


def test_a_folder_of_this_machine_as_a_location(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert (here(tmp_path / "a").local, (here(tmp_path) / "a").read_bytes()) == (tmp_path / "a", b"x")
    assert here(Path("/a")).parent.path == "/"
    assert (here(Path("/")) / "a").path == "/a"


def test_a_store_that_does_not_answer_is_one_sentence_of_both_kinds() -> None:
    store = Store(whole_puts=True)
    for ask in (
        lambda: store.place("b/a").is_file(),
        lambda: store.place("b/a").read_bytes(),
        lambda: store.place("b").listing(),
        lambda: store.place("b/a").unlink(missing_ok=True),
    ):
        with store.failing(1, after=False, gone=True), pytest.raises(StorageError) as raised:
            ask()
        assert isinstance(raised.value, OSError)
        assert (raised.value.strerror or "").startswith("lost before")
        assert str(raised.value).endswith("give the same command again.")
        assert "\n" not in str(raised.value)


def test_a_listing_that_lags_hides_and_never_invents() -> None:
    store = Store(whole_puts=True)
    write_text(store.place("b/runs/a/config.json"), "{}")
    store.listed = {*store.files}
    write_text(store.place("b/runs/b/config.json"), "{}")
    assert [each.name for each in store.place("b/runs").iterdir()] == ["a"]
    assert (store.place("b/runs") / "b" / "config.json").is_file()
    store.place("b/runs/a/config.json").unlink()
    assert [*store.place("b/runs").glob("*/config.json")] == []


def test_a_location_travels_to_other_processes() -> None:
    """As Ray sends it to workers: the file system goes with it, and it is the same place."""
    near = place("memory://unit-locations/runs/a")
    write_text(near, "four")
    there = pickle.loads(pickle.dumps(near))  # noqa: S301  (made here)
    assert there == near
    assert there.read_bytes() == b"four"
    bucket = place("s3://key:word@bucket/runs?endpoint_override=localhost:1&scheme=http")
    assert pickle.loads(pickle.dumps(bucket)) == bucket  # noqa: S301
    assert isinstance(bucket, Location)
    assert "word" not in repr(bucket)
    fsspec.filesystem("memory").store.clear()
