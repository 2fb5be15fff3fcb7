"""An error that all ranks have is said once; one that a later rank alone has, by that rank."""

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cli_cases import COMMAND, write_folder, write_run
from torch._C._distributed_c10d import TCPStore

from patchdeploy.cli import ranks as cli_ranks
from patchdeploy.cli.ranks import say_once


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of two ranks beside the store that torchrun's agent would keep."""
    store = TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
    )
    environment = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(cli_ranks, "WAIT_SECONDS", 0.2)
    yield environment
    del store


def said(rank: int, text: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("RANK", str(rank))
    spoken: list[str] = []
    say_once(text, lambda: spoken.append(text))
    return bool(spoken)


def test_what_the_first_rank_has_said_no_other_says_again(
    ranks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(0, "no such file", monkeypatch)
    assert not said(1, "no such file", monkeypatch)
    assert said(1, "this rank's disk is full", monkeypatch)


def test_a_rank_that_fails_alone_speaks(
    ranks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(1, "no such file", monkeypatch)


def test_what_a_rank_says_of_itself_no_other_has_said(
    ranks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "rank 1 of 2: another rank has stopped"
    assert said(0, own, monkeypatch)
    assert said(1, own, monkeypatch)  # without a look at the store, whose keeper may be dead
    of_it = "rank 1 of 2 has another settings than rank 0"
    assert said(0, of_it, monkeypatch)
    assert not said(1, of_it, monkeypatch)


def test_ranks_that_were_started_again_do_not_hear_what_was_said_before(
    ranks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(0, "no such file", monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert said(1, "no such file", monkeypatch)


@pytest.mark.parametrize(
    "change",
    [
        {"TORCHELASTIC_USE_AGENT_STORE": "False"},
        {"WORLD_SIZE": "1"},
        {"RANK": "one"},
        {"MASTER_PORT": "1"},
    ],
)
def test_without_torchruns_store_every_process_speaks(
    ranks: dict[str, str], change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(0, "no such file", monkeypatch)
    monkeypatch.setattr(cli_ranks, "CONNECT_SECONDS", 0.2)
    for key, value in change.items():
        monkeypatch.setenv(key, value)
    spoken: list[str] = []
    monkeypatch.setenv("RANK", change.get("RANK", "1"))
    say_once("no such file", lambda: spoken.append("said"))
    assert spoken == ["said"]


def test_two_gloo_ranks_with_the_same_bad_input_print_one_error(
    ranks: dict[str, str], tmp_path: Path
) -> None:
    """The resolution is refused after the ranks have found each other and opened the images."""
    images = write_folder(tmp_path / "faces", "faces", 4)
    config = write_run(tmp_path / "faces.toml", images, "faces", resolutions=[8])
    command = [COMMAND, "train", str(config), "--out", str(tmp_path / "run"), "--quiet"]
    running = [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ranks, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    errors = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [2, 2]
    assert errors[0].startswith("error: resolution 8 px; base 'patchdeploy/embedded' divides")
    assert errors[1] == ""
