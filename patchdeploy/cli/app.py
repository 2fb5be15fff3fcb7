"""The command line: every command of the library, in the order that ``--help`` shows.

Figures go to standard output, as a table or with ``--json`` as JSON; progress and errors to
standard error. Exit codes: see `patchdeploy.cli.exit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchdeploy.cli import bundle as bundle_commands
from patchdeploy.cli import cascade as cascade_commands
from patchdeploy.cli import export as export_commands
from patchdeploy.cli import keys as key_commands
from patchdeploy.cli import patch as patch_commands
from patchdeploy.cli import store as store_commands
from patchdeploy.cli import train as train_commands
from patchdeploy.cli.exit import EXIT_CHECK_FAILED, run_app
from patchdeploy.cli.options import FORMS, IMAGE_FORMS, JsonOption, errors_console
from patchdeploy.cli.tables import emit, make_table

app = typer.Typer(
    name="patchdeploy",
    help="One frozen int8 base network, a tiny patch per task and resolution, TFLite and ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for patches, bundle and report.")] = Path(
        "out/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Two tasks, one epoch: to see that it runs.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train patches for five real image tasks, export, verify, measure and write a report."""
    from patchdeploy.demo import run_demo

    def log(text: str) -> None:
        errors_console.print(text, highlight=False, soft_wrap=True)

    result = run_demo(out, quick=quick, seed=seed, log=log)
    emit(
        as_json,
        result.document,
        make_table(
            "What the demo made", ["", ""], [[name, value] for name, value in result.summary]
        ),
    )
    if not result.verified:
        raise typer.Exit(EXIT_CHECK_FAILED)


app.command()(demo)
app.command(epilog=train_commands.TRAIN_FORMS)(train_commands.train)
app.command("new-config")(train_commands.new_config)
app.command(epilog=FORMS)(export_commands.export)
app.command(epilog=FORMS)(export_commands.add)
app.command(epilog=FORMS)(export_commands.replace)
app.command()(export_commands.remove)
app.command()(bundle_commands.inspect)
app.command(epilog=IMAGE_FORMS + " Here any folder of images will do.")(bundle_commands.verify)
app.command()(bundle_commands.run)
app.command(epilog=IMAGE_FORMS)(bundle_commands.evaluate)
app.command()(bundle_commands.bench)
app.command(epilog=IMAGE_FORMS)(cascade_commands.cascade)
app.command(epilog=IMAGE_FORMS + " Here any folder of images will do.")(cascade_commands.recertify)
app.add_typer(key_commands.app)
app.command()(patch_commands.pack)
app.command()(patch_commands.sign)
app.command()(patch_commands.check)
app.command()(store_commands.install)
app.command()(store_commands.activate)
app.command()(store_commands.revert)
app.command("list")(store_commands.list_)
app.command("clean-up")(store_commands.clean_up)
app.command()(store_commands.reset)
app.command()(store_commands.serve)


def main() -> None:
    """Entry point of the ``patchdeploy`` command."""
    run_app(lambda: app(prog_name="patchdeploy"))


if __name__ == "__main__":
    main()
