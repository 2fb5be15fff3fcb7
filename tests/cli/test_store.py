"""``install``, ``activate``, ``revert``, ``list``, ``clean-up`` and ``serve``, as one uses them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_cases import KEY, make_bundle, make_patch
from cli_cases import COMMAND, answer, call, here, refused

from patchdeploy.bundle import open_bundle
from patchdeploy.cli.store import DOWNLOADS
from patchdeploy.patchfile import add_signature, build_patch, check_patch_file
from patchdeploy.patchfile.keys import SigningKey
from patchdeploy.patchfile.pack import GoldenInputs, Release, Signer, pack_patch
from patchdeploy.storage import sha256_hex

sys.path.insert(0, str(Path(__file__).parent.parent / "patchfile"))
from hostile_server import first_byte, reply, serving

SEQUENCES = range(1, 5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A signed bundle and patches of its first task, sequence numbers 1 to 4, ``<n>.pdp``."""
    root = tmp_path_factory.mktemp("cli_store")
    bundle = make_bundle(root / "bundle", signed=True)
    bundle.manifest.trusted.save(root / "trusted.json")
    for sequence in SEQUENCES:
        data = pack(bundle, sequence)
        (root / f"{sequence}.pdp").write_bytes(data)
    return root


def pack(bundle, sequence, key=KEY, **release):
    thumbnails = bundle.patch("first").golden.thumbnails
    return pack_patch(
        make_patch(task="first", seed=sequence)[1],
        bundle.coding_table,
        bundle.base_files(),
        release=Release(sequence, signers=(Signer(key, 0),), **release),
        golden=GoldenInputs(bundle.reference(), thumbnails),
    ).data


@pytest.fixture
def options(place, tmp_path):
    return ("--store", tmp_path / "store", "--bundle", place / "bundle")


def sha(path):
    return sha256_hex(path.read_bytes())


def active_sequence(options):
    patches = answer("list", *options)["patches"]
    (found,) = [one["sequence"] for one in patches if one["status"] == "active"]
    return found


def test_a_patch_is_installed_replaced_reverted_and_activated_again(place, options, tmp_path):
    first = answer("install", place / "1.pdp", *options, by=call)
    assert first == {
        "sha256": sha(place / "1.pdp"),
        "task": "first",
        "sequence": 1,
        "changed": True,
        "recovery": None,
        "lost_resolutions": [],
        "download": None,
    }
    again = answer("install", place / "1.pdp", *options)
    assert again == first | {"changed": False}
    second = answer("install", place / "2.pdp", *options)
    assert (second["sequence"], second["changed"]) == (2, True)
    back = answer("revert", "first", *options)
    assert (back["sequence"], back["sha256"]) == (1, first["sha256"])
    forth = answer("activate", second["sha256"], *options)
    assert (forth["sequence"], forth["changed"]) == (2, True)
    text = here("install", place / "2.pdp", *options).stdout
    assert "no: it was so already" in text


def test_a_patch_that_lacks_a_side_of_the_one_before_it_is_taken_and_the_side_said(
    place, options, tmp_path
):
    bundle = open_bundle(place / "bundle")
    patch = make_patch(task="first", seed=2, resolutions=(16,))[1]
    release = Release(2, signers=(Signer(KEY, 0),))
    data = pack_patch(patch, bundle.coding_table, bundle.base_files(), release=release).data
    (tmp_path / "small.pdp").write_bytes(data)
    done = here("install", tmp_path / "small.pdp", *options, "--json")
    assert json.loads(done.stdout)["lost_resolutions"] == [24]
    assert "warning: the patch of task first has no 24 px" in " ".join(done.stderr.split())


def test_list_shows_what_is_active(place, options, tmp_path):
    for number in (1, 2, 3):
        answer("install", place / f"{number}.pdp", *options)
    answer("install", place / "4.pdp", *options, "--keep")
    found = answer("list", *options)
    assert found["store"] == str(tmp_path / "store")
    assert found["patches"] == [
        {
            "sha256": sha(place / f"{number}.pdp"),
            "status": status,
            "task": "first",
            "sequence": number,
            "expires": 0,
            "file_bytes": (place / f"{number}.pdp").stat().st_size,
            "problem": None,
        }
        for number, status in enumerate(("installed", "previous", "active", "installed"), 1)
    ]
    assert "previous" in here("list", *options).stdout


