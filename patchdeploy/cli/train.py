"""The commands that train: ``train`` runs a TOML file, ``new-config`` writes one to begin with."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.markup import escape

from patchdeploy.cli.exit import RunInterruptedError
from patchdeploy.cli.options import BASE_FORMS, IMAGE_FORMS, JsonOption, errors_console
from patchdeploy.cli.tables import emit, make_table
from patchdeploy.errors import ConfigError

TRAIN_FORMS = (
    "patchdeploy new-config METHOD writes a CONFIG with every key and what it means.\n\n"
    f"{IMAGE_FORMS}\n\n{BASE_FORMS}\n\n"
    "Several processes: torchrun --nproc-per-node 2 -m patchdeploy train CONFIG."
)


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Over the file, for instance training.epochs=3; repeat for several.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder, over the file's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in that folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train what a TOML file says: patches, baselines, several tasks or resolutions at once."""
    command = ["patchdeploy", *sys.argv[1:]]
    first = os.environ.get("RANK", "0") == "0"
    folder: Path | None = None
    try:
        with _sigterm_as_ctrl_c():
            from patchdeploy.training.run import run_training
            from patchdeploy.training.run_config import load_run_config

            overrides = [*(settings or []), *([f"out={_quoted(out)}"] if out else [])]
            loaded = load_run_config(config, overrides)
            folder = Path(loaded.out)
            if resume and first:
                _warn_if_blank(folder)
            with _short_warnings(first):
                result = run_training(loaded, resume=resume, quiet=quiet, command=command)
            if first:
                document = {**result.summary, "out": str(result.folder)}
                emit(as_json, document, *summary_tables(document))
    except KeyboardInterrupt:
        raise RunInterruptedError(_describe_stop(folder, command) if first else "") from None


def new_config(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="transfer, baseline, tasks, resolutions, many or int8_retune."
        ),
    ],
) -> None:
    """Print a TOML file for METHOD, with every key and what it means."""
    from patchdeploy.training.run_config import METHODS
    from patchdeploy.training.run_template import write_template

    for known in METHODS:
        if method == known:
            sys.stdout.write(write_template(known))
            return
    raise ConfigError(f"method {method!r}; the methods are {', '.join(METHODS)}; name one of them")


def summary_tables(document: Mapping[str, Any]) -> list[Any]:
    """A table of what a run reached: a row for each task and resolution."""
    rows = []
    for task, found in document["tasks"].items():
        tested = found.get("test_top1", {})
        for px, top1 in found["validation_top1"].items():
            rows.append(
                [
                    task,
                    f"{px} px",
                    f"{100 * top1:.1f} %",
                    f"{100 * tested[px]:.1f} %" if px in tested else "",
                    f"{found['images']:,}",
                    f"{found['trained_parameters']:,}",
                ]
            )
    columns = ["task", "resolution", "validation", "test", "images", "parameters trained"]
    title = f"{document['method']}, {document['seconds']:.0f} s, in {document['out']}"
    tables = [make_table(title, columns, rows, text=(0,))]
    return [sweep_table(document["sweep"]), *tables] if "sweep" in document else tables


def sweep_table(found: Mapping[str, Any]) -> Any:
    """What each learning rate of a sweep reached, and which is best."""
    rows = []
    for one in found["results"]:
        best = "best" if one["rate"] == found["best_rate"] else ""
        reached = "not finite" if one["failed"] else f"{100 * one['validation_top1']:.1f} %"
        rows.append([f"{one['rate']:g}", reached, best])
    edge = "; the best is at the edge: try rates beyond it" if found["at_edge"] else ""
    return make_table(f"learning rates{edge}", ["rate", "validation", ""], rows)


def _quoted(path: Path) -> str:
    """A TOML text, so that a folder called 7 stays a text."""
    from patchdeploy.training.run_toml import write_value

    return write_value(str(path))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM, which a scheduler sends, interrupts the block as Ctrl-C does.

    Not where it is handled already, nor under torchrun, which sends it to ranks that wait for one
    that has died: what they wait in would not hear of an interrupt (while they train, see
    `patchdeploy.training.interrupt`).
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    main = threading.current_thread() is threading.main_thread()
    if not (alone and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _describe_stop(folder: Path | None, command: Sequence[str]) -> str:
    """What an interrupt has left, and how to go on.

    Args:
        folder: the run's; None while libraries were imported and the file was read.
    """
    if folder is not None:
        from patchdeploy.training.run_folder import is_blank
        from patchdeploy.training.workers import resume_command

        if not is_blank(folder):
            again = resume_command(command)
            return f"interrupted; {folder} keeps what was done; go on with: {again}"
    return "interrupted; nothing was trained yet; run the same command again"


def _warn_if_blank(folder: Path) -> None:
    from patchdeploy.training.run_folder import is_blank

    if is_blank(folder):
        _print_warning(f"--resume: nothing to go on with in {folder}; a new run begins")


def _print_warning(text: str) -> None:
    words = f"[bold yellow]warning:[/] {escape(text)}"
    errors_console.print(words, highlight=False, soft_wrap=True)


@contextmanager
def _short_warnings(shown: bool) -> Iterator[None]:
    """A warning of ours as one line on standard error, without its place in the source."""
    from patchdeploy.data import OverlapWarning

    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, OverlapWarning):
            before(message, category, filename, lineno, file, line)
        elif shown:
            _print_warning(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", OverlapWarning)
        warnings.showwarning = show
        yield
