"""Folders that let nobody in, and folders that are not there: a message, a code, no new folder."""

import ctypes
import json
import os
import subprocess

import pytest
from bundle_cases import make_bundle
from cli_cases import COMMAND, answer, refused

_LIBC = ctypes.CDLL(None)
_PR_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2


def lose_rights():
    """In the child, before it starts: root, too, is kept out by a folder's mode from then on."""
    if os.geteuid() == 0:
        for right in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            if _LIBC.prctl(_PR_CAPBSET_DROP, right, 0, 0, 0) != 0:
                raise OSError("the right to override modes cannot be dropped")


def call(*arguments):
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lose_rights,
        check=False,
    )


@pytest.fixture
def closed(tmp_path):
    """A folder that nobody may enter."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o600)
    yield folder
    folder.chmod(0o700)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("cli_places") / "bundle").path


@pytest.mark.parametrize(
    "make",
    [
        lambda closed, bundle: ["inspect", closed / "x.pdp"],
        lambda closed, bundle: ["inspect", closed / "deep" / "bundle"],
        lambda closed, bundle: ["keys", "list", closed / "keys"],
        lambda closed, bundle: ["keys", "new", closed / "a.pem"],
        lambda closed, bundle: ["keys", "new", closed / "deep" / "a.pem"],
    ],
)
def test_a_folder_that_lets_nobody_in_ends_with_4_and_a_remedy(closed, bundle, make):
    done = call(*make(closed, bundle))
    refused(done, 4, f"cannot look at {closed}", "Permission denied; every folder above it must")


def test_nothing_is_packed_into_a_folder_that_lets_nobody_in(closed, bundle):
    done = call("pack", bundle, closed / "x.pdp", "--task", "first")
    refused(done, 4, f"cannot write into {closed}: Permission denied; it must be a folder that is")


def test_a_manifest_that_nobody_may_read_ends_with_4_and_no_key(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "manifest.json").chmod(0)
    done = call("keys", "new", tmp_path / "a.pem")
    refused(done, 4, f"cannot look at {tmp_path / 'manifest.json'}: Permission denied; every")
    assert not (tmp_path / "a.pem").exists()


@pytest.mark.parametrize("command", [["keys", "rotate", "--revoke", "0"], ["keys", "new"]])
def test_a_list_behind_a_closed_folder_is_no_defect(closed, tmp_path, command):
    name = [tmp_path / "a.pem", "--trusted"] if command[1] == "new" else []
    done = call(*command, *name, closed / "trusted.json")
    assert done.returncode == 4, done.stderr
    assert "Permission denied" in done.stderr
    assert not (tmp_path / "a.pem").exists()


def test_images_behind_a_closed_folder_are_no_defect(closed, bundle):
    done = call("evaluate", bundle, closed / "images", "--task", "first")
    refused(done, 4, f"cannot use {closed / 'images'}: Permission denied; it must be a place that")
    done = call("run", bundle, closed / "a.png", "--task", "first", "--json")
    assert done.returncode == 2, done.stderr
    assert "cannot look at" in json.loads(done.stdout)[0]["error"]


def test_a_name_that_is_too_long_for_any_disk_is_no_defect(tmp_path):
    done = call("inspect", tmp_path / ("a" * 300))
    refused(done, 4, "File name too long")


def test_a_server_of_a_closed_folder_is_refused(closed):
    refused(call("serve", closed / "files"), 2, "is not a folder; a server needs one")


def test_pack_makes_no_folder(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("none", "none/deep", "file"):
        out = tmp_path / place / "x.pdp"
        done = call("pack", bundle, out, "--task", "first")
        refused(done, 4, f"cannot write {out}: {out.parent} is not a folder that is there; a file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    answer("pack", bundle, tmp_path / "x.pdp", "--task", "first")
