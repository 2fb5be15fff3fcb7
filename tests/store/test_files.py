import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from simulated_disk import FOLDER, FaultyFiles, SimulatedDisk

from patchdeploy.errors import IntegrityError
from patchdeploy.store.files import DiskFiles, publish

RULE = "a store holds regular files that patchdeploy wrote; remove it and install the patch again"


def test_publishing_replaces_the_name_and_leaves_the_file_that_had_it(tmp_path):
    files = DiskFiles()
    publish(files, tmp_path, "name", b"old")
    with (tmp_path / "name").open("rb") as held:
        publish(files, tmp_path, "name", b"new")
        files.sync_folder(tmp_path)
        assert held.read() == b"old"
    assert (tmp_path / "name").read_bytes() == b"new"
    assert files.names(tmp_path) == ["name"]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_publication_that_fails_leaves_the_old_file_and_no_temporary_one(at: int):
    disk = SimulatedDisk()
    disk.make_folder(FOLDER)
    publish(disk, FOLDER, "name", b"old")
    with pytest.raises(OSError, match="No space left on device"):
        publish(FaultyFiles(disk, at, code=errno.ENOSPC), FOLDER, "name", b"new")
    assert disk.names(FOLDER) == ["name"]
    assert disk.read(FOLDER / "name", 10) == b"old"


def test_a_name_that_is_taken_is_not_written_into(tmp_path):
    (tmp_path / "name").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        DiskFiles().create(tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"old"


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "target")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (_link, "a link to {target}"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_bytes(bytes(11)), "11 bytes long, and at most 10 are allowed"),
    ],
    ids=["link", "pipe", "folder", "long"],
)
def test_only_a_regular_file_within_its_limit_is_read(tmp_path, make, what: str):
    (tmp_path / "target").write_bytes(b"secret")
    make(tmp_path / "name")
    with pytest.raises(IntegrityError) as caught:
        DiskFiles().read(tmp_path / "name", 10)
    said = what.format(target=tmp_path / "target")
    assert str(caught.value) == f"{tmp_path / 'name'} is {said}; {RULE}"


def test_a_file_of_exactly_its_limit_is_read_and_a_missing_one_says_so(tmp_path):
    (tmp_path / "name").write_bytes(bytes(10))
    assert DiskFiles().read(tmp_path / "name", 10) == bytes(10)
    with pytest.raises(FileNotFoundError):
        DiskFiles().read(tmp_path / "none", 10)


def test_the_lock_waits_for_another_thread_of_the_same_process(tmp_path):
    files, order = DiskFiles(), []
    started = threading.Event()

    def wait() -> None:
        started.set()
        with files.lock(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=wait)
    with files.lock(tmp_path / "lock"):
        thread.start()
        started.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("folder", "lock"), [(0o755, 0o600), (0o775, 0o660), (0o777, 0o666), (0o700, 0o600)]
)
def test_a_lock_can_be_opened_by_those_alone_who_may_write_its_folder(tmp_path, folder, lock):
    place = tmp_path / "store"
    place.mkdir()
    place.chmod(folder)
    (place / "lock").write_bytes(b"")
    (place / "lock").chmod(0o644)  # as earlier versions left it
    for name in ("lock", "new"):
        with DiskFiles().lock(place / name):
            assert stat.S_IMODE((place / name).stat().st_mode) == lock
