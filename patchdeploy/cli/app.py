"""The command line: every job of the library as one command.

Figures go to standard output, as a table or with ``--json`` as JSON; progress and errors to
standard error. Exit codes: see `patchdeploy.cli.exit`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchdeploy.cli import keys as key_commands
from patchdeploy.cli import patch as patch_commands
from patchdeploy.cli import store as store_commands
from patchdeploy.cli.exit import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, run_app
from patchdeploy.cli.options import (
    FORMS,
    IMAGE_FORMS,
    BaseOption,
    BundleArgument,
    FormatsOption,
    JsonOption,
    RuntimeOption,
    ThreadsOption,
    errors_console,
    parse_integers,
    parse_words,
    show_progress,
)
from patchdeploy.cli.places import is_file, is_folder
from patchdeploy.cli.signing import (
    BudgetOption,
    ExpiresOption,
    FineOption,
    KeyOption,
    TrustedOption,
    UnsignedOption,
    read_addition_signing,
    read_coding,
    read_signing,
)
from patchdeploy.cli.tables import (
    bench_tables,
    describe_prediction,
    emit,
    make_table,
    prediction_table,
    size_tables,
    verify_table,
)
from patchdeploy.cli.train import TRAIN_FORMS, new_config, train
from patchdeploy.errors import ConfigError, DataError, StorageError
from patchdeploy.named import (
    is_packaged,
    open_base,
    open_calibration,
    open_images,
)

if TYPE_CHECKING:
    from patchdeploy.bundle import Bundle
    from patchdeploy.runtime import Engine

app = typer.Typer(
    name="patchdeploy",
    help="One frozen int8 base network, a tiny patch per task and resolution, TFLite and ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for patches, bundle and report.")] = Path(
        "out/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Two tasks, one epoch: to see that it runs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train patches for five real image tasks, export, verify, measure and write a report."""
    from patchdeploy.demo import run_demo

    def log(text: str) -> None:
        errors_console.print(text, highlight=False, soft_wrap=True)

    result = run_demo(out, quick=quick, log=log)
    emit(
        as_json,
        result.document,
        make_table(
            "What the demo made", ["", ""], [[name, value] for name, value in result.summary]
        ),
    )
    if not result.verified:
        raise typer.Exit(EXIT_CHECK_FAILED)


app.command(epilog=TRAIN_FORMS)(train)
app.command("new-config")(new_config)


