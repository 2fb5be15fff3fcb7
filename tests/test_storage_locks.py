"""Locks of files: flock for Python's programs, a record lock beside it where a JVM may write."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from patchdeploy.errors import StorageError
from patchdeploy.storage_locks import hold_lock, open_lock
from patchdeploy.store.files import DiskFiles

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
getattr(fcntl, sys.argv[2])(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
TRY = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR)
try:
    getattr(fcntl, sys.argv[2])(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""
FLOCK, RECORD = "flock", "lockf"
"""The functions of Python's fcntl; a JVM's `FileChannel.lock` is the second."""


def is_free(path: Path, kind: str) -> bool:
    """Whether another process can have the lock."""
    status = subprocess.run([sys.executable, "-c", TRY, path, kind], check=False).returncode
    assert status in (0, 3)
    return status == 0


@pytest.mark.parametrize("kind", [FLOCK, RECORD])
def test_a_lock_that_another_process_does_not_give_back_is_an_error_and_one_that_it_does_is_held(
    tmp_path, kind
):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError) as caught:
            hold_lock(handle, path, 0.05, record=True)
        assert str(caught.value) == (
            f"another process has held {path} for 0.05 seconds; one at a time writes there; let "
            "it end, or end it, and try again; nothing was written"
        )
        holder.communicate()  # its end gives the lock back
        hold_lock(handle, path, 0, record=True)
        other = os.open(path, os.O_RDWR)
        with pytest.raises(StorageError, match="has held"):
            hold_lock(other, path, 0, record=True)
        os.close(other)
    finally:
        holder.communicate()
        os.close(handle)


def test_a_store_is_held_in_both_ways_and_other_files_by_flock_alone(tmp_path):
    path = tmp_path / "lock"
    with DiskFiles().lock(path):
        assert [is_free(path, kind) for kind in (FLOCK, RECORD)] == [False, False]
    assert [is_free(path, kind) for kind in (FLOCK, RECORD)] == [True, True]
    handle = open_lock(path)
    hold_lock(handle, path)
    assert [is_free(path, kind) for kind in (FLOCK, RECORD)] == [False, True]
    os.close(handle)


def test_a_thread_that_waits_in_vain_and_closes_the_file_frees_nothing(tmp_path):
    path = tmp_path / "lock"
    with DiskFiles().lock(path):

        def wait() -> None:
            with pytest.raises(StorageError), DiskFiles(lock_seconds=0).lock(path):
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        path.read_bytes()  # any closed handle of the file frees an ordinary record lock
        assert not is_free(path, RECORD)


def test_a_disk_without_record_locks_leaves_flock_and_any_other_failure_is_an_error(
    tmp_path, monkeypatch
):
    path = tmp_path / "lock"
    codes = [errno.ENOLCK]

    def refuse(handle: int, command: int, argument: bytes) -> None:
        raise OSError(codes[0], os.strerror(codes[0]))

    monkeypatch.setattr("fcntl.fcntl", refuse)
    with DiskFiles().lock(path):
        assert not is_free(path, FLOCK)
    codes[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output"), DiskFiles().lock(path):
        pass
