"""``pack``, ``sign``, ``check``, ``inspect FILE.pdp`` and who signs an export."""

import io
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_cases import KEY, LABELS, RESOLUTIONS, make_bundle, make_patch, snapshot
from cli_cases import COMMAND, answer, call, here, refused
from rich.console import Console

from patchdeploy.bundle import open_bundle
from patchdeploy.cli import patch as patch_commands
from patchdeploy.cli.inspect import patch_tables
from patchdeploy.cli.signing import parse_expiry, show_time
from patchdeploy.cli.tables import show_text
from patchdeploy.coding.grid import EXACT_BIASES, CodingSteps
from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile import (
    MAX_FILE_BYTES,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
)
from patchdeploy.patchfile.key_files import hold_folder
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import Release, Signer, pack_patch
from patchdeploy.storage import sha256_hex
from patchdeploy.verify.patch import STAGES, verify_patch

SECOND = SigningKey.from_seed(b"another test key of these cases.")
FAR = 4_102_444_800
"""2100-01-01, Unix seconds."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A signed bundle, its key, and lists that demand one and two signatures."""
    root = tmp_path_factory.mktemp("cli_patch")
    bundle = make_bundle(root / "bundle", signed=True)
    KEY.save(root / "key.pem")
    SECOND.save(root / "second.pem")
    bundle.manifest.trusted.save(root / "trusted.json")
    TrustedKeys((KEY.public, SECOND.public), 2).save(root / "both.json")
    return root


@pytest.fixture
def file(place, tmp_path):
    """The first task's patch file, signed."""
    return shutil.copy(place / "bundle" / "patches" / "first.pdp", tmp_path / "first.pdp")


def checked(path, trusted=None):
    return check_patch_file(path.read_bytes(), Policy(trusted, allow_unsigned=trusted is None))


# -- pack ------------------------------------------------------------------------------------------


def test_pack_takes_a_patch_out_of_a_bundle_unsigned(place, tmp_path):
    out = tmp_path / "first.pdp"
    before = snapshot(place / "bundle")
    found = answer("pack", place / "bundle", out, "--task", "first", by=call)
    assert found == {
        "file": str(out),
        "sha256": sha256_hex(out.read_bytes()),
        "bytes": out.stat().st_size,
        "task": "first",
        "sequence": 1,
        "expires": 0,
        "signed_by": [],
    }
    signed = check_patch_file(before["patches/first.pdp"], Policy(TrustedKeys((KEY.public,), 1)))
    made = checked(out)
    assert (made.header, made.payload) == (signed.header, signed.payload)
    assert snapshot(place / "bundle") == before


def test_pack_sets_number_and_expiry_and_leaves_the_values(place, tmp_path):
    out = tmp_path / "first.pdp"
    found = answer(
        "pack", place / "bundle", out, "--task", "first", "--sequence", "7",
        "--expires", "2100-01-01",
    )  # fmt: skip
    assert (found["sequence"], found["expires"]) == (7, FAR)
    made = checked(out)
    assert (made.header.sequence, made.header.expires) == (7, FAR)
    assert made.payload == checked_of_bundle(place).payload
    again = tmp_path / "again.pdp"
    answer("pack", place / "bundle", again, "--task", "first", "--expires", "never")
    assert checked(again).header.expires == 0


def checked_of_bundle(place):
    data = (place / "bundle" / "patches" / "first.pdp").read_bytes()
    return check_patch_file(data, Policy(TrustedKeys((KEY.public,), 1)))


def test_pack_writes_over_nothing(place, file):
    before = file.read_bytes()
    done = here("pack", place / "bundle", file, "--task", "first")
    refused(done, 2, "is there already; a patch file may hold signatures, so none is written over")
    assert file.read_bytes() == before


def test_pack_of_a_task_that_is_not_there_names_those_that_are(place, tmp_path):
    done = here("pack", place / "bundle", tmp_path / "x.pdp", "--task", "third")
    refused(done, 2, "no task 'third'", "first, second")


# -- sign ------------------------------------------------------------------------------------------


