"""The commands ``cascade`` and ``recertify``: fit, certify and write a cascade; test it elsewhere.

In: a bundle, a task, images that training has not seen, keys. Out: a table of what the cascade
saves and what it costs, and the bundle with a new patch file, or the bundle as it was.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from patchdeploy.cli.cascade_tables import agreement_table, fit_tables
from patchdeploy.cli.exit import EXIT_CHECK_FAILED
from patchdeploy.cli.options import (
    BundleArgument,
    JsonOption,
    RuntimeOption,
    ThreadsOption,
    show_progress,
    with_groups,
)
from patchdeploy.cli.signing import (
    ExpiresOption,
    KeyOption,
    UnsignedOption,
    read_addition_signing,
    warn,
)
from patchdeploy.cli.store import ReadStoreOptions
from patchdeploy.cli.tables import emit
from patchdeploy.errors import ConfigError
from patchdeploy.named import is_packaged, open_images


def cascade(
    bundle: BundleArgument,
    task: Annotated[str, typer.Option(help="Which task.")],
    images: Annotated[
        str,
        typer.Option(metavar="IMAGES", help="Labelled images that training has not seen."),
    ],
    tolerance: Annotated[
        float, typer.Option(metavar="POINTS", help="Points of accuracy that it may lose.")
    ] = 1.0,
    confidence: Annotated[float, typer.Option(help="Of the statement that it loses no more.")] = (
        0.95
    ),
    score: Annotated[
        str, typer.Option(help="auto, margin, probability or entropy: how sure a stage is.")
    ] = "auto",
    cost: Annotated[
        str, typer.Option(help="macs, or ms as measured on this machine, resizing included.")
    ] = "macs",
    reference: Annotated[
        str, typer.Option(help="largest or best: the resolution that losses are counted against.")
    ] = "largest",
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the split of the images.")] = 0,
    uncertified: Annotated[
        bool,
        typer.Option("--uncertified", help="Write it even if too few images can certify it."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; write nothing.")] = False,
    key: KeyOption = None,
    expires: ExpiresOption = None,
    unsigned: UnsignedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a cascade over a task's resolutions, certify it, and write it into the task's patch."""
    from patchdeploy.fit_cascade import CascadeConfig, attach_cascade, fit_cascade

    if dry_run and (key or unsigned or expires):
        raise ConfigError(
            "--dry-run with --key, --unsigned or --expires; a dry run signs nothing; leave one of "
            "them out"
        )
    options: dict[str, Any] = {"score": score, "cost": cost, "reference": reference}
    config = CascadeConfig(
        tolerance=tolerance / 100,
        confidence=confidence,
        runtime=runtime,
        threads=threads,
        seed=seed,
        uncertified=uncertified,
        **options,
    )
    signing = None if dry_run else read_addition_signing(bundle, key, expires, unsigned)
    dataset = open_images(images)
    with show_progress("fitting") as report:
        fit = fit_cascade(bundle, dataset, task, config, progress=report)
    if not dry_run:
        attach_cascade(bundle, fit, signing)
    if not fit.cascade.certificate.certified:
        warn(
            f"UNCERTIFIED: {fit.images[1]} images do not show that this cascade loses at most "
            f"{tolerance:g} points; whatever shows it says so"
        )
    emit(as_json, fit.to_json(), *fit_tables(fit))


@with_groups
def recertify(
    bundle: BundleArgument,
    task: Annotated[str, typer.Option(help="Which task.")],
    images: Annotated[
        str, typer.Option(metavar="IMAGES", help="Images of your own; labels are not looked at.")
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Share answered otherwise. Default: the patch's."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of the statement. Default: the patch's.")
    ] = None,
    runtime: RuntimeOption = "litert",
    threads: ThreadsOption = 1,
    *,
    options: ReadStoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Test a patch's cascade on images without labels: how often it answers as its reference does.

    Ends with 1 where the images do not show it.
    """
    from patchdeploy.bundle import open_bundle
    from patchdeploy.data import load_any_folder
    from patchdeploy.evaluate_cascade import recertify_cascade

    opened = open_bundle(bundle)
    store = options.open(opened, runtime)
    with show_progress("testing") as report:
        found = recertify_cascade(
            opened,
            open_images(images) if is_packaged(images) else load_any_folder(images),
            task,
            tolerance=None if tolerance is None else tolerance / 100,
            confidence=confidence,
            runtime=runtime,
            threads=threads,
            store=store,
            progress=report,
        )
    emit(as_json, found.to_json(), agreement_table(found))
    if not found.shown:
        raise typer.Exit(EXIT_CHECK_FAILED)
