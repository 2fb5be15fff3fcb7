"""``patchdeploy keys``: what it writes, what it prints, and what it never does."""

import os
import stat
import subprocess

import pytest
from bundle_cases import make_bundle
from cli_cases import COMMAND, answer, call, here, refused

from patchdeploy.bundle import open_bundle
from patchdeploy.errors import StorageError
from patchdeploy.patchfile.key_files import hold_folder
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys

MANIFEST = b'{\n  "base_name": "b",\n  "base_sha256": "ab",\n  "coding": "c",\n  "converters": {'
"""How a bundle's manifest begins, cut short."""


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def made(tmp_path):
    """Two keys and a list that demands both; their documents."""
    first = answer("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    second = answer(
        "keys", "new", tmp_path / "b.pem", "--trusted", tmp_path / "trusted.json",
        "--threshold", "2",
    )  # fmt: skip
    return first, second


def test_new_makes_a_key_that_only_its_owner_reads_and_prints_its_public_half(tmp_path):
    found = answer("keys", "new", tmp_path / "a.pem", by=call)
    key = SigningKey.load(tmp_path / "a.pem")
    assert found == {
        "file": str(tmp_path / "a.pem"),
        "public": key.public.hex(),
        "trusted": None,
        "index": None,
        "threshold": None,
    }
    assert mode(tmp_path / "a.pem") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pem"]


def test_a_private_key_is_never_printed(tmp_path):
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    listed = here("keys", "list", tmp_path)
    body = (tmp_path / "a.pem").read_text().splitlines()[1]
    for one in (done, listed):
        assert one.returncode == 0
        assert body not in one.stdout + one.stderr
        assert SigningKey.load(tmp_path / "a.pem").public.hex() in one.stdout
    assert body not in (tmp_path / "trusted.json").read_text()


def test_a_trusted_list_is_made_and_then_appended_to(tmp_path, made):
    first, second = made
    assert (first["index"], first["threshold"]) == (0, 1)
    assert (second["index"], second["threshold"]) == (1, 2)
    trusted = TrustedKeys.load(tmp_path / "trusted.json")
    assert [key.hex() for key in trusted.keys] == [first["public"], second["public"]]
    assert trusted.threshold == 2


def test_list_shows_keys_lists_and_folders(tmp_path, made):
    first, second = made
    (tmp_path / "open.pem").write_text("not a key")
    (tmp_path / "open.pem").chmod(0o644)
    folder = answer("keys", "list", tmp_path)
    assert folder["folder"] == str(tmp_path)
    assert [one["public"] for one in folder["keys"]] == [first["public"], second["public"], None]
    assert "has mode 0644" in folder["keys"][2]["problem"]
    assert set(folder["keys"][0]) == {"file", "public", "problem"}
    one = answer("keys", "list", tmp_path / "a.pem")
    assert one == {"file": str(tmp_path / "a.pem"), "public": first["public"]}
    assert answer("keys", "list", tmp_path / "trusted.json") == {
        "file": str(tmp_path / "trusted.json"),
        "threshold": 2,
        "keys": [
            {"index": 0, "public": first["public"], "revoked": False},
            {"index": 1, "public": second["public"], "revoked": False},
        ],
    }
    for place in (tmp_path, tmp_path / "a.pem", tmp_path / "trusted.json"):
        assert first["public"] in here("keys", "list", place).stdout


def test_rotate_appends_and_revokes_and_leaves_other_indices(tmp_path, made):
    public = SigningKey.from_seed(bytes(32)).public.hex()
    found = answer("keys", "rotate", tmp_path / "trusted.json", "--add", public, "--revoke", "0")
    assert found == {
        "file": str(tmp_path / "trusted.json"),
        "threshold": 2,
        "keys": [
            {"index": 0, "public": None, "revoked": True},
            {"index": 1, "public": made[1]["public"], "revoked": False},
            {"index": 2, "public": public, "revoked": False},
        ],
    }
    assert TrustedKeys.load(tmp_path / "trusted.json").keys[2].hex() == public
    assert "revoked" in here("keys", "list", tmp_path / "trusted.json").stdout


