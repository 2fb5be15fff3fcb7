"""The files of keys: what begins as one, and the lock on their folder."""

import threading
from contextlib import suppress

import pytest

from patchdeploy.errors import StorageError
from patchdeploy.patchfile.key_files import hold_folder, is_pem


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