def test_a_packed_patch_is_signed_by_two_and_then_taken(place, tmp_path):
    out, both = tmp_path / "first.pdp", place / "both.json"
    answer("pack", place / "bundle", out, "--task", "first", "--sequence", "2")
    done = here("sign", out, "--key", place / "key.pem", "--trusted", both, "--json")
    assert done.returncode == 0
    assert f"warning: {out} needs 1 more of the trusted keys" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["signed_by"] == [0]
    with pytest.raises(PatchRefusedError, match="threshold"):
        checked(out, TrustedKeys.load(both))
    done = here("sign", out, "--key", place / "second.pem", "--trusted", both, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "file": str(out),
        "sha256": sha256_hex(out.read_bytes()),
        "bytes": out.stat().st_size,
        "task": "first",
        "sequence": 2,
        "expires": 0,
        "signed_by": [0, 1],
    }
    assert checked(out, TrustedKeys.load(both)).signed_by == (0, 1)


def test_two_keys_sign_at_once(place, tmp_path):
    out = tmp_path / "first.pdp"
    answer("pack", place / "bundle", out, "--task", "first")
    found = answer(
        "sign", out, "--key", place / "second.pem", "--key", place / "key.pem",
        "--trusted", place / "both.json",
    )  # fmt: skip
    assert found["signed_by"] == [1, 0]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--key", "key.pem", "--trusted", "both.json"], 1, "refused (key_repeated)"),
        (["--key", "stranger.pem", "--trusted", "both.json"], 2, "is not among the trusted keys"),
        (["--key", "open.pem", "--trusted", "both.json"], 2, "has mode 0644"),
        (["--key", "none.pem", "--trusted", "both.json"], 4, "cannot read key file"),
        (["--key", "second.pem", "--trusted", "none.json"], 4, "cannot read trusted keys"),
        (["--key", "second.pem", "--trusted", "other.json"], 1, "refused (signature)"),
        (["--key", "second.pem"], 2, "--trusted"),
    ],
)
def test_a_file_that_cannot_be_signed_stays_as_it_is(
    place, file, tmp_path, monkeypatch, options, code, words
):
    for name in ("key.pem", "second.pem", "both.json"):
        shutil.copy(place / name, tmp_path / name)
    stranger = SigningKey.from_seed(b"a key that nobody's readers know")
    stranger.save(tmp_path / "stranger.pem")
    shutil.copy(place / "key.pem", tmp_path / "open.pem")
    (tmp_path / "open.pem").chmod(0o644)
    TrustedKeys((stranger.public, SECOND.public), 1).save(tmp_path / "other.json")
    monkeypatch.chdir(tmp_path)
    before = file.read_bytes()
    done = here("sign", file, *options)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == before


