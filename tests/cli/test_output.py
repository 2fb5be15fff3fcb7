"""What a command prints arrives, or it ends with a code: full disks, odd names, repeated words."""

import os
import subprocess

import pytest
from bundle_cases import make_bundle
from cli_cases import COMMAND, answer, call, here, refused

from patchdeploy.cli.tables import make_table, show_text

TWICE = "UNSIGNED patch file taken"
BUFFERED = {"PYTHONUNBUFFERED": ""}
"""What a command prints stays in its buffer until it ends, whatever this process runs under."""
ODD = os.fsdecode(b"odd-\xff\x1b[2J")
"""A name that is no UTF-8 and would clear a terminal."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """In a folder of an odd name: an unsigned bundle, a patch of it, keys, a store with a patch."""
    root = tmp_path_factory.mktemp("cli_output") / ODD
    make_bundle(root / "bundle")
    signed = make_bundle(root.with_name("signed"), signed=True)
    answer("keys", "new", root / "a.pem", "--trusted", root / "trusted.json")
    answer("pack", root / "bundle", root / "a.pdp", "--task", "first")
    answer("install", signed.path / signed.task("first").file, *of_store(root))
    return root


def of_store(place):
    return ("--store", place / "store", "--bundle", place.with_name("signed"))


def commands(place):
    """Commands that print a table or JSON, most of them after a short time."""
    return {
        "list": ["list", *of_store(place)],
        "inspect a file": ["inspect", place / "a.pdp"],
        "inspect over a bundle": ["inspect", place / "a.pdp", "--bundle", place / "bundle"],
        "inspect a bundle": ["inspect", place / "bundle"],
        "keys list a folder": ["keys", "list", place],
        "keys list a key": ["keys", "list", place / "a.pem"],
        "keys list a list": ["keys", "list", place / "trusted.json"],
        "check": ["check", place / "a.pdp", *of_store(place)[2:], "--allow-unsigned"],
    }


NAMES = (
    "list", "inspect a file", "inspect over a bundle", "inspect a bundle", "keys list a folder",
    "keys list a key", "keys list a list", "check",
)  # fmt: skip


def into_a_full_disk(arguments, **environment):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **BUFFERED, **environment},
            check=False,
        )


@pytest.mark.parametrize(
    ("name", "options", "environment"),
    [
        ("list", [], {}),
        ("keys list a folder", [], {"PYTHONUNBUFFERED": "1"}),
        ("inspect a file", ["--json"], {}),
        ("inspect a bundle", ["--json"], {"PYTHONUNBUFFERED": "1"}),
    ],
)
def test_a_full_standard_output_ends_with_4_and_one_message(place, name, options, environment):
    done = into_a_full_disk([*commands(place)[name], *options], **environment)
    text = " ".join(done.stderr.decode().split())
    assert (done.returncode, text) == (
        4,
        "error: cannot write standard output: No space left on device; it must take all that the "
        "command prints; free space, or write it to another place",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["new-config", "transfer"]])
def test_text_that_is_no_figure_has_a_full_disk_too(arguments):
    done = into_a_full_disk(arguments)
    assert done.returncode == 4, done.stderr
    assert b"cannot write standard output" in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_pipe_that_nobody_reads_ends_with_4(place):
    reader, writer = os.pipe()
    os.close(reader)
    for options in ([], ["--json"]):
        done = subprocess.run(
            [COMMAND, *map(str, commands(place)["keys list a folder"]), *options],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **BUFFERED},
            check=False,
        )
        assert done.returncode == 4, done.stderr
        assert b"Broken pipe" in done.stderr
        assert b"Exception ignored" not in done.stderr
    os.close(writer)


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_closed_standard_output_ends_with_4_before_the_work(place, tmp_path, closed):
    """A key file would else get the number of standard output, and what is printed in it."""
    out = tmp_path / "new.pem"
    done = subprocess.run(
        ["sh", "-c", f'"$0" keys new "$1" {closed}', COMMAND, str(out)],
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert not out.exists()
    if "2>&-" not in closed:
        assert b"cannot write standard output: it is closed" in done.stderr


def test_a_closed_standard_error_or_input_changes_nothing(place, tmp_path):
    out = tmp_path / "new.pem"
    done = subprocess.run(
        ["sh", "-c", '"$0" keys new "$1" 2>&- <&-', COMMAND, str(out)],
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0
    assert out.read_bytes().startswith(b"-----BEGIN ")
    assert done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_text_is_shown_and_commands_no_terminal(place, name):
    arguments = commands(place)[name]
    done = call(*arguments, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0, done.stderr
    assert "\x1b[2J" not in done.stdout
    told = "".join(done.stdout.split())
    if name != "inspect a bundle":  # its tables do not name it
        assert "odd-\\udcff\\x1b[2J" in told


def test_a_name_that_is_no_text_is_shown_in_an_error(place):
    done = call("inspect", place / "none.pdp", PYTHONIOENCODING="utf-8:strict")
    refused(done, 2, "odd-\\udcff")


def test_what_an_encoding_lacks_is_written_as_its_escape(place):
    done = call("inspect", place / "a.pdp", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0, done.stderr
    assert "UNSIGNED" in done.stdout


def test_titles_and_cells_show_what_is_not_printable(capsys):
    from rich.console import Console

    Console(width=80).print(make_table("a\x1b[2J", ["", ""], [["b\x9b", "c\udcff"]]))
    found = capsys.readouterr().out
    for shown in ("a\\x1b[2J", "b\\x9b", "c\\udcff"):
        assert shown in found
        assert show_text(shown) == shown


def test_a_warning_about_a_patch_file_is_said_once(place):
    for arguments in (
        commands(place)["check"],
        ["verify", place / "bundle", "--limit", "1"],
    ):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(TWICE) == 1, done.stderr


def test_the_next_command_warns_again(place, caplog):
    for _ in range(2):
        caplog.clear()
        assert here(*commands(place)["check"]).returncode == 0
        assert caplog.text.count(TWICE) == 1