def test_a_threshold_can_fall_together_with_the_keys(tmp_path, made):
    trusted = tmp_path / "trusted.json"
    refused(here("keys", "rotate", trusted, "--revoke", "0"), 2, "threshold 2 over 1 live keys")
    assert TrustedKeys.load(trusted).keys[0] is not None
    found = answer("keys", "rotate", trusted, "--revoke", "0", "--threshold", "1")
    assert (found["threshold"], found["keys"][0]["revoked"]) == (1, True)
    refused(here("keys", "rotate", trusted, "--threshold", "2"), 2, "threshold 2 over 1 live keys")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "none of --add, --revoke and --threshold; a rotation changes one of them"),
        (["--add", "xyz"], "--add is 'xyz'; it must be a public key in 64 hexadecimal digits"),
        (["--add", "00" * 32], "it must be an Ed25519 key of 32 bytes"),
        (["--add", "ab"], "public key ab of 1 bytes"),
        (["--revoke", "7"], "key 7 cannot be revoked"),
    ],
)
def test_a_rotation_that_cannot_be_leaves_the_list(tmp_path, made, options, words):
    before = (tmp_path / "trusted.json").read_bytes()
    refused(here("keys", "rotate", tmp_path / "trusted.json", *options), 2, words)
    assert (tmp_path / "trusted.json").read_bytes() == before


def test_a_key_is_never_written_into_a_bundle(tmp_path, monkeypatch):
    (tmp_path / "bundle" / "patches" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "way").symlink_to(tmp_path / "bundle" / "patches")
    for place in ("bundle", "bundle/patches", "bundle/patches/deep", "way", "way/deep"):
        file = tmp_path / place / "key.pem"
        done = here("keys", "new", file, "--trusted", tmp_path / "trusted.json")
        refused(done, 2, f"key file {file} would lie in bundle {tmp_path / 'bundle'}; a bundle is")
        assert not file.exists()
    assert not (tmp_path / "trusted.json").exists()
    monkeypatch.chdir(tmp_path / "bundle" / "patches")
    refused(here("keys", "new", "key.pem"), 2, "would lie in bundle")


def test_a_real_bundle_is_known_by_its_manifest(tmp_path):
    from bundle_cases import make_bundle

    make_bundle(tmp_path / "bundle", tasks=())
    done = here("keys", "new", tmp_path / "bundle" / "patches" / "key.pem")
    refused(done, 2, "would lie in bundle")


@pytest.mark.parametrize("text", ["{}", '{"manifest_version": 3, "name": "app"}', "no JSON"])
def test_a_manifest_of_something_else_forbids_no_key(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "deep").mkdir()
    answer("keys", "new", tmp_path / "deep" / "key.pem")


@pytest.mark.parametrize("other", ["e", "./e", "deep/../e", "link"])
def test_a_list_never_takes_the_place_of_its_key(tmp_path, monkeypatch, other):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("e")
    monkeypatch.chdir(tmp_path)
    refused(here("keys", "new", "e", "--trusted", other), 2, "key file e is also the list of")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "link"]


def test_links_in_a_circle_are_bad_input(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    done = here("keys", "new", tmp_path / "a" / "key.pem")
    assert done.returncode in (2, 4), done.stderr
    assert "defect" not in done.stderr


def fail_after_the_rename(monkeypatch, tmp_path):
    """The folder of the list is synced after its rename, and fails then, as a bad disk does."""
    import patchdeploy.storage

    real = os.fsync

    def fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) and (tmp_path / "lists/trusted.json").exists():
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(patchdeploy.storage.os, "fsync", fail)


