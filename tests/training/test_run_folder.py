"""A run's folder belongs to one run: nothing is mixed, nothing is lost, everything is noted."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchdeploy.errors import ConfigError, IrregularFileError, StorageError
from patchdeploy.training import run_folder
from patchdeploy.training.run_config import (
    LoaderConfig,
    RunConfig,
    TaskConfig,
    WorkersConfig,
    parse_run_config,
)
from patchdeploy.training.run_folder import (
    check_run_folder,
    describe_environment,
    hold_run_folder,
    is_blank,
    make_run_folder,
    write_summary,
)

TASK = TaskConfig("digits", "packaged:digits:train")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig("transfer", out=str(tmp_path / "run"), resolutions=(32,), tasks=(TASK,))


@pytest.fixture
def begun(config: RunConfig) -> Path:
    """A folder with an epoch in it."""
    folder = make_run_folder(config, ["patchdeploy", "train", "x.toml"])
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def refusal(config: RunConfig, resume: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        check_run_folder(config, resume)
    return str(caught.value)


def test_a_folder_keeps_the_config_as_it_was_run(config: RunConfig) -> None:
    folder = make_run_folder(config)
    document = tomllib.loads((folder / "config.toml").read_text())
    assert parse_run_config(document, "config.toml") == config
    assert sorted(one.name for one in folder.iterdir()) == ["config.toml", "environment.json"]


def test_each_start_of_a_run_is_noted(config: RunConfig) -> None:
    for command in (["first"], ["second"]):
        folder = make_run_folder(config, command)
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    assert [one["command"] for one in starts] == [["first"], ["second"]]
    assert set(describe_environment()) == set(starts[0])
    assert starts[0]["versions"]["torch"]
    assert starts[0]["threads"] >= 1
    (folder / "environment.json").write_text("{damaged")
    make_run_folder(config, ["third"])
    assert len(json.loads((folder / "environment.json").read_text())["starts"]) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_folder_and_one_where_nothing_has_begun_are_free(
    config: RunConfig, resume: bool
) -> None:
    check_run_folder(config, resume)
    make_run_folder(config)
    other = replace(config, resolutions=(48,))
    check_run_folder(other, resume)


def test_a_folder_with_a_run_is_refused_without_resume(config: RunConfig, begun: Path) -> None:
    assert refusal(config, False) == (
        f"{begun} holds a run that can go on; a new run needs a folder of its own; add --resume to "
        "go on with that one, or name another folder with --out"
    )
    write_summary(begun, {"tasks": {}})
    assert refusal(config, False).startswith(f"{begun} holds a finished run; a new run needs")


def test_a_checkpoint_alone_is_a_run_that_has_begun(config: RunConfig) -> None:
    folder = make_run_folder(config)
    (folder / "digits").mkdir()
    (folder / "digits" / "32.pt").write_bytes(b"x")
    assert "holds a run that can go on" in refusal(config, False)


def test_a_sweep_whose_rates_all_failed_at_once_is_a_run_that_has_begun(config: RunConfig) -> None:
    """``--resume`` does not try those rates again."""
    (make_run_folder(config) / "sweep.json").write_text("{}")
    assert "holds a run that can go on" in refusal(config, False)


def test_a_folder_is_blank_where_a_run_has_nothing_to_go_on_with(config: RunConfig) -> None:
    folder = Path(config.out)
    assert is_blank(folder)
    folder.mkdir()
    assert is_blank(folder)
    make_run_folder(config)
    assert is_blank(folder)
    (folder / "rate-0.1").mkdir()
    assert is_blank(folder)
    (folder / "rate-0.1" / "32.pt").write_bytes(b"x")
    assert not is_blank(folder)


def test_a_folder_with_something_else_is_refused(config: RunConfig) -> None:
    folder = Path(config.out)
    folder.mkdir()
    (folder / ".hidden").write_text("nobody's work")
    check_run_folder(config, False)
    (folder / "thesis.tex").write_text("mine")
    expected = (
        f"{folder} holds 'thesis.tex' and no run; a run has a folder of its own; name another with "
        "--out"
    )
    assert refusal(config, False) == refusal(config, True) == expected


def test_resume_goes_on_with_the_same_settings_alone(config: RunConfig, begun: Path) -> None:
    check_run_folder(config, True)
    faster = replace(config, workers=WorkersConfig((2,)), loader=LoaderConfig(4))
    check_run_folder(faster, True)
    longer = replace(config, training=replace(config.training, epochs=9))
    assert refusal(longer, True) == (
        f"{begun} holds a run with training.epochs = 8, not 9; --resume goes on with the same "
        "settings; use them, or name another folder with --out"
    )
    moved = replace(config, tasks=(replace(TASK, images="elsewhere"),))
    assert "task.digits.images = 'packaged:digits:train', not 'elsewhere'" in refusal(moved, True)
    smaller = replace(config, resolutions=(48,))
    assert "resolutions = (32,), not (48,)" in refusal(smaller, True)


def test_a_folder_in_which_a_run_goes_on_is_refused_by_the_process_that_runs_it(
    config: RunConfig,
) -> None:
    folder = Path(config.out)
    with hold_run_folder(config, False):
        make_run_folder(config)
        (folder / "metrics.jsonl").write_text("{}\n")
        for resume in (False, True):
            with pytest.raises(ConfigError) as caught, hold_run_folder(config, resume):
                pass
            assert str(caught.value) == (
                f"{folder} is in use: a run goes on there (process {os.getpid()} on "
                f"{socket.gethostname()}); a folder belongs to one run at a time; wait until that "
                "one ends, or name another folder with --out"
            )
    with hold_run_folder(config, True):  # it has ended
        pass
    assert not (folder / ".in-use").exists()


def test_a_run_that_was_killed_does_not_keep_its_folder(config: RunConfig) -> None:
    """The kernel lets go of the lock; the file that is left means nothing."""
    program = (
        "import os, sys\n"
        "from patchdeploy.training.run_config import RunConfig\n"
        "from patchdeploy.training.run_folder import hold_run_folder\n"
        "with hold_run_folder(RunConfig('transfer', out=sys.argv[1]), False):\n"
        "    os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, config.out], check=False)
    assert done.returncode == 7
    assert (Path(config.out) / ".in-use").exists()
    with hold_run_folder(config, False):
        pass


def test_a_file_that_another_run_removes_while_it_is_being_locked_is_not_the_lock(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, path = run_folder._take, Path(config.out) / ".in-use"
    removed: list[Path] = []

    def take_and_end(descriptor: int, where: Path) -> None:
        take(descriptor, where)
        if not removed:  # the run that had made the file ends now
            where.unlink()
            removed.append(where)

    monkeypatch.setattr(run_folder, "_take", take_and_end)
    with hold_run_folder(config, False):
        assert removed == [path]
        with pytest.raises(ConfigError, match="is in use"), hold_run_folder(config, False):
            pass


def test_a_run_that_leaves_nothing_leaves_no_folder(config: RunConfig) -> None:
    with hold_run_folder(config, False):
        assert Path(config.out).exists()
    assert not Path(config.out).exists()


def test_nothing_is_written_where_somebody_elses_work_lies(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_lock", lambda path: pytest.fail(f"{path} was made"))
    folder = Path(config.out)
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="and no run"), hold_run_folder(config, False):
        pass
    assert [one.name for one in folder.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_a_folder_is_refused(config: RunConfig) -> None:
    Path(config.out).write_text("a file")
    with pytest.raises(StorageError) as caught:
        check_run_folder(config, False)
    assert str(caught.value) == (
        f"cannot read {config.out}: Not a directory; a run has a folder of its own; name another "
        "with --out"
    )


def make_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def make_hard_link(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def make_pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


LINK, PIPE = "a link", "a pipe, a socket or a device"
ODD = (
    (".in-use", make_link, LINK),
    (".in-use", make_hard_link, "a file that has another name too"),
    (".in-use", make_pipe, PIPE),
    ("metrics.jsonl", make_link, LINK),
    ("metrics.jsonl", make_pipe, PIPE),
    ("config.toml", make_pipe, PIPE),
    ("environment.json", make_pipe, PIPE),
    ("patches", make_link, LINK),
    ("tensorboard", make_link, LINK),
    ("rate-0.1/32.pt", make_pipe, PIPE),
)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("name", "make", "what"), ODD)
def test_a_prepared_folder_leads_nowhere_and_keeps_nobody_waiting(
    config: RunConfig, tmp_path: Path, name: str, make: Any, what: str, resume: bool
) -> None:
    folder, outside = Path(config.out), tmp_path / "outside"
    outside.write_text("mine")
    (folder / name).parent.mkdir(parents=True)
    make(folder / name, outside)
    with pytest.raises(IrregularFileError) as caught, hold_run_folder(config, resume):
        pass
    assert str(caught.value) == (
        f"{folder / name} is {what}; a run's folder holds folders and files alone, none of them "
        "elsewhere; remove it, or name another folder with --out"
    )
    assert outside.read_text() == "mine"


def test_a_link_that_leads_to_nothing_makes_no_file_there(
    config: RunConfig, tmp_path: Path
) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / ".in-use").symlink_to(tmp_path / "new")
    with pytest.raises(IrregularFileError), hold_run_folder(config, False):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ['{"starts": 5}', "[" * 100_000, '{"starts": null}', "\xff"])
def test_a_damaged_environment_is_begun_again(config: RunConfig, text: str) -> None:
    folder = make_run_folder(config)
    (folder / "environment.json").write_text(text)
    make_run_folder(config)
    assert len(json.loads((folder / "environment.json").read_text())["starts"]) == 1
