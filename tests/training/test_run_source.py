"""The commit of a run is read off the repository's files; nothing in a repository is run."""

import os
import subprocess
from pathlib import Path

import pytest

from patchdeploy.training.run_source import find_commit


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main/two")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """git with nobody's settings."""
    own = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    names = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}  # fmt: skip  # noqa: E501
    environment = {**os.environ, **own, **names}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_gits_own_answer_in_every_kind_of_checkout(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    inner = repository / "a" / "b"
    inner.mkdir(parents=True)
    assert find_commit(repository) == find_commit(inner) == head
    git(repository, "pack-refs", "--all")
    assert find_commit(repository) == head
    git(repository, "worktree", "add", "-q", "../other", "-b", "other")
    git(repository.parent / "other", "commit", "-q", "--allow-empty", "-m", "second")
    second = git(repository.parent / "other", "rev-parse", "HEAD")
    assert find_commit(repository.parent / "other") == second != head
    assert find_commit(repository) == head
    git(repository, "checkout", "-q", "--detach", second)
    assert find_commit(repository) == second


def test_outside_a_repository_and_before_its_first_commit_there_is_none(tmp_path: Path) -> None:
    assert find_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert find_commit(tmp_path) is None


HEADS = ("", "ref: refs/heads/../../x", "ref: HEAD", "ref: refs/heads/main/two\nmore", "x" * 5000)


@pytest.mark.parametrize("head", HEADS)
def test_a_repository_of_odd_files_has_no_commit(repository: Path, head: str) -> None:
    (repository / ".git" / "HEAD").write_text(head)
    assert find_commit(repository) is None


def test_links_and_pipes_of_a_repository_are_not_followed(repository: Path) -> None:
    head = repository / ".git" / "HEAD"
    head.rename(repository / "secret")
    head.symlink_to(repository / "secret")
    assert find_commit(repository) is None
    head.unlink()
    os.mkfifo(head)
    assert find_commit(repository) is None


def test_a_program_that_a_repository_names_is_not_run(repository: Path, tmp_path: Path) -> None:
    from patchdeploy.training.run_folder import describe_environment

    marker, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    (repository / "x.txt").write_text("x")
    git(repository, "add", "x.txt")
    for key in ("core.fsmonitor", "filter.evil.clean", "core.pager", "diff.external"):
        git(repository, "config", key, str(program))
    (repository / ".gitattributes").write_text("* filter=evil\n")
    (repository / "x.txt").write_text("y")
    subprocess.run(["git", "describe", "--always", "--dirty"], cwd=repository, capture_output=True)
    assert marker.exists()  # git itself runs it
    marker.unlink()
    before = Path.cwd()
    os.chdir(repository)
    try:
        found = describe_environment()
    finally:
        os.chdir(before)
    assert found["git"] == (repository / ".git/refs/heads/main/two").read_text().strip()
    assert not marker.exists()