def test_a_damaged_file_is_not_signed(place, file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = here("sign", file, "--key", place / "second.pem", "--trusted", place / "both.json")
    refused(done, 1, "patch refused (payload_hash)")
    assert file.read_bytes() == data


# -- check -----------------------------------------------------------------------------------------


def test_check_shows_every_check_in_order(place, file):
    found = answer("check", file, "--bundle", place / "bundle")
    assert {key: found[key] for key in ("file", "sha256", "bytes", "ok", "task")} == {
        "file": str(file),
        "sha256": sha256_hex(file.read_bytes()),
        "bytes": file.stat().st_size,
        "ok": True,
        "task": "first",
    }
    assert (found["sequence"], found["code"]) == (1, None)
    assert [(one["check"], one["name"]) for one in found["checks"]] == [
        (1, "container"),
        (2, "signatures"),
        (3, "header"),
        (4, "payload"),
        (5, "place"),
        (6, "time"),
        (7, "parts"),
        (8, "values"),
        (9, "results"),
        (9, "self-test"),
    ]
    assert all(one["passed"] is True and one["detail"] for one in found["checks"])
    assert found["checks"][-1]["detail"] == "litert: 0 LSB away; onnxruntime: 0 LSB away"
    assert found["checks"][1]["detail"] == "by key 0"


def test_check_stops_at_the_first_that_fails_and_ends_with_1(place, file, tmp_path):
    file.write_bytes(file.read_bytes()[:-1])
    done = here("check", file, "--bundle", place / "bundle", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert (found["ok"], found["code"], found["task"]) == (False, "length", None)
    assert [one["passed"] for one in found["checks"]] == [True, True, True, False] + 6 * [None]
    assert found["checks"][3]["detail"].startswith("patch refused (length): payload length is ")
    assert found["checks"][4]["detail"] == "not reached"
    table = call("check", file, "--bundle", place / "bundle")
    assert table.returncode == 1
    assert "FAIL" in table.stdout
    assert "Traceback" not in table.stderr


def failing(report):
    return next(one for one in report.checks if one.passed is False)


def make_file(place, *, key=KEY, release=None):
    """A patch of task ``first`` for the bundle, signed with ``key`` as key 0."""
    bundle = open_bundle(place / "bundle")
    release = release or Release(2, signers=(Signer(key, 0),))
    return bundle, pack_patch(
        make_patch(task="first")[1],
        bundle.coding_table,
        bundle.base_files(),
        release=release,
    ).data


def test_each_check_has_a_row_that_fails_for_it(place):
    bundle, data = make_file(place)
    assert verify_patch(data, bundle).ok
    cases = {
        "container": b"x" + data[1:],
        "signatures": make_file(place, key=SECOND)[1],
        "payload": data + b"\0",
        "time": make_file(place, release=Release(2, 1, (Signer(KEY, 0),)))[1],
    }
    for name, bad in cases.items():
        report = verify_patch(bad, bundle)
        assert failing(report).name == name
        assert not report.ok
    other = verify_patch(data, bundle, task="second")
    assert (failing(other).name, other.refused.code) == ("place", "task")


def test_every_code_of_the_format_belongs_to_one_row():
    codes = [code for _, _, codes in STAGES for code in codes.split()]
    assert len(set(codes)) == len(codes)
    text = (Path(__file__).parent.parent.parent / "docs" / "patch-format.md").read_text()
    table = text[text.index("## Order of checks") : text.index("## Payload")]
    for code in codes:
        assert f"`{code}`" in table


def test_a_patch_whose_model_is_not_as_signed_fails_the_results(place, tmp_path):
    bundle, data = make_file(place)
    good = check_patch_file(data, bundle.policy("first"))
    results = {name: dict(one) for name, one in good.header.results.items()}
    results["onnx"][RESOLUTIONS[0]] = "0" * 64
    bad = build_patch(replace(good.header, results=results), good.payload)
    report = verify_patch(add_signature(bad, KEY, 0), bundle)
    assert (failing(report).name, report.refused.code) == ("results", "result")
    assert verify_patch(add_signature(bad, KEY, 0), bundle, runtimes=["litert"]).ok


def test_check_of_an_unsigned_file_must_be_asked_for(place, tmp_path):
    out = tmp_path / "first.pdp"
    answer("pack", place / "bundle", out, "--task", "first")
    done = here("check", out, "--bundle", place / "bundle", "--json")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, "unsigned")
    done = here("check", out, "--bundle", place / "bundle", "--allow-unsigned", "--json")
    assert done.returncode == 0
    assert "UNSIGNED" in json.loads(done.stdout)["checks"][1]["detail"]


def test_check_with_another_list_of_keys(place, file):
    done = here(
        "check", file, "--bundle", place / "bundle", "--trusted", place / "both.json", "--json"
    )
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, "threshold")


def test_check_on_one_runtime_alone(place, file):
    found = answer("check", file, "--bundle", place / "bundle", "--runtime", "onnxruntime")
    assert found["checks"][-1]["detail"] == "onnxruntime: 0 LSB away"
    done = here("check", file, "--bundle", place / "bundle", "--runtime", "tensorrt")
    refused(done, 2, "runtime 'tensorrt'; bundle", "has files for litert, onnxruntime")


def test_a_file_that_cannot_be_read_is_bad_input(place, tmp_path):
    for command in (["check", "--bundle", place / "bundle"], ["sign", "--key", "k", "--trusted"]):
        name, *options = command
        extra = [place / "both.json"] if name == "sign" else []
        done = here(name, tmp_path / "none.pdp", *options, *extra)
        refused(done, 2, "cannot read patch file", "No such file or directory")
    done = here("check", tmp_path, "--bundle", place / "bundle")
    refused(done, 2, "cannot read patch file", "is not a regular file")


