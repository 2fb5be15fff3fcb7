"""How a command ends: exit codes, and an error as one message in place of a traceback.

0 done, 1 a check failed or a patch was refused, 2 bad input or usage, 3 an optional package is
missing, 4 the disk is full, or a place (standard output too) cannot be written or looked into,
5 training cannot go on, 6 a download failed, 70 a defect of ours, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from rich.markup import escape

from patchdeploy.cli.options import errors_console
from patchdeploy.cli.output import checked_output, warned_once
from patchdeploy.errors import (
    DownloadError,
    MissingExtraError,
    PatchdeployError,
    PatchRefusedError,
    StorageError,
    TrainingError,
)

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_MISSING_EXTRA = 3
EXIT_STORAGE = 4
EXIT_TRAINING = 5
EXIT_DOWNLOAD = 6
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "ai_edge_litert": "tflite",
    "flatbuffers": "tflite",
    "onnx": "onnx",
    "onnx_graphsurgeon": "onnx",
    "onnxruntime": "onnx",
    "h5py": "keras",
    "httpx": "update",
    "jinja2": "report",
    "matplotlib": "report",
    "mlxtend": "demo",
    "skimage": "demo",
    "sklearn": "demo",
    "starlette": "serve",
    "uvicorn": "serve",
}
"""The extra that brings a package, by the name it is imported under."""


_PLACE_ERRORS = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
)
"""What only the place that a person named can be the reason of, wherever it was first touched."""


class RunInterruptedError(Exception):
    """Ctrl-C, where there is more to say than `_INTERRUPTED`; an empty text says nothing."""


_INTERRUPTED = "interrupted; files that were finished are whole, nothing is half written"


def run_app(app: Callable[[], object]) -> None:
    """Run the commands; every way to end is an exit code and, if it is no 0, a message."""
    try:
        with warned_once(), checked_output():
            app()
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:
            _fail(_INTERRUPTED, EXIT_INTERRUPTED)
        raise
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, EXIT_INTERRUPTED)
    except RunInterruptedError as ended:
        if str(ended):
            _fail(ended, EXIT_INTERRUPTED)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except MissingExtraError as error:
        _fail(error, EXIT_MISSING_EXTRA)
    except StorageError as error:
        _fail(error, EXIT_STORAGE)
    except TrainingError as error:
        _fail(error, EXIT_TRAINING)
    except DownloadError as error:
        _fail(error, EXIT_DOWNLOAD)
    except PatchRefusedError as error:
        _fail(error, EXIT_CHECK_FAILED)
    except PatchdeployError as error:
        _fail(error, EXIT_BAD_INPUT)
    except Exception as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and package in EXTRAS:
            _fail(
                f"this command needs {package}, which is not installed; "
                f"run: pip install 'patchdeploy[{EXTRAS[package]}]'",
                EXIT_MISSING_EXTRA,
            )
        if os.environ.get("PATCHDEPLOY_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno in _PLACE_ERRORS and error.filename:
            _fail(
                f"cannot use {error.filename}: {error.strerror}; it must be a place that lets you "
                "in and has room; correct the path, or the rights of its folders",
                EXIT_STORAGE,
            )
        _fail(
            f"{type(error).__name__}: {error}; this is a defect of patchdeploy; set "
            "PATCHDEPLOY_TRACEBACK=1 to see where, and report it",
            EXIT_DEFECT,
        )


def _fail(message: object, code: int) -> None:
    text = str(message)

    def say() -> None:
        errors_console.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        say()
    else:  # torchrun has started this process
        from patchdeploy.cli.ranks import say_once

        say_once(text, say)
    raise SystemExit(code)
