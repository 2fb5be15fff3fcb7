"""What the commands have in common: options, what an option's text means, progress.

In: text that a person typed. Out: values, or a ConfigError that says how to write it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from patchdeploy.errors import ConfigError

errors_console = Console(stderr=True)

LINE_SECONDS = 10.0
"""Between two lines of progress where standard error is no terminal."""
BASE_FORMS = (
    "BASE is embedded (the one that ships), torchvision:NAME (random weights), "
    "torchvision:NAME@WEIGHTS, keras:FILE.h5 (a MobileNetV2), checkpoint:NAME:FILE, "
    "detector:NAME@WEIGHTS or detector:NAME:FILE (the features of a torchvision SSD) or "
    "trained:FOLDER (a network that a run has left); NAME is a torchvision architecture."
)
IMAGE_FORMS = (
    "IMAGES is a folder with a folder per class, or packaged:NAME:train or packaged:NAME:test, "
    "NAME one of digits, faces, fashion, optical_digits, surfaces."
)
FORMS = f"{IMAGE_FORMS}\n\n{BASE_FORMS}"

JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")]
BaseOption = Annotated[
    str, typer.Option("--base", metavar="BASE", help="The base network; forms below.")
]
RuntimeOption = Annotated[str, typer.Option(help="litert or onnxruntime.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
FormatsOption = Annotated[str, typer.Option(help="Converters to write with, commas between.")]


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` as typer is to see it: each field of a group of options is one option.

    A group is a parameter whose type is a dataclass; its fields are annotated as the parameters of
    a command are. So what several commands take is written once, and stands at its place in each.
    """
    own = signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in own.parameters.items() if is_dataclass(one.annotation)
    }
    fields = {name: signature(kind, eval_str=True).parameters for name, kind in groups.items()}

    @wraps(command)
    def grouped(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in fields[name]})
        command(**given)

    seen = [
        each
        for name, one in own.parameters.items()
        for each in fields.get(name, {name: one}).values()
    ]
    grouped.__signature__ = own.replace(parameters=seen)  # type: ignore[attr-defined]
    grouped.__annotations__ = {one.name: one.annotation for one in seen}
    return grouped


def parse_integers(text: str, option: str, example: str) -> list[int]:
    """Positive whole numbers with commas between, ascending, each once.

    Raises:
        ConfigError: anything else.
    """
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise ConfigError(
            f"{option} is {text!r}; it must be positive whole numbers with commas between; "
            f"write for instance {example}"
        )
    return found


def parse_words(text: str) -> list[str]:
    """The parts between commas, in order, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


@contextmanager
def show_progress(title: str, *, lines: bool = False) -> Iterator[Callable[[str], None]]:
    """A line on standard error while something runs, if that is a terminal.

    Args:
        lines: where it is none (a pipe, a log file), a line now and then; else nothing.
    """
    if not errors_console.is_terminal:
        yield _print_now_and_then(title) if lines else lambda detail: None
        return
    with errors_console.status(escape(title)) as status:
        yield lambda detail: status.update(escape(f"{title}: {detail}"))


def _print_now_and_then(title: str) -> Callable[[str], None]:
    """The first line at once, then one in `LINE_SECONDS`, and what says how long it will take."""
    next_line = 0.0

    def tell(detail: str) -> None:
        nonlocal next_line
        now = time.monotonic()
        if now >= next_line or "about" in detail:
            next_line = now + LINE_SECONDS
            words = escape(f"{title}: {detail}")
            errors_console.print(words, highlight=False, soft_wrap=True)

    return tell