def test_what_is_no_regular_file_is_no_patch_file_and_is_not_waited_for(place, tmp_path):
    os.mkfifo(tmp_path / "pipe.pdp")
    for path in ("/dev/zero", tmp_path / "pipe.pdp"):
        done = here("check", path, "--bundle", place / "bundle")
        refused(done, 2, "cannot read patch file", "it must be a regular file")


def test_signatures_that_are_added_at_once_are_all_in_the_file(place, tmp_path):
    """Both wait until the lock is free, then each signs what the one before has written."""
    out = tmp_path / "first.pdp"
    answer("pack", place / "bundle", out, "--task", "first")
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "link.pdp").symlink_to(out)
    commands = [
        [
            COMMAND,
            "sign",
            str(path),
            "--key",
            str(place / key),
            "--trusted",
            str(place / "both.json"),
        ]
        for path, key in ((out, "key.pem"), (tmp_path / "apart" / "link.pdp", "second.pem"))
    ]
    with hold_folder(tmp_path):
        started = [
            subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for one in commands
        ]
        for process in started:  # none can end while the lock is held
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
    assert [process.wait(60) for process in started] == [0, 0]
    assert sorted(checked(out, TrustedKeys.load(place / "both.json")).signed_by) == [0, 1]
    assert (tmp_path / "apart" / "link.pdp").is_symlink()


def test_a_file_that_appears_while_another_is_packed_is_not_written_over(
    place, tmp_path, monkeypatch
):
    out = tmp_path / "first.pdp"
    build = build_patch

    def late(*arguments):
        out.write_bytes(b"signed meanwhile")
        return build(*arguments)

    monkeypatch.setattr(patch_commands, "build_patch", late)
    refused(here("pack", place / "bundle", out, "--task", "first"), 2, "is there already")
    assert out.read_bytes() == b"signed meanwhile"


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_shows_header_parts_and_signatures(place, file):
    found = answer("inspect", file)
    assert set(found) == {
        "file", "sha256", "bytes", "header", "signatures", "threshold", "parts", "slots",
        "changes",
    }  # fmt: skip
    assert found["header"]["task"] == "first"
    assert found["signatures"] == [{"key": 0, "state": "not checked"}]
    assert list(found["parts"]) == [
        "prefix", "header", "signatures", "labels", "notes", "steps", "activations", "scales",
        "biases", "kernels", "head", "golden",
    ]  # fmt: skip
    assert sum(found["parts"].values()) == found["bytes"] == file.stat().st_size
    assert found["changes"] is None
    text = here("inspect", file).stdout
    assert "not checked" in text
    assert "biases" in text


def test_inspect_says_of_each_signature_what_it_is_worth(place, file, tmp_path):
    both = tmp_path / "both.json"
    shutil.copy(place / "both.json", both)
    answer("sign", file, "--key", place / "second.pem", "--trusted", both)

    def states(*keys, threshold=1):
        TrustedKeys(keys, threshold).save(both)
        found = answer("inspect", file, "--trusted", both)
        assert found["threshold"] == threshold
        return [one["state"] for one in found["signatures"]]

    assert states(KEY.public, SECOND.public, threshold=2) == ["valid", "valid"]
    assert states(KEY.public) == ["valid", "unknown key"]
    assert states(KEY.public, None) == ["valid", "revoked key"]
    assert states(SECOND.public, KEY.public) == ["not valid", "not valid"]
    assert "key 0: not valid; key 1: not valid; 1 needed" in " ".join(
        here("inspect", file, "--trusted", both).stdout.split()
    )