def test_a_store_that_is_not_there_cannot_be_listed_and_is_not_made(options, tmp_path):
    said = f"cannot list the patches in {tmp_path / 'store'}: no patch store is there"
    refused(here("list", *options), 2, said)
    assert not (tmp_path / "store").exists()


def test_clean_up_removes_what_is_not_used(place, options, tmp_path):
    for number in (1, 2, 3):
        answer("install", place / f"{number}.pdp", *options)
    (tmp_path / "store" / DOWNLOADS).mkdir()
    (tmp_path / "store" / DOWNLOADS / "x.part").write_bytes(b'"etag"\nbytes')
    found = answer("clean-up", *options)
    assert found == {
        "store": str(tmp_path / "store"),
        "removed": [f"{sha(place / '1.pdp')}.pdp", f"{DOWNLOADS}/x.part"],
    }
    assert not (tmp_path / "store" / found["removed"][0]).exists()
    assert list((tmp_path / "store" / DOWNLOADS).iterdir()) == []
    assert "nothing was left over" in here("clean-up", *options).stdout


def test_every_command_of_a_store_is_for_the_runtime_that_is_named(place, options):
    for command in (
        ["install", place / "1.pdp"], ["activate", "0" * 64], ["revert", "first"], ["list"],
        ["clean-up"],
    ):  # fmt: skip
        done = here(*command, *options, "--runtime", "tpu")
        refused(done, 2, "runtime 'tpu'; it must be one of")
    answer("install", place / "1.pdp", *options, "--runtime", "onnxruntime")


def test_an_older_patch_is_refused_and_ends_with_1(place, options):
    answer("install", place / "2.pdp", *options)
    done = call("install", place / "1.pdp", *options)
    refused(done, 1, "patch refused (sequence)", "it must be above 2", "fetch a newer patch")
    assert active_sequence(options) == 2


def forge(place, **changes):
    """Patch 2 with other fields in its header, signed again."""
    bundle = open_bundle(place / "bundle")
    good = check_patch_file((place / "2.pdp").read_bytes(), bundle.policy("first"))
    return add_signature(build_patch(replace(good.header, **changes), good.payload), KEY, 0)


@pytest.mark.parametrize("code", ["magic", "signature", "expired", "result", "unsigned", "base"])
def test_a_refused_patch_ends_with_1_and_its_code(place, options, tmp_path, code):
    bundle = open_bundle(place / "bundle")
    good = (place / "2.pdp").read_bytes()
    results = check_patch_file(good, bundle.policy("first")).header.results
    wrong = {name: dict.fromkeys(one, "0" * 64) for name, one in results.items()}
    stranger = SigningKey.from_seed(b"a key that nobody's readers know")
    file = tmp_path / "bad.pdp"
    file.write_bytes(
        {
            "magic": lambda: b"X" + good[1:],
            "signature": lambda: pack(bundle, 2, key=stranger),
            "expired": lambda: pack(bundle, 2, expires=1),
            "result": lambda: forge(place, results=wrong),
            "unsigned": lambda: pack_unsigned(bundle),
            "base": lambda: forge(place, base_sha256="0" * 64),
        }[code]()
    )
    refused(here("install", file, *options), 1, f"patch refused ({code})")
    assert list((tmp_path / "store").glob("*.pdp")) == []


def pack_unsigned(bundle):
    data = (bundle.path / "patches" / "first.pdp").read_bytes()
    good = check_patch_file(data, bundle.policy("first"))
    return build_patch(good.header, good.payload)