@app.command(epilog=FORMS)
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle folder to make.")],
    patch: Annotated[list[Path], typer.Option(help="A patch folder; repeat for several.")],
    calibration: Annotated[
        list[str],
        typer.Option(metavar="TASK=IMAGES", help="Training images, one for each patch."),
    ],
    base: BaseOption = "embedded",
    resolutions: Annotated[
        str | None, typer.Option(help="Default: those that all patches have.")
    ] = None,
    formats: FormatsOption = "tflite,onnx",
    head_capacity: Annotated[
        int | None, typer.Option(min=2, help="Rows of the head. Default: the largest task's.")
    ] = None,
    float_files: Annotated[
        bool, typer.Option("--float", help="Also stand-alone float32 files (they share nothing).")
    ] = False,
    validation: Annotated[
        list[str],
        typer.Option(
            metavar="TASK=IMAGES",
            help="Images that training has not seen, for the budget. Default: the calibration's.",
        ),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    key: KeyOption = None,
    trusted: TrustedOption = None,
    expires: ExpiresOption = None,
    unsigned: UnsignedOption = False,
    budget: BudgetOption = None,
    fine: FineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one shared int8 base and a small signed patch per task."""
    from patchdeploy.export import export_bundle
    from patchdeploy.patch import Patch

    coding = read_coding(budget, fine)
    signing = read_signing(key, trusted, expires, unsigned)
    patches = [Patch.from_pretrained(folder) for folder in patch]
    images = dict(_task_images(one) for one in calibration)
    with show_progress("exporting") as report:
        bundle = export_bundle(
            out,
            open_base(base),
            patches,
            images,
            resolutions=(
                parse_integers(resolutions, "--resolutions", "32,48,64") if resolutions else None
            ),
            formats=parse_words(formats),
            head_capacity=head_capacity,
            float_files=float_files,
            coding=coding,
            validation=dict(_task_images(one) for one in validation),
            signing=signing,
            unsigned=signing is None,
            progress=report,
        )
    _print_sizes(bundle, as_json)


@app.command(epilog=FORMS)
def add(
    bundle: BundleArgument,
    patch: Annotated[Path, typer.Option(help="A patch folder.")],
    calibration: Annotated[str, typer.Option(metavar="IMAGES", help="Training images.")],
    base: BaseOption = "embedded",
    float_files: Annotated[bool, typer.Option("--float", help="Also float32 files.")] = False,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Images that training has not seen, for the budget. Default: the calibration's.",
        ),
    ] = None,
    key: KeyOption = None,
    expires: ExpiresOption = None,
    unsigned: UnsignedOption = False,
    budget: BudgetOption = None,
    fine: FineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add one more task to a bundle; the base's files keep their bytes."""
    from patchdeploy.export import export_patch
    from patchdeploy.patch import Patch

    coding = read_coding(budget, fine)
    signing = read_addition_signing(bundle, key, expires, unsigned)
    with show_progress("exporting") as report:
        made = export_patch(
            bundle,
            open_base(base),
            Patch.from_pretrained(patch),
            open_calibration(calibration),
            float_files=float_files,
            coding=coding,
            validation=None if validation is None else open_calibration(validation),
            signing=signing,
            progress=report,
        )
    _print_sizes(made, as_json)


def _task_images(text: str) -> tuple[str, Any]:
    task, _, images = text.partition("=")
    if not images:
        raise ConfigError(
            f"--calibration is {text!r}; it must be TASK=IMAGES; "
            "write for instance digits=packaged:digits:train"
        )
    return task, open_calibration(images)


@app.command()
def inspect(
    place: Annotated[
        Path, typer.Argument(metavar="BUNDLE|FILE", help="A bundle folder, or a .pdp file.")
    ],
    trusted: TrustedOption = None,
    of_bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", metavar="BUNDLE", help="Of a .pdp file: what it would change there."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bundle's bytes, shared and private; or a patch file's header, parts and signers."""
    from patchdeploy.bundle import open_bundle
    from patchdeploy.cli.inspect import inspect_file

    if is_file(place):
        inspect_file(place, trusted, of_bundle, as_json)
        return
    if trusted is not None or of_bundle is not None:
        raise ConfigError(
            f"--trusted or --bundle for {place}, which is no .pdp file; a bundle holds its own "
            "keys and base; leave them out or name a .pdp file"
        )
    _print_sizes(open_bundle(place), as_json)


def _print_sizes(bundle: Bundle, as_json: bool) -> None:
    from patchdeploy.bundle import size_report

    report = size_report(bundle)
    emit(as_json, report, *size_tables(report))


@app.command(epilog=IMAGE_FORMS + " Here any folder of images will do.")
def verify(
    bundle: BundleArgument,
    images: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Test images; labels give accuracies. Forms below."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task that --images belongs to; default: every task.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Check hashes, overlay = stand-alone, and both runtimes against the reference."""
    from patchdeploy.bundle.reader import read_manifest
    from patchdeploy.verify import verify_bundle

    read_manifest(bundle)  # no bundle at all is bad input; a damaged one fails its checks
    chosen = open_images(images) if images and is_packaged(images) else images
    with show_progress("verifying") as tell:
        report = verify_bundle(
            bundle,
            images=chosen,
            task=task,
            limit=limit,
            progress=lambda check: tell(f"{check.name}, {check.subject}"),
        )
    emit(as_json, report.to_json(), verify_table(report))
    if not report.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def run(
    bundle: BundleArgument,
    images: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Image files or folders of images.")
    ],
    task: Annotated[str, typer.Option(help="Which task.")],
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels. Default: the task's largest.")
    ] = None,
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Classify images with one task of a bundle."""
    from patchdeploy.runtime import Engine

    results: list[tuple[Path, Any]] = []
    with (
        Engine.open(bundle, runtime=runtime, threads=threads) as engine,
        show_progress("classifying") as report,
    ):
        px = resolution or max(engine.resolutions(task))
        engine.prewarm(task, px)
        for path in images:
            for one in _classify_path(engine, path, task, px):
                results.append(one)
                report(f"{len(results)} images")
    document = [describe_prediction(path, outcome, top) for path, outcome in results]
    emit(as_json, document, prediction_table(f"{task} at {px} px, {runtime}", document))
    if any("error" in one for one in document):
        raise typer.Exit(EXIT_BAD_INPUT)


def _classify_path(engine: Engine, path: Path, task: str, px: int) -> Iterator[tuple[Path, Any]]:
    """One file or every image of a folder; an unreadable one gives its error."""
    try:
        one = None if is_folder(path) else engine.classify(path, task=task, resolution=px)
    except (DataError, StorageError) as error:
        yield path, error
        return
    if one is None:
        yield from engine.classify_folder(path, task=task, resolution=px)
    else:
        yield path, one


@app.command(epilog=IMAGE_FORMS)
def evaluate(
    bundle: BundleArgument,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Labelled test images; forms below.")
    ],
    task: Annotated[str, typer.Option(help="Which task.")],
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Top-1 accuracy of a task at each of its resolutions."""
    from patchdeploy.evaluate import evaluate_task

    dataset = open_images(images)
    with show_progress("evaluating") as report:
        results = evaluate_task(
            bundle,
            dataset,
            task,
            runtime=runtime,
            threads=threads,
            limit=limit,
            progress=report,
        )
    rows = [[f"{r.resolution} px", f"{100 * r.top1:.2f} %", str(r.images)] for r in results]
    document = [asdict(result) for result in results]
    emit(
        as_json,
        document,
        make_table(f"{task}, int8, {runtime}", ["resolution", "top-1", "images"], rows),
    )


@app.command()
def bench(
    bundle: BundleArgument,
    runtimes: Annotated[str, typer.Option(help="Runtimes, commas between.")] = "litert,onnxruntime",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas between.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every candidate.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Latency per resolution, cold and resident swaps; interleaved in one run."""
    from patchdeploy.evaluate import bench_bundle

    counts = parse_integers(threads, "--threads", "1,2")
    with show_progress("measuring"):
        report = bench_bundle(bundle, runtimes=parse_words(runtimes), threads=counts, rounds=rounds)
    emit(as_json, report, *bench_tables(report))


app.add_typer(key_commands.app)
app.command()(patch_commands.pack)
app.command()(patch_commands.sign)
app.command()(patch_commands.check)
app.command()(store_commands.install)
app.command()(store_commands.activate)
app.command()(store_commands.revert)
app.command("list")(store_commands.list_)
app.command("clean-up")(store_commands.clean_up)
app.command()(store_commands.serve)


def main() -> None:
    """Entry point of the ``patchdeploy`` command."""
    run_app(lambda: app(prog_name="patchdeploy"))


if __name__ == "__main__":
    main()