def test_inspect_over_a_bundle_shows_what_would_change(place, file):
    found = answer("inspect", file, "--bundle", place / "bundle")["changes"]
    assert set(found) == {
        "base_matches", "task", "bundle_sequence", "labels", "metrics", "cascade", "steps",
        "self_test", "formats",
    }  # fmt: skip
    assert (found["base_matches"], found["bundle_sequence"]) == (True, 1)
    assert found["labels"] == list(LABELS)
    assert found["metrics"] == {"top1": 0.5}
    assert found["self_test"] == {"images": 2, "tolerance_lsb": 8}
    assert set(found["formats"]) == {"tflite", "onnx"}
    for sides in found["formats"].values():
        assert set(sides) == {str(px) for px in RESOLUTIONS}
        for one in sides.values():
            assert one["slots"] == sum(one["kinds"].values()) > 0
            assert one["bytes"] > 0
    assert len(found["steps"]["scale"]) == len(found["steps"]["bias"]) > 0
    text = here("inspect", file, "--bundle", place / "bundle").stdout
    assert "class 0, class 1" in text
    assert "exact" in text


def test_inspect_shows_the_steps_that_the_values_were_coded_with(place, tmp_path):
    opened = open_bundle(place / "bundle")
    count = len(opened.coding_table.convs)
    steps = CodingSteps(tuple(range(count)), tuple(-20 - k for k in range(count)))
    data = pack_patch(
        make_patch(seed=5)[1], opened.coding_table, opened.base_files(), steps=steps,
        release=Release(1, signers=(Signer(KEY, 0),)),
    ).data  # fmt: skip
    (tmp_path / "a.pdp").write_bytes(data)
    found = answer("inspect", tmp_path / "a.pdp", "--bundle", place / "bundle")["changes"]["steps"]
    assert found == {"scale": list(steps.scale), "bias": list(steps.bias)}


def test_a_step_of_biases_is_shown_as_the_absolute_one_that_it_is(place, file):
    document = answer("inspect", file, "--bundle", place / "bundle")
    count = len(document["changes"]["steps"]["bias"])
    document["changes"]["steps"]["bias"] = [-9, -7] + [EXACT_BIASES] * (count - 2)
    console = Console(width=100, file=io.StringIO())
    for table in patch_tables(file, document):
        console.print(table)
    text = console.file.getvalue()
    assert re.search(rf"steps of biases, absolute .*2\^-9 to 2\^-7; {count - 2} exact", text)
    assert "output step" not in text


def test_a_patch_for_a_newer_engine_leads_to_an_upgrade(place, tmp_path):
    checked = checked_of_bundle(place)
    newer = tmp_path / "newer.pdp"
    newer.write_bytes(build_patch(replace(checked.header, engine=3), checked.payload))
    text = " ".join(here("inspect", newer).stdout.split())
    assert "3; this version has 2: a newer patchdeploy may read it: upgrade patchdeploy" in text
    done = here("inspect", newer, "--bundle", place / "bundle")
    refused(
        done, 1, "patch refused (engine)", "it must be at most 2", "upgrade patchdeploy in the app"
    )


def test_a_file_that_is_too_long_is_not_said_to_have_the_bytes_that_were_read(tmp_path):
    with (tmp_path / "long.pdp").open("wb") as file:
        file.truncate(9_000_000)
    done = here("inspect", tmp_path / "long.pdp")
    refused(done, 1, f"file length is {MAX_FILE_BYTES + 1} bytes or more; it must be at most")


def test_inspect_refuses_a_file_whose_payload_is_not_the_one_that_its_header_names(file, tmp_path):
    data = file.read_bytes()
    (tmp_path / "short.pdp").write_bytes(data[:-1])
    refused(here("inspect", tmp_path / "short.pdp"), 1, "patch refused (length)")
    (tmp_path / "other.pdp").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(here("inspect", tmp_path / "other.pdp"), 1, "patch refused (payload_hash)")


def test_inspect_over_a_bundle_of_another_base_says_so(place, file, tmp_path):
    make_bundle(tmp_path / "other", "residual", tasks=())
    found = answer("inspect", file, "--bundle", tmp_path / "other")
    assert found["changes"] == {"base_matches": False}
    assert "another one" in here("inspect", file, "--bundle", tmp_path / "other").stdout


def test_inspect_of_what_is_no_patch_file_is_refused(tmp_path):
    (tmp_path / "x.pdp").write_bytes(b"\x1b[31mnot a patch file")
    done = here("inspect", tmp_path / "x.pdp")
    refused(done, 1, "patch refused (magic)")
    assert "\x1b[31m" not in done.stderr


