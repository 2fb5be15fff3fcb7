"""The command line: every job of the library as one command.

Exit codes: 0 done, 1 a check failed (verify), 2 bad input or usage, 3 an optional package is
missing, 4 the disk is full or not writable, 70 a defect of ours, 130 interrupted. Figures go to
standard output, as a table or with ``--json`` as JSON; progress and errors to standard error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from patchdeploy.cli_tables import emit, make_table, size_tables
from patchdeploy.errors import (
    ConfigError,
    MissingExtraError,
    PatchdeployError,
    StorageError,
)
from patchdeploy.named import BASE_HELP, IMAGES_HELP, open_base, open_images

if TYPE_CHECKING:
    from patchdeploy.bundle import Bundle

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_MISSING_EXTRA = 3
EXIT_STORAGE = 4
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="patchdeploy",
    help="One frozen int8 base network, a tiny patch per task and resolution, TFLite and ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_err = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
BundleArgument = Annotated[Path, typer.Argument(help="A bundle folder.")]
BaseOption = Annotated[str, typer.Option("--base", help=f"The base network: {BASE_HELP}.")]
RuntimeOption = Annotated[str, typer.Option(help="litert or onnxruntime.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
FormatsOption = Annotated[str, typer.Option(help="Converters to write with, commas between.")]


def _integers(text: str, option: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError(
            f"{option} is {text!r}; it must be whole numbers with commas between; "
            "write for instance 32,48,64"
        ) from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for patches, bundle and report.")] = Path(
        "out/demo"
    ),
    quick: Annotated[bool, typer.Option(help="Two tasks, one epoch: to see that it runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train patches for five real image tasks, export, verify, measure and write a report."""
    from patchdeploy.demo import run_demo

    result = run_demo(out, quick=quick, log=lambda text: _err.print(text, highlight=False))
    emit(
        as_json,
        result.document,
        make_table(
            "What the demo made", ["", ""], [[name, value] for name, value in result.summary]
        ),
    )
    if not result.verified:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def train(
    images: Annotated[str, typer.Argument(help=f"Training images: {IMAGES_HELP}.")],
    out: Annotated[Path, typer.Option(help="Folder for the patch.")],
    task: Annotated[str, typer.Option(help="Task name: a-z, 0-9, - and _.")],
    base: BaseOption = "embedded",
    kinds: Annotated[
        str, typer.Option(help="What the patch owns: scale_bias, depthwise, head.")
    ] = "scale_bias,head",
    resolutions: Annotated[str, typer.Option(help="Square sides in pixels.")] = "64",
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: what suits the kinds.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="modern or paper.")] = "modern",
    seed: int = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Metrics and checkpoints; lets a killed run resume.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --run-dir.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train one task's patch over a frozen base."""
    from patchdeploy.patch import PatchConfig
    from patchdeploy.training import TrainConfig, train_patch

    network = open_base(base)
    config = TrainConfig.from_json(
        {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "recipe": recipe,
            "seed": seed,
        }
    )
    patch_config = PatchConfig.from_json({"kinds": kinds.split(",")})
    patch = train_patch(
        network,
        open_images(images),
        config,
        patch_config,
        resolutions=_integers(resolutions, "--resolutions"),
        task=task,
        run_dir=run_dir,
        resume=resume,
    )
    patch.save_pretrained(out)
    document = {"task": task, "out": str(out), "metrics": patch.metrics}
    rows = [[str(key), str(value)] for key, value in patch.metrics.items()]
    emit(as_json, document, make_table(f"Patch {task} in {out}", ["", ""], rows))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The bundle folder to make.")],
    patch: Annotated[list[Path], typer.Option(help="A patch folder; repeat for several.")],
    calibration: Annotated[
        list[str],
        typer.Option(help=f"TASK={IMAGES_HELP}; training images, one for each patch."),
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
    as_json: JsonOption = False,
) -> None:
    """Write one shared int8 base and a small patch per task."""
    from patchdeploy.export import export_bundle
    from patchdeploy.patch import Patch

    patches = [Patch.from_pretrained(folder) for folder in patch]
    bundle = export_bundle(
        out,
        open_base(base),
        patches,
        dict(_task_images(one) for one in calibration),
        resolutions=_integers(resolutions, "--resolutions") if resolutions else None,
        formats=formats.split(","),
        head_capacity=head_capacity,
        float_files=float_files,
    )
    _print_sizes(bundle, as_json)


