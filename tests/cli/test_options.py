"""Options that several commands share: what typer sees of them, and what the command is given."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from patchdeploy.cli import options
from patchdeploy.cli.options import with_groups

SideOption = Annotated[int, typer.Option(min=1)]


@dataclass(frozen=True)
class Shape:
    """A group: one option that must be given, one with a default."""

    side: SideOption
    depth: Annotated[int, typer.Option("--deep", min=1)] = 3


def make_app(seen):
    app = typer.Typer()

    @app.command()
    @with_groups
    def paint(name: Annotated[str, typer.Argument()], shape: Shape, loud: SideOption = 7) -> None:
        """Paint a shape."""
        seen.append((name, shape, loud))

    return app


def test_the_fields_of_a_group_are_options_at_its_place():
    command = typer.main.get_command(make_app([]))
    assert [one.name for one in command.params][:4] == ["name", "side", "depth", "loud"]
    assert [one.required for one in command.params][:4] == [True, True, False, False]
    assert command.help == "Paint a shape."


def test_a_command_is_given_its_group_whole():
    seen = []
    done = CliRunner().invoke(make_app(seen), ["--deep", "5", "red", "--side", "2"])
    assert done.exit_code == 0, done.output
    CliRunner().invoke(make_app(seen), ["red", "--side", "2", "--loud", "1"])
    assert seen == [("red", Shape(2, 5), 7), ("red", Shape(2, 3), 1)]


def test_a_field_is_checked_as_any_option_is():
    seen = []
    for bad in (["red"], ["red", "--side", "0"], ["red", "--side", "2", "--shape", "x"]):
        assert CliRunner().invoke(make_app(seen), bad).exit_code == 2, bad
    assert seen == []


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "errors_console", Console(stderr=True, force_terminal=False))
    with options.show_progress("exporting", lines=True) as tell:
        for detail in ("first [a]", "second", "about 30 s", "third"):
            tell(detail)
    assert capsys.readouterr().err == "exporting: first [a]\nexporting: about 30 s\n"
    with options.show_progress("verifying") as tell:
        tell("first")
    assert capsys.readouterr().err == ""