def test_a_key_that_the_list_may_trust_is_never_deleted(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    fail_after_the_rename(monkeypatch, tmp_path)
    trusted = tmp_path / "lists" / "trusted.json"
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", trusted)
    refused(done, 4, f"wrote {trusted}", "the new content stands")
    assert TrustedKeys.load(trusted).keys == (SigningKey.load(tmp_path / "a.pem").public,)


def test_a_key_stays_where_nobody_can_tell_whether_it_is_trusted(tmp_path, monkeypatch):
    def fail(self, path):
        path.write_text("half")
        raise StorageError("planted")

    monkeypatch.setattr(TrustedKeys, "save", fail)
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    refused(done, 4, "planted")
    assert (tmp_path / "a.pem").exists()


def test_ctrl_c_before_the_list_has_the_key_leaves_no_key(tmp_path, monkeypatch):
    def interrupt(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrustedKeys, "save", interrupt)
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    refused(done, 130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_made_at_once_are_all_in_the_list(tmp_path):
    """All of them wait until the lock is free, then each reads what the one before has written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    trusted = tmp_path / "trusted.json"
    answer("keys", "new", tmp_path / "first.pem", "--trusted", trusted)
    rotated = SigningKey.from_seed(bytes(32)).public.hex()
    commands = [["keys", "new", f"{k}.pem", "--trusted", "trusted.json"] for k in range(3)]
    commands.append(["keys", "rotate", "trusted.json", "--add", rotated])
    with hold_folder(tmp_path):
        started = [
            subprocess.Popen(
                [COMMAND, *one], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
            )
            for one in commands
        ]
        for process in started:  # none can end while the lock is held
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
        assert len(TrustedKeys.load(trusted).keys) == 1
    assert [process.wait(60) for process in started] == [0] * len(commands)
    public = {SigningKey.load(path).public.hex() for path in tmp_path.glob("*.pem")} | {rotated}
    assert {key.hex() for key in TrustedKeys.load(trusted).keys} == public
    assert len(public) == 1 + len(commands)


@pytest.mark.parametrize("name", ["release.key", "release", "release.json"])
def test_a_key_of_any_name_is_listed(tmp_path, name):
    made = answer("keys", "new", tmp_path / name)
    found = answer("keys", "list", tmp_path / name)
    assert found == {"file": str(tmp_path / name), "public": made["public"]}
    (tmp_path / "notes.txt").write_text("no key")
    os.mkfifo(tmp_path / "pipe")
    listed = answer("keys", "list", tmp_path)["keys"]
    assert [one["public"] for one in listed] == [made["public"]]


@pytest.mark.parametrize("place", ["none", "file"])
def test_neither_a_key_nor_its_list_goes_into_a_folder_that_is_not_there(tmp_path, place):
    (tmp_path / "file").write_text("")
    below = tmp_path / place / "x"
    for options in ([below], [tmp_path / "a.pem", "--trusted", below]):
        done = here("keys", "new", *options)
        refused(done, 4, f"cannot write {below}: {below.parent} is not a folder that is there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_key_is_never_written_over(tmp_path, made):
    before = (tmp_path / "a.pem").read_bytes()
    trusted = (tmp_path / "trusted.json").read_bytes()
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    refused(done, 4, "File exists; a key is never overwritten")
    assert (tmp_path / "a.pem").read_bytes() == before
    assert (tmp_path / "trusted.json").read_bytes() == trusted


def test_no_key_is_left_where_its_list_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "file" / "trusted.json")
    refused(done, 4, "cannot write", "trusted.json")
    assert not (tmp_path / "a.pem").exists()


def test_a_list_that_is_none_is_not_appended_to(tmp_path):
    (tmp_path / "trusted.json").write_text("{}")
    done = here("keys", "new", tmp_path / "a.pem", "--trusted", tmp_path / "trusted.json")
    refused(done, 2, "list of trusted keys has other parts than it must have")
    assert not (tmp_path / "a.pem").exists()
    assert (tmp_path / "trusted.json").read_text() == "{}"


def test_a_threshold_belongs_to_a_list(tmp_path):
    done = here("keys", "new", tmp_path / "a.pem", "--threshold", "2")
    refused(done, 2, "--threshold 2 without --trusted; it belongs to a list of trusted keys")
    done = here(
        "keys", "new", tmp_path / "a.pem", "--threshold", "2", "--trusted", tmp_path / "t.json"
    )
    refused(done, 2, "threshold 2 over 1 live keys")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_ends_with_4(tmp_path):
    for name in ("none.json", "none.pem"):
        refused(here("keys", "list", tmp_path / name), 4, "cannot read", "No such file")


def test_keys_alone_shows_its_commands():
    done = here("keys", "--help")
    assert done.returncode == 0
    for command in ("new", "list", "rotate"):
        assert command in done.stdout
        assert "--json" in here("keys", command, "--help").stdout


def test_a_bundle_pins_another_list(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", tasks=("first",), formats=("onnx",), signed=True)
    bundle.manifest.trusted.save(tmp_path / "trusted.json")
    made = answer("keys", "new", tmp_path / "new.pem", "--trusted", tmp_path / "trusted.json")
    answer("keys", "rotate", tmp_path / "trusted.json", "--revoke", "0")
    pin = ("keys", "pin", bundle.path, "--trusted", tmp_path / "trusted.json")
    refused(here(*pin), 2, "the new list does not take the patches of first")
    found = answer(*pin, "--key", tmp_path / "new.pem")
    assert found["signed_again"] == ["first"]
    pinned = open_bundle(bundle.path).manifest.trusted
    assert [key and key.hex() for key in pinned.keys] == [None, made["public"]]
