"""The folder of one training run: what was asked, where it ran, what came out.

In: a `RunConfig` and whether to go on. Out: ``config.toml`` (as run), ``environment.json`` (one
entry for each start) and ``summary.json`` beside what training itself writes: ``metrics.jsonl``,
``curves.png``, ``tensorboard/``, checkpoints, ``patches/``, ``networks/``. A folder belongs to one
run: another one is refused, so that nothing is mixed or lost.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from patchdeploy.errors import ConfigError, IrregularFileError, StorageError
from patchdeploy.measure import describe_device
from patchdeploy.storage import read_regular, write_atomic
from patchdeploy.training.curves import METRICS_FILE
from patchdeploy.training.run_config import RunConfig, parse_run_config
from patchdeploy.training.run_source import find_commit
from patchdeploy.training.run_toml import read_toml, write_toml
from patchdeploy.training.sweep import SWEEP_FILE

CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE = "config.toml", "environment.json", "summary.json"
LOCK_FILE = ".in-use"
"""There while a run goes on, held by flock; the kernel lets go of it when the process ends, however
that is, so one that a kill has left means nothing."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What flock says on a file system that has no locks: there a second run goes unseen."""
MAY_DIFFER = ("out", "workers", "loader")
"""Settings that a run may go on without: where it lies, and how fast it runs."""
RATES = "sweep.rates"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE = "a pipe, a socket or a device"
_ENVIRONMENT_BYTES = 16 * 2**20


def check_run_folder(config: RunConfig, resume: bool) -> None:
    """Refuse a folder that a new run would spoil, or that holds another run than the one to go on.

    A run that has stopped before its first epoch and its first checkpoint left nothing to lose: its
    folder is as good as empty.

    Args:
        resume: go on with the run in the folder; an empty folder begins one.

    Raises:
        ConfigError: the folder holds something else.
        IrregularFileError: a link or no file in it.
        StorageError: it cannot be read.
    """
    folder = Path(config.out)
    refuse_odd_entries(folder)
    if is_blank(folder):
        return
    found = _list_folder(folder)
    if CONFIG_FILE not in found:
        raise ConfigError(
            f"{folder} holds {found[0]!r} and no run; a run has a folder of its own; name another "
            "with --out"
        )
    _check_same_run(folder, config, resume)


def refuse_odd_entries(folder: Path) -> None:
    """Refuse a folder with anything in it but folders and files of its own.

    A run reads and writes by name all over its folder, and the folder may be another's making: by
    way of a link it would write outside of it, and a pipe it would wait for.

    Raises:
        IrregularFileError: a link, a pipe or a device.
        StorageError: it cannot be read.
    """
    waiting = [folder] if folder.exists() else []
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                waiting += [Path(one.path) for one in entries if not _is_own_file(one)]
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_own_file(entry: os.DirEntry[str]) -> bool:
    """True for a file, False for a folder; anything else is refused."""
    if entry.is_dir(follow_symlinks=False):
        return False
    if not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
        raise _irregular(Path(entry.path), "a link" if entry.is_symlink() else _NO_FILE)
    return True


def _irregular(path: Path, what: str) -> IrregularFileError:
    return IrregularFileError(
        f"{path} is {what}; a run's folder holds folders and files alone, none of them elsewhere; "
        "remove it, or name another folder with --out"
    )


def _unreadable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read {folder}: {error.strerror or error}; a run has a folder of its own; name "
        "another with --out"
    )


def is_blank(folder: Path) -> bool:
    """Whether a run begins in ``folder``, there or not, with nothing to go on with and nothing to
    lose.

    Raises:
        StorageError: it cannot be read.
    """
    found = _list_folder(folder)
    return not found or (CONFIG_FILE in found and not _has_begun(folder))


