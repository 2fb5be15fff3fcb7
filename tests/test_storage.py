import os
import socket
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from patchdeploy.errors import IrregularFileError, StorageError
from patchdeploy.storage import (
    read_inside,
    read_regular,
    sha256_hex,
    unlink_inside,
    write_atomic,
    write_inside,
)


def test_writing_replaces_the_file_and_leaves_no_temporary_name(tmp_path):
    path = tmp_path / "folder" / "file.bin"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_place_that_cannot_be_written_is_a_storage_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="choose another place; what was there is unchanged"):
        write_atomic(tmp_path / "file" / "below", b"data")


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    # A file size limit makes the kernel fail a write in the middle, as a full disk does.
    program = (
        "import resource, signal, sys, pathlib\n"
        "from patchdeploy.storage import write_atomic\n"
        "from patchdeploy.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_atomic(pathlib.Path(sys.argv[1]), bytes(100_000))\n"
        "except StorageError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"refused: cannot write {path} (100000 bytes)")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_that_cannot_be_synced_after_the_rename_is_told_as_that(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    real = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        write_atomic(path, b"new")
    assert str(caught.value) == (
        f"wrote {path} (3 bytes), but its folder cannot be synced: Input/output error; the new "
        "content stands, but may not survive a loss of power; check the disk and write it again"
    )
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_sha256_is_the_published_one_of_the_empty_string():
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("umask", "before", "mode"),
    [(0o022, None, 0o644), (0o077, None, 0o600), (0o002, None, 0o664), (0o022, 0o600, 0o600)],
)
def test_a_new_file_has_the_rights_that_the_umask_leaves_and_none_that_the_old_one_had_not(
    tmp_path, umask, before, mode
):
    path = tmp_path / "folder" / "file"
    old = os.umask(umask)
    try:
        if before is not None:
            write_atomic(path, b"old")
            path.chmod(before)
        write_atomic(path, b"new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_writing_and_removing_inside_a_folder_follows_no_link(tmp_path):
    irregular_files(tmp_path)
    write_inside(tmp_path, "new/deep/file", b"1")
    assert (tmp_path / "new" / "deep" / "file").read_bytes() == b"1"
    for call in (lambda name: write_inside(tmp_path, name, b"2"), partial(unlink_inside, tmp_path)):
        for name in ("linked-folder/file", "circle/file", "pipe/file"):
            with pytest.raises(IrregularFileError, match="is a link or no folder"):
                call(name)
    write_inside(tmp_path, "link", b"3")  # the link itself goes, not what it leads to
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "link").read_bytes() == b"3"
    unlink_inside(tmp_path, "device")
    unlink_inside(tmp_path, "not-there/file")
    assert not (tmp_path / "device").is_symlink()
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"


def irregular_files(folder):
    """Name of each kind of thing that is no regular file, made in ``folder``."""
    (folder / "file").write_bytes(b"content")
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_bytes(b"content")
    (folder / "link").symlink_to("file")
    (folder / "circle").symlink_to("circle")
    (folder / "linked-folder").symlink_to("folder")
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    with (folder / "sparse").open("wb") as file:
        file.truncate(20 << 30)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(folder / "socket"))
    listener.close()
    return ["folder", "link", "circle", "linked-folder", "pipe", "device", "sparse", "socket"]


def test_nothing_but_a_regular_file_is_read_and_nothing_is_waited_for(tmp_path):
    for name in irregular_files(tmp_path):
        for read in (read_regular, lambda path, limit: read_inside(tmp_path, path.name, limit)):
            with pytest.raises(IrregularFileError, match="must be a regular file; put the file"):
                read(tmp_path / name, 1 << 20)
    for name in ("folder", "circle", "linked-folder", "pipe", "device", "sparse", "socket"):
        with pytest.raises(IrregularFileError):
            read_regular(tmp_path / name, 1 << 20, follow=True)
    assert read_regular(tmp_path / "link", 7, follow=True) == b"content"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", 7)
    with pytest.raises(IrregularFileError, match="7 bytes long, and at most 6 are allowed"):
        read_regular(tmp_path / "file", 6)


def test_no_part_of_a_name_inside_a_folder_may_be_a_link(tmp_path):
    irregular_files(tmp_path)
    (tmp_path / "way").symlink_to(tmp_path)
    assert read_inside(tmp_path / "way", "folder/file", 7) == b"content"
    for name in ("linked-folder/file", "circle/file", "file/file", "pipe/file"):
        with pytest.raises(IrregularFileError, match="is a link or no folder"):
            read_inside(tmp_path, name, 7)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(IrregularFileError):
        read_inside(tmp_path, "linked-folder/file", 7)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_grows_while_it_is_read_is_not_cut_in_silence(tmp_path):
    (tmp_path / "file").write_bytes(bytes(10))
    assert len(read_regular(Path("/proc/self/status"), 1 << 20)) > 100  # says that it has length 0
    real = os.fstat

    def earlier(handle):
        status = real(handle)
        with (tmp_path / "file").open("ab") as file:
            file.write(bytes(70_000))
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", earlier)
        with pytest.raises(IrregularFileError, match="grows while it is read"):
            read_regular(tmp_path / "file", 1 << 20)
