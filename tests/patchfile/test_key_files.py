"""The files of keys: what begins as one, and the lock on their folder."""

import fcntl
import os
import stat
import threading
from contextlib import suppress

import pytest

from patchdeploy.errors import PatchKeyError, StorageError
from patchdeploy.patchfile.key_files import hold_folder, is_pem
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys, list_keys


def test_a_pem_file_is_known_by_its_start_and_nothing_else_is_one(tmp_path):
    (tmp_path / "key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "short").write_bytes(b"-----BEGIN")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    found = {name: is_pem(tmp_path / name) for name in ("key", "short", "link", "none", ".")}
    assert found == {"key": True, "short": False, "link": True, "none": False, ".": False}


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_lock_on_what_is_no_folder_is_a_storage_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StorageError, match=f"cannot write into {tmp_path / name}: .*; it must be"),
        hold_folder(tmp_path / name),
    ):
        pass


def test_one_at_a_time_holds_a_folder_and_an_error_gives_it_back(tmp_path):
    order = []
    started = threading.Event()

    def wait():
        started.set()
        with hold_folder(tmp_path):
            order.append("second")

    thread = threading.Thread(target=wait)
    with suppress(ZeroDivisionError), hold_folder(tmp_path):
        thread.start()
        started.wait()
        order.append("first")
        order.append(1 / 0)
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_by_a_file_that_no_reader_can_open_and_that_goes_again(tmp_path):
    tmp_path.chmod(0o755)
    with hold_folder(tmp_path):
        (lock,) = tmp_path.iterdir()
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        assert os.geteuid() == lock.stat().st_uid
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_a_folder_who_locks_the_folder_itself_stops_no_writer(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with hold_folder(tmp_path):
            pass
    finally:
        os.close(handle)


def test_a_lock_of_a_folder_is_no_pipe_and_no_link(tmp_path):
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "target")):
        make(tmp_path / ".patchdeploy-lock")
        with pytest.raises(StorageError, match="cannot write into"), hold_folder(tmp_path):
            pass
        (tmp_path / ".patchdeploy-lock").unlink()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["a.pem", "a"])
def test_a_pipe_is_no_key_and_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(PatchKeyError) as caught:
        SigningKey.load(tmp_path / name)
    assert str(caught.value) == (
        f"key file {tmp_path / name} is not a regular file; it must be a regular file; put the "
        "file itself in its place"
    )
    with pytest.raises(PatchKeyError, match=r"list of trusted keys .* is not a regular file"):
        TrustedKeys.load(tmp_path / name)
    listed = list_keys(tmp_path)
    assert [one.path.name for one in listed] == (["a.pem"] if name == "a.pem" else [])
    assert all(one.problem is not None for one in listed)
