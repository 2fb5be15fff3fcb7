"""The command ``cascade``: fit one over a task's resolutions, certify it, write it into the patch.

In: a bundle, a task, labelled images that training has not seen, keys. Out: a table of what the
cascade saves and what it costs, and the bundle with a new patch file, or the bundle as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchdeploy.cli.options import (
    BundleArgument,
    JsonOption,
    RuntimeOption,
    ThreadsOption,
    show_progress,
)
from patchdeploy.cli.signing import (
    ExpiresOption,
    KeyOption,
    UnsignedOption,
    read_addition_signing,
    warn,
)
from patchdeploy.cli.tables import emit, make_table
from patchdeploy.errors import ConfigError
from patchdeploy.named import open_images

if TYPE_CHECKING:
    from patchdeploy.fit_cascade import CascadeFit, CascadeRow


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
    emit(as_json, fit.to_json(), *cascade_tables(fit))


def cascade_tables(fit: CascadeFit) -> list[Any]:
    """What was fitted, and what it does on the report split."""
    rule, certificate = fit.cascade.rule, fit.cascade.certificate
    rows = [
        [f"{stage.resolution} px", str(stage.threshold) if stage is not rule.stages[-1] else "-"]
        for stage in rule.stages
    ]
    state = "certified" if certificate.certified else "NOT CERTIFIED"
    title = (
        f"{fit.task}: {rule.score}, {state}: at most {100 * certificate.tolerance:g} points below "
        f"{certificate.reference} px at {100 * certificate.confidence:g} % confidence "
        f"({certificate.images:,} images)"
    )
    found = make_table(title, ["stage", "answers from"], rows)
    columns = ["", "answered", "saved", "top-1", "below reference, points", "early, reference"]
    reported = make_table(
        f"On {fit.images[2]:,} other images, cost in {fit.cost_unit}",
        columns,
        [_report_cells(row) for row in fit.rows],
    )
    return [found, reported]


def _report_cells(row: CascadeRow) -> list[str]:
    shares = " / ".join(f"{100 * share:.0f}" for share in row.answered)
    sides = " > ".join(map(str, row.resolutions))
    mean, low, high = (100 * value for value in row.gap)
    early = "-"
    if row.early_accuracy is not None and row.early_reference is not None:
        early = f"{100 * row.early_accuracy:.1f}, {100 * row.early_reference:.1f} %"
    return [
        row.name if row.name.endswith("px") else f"{row.name}, {sides} px",
        f"{shares} %",
        f"{100 * row.saving:.1f} %",
        f"{100 * row.accuracy:.2f} %",
        f"{mean:.2f} ({low:.2f} to {high:.2f})",
        early,
    ]
