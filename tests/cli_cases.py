"""The command as a person types it, for tests of it: called, answered, refused; and run files."""

import io
import json
import os
import subprocess
import sys
import sysconfig
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from patchdeploy.cli import main
from patchdeploy.data import load_packaged
from patchdeploy.training.run_toml import write_toml

COMMAND = str(Path(sysconfig.get_path("scripts")) / "patchdeploy")


def call(*arguments, cwd=None, **environment):
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment},
        check=False,
    )


def here(*arguments):
    """What `call` does, in this process: starting another one and torch in it takes seconds."""
    out, errors = io.StringIO(), io.StringIO()
    argv = sys.argv
    sys.argv = ["patchdeploy", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            main()
    except SystemExit as ended:
        return subprocess.CompletedProcess(arguments, ended.code, out.getvalue(), errors.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("a command always ends by an exit code")


def answer(*arguments, by=here):
    """The JSON that a command prints; it must have ended well."""
    done = by(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_folder(root, name, per_class, classes=None):
    """A folder per class of real images, from a packaged set."""
    train, _ = load_packaged(name)
    for label, title in enumerate(train.classes[:classes]):
        folder = root / title.replace("/", "_")
        folder.mkdir(parents=True)
        for index in np.flatnonzero(train.labels == label)[:per_class]:
            Image.fromarray(np.asarray(train.images[index])).save(folder / f"{index}.png")
    return root


def refused(done, code, *words):
    """The command ended with ``code``, an error that says ``words``, and no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.split())
    for word in words:
        assert word in text, text


def write_run(path, images, task, *, training=None, **settings):
    """A TOML file that trains one task's patch for an epoch."""
    document = {
        "method": "transfer",
        "resolutions": [32],
        **settings,
        "training": {"epochs": 1, "batch_size": 8, **(training or {})},
        "task": [{"name": task, "images": str(images)}],
    }
    path.write_text(write_toml(document))
    return path
