"""A run's folder belongs to one run: nothing is mixed, nothing is lost, everything is noted."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from patchdeploy.errors import ConfigError, StorageError
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


def test_a_place_that_cannot_be_a_folder_is_refused(config: RunConfig) -> None:
    Path(config.out).write_text("a file")
    with pytest.raises(StorageError) as caught:
        check_run_folder(config, False)
    assert str(caught.value) == (
        f"cannot read {config.out}: Not a directory; a run has a folder of its own; name another "
        "with --out"
    )