@contextmanager
def hold_run_folder(config: RunConfig, resume: bool) -> Iterator[None]:
    """`check_run_folder`, and the folder is this run's alone until the block ends.

    Raises:
        ConfigError: the folder holds something else, or another run goes on in it.
        StorageError: it cannot be read or written.
    """
    path = Path(config.out) / LOCK_FILE
    if not os.path.lexists(
        path
    ):  # no run has been here: write nothing where somebody else's work lies
        check_run_folder(config, resume)
    is_new = not path.parent.exists()
    descriptor = _lock(path)
    try:
        check_run_folder(config, resume)  # a run may have begun and ended between
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: see `_lock`
            if is_new:
                path.parent.rmdir()  # where the run has left nothing
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The descriptor of ``path``, made where it is not there, and locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, _LOCK_FLAGS, 0o644)
            try:
                _check_lock_file(descriptor, path)
                _take(descriptor, path)
                if _is_named(descriptor, path):
                    holder = f"process {os.getpid()} on {socket.gethostname()}"
                    os.truncate(descriptor, 0)
                    os.write(descriptor, holder.encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _irregular(path, "a link") from error
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; a run writes into its folder; free "
            "space or choose another place with --out"
        ) from error


def _check_lock_file(descriptor: int, path: Path) -> None:
    """Before anything is written: the file is regular, and is no other file's second name."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _irregular(path, _NO_FILE)
    if found.st_nlink > 1:
        raise _irregular(path, "a file that has another name too")


def _is_named(descriptor: int, path: Path) -> bool:
    """False where another run has ended since it was opened, and has removed the file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace") or "a process"
        raise ConfigError(
            f"{path.parent} is in use: a run goes on there ({holder}); a folder belongs to one run "
            "at a time; wait until that one ends, or name another folder with --out"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def make_run_folder(config: RunConfig, command: Sequence[str] = ()) -> Path:
    """Write ``config.toml`` and note this start in ``environment.json``.

    Args:
        command: as typed.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = Path(config.out)
    write_atomic(folder / CONFIG_FILE, write_toml(config.to_document()).encode())
    _add_environment(folder, command)
    return folder


def _has_begun(folder: Path) -> bool:
    traces = ("*.pt", METRICS_FILE, SUMMARY_FILE, SWEEP_FILE)
    return any(next(folder.rglob(name), None) for name in traces)


def _list_folder(folder: Path) -> list[str]:
    """Names in it; those that begin with a dot are nobody's work."""
    try:
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(name for name in names if not name.startswith("."))


def _check_same_run(folder: Path, config: RunConfig, resume: bool) -> None:
    if not resume:
        state = "a finished run" if (folder / SUMMARY_FILE).exists() else "a run that can go on"
        raise ConfigError(
            f"{folder} holds {state}; a new run needs a folder of its own; add --resume to go on "
            "with that one, or name another folder with --out"
        )
    path = folder / CONFIG_FILE
    before = flatten(parse_run_config(read_toml(path), str(path)).to_document())
    now = flatten(config.to_document())
    for key in sorted({*before, *now}):
        if not _may_differ(key, before, now) and before.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} holds a run with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                "--resume goes on with the same settings; use them, or name another folder with "
                "--out"
            )


def _may_differ(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """A sweep may go on with other rates; a run that is none does not become one."""
    if key == RATES:
        return bool(before.get(RATES)) and bool(now.get(RATES))
    return key.partition(".")[0] in MAY_DIFFER


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as dotted keys: training.epochs, task.digits.images; lists become tuples."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": one for name, one in flatten(value).items()}
        elif key == "task":
            flat["task"] = tuple(row["name"] for row in value)
            flat |= {
                f"task.{row['name']}.{name}": one for row in value for name, one in row.items()
            }
        else:
            flat[key] = tuple(value) if isinstance(value, list | tuple) else value
    return flat


def _add_environment(folder: Path, command: Sequence[str]) -> None:
    path = folder / ENVIRONMENT_FILE
    try:
        starts = list(json.loads(read_regular(path, _ENVIRONMENT_BYTES))["starts"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        starts = []  # none yet, or damaged; the run does not depend on it
    starts.append(describe_environment(command))
    write_atomic(path, json.dumps({"starts": starts}, indent=1).encode())


def describe_environment(command: Sequence[str] = ()) -> dict[str, Any]:
    """What a run's numbers depend on: `describe_device`, torch's threads and GPU, the ranks, the
    commit that is checked out where it was started, the command, and when it began.
    """
    cuda = torch.cuda.is_available()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if cuda else None,
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "git": find_commit(Path.cwd()),
        **describe_device(),
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, which says that the run is finished.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_atomic(folder / SUMMARY_FILE, json.dumps(summary, indent=1).encode())