@app.command()
def add(
    bundle: BundleArgument,
    patch: Annotated[Path, typer.Option(help="A patch folder.")],
    calibration: Annotated[str, typer.Option(help=f"Training images: {IMAGES_HELP}.")],
    base: BaseOption = "embedded",
    float_files: Annotated[bool, typer.Option("--float", help="Also float32 files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add one more task to a bundle; the base's files keep their bytes."""
    from patchdeploy.export import export_patch
    from patchdeploy.patch import Patch

    made = export_patch(
        bundle,
        open_base(base),
        Patch.from_pretrained(patch),
        open_images(calibration),
        float_files=float_files,
    )
    _print_sizes(made, as_json)


def _task_images(text: str) -> tuple[str, Any]:
    task, _, images = text.partition("=")
    if not images:
        raise ConfigError(
            f"--calibration is {text!r}; it must be TASK=IMAGES; "
            "write for instance digits=packaged:digits:train"
        )
    return task, open_images(images)


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show which bytes are shared, private and duplicated, per task, resolution and format."""
    from patchdeploy.bundle import open_bundle

    _print_sizes(open_bundle(bundle), as_json)


def _print_sizes(bundle: Bundle, as_json: bool) -> None:
    from patchdeploy.bundle import size_report

    report = size_report(bundle)
    emit(as_json, report, *size_tables(report))


@app.command()
def verify(
    bundle: BundleArgument,
    images: Annotated[
        str | None, typer.Option(help=f"Test images: {IMAGES_HELP}. One task: its labels count.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task that --images belongs to; default: every task.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Check hashes, overlay = stand-alone, and both runtimes against the reference."""
    from patchdeploy.verify import verify_bundle

    report = verify_bundle(
        bundle, images=open_images(images) if images else None, task=task, limit=limit
    )
    words = {True: "pass", False: "FAIL", None: "skipped"}
    rows = [[words[c.passed], c.name, c.subject, c.detail] for c in report.checks]
    table = make_table(f"Verify {bundle}", ["", "check", "of", "detail"], rows)
    emit(as_json, report.to_json(), table)
    if not report.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def run(
    bundle: BundleArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of images.")],
    task: Annotated[str, typer.Option(help="Which task.")],
    resolution: Annotated[int | None, typer.Option(help="Default: the task's largest.")] = None,
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Classify images with one task of a bundle."""
    from patchdeploy.runtime import Engine

    with Engine.open(bundle, runtime=runtime, threads=threads) as engine:
        px = resolution or max(engine.resolutions(task))
        results: list[tuple[Path, Any]] = []
        for path in images:
            if path.is_dir():
                results += engine.classify_folder(path, task=task, resolution=px)
            else:
                results.append((path, engine.classify(path, task=task, resolution=px)))
    document = [_prediction(path, outcome, top) for path, outcome in results]
    rows = [[one["image"], one.get("error") or _top_text(one)] for one in document]
    emit(as_json, document, make_table(f"{task} at {px} px, {runtime}", ["image", "classes"], rows))
    if any("error" in one for one in document):
        raise typer.Exit(EXIT_BAD_INPUT)


def _prediction(path: Path, outcome: Any, top: int) -> dict[str, Any]:
    if isinstance(outcome, PatchdeployError):
        return {"image": str(path), "error": str(outcome)}
    best = outcome.top(top)
    return {
        "image": str(path),
        "top": [{"label": label, "probability": probability} for label, probability in best],
    }


def _top_text(one: dict[str, Any]) -> str:
    return ", ".join(f"{c['label']} {100 * c['probability']:.1f} %" for c in one["top"])


@app.command()
def evaluate(
    bundle: BundleArgument,
    images: Annotated[str, typer.Argument(help=f"Labelled test images: {IMAGES_HELP}.")],
    task: Annotated[str, typer.Option(help="Which task.")],
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Top-1 accuracy of a task at each of its resolutions."""
    from patchdeploy.evaluate import evaluate_task

    results = evaluate_task(
        bundle, open_images(images), task, runtime=runtime, threads=threads, limit=limit
    )
    rows = [[f"{r.resolution} px", f"{100 * r.top1:.2f} %", str(r.images)] for r in results]
    document = [vars(result) for result in results]
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

    report = bench_bundle(
        bundle, runtimes=runtimes.split(","), threads=_integers(threads, "--threads"), rounds=rounds
    )
    latency = [
        [
            f"{r['runtime']}, {r['threads']} threads",
            f"{r['resolution']} px",
            f"{r['median_ms']:.3f}",
            f"{r['p10_ms']:.3f} to {r['p90_ms']:.3f}",
        ]
        for r in report["latency"]
    ]
    swaps = [[r["runtime"], r["kind"], f"{r['median_ms']:.3f}"] for r in report["swaps"]]
    emit(
        as_json,
        report,
        make_table("Latency, ms per image", ["", "resolution", "median", "p10 to p90"], latency),
        make_table("Swap, ms", ["runtime", "", "median"], swaps),
    )


def main() -> None:
    """Entry point of the ``patchdeploy`` command; see the module for exit codes."""
    try:
        app()
    except MissingExtraError as error:
        _fail(error, EXIT_MISSING_EXTRA)
    except StorageError as error:
        _fail(error, EXIT_STORAGE)
    except PatchdeployError as error:
        _fail(error, EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept", EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get("PATCHDEPLOY_TRACEBACK"):
            raise
        _fail(
            f"{type(error).__name__}: {error}; this is a defect of patchdeploy; set "
            "PATCHDEPLOY_TRACEBACK=1 to see where, and report it",
            EXIT_DEFECT,
        )


def _fail(message: object, code: int) -> None:
    _err.print(f"[bold red]error:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