def test_an_unsigned_patch_is_taken_where_it_is_asked_for(place, options, tmp_path, caplog):
    file = tmp_path / "unsigned.pdp"
    file.write_bytes(pack_unsigned(open_bundle(place / "bundle")))
    done = here("install", file, *options, "--allow-unsigned", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["changed"] is True
    assert "UNSIGNED patch file taken" in caplog.text  # standard error, outside of a test


def test_other_errors_keep_their_exit_codes(place, options, tmp_path):
    refused(here("install", tmp_path / "none.pdp", *options), 2, "cannot read patch file")
    for words in (("revert", "first"), ("activate", "0" * 64), ("clean-up",)):
        refused(here(*words, *options), 2, "no patch store is there")
        assert not (tmp_path / "store").exists()
    answer("install", place / "1.pdp", *options)
    refused(here("revert", "second", *options), 2, "no active patch for task 'second'")
    refused(here("revert", "../up", *options), 2, "task '../up'; it must be")
    refused(here("activate", "0" * 64, *options), 2, "holds no patch 000")
    refused(here("activate", "../STATE", *options), 2, "it must be 64 lower-case hexadecimal")
    done = here(
        "install", place / "1.pdp", "--store", tmp_path / "no" / "such", "--bundle",
        place / "bundle",
    )  # fmt: skip
    refused(done, 4, "cannot install a patch in store", "the state before this stays")
    for store in (tmp_path / "no" / "such", place / "1.pdp"):
        where = ("--store", store, "--bundle", place / "bundle")
        refused(here("install", "http://127.0.0.1:1/x", *where), 4, f"cannot make store {store}: ")
    assert here("clean-up", "--store", place / "1.pdp", *where[2:]).returncode == 4
    done = here("install", place / "1.pdp", "--store", tmp_path / "x", "--bundle", tmp_path)
    refused(done, 2, "is not a bundle")
    assert here("install", place / "1.pdp").returncode == 2
    refused(here("revert", "first", *options), 2, "has no previous patch")


def test_another_list_of_keys_counts(place, options, tmp_path):
    stranger = SigningKey.from_seed(b"a key that nobody's readers know")
    stranger.save(tmp_path / "s.pem")
    answer("keys", "rotate", copy(place, tmp_path), "--add", stranger.public.hex(), "--revoke", "0")
    done = here("install", place / "1.pdp", *options, "--trusted", tmp_path / "trusted.json")
    refused(done, 1, "patch refused (key_unknown)")


def copy(place, tmp_path):
    return shutil.copy(place / "trusted.json", tmp_path / "trusted.json")


def test_a_state_that_was_damaged_is_said_and_is_in_the_json(place, options, tmp_path):
    answer("install", place / "1.pdp", *options)
    (tmp_path / "store" / "STATE").write_bytes(b"\x1b[2Jdamaged")
    done = here("install", place / "2.pdp", *options, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)["recovery"]
    assert set(found) == {"reason", "active", "refused"}
    assert found["active"] == {"first": sha(place / "1.pdp")}
    assert "warning: STATE of the store was lost or damaged" in " ".join(done.stderr.split())
    assert "\x1b[2J" not in done.stderr


def test_the_store_remembers_the_newest_list_of_keys(place, options, tmp_path):
    stranger = SigningKey.from_seed(b"a key that nobody's readers know")
    answer("keys", "rotate", copy(place, tmp_path), "--add", stranger.public.hex(), "--revoke", "0")
    newest = ("--trusted", tmp_path / "trusted.json")
    for extra in (newest, (), ("--trusted", place / "trusted.json")):
        done = here("install", place / "1.pdp", *options, *extra)
        refused(done, 1, "patch refused (key_unknown)")
    done = here("reset", *options, "--keys", "--json")
    assert done.returncode == 0
    assert "has forgotten which keys were revoked" in " ".join(done.stderr.split())
    assert answer("install", place / "1.pdp", *options)["changed"]


def test_an_operator_lowers_a_floor_by_hand_and_is_warned(place, options):
    for number in (1, 3):
        answer("install", place / f"{number}.pdp", *options)
    answer("revert", "first", *options)
    refused(here("install", place / "2.pdp", *options), 1, "patch refused (sequence)")
    done = here("reset", *options, "first", "--json")
    assert json.loads(done.stdout)["floor"] == 1
    assert "is taken again, also an old one" in " ".join(done.stderr.split())
    assert answer("install", place / "2.pdp", *options)["changed"]
    refused(here("reset", *options), 2, "reset takes a task or --keys, one of them")
    refused(here("reset", *options, "first", "--keys"), 2, "one of them")
    refused(here("reset", *options, "none"), 2, "no floor for task 'none'")


# -- from a server ---------------------------------------------------------------------------------


@contextmanager
def serve(folder):
    """``patchdeploy serve`` in a process of its own; gives what it printed."""
    process = subprocess.Popen(
        [COMMAND, "serve", str(folder), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = []
        while not lines or lines[-1].strip() != "}":
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line)
        yield json.loads("".join(lines))
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")  # Ctrl-C is how a server ends


def test_a_patch_is_installed_from_the_server(place, options, tmp_path):
    with serve(place) as printed:
        assert set(printed) == {"folder", "url", "index"}
        assert printed["url"].startswith("http://127.0.0.1:")
        url = f"{printed['url']}/1.pdp"
        found = answer("install", url, *options)
        length = (place / "1.pdp").stat().st_size
        assert found["download"] == {"url": url, "bytes": length, "resumed_bytes": 0}
        assert (found["sequence"], found["changed"]) == (1, True)
        done = call("install", f"{printed['url']}/none.pdp", *options)
        refused(done, 6, "answers 404 Not Found; it must answer 200 OK; correct the address")
    refused(here("install", url, *options), 6, "cannot be reached")
    assert list((tmp_path / "store" / DOWNLOADS).iterdir()) == []


def test_a_mirror_that_is_stale_is_refused_by_the_floor(place, options):
    answer("install", place / "2.pdp", *options)

    def stale(request, connection):
        reply(connection, (place / "1.pdp").read_bytes(), etag='"2"')

    with serving(stale) as mirror:
        refused(here("install", mirror.url, *options), 1, "patch refused (sequence)")
    assert active_sequence(options) == 2


def test_an_install_that_was_cut_off_goes_on(place, options, tmp_path):
    body = (place / "1.pdp").read_bytes()

    def answered(request, connection):
        start = first_byte(request)
        if not start:
            return reply(connection, body[:300], etag='"e"', length=len(body))
        return reply(
            connection, body[start:], "206 Partial Content", etag='"e"',
            content_range=f"bytes {start}-{len(body) - 1}/{len(body)}",
        )  # fmt: skip

    with serving(answered) as server:
        refused(here("install", server.url, *options), 6, "goes on where it stopped")
        done = here("install", server.url, *options)
    assert done.returncode == 0
    assert "300 of them by an earlier download" in " ".join(done.stdout.split())


def test_a_hostile_server_ends_with_its_code_and_leaves_the_store(place, options):
    answer("install", place / "1.pdp", *options)

    def endless(request, connection):
        reply(connection, b"", length=10**12)

    def elsewhere(request, connection):
        reply(connection, b"", "302 Found", location="http://127.0.0.1:1/")

    def nonsense(request, connection):
        reply(connection, b"<html>" * 100)

    for server, code, words in (
        (endless, 1, "patch refused (too_large)"),
        (elsewhere, 6, "a redirect is never followed"),
        (nonsense, 1, "patch refused (magic)"),
    ):
        with serving(server) as hostile:
            refused(here("install", hostile.url, *options), code, words)
    refused(here("install", "ftp://a/b", *options), 2, "it must be http:// or https://")
    assert [one["sequence"] for one in answer("list", *options)["patches"]] == [1]


def test_serve_refuses_what_it_cannot_do(place, tmp_path):
    refused(here("serve", tmp_path / "none"), 2, "is not a folder")
    refused(here("serve", place, "--host", "203.0.113.7"), 2, "cannot listen on 203.0.113.7")


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("httpx", "update", ["install", "http://127.0.0.1:1/x", "--store", "s", "--bundle", "b"]),
        ("starlette", "serve", ["serve", "."]),
        ("uvicorn", "serve", ["serve", "."]),
    ],
)
def test_a_missing_extra_ends_with_3_and_names_it(place, tmp_path, package, extra, arguments):
    program = (
        "import sys\n"
        "class Missing:\n"  # as the import system sees a package that is not installed
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from patchdeploy.cli import main\n"
        "main()\n"
    )
    (tmp_path / "b").symlink_to(place / "bundle")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    refused(done, 3, f"patchdeploy[{extra}]", "not installed")
