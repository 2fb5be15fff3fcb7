"""The commands about a bundle: ``inspect``, ``verify``, ``run``, ``evaluate``, ``bench``.

In: a bundle's folder, and images where a command needs them. Out: its bytes, what its checks say,
classes of images, accuracies, times. Nothing is written. ``inspect`` takes a ``.pdp`` file, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchdeploy.cli.cascade_tables import evaluation_table, timing_table
from patchdeploy.cli.exit import EXIT_BAD_INPUT, EXIT_CHECK_FAILED
from patchdeploy.cli.options import (
    BaseOption,
    BundleArgument,
    JsonOption,
    RuntimeOption,
    ThreadsOption,
    parse_integers,
    parse_words,
    show_progress,
    with_groups,
)
from patchdeploy.cli.places import is_file, is_folder
from patchdeploy.cli.signing import TrustedOption
from patchdeploy.cli.size_tables import print_sizes
from patchdeploy.cli.store import ReadStoreOptions
from patchdeploy.cli.tables import (
    bench_tables,
    describe_prediction,
    emit,
    make_table,
    prediction_table,
    verify_table,
)
from patchdeploy.errors import ConfigError, DataError, StorageError
from patchdeploy.named import is_packaged, open_base, open_images

if TYPE_CHECKING:
    from patchdeploy.runtime import Engine
    from patchdeploy.verify import FloatNetwork


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
    print_sizes(open_bundle(place), as_json)


@with_groups
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
    patch: Annotated[
        list[Path],
        typer.Option(help="A patch folder that was exported: int8 is compared with it in float."),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    base: BaseOption = "embedded",
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="x86-64|arm64",
            help="Whose arithmetic the reference computes with; default: this machine's.",
        ),
    ] = None,
    *,
    options: ReadStoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Check hashes, overlay = stand-alone, runtimes against the reference and against float.

    With --store every check of its active patches, too.
    """
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
            store=options.open,
            against=_float_networks(base, patch),
            machine=machine,
            progress=lambda check: tell(f"{check.name}, {check.subject}"),
        )
    emit(as_json, report.to_json(), verify_table(report))
    if not report.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _float_networks(base: str, patches: list[Path]) -> dict[str, FloatNetwork]:
    """By task; without patches nothing is opened, so that torch is not needed."""
    if not patches:
        return {}
    from patchdeploy.patch import Patch
    from patchdeploy.verify import FloatNetwork

    opened = open_base(base)
    found = [Patch.from_pretrained(folder) for folder in patches]
    return {patch.task: FloatNetwork(opened, patch) for patch in found}


@with_groups
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
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="By the cascade that the patch carries."),
    ] = False,
    *,
    options: ReadStoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Classify images with one task of a bundle, or of a store over it."""
    from patchdeploy.bundle import open_bundle
    from patchdeploy.evaluate import open_engine

    results: list[tuple[Path, Any]] = []
    opened = open_bundle(bundle)
    store = options.open(opened, runtime)
    with (
        open_engine(opened, runtime, threads, store) as engine,
        show_progress("classifying") as report,
    ):
        if cascade:
            px = resolution  # the engine refuses one
            engine.prewarm_cascade(task)
        else:
            px = resolution or max(engine.resolutions(task))
            engine.prewarm(task, px)
        way = {"task": task, "resolution": px, "cascade": cascade}
        for path in images:
            for one in _classify_path(engine, path, way):
                results.append(one)
                report(f"{len(results)} images")
        document = [describe_prediction(path, outcome, top) for path, outcome in results]
        source = "" if store is None else f", patch {engine.versions[task][:16]}"
    title = f"{task} {'by its cascade' if cascade else f'at {px} px'}, {runtime}{source}"
    emit(as_json, document, prediction_table(title, document))
    if any("error" in one for one in document):
        raise typer.Exit(EXIT_BAD_INPUT)


def _classify_path(
    engine: Engine, path: Path, way: Mapping[str, Any]
) -> Iterator[tuple[Path, Any]]:
    """One file or every image of a folder; an unreadable one gives its error.

    Args:
        way: arguments of `Engine.classify` after the image.
    """
    try:
        one = None if is_folder(path) else engine.classify(path, **way)
    except (DataError, StorageError) as error:
        yield path, error
        return
    if one is None:
        yield from engine.classify_folder(path, **way)
    else:
        yield path, one


@with_groups
def evaluate(
    bundle: BundleArgument,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Labelled test images; forms below.")
    ],
    task: Annotated[str, typer.Option(help="Which task.")],
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images.")] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="By the cascade that the patch carries, too.")
    ] = False,
    *,
    options: ReadStoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Top-1 accuracy of a task at each of its resolutions."""
    from patchdeploy.bundle import open_bundle
    from patchdeploy.evaluate import evaluate_task
    from patchdeploy.evaluate_cascade import evaluate_cascade

    opened = open_bundle(bundle)
    store = options.open(opened, runtime)
    dataset = open_images(images)
    with show_progress("evaluating") as report:
        way: dict[str, Any] = {"runtime": runtime, "threads": threads, "limit": limit}
        way |= {"store": store, "progress": report}
        if cascade:
            found = evaluate_cascade(opened, dataset, task, **way)
        else:
            results = evaluate_task(opened, dataset, task, **way)
    if cascade:
        emit(as_json, found.to_json(), evaluation_table(found))
        return
    rows = [[f"{r.resolution} px", f"{100 * r.top1:.2f} %", str(r.images)] for r in results]
    document = [asdict(result) for result in results]
    emit(
        as_json,
        document,
        make_table(f"{task}, int8, {runtime}", ["resolution", "top-1", "images"], rows),
    )


@with_groups
def bench(
    bundle: BundleArgument,
    runtimes: Annotated[str, typer.Option(help="Runtimes, commas between.")] = "litert,onnxruntime",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas between.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every candidate.")] = 50,
    cascade: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Its cascade on --images against one resolution."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="IMAGES", help="For --cascade; one image a round.")
    ] = None,
    *,
    options: ReadStoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Latency per resolution, cold and resident swaps; interleaved in one run."""
    from patchdeploy.bundle import open_bundle
    from patchdeploy.evaluate import bench_bundle
    from patchdeploy.evaluate_cascade import bench_cascade

    if (cascade is None) != (images is None):
        raise ConfigError(
            f"--cascade {cascade or 'not given'}, --images {images or 'not given'}; which stage "
            "answers is up to the images, so both are given or neither; add the other"
        )
    counts = parse_integers(threads, "--threads", "1,2")
    opened, names = open_bundle(bundle), parse_words(runtimes)
    stores = {name: options.open(opened, name) for name in names}
    if cascade is not None and images is not None:
        dataset = open_images(images)
        with show_progress("measuring"):
            timing = bench_cascade(
                opened,
                dataset,
                cascade,
                runtimes=names,
                threads=counts,
                images=rounds,
                stores=stores,
            )
        emit(as_json, timing, timing_table(timing))
        return
    with show_progress("measuring"):
        report = bench_bundle(opened, runtimes=names, threads=counts, rounds=rounds, stores=stores)
    emit(as_json, report, *bench_tables(report))