def test_options_of_a_patch_file_do_not_fit_a_bundle(place):
    done = here("inspect", place / "bundle", "--trusted", place / "both.json")
    refused(done, 2, "which is no .pdp file; a bundle holds its own keys and base")


def test_text_of_others_cannot_command_a_terminal():
    assert show_text("caf\u00e9 \x1b[2J\x9b\u202e\n") == "caf\u00e9 \\x1b[2J\\x9b\\u202e\\n"


# -- who signs an export ---------------------------------------------------------------------------


def export(tmp_path, *options):
    return here(
        "export", tmp_path / "bundle", "--patch", tmp_path / "none", "--calibration", "a=b",
        *options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            [],
            "no --key and no --unsigned; a patch is signed, or said to be for development; pass "
            "--key FILE (patchdeploy keys new makes one) or --unsigned",
        ),
        (["--unsigned", "--key", "key.pem"], "--unsigned with --key; a patch is signed or it"),
        (["--unsigned", "--trusted", "both.json"], "--unsigned with --trusted; a patch is"),
        (["--unsigned", "--expires", "never"], "--unsigned with --expires; a patch is"),
        (["--key", "key.pem"], "--key without --trusted; the bundle pins the keys that its"),
        (
            ["--key", "key.pem", "--trusted", "both.json"],
            "1 keys given, 1 of them different; a patch must be signed by 2 different ones",
        ),
        (
            ["--key", "key.pem", "--key", "key.pem", "--trusted", "both.json"],
            "2 keys given, 1 of them different; a patch must be signed by 2 different ones",
        ),
        (["--fine", "--budget", "1", "--unsigned"], "--budget with --fine; fine steps are not"),
        (
            ["--key", "key.pem", "--trusted", "trusted.json", "--expires", "2001-01-01"],
            "--expires is '2001-01-01', past, or beyond what a patch file holds; it must be a date",
        ),
    ],
)
def test_an_export_says_who_signs_before_it_begins(place, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(place)
    refused(export(tmp_path, *options), 2, words)
    assert list(tmp_path.iterdir()) == []


def test_an_unsigned_export_is_loud(tmp_path):
    done = export(tmp_path, "--unsigned")
    assert done.returncode == 2  # there is no such patch
    assert (
        "warning: UNSIGNED: anyone can make patches that this bundle's readers take; for "
        "development alone, never ship it"
    ) in " ".join(done.stderr.split())


def add(bundle, *options):
    return here("add", bundle, "--patch", "none", "--calibration", "b", *options)


def test_an_added_task_is_signed_as_the_bundle_asks(place, tmp_path):
    signed, open_ = place / "bundle", make_bundle(tmp_path / "open", tasks=()).path
    refused(add(signed), 2, "no --key and no --unsigned")
    refused(add(signed, "--unsigned"), 2, "--unsigned for bundle", "which pins trusted keys")
    refused(
        add(open_, "--key", place / "key.pem"), 2, "--key for bundle", "which pins no trusted keys"
    )
    refused(add(signed, "--key", place / "second.pem"), 2, "is not among the trusted keys")
    loud = add(open_, "--unsigned")
    assert "warning: UNSIGNED" in loud.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("never", 0),
        ("2100-01-01", FAR),
        ("2100-01-01T00:00", FAR),
        ("2100-01-01T01:00+01:00", FAR),
        ("2100-01-01 00:00:00Z", FAR),
        (str(FAR), FAR),
    ],
)
def test_a_time_of_expiry_is_a_date_or_seconds(text, seconds):
    assert parse_expiry(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "0", "12", "2100-13-01", "-5", "1e9", "9" * 16, "9" * 40, "20000101"]
)
def test_what_is_no_time_to_come_shows_how_to_write_it(text):
    with pytest.raises(ConfigError, match="must be a date to come, such as 2030-12-31 or"):
        parse_expiry(text)
    with pytest.raises(ConfigError, match="past"):
        parse_expiry(str(int(time.time())))


def test_a_time_is_shown_for_people():
    assert show_time(0) == "never"
    assert show_time(FAR) == "2100-01-01 00:00:00 UTC"
    assert show_time(2**53 - 1) == f"{2**53 - 1} s"
