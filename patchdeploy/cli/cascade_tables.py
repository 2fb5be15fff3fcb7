"""What the command line shows of cascades: fitted, carried by a patch, on images, timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from patchdeploy.cli.tables import make_table

if TYPE_CHECKING:
    from patchdeploy.cascade import Certificate
    from patchdeploy.cascade.describe import CascadeRow
    from patchdeploy.evaluate_cascade import Agreement, CascadeEvaluation
    from patchdeploy.fit_cascade import CascadeFit

COLUMNS = ["", "answered", "saved", "top-1", "below reference, points", "early, reference"]


def carried_tables(cascades: Mapping[str, Mapping[str, Any] | None]) -> list[Table]:
    """One row a task whose patch carries a cascade; no table where none does.

    Args:
        cascades: by task, as JSON.
    """
    from patchdeploy.cascade import Certificate

    rows = []
    for task, one in cascades.items():
        if one is not None:
            stages = " > ".join(str(stage["resolution"]) for stage in one["rule"]["stages"])
            shown = promise(Certificate(**one["certificate"]))
            rows.append([task, stages, one["rule"]["score"], shown])
    columns = ["task", "px", "score", "promise"]
    return [make_table("Cascades", columns, rows, text=(0, 1, 2, 3))] if rows else []


def fit_tables(fit: CascadeFit) -> list[Table]:
    """What was fitted, and what it does on the report split."""
    rule, certificate = fit.cascade.rule, fit.cascade.certificate
    rows = [
        [f"{stage.resolution} px", str(stage.threshold) if stage is not rule.stages[-1] else "-"]
        for stage in rule.stages
    ]
    title = f"{fit.task}: {rule.score}, {promise(certificate)}"
    found = make_table(title, ["stage", "answers from"], rows)
    reported = make_table(
        f"On {fit.images[2]:,} other images, cost in {fit.cost_unit}",
        COLUMNS,
        [_report_cells(row) for row in fit.rows],
    )
    return [found, reported]


def promise(certificate: Certificate) -> str:
    """What a patch says about its cascade."""
    state = "certified" if certificate.certified else "NOT CERTIFIED"
    return (
        f"{state}: at most {100 * certificate.tolerance:g} points below "
        f"{certificate.reference} px at {100 * certificate.confidence:g} % confidence "
        f"({certificate.images:,} images)"
    )


def evaluation_table(found: CascadeEvaluation) -> Table:
    """A cascade on labelled images, and every resolution alone."""
    judged = (
        "these images show it, too"
        if found.shown
        else f"these images show {100 * found.smallest_tolerance:.2f} points"
    )
    if found.contradicted:
        judged = "THESE IMAGES SHOW THAT IT LOSES MORE"
    title = (
        f"{found.task}, {found.runtime}, {found.images:,} images, cost in {found.cost_unit}; "
        f"{promise(found.cascade.certificate)}; {judged}"
    )
    return make_table(title, COLUMNS, [_report_cells(row) for row in found.rows])


def timing_table(report: Mapping[str, Any]) -> Table:
    """The table of `patchdeploy.evaluate_cascade.bench_cascade`."""
    shares = "; ".join(
        f"{runtime}: {', '.join(f'{px} px {100 * share:.0f} %' for px, share in by_side.items())}"
        for runtime, by_side in report["answered"].items()
    )
    rows = []
    for row in report["rows"]:
        low, high = (100 * one for one in row["saving_interval"])
        rows.append(
            [
                f"{row['runtime']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
                row["name"] if row["name"] == "cascade" else f"{row['name']} px",
                f"{row['mean_ms']:.3f}",
                f"{row['p90_ms']:.3f}",
                f"{100 * row['saving']:.1f} % ({low:.1f} to {high:.1f})",
            ]
        )
    title = (
        f"{report['task']}, ms from a decoded image, {report['images']} images; the cascade's "
        f"stages answer {shares}; saved against {report['reference']} px"
    )
    return make_table(title, ["runtime", "", "mean", "p90", "saved"], rows, text=(0, 1))


def agreement_table(found: Agreement) -> Table:
    """A cascade against its reference on images without labels."""
    state = "shown" if found.shown else "NOT SHOWN"
    title = (
        f"{found.task}, {found.runtime}, {state}: at most {100 * found.tolerance:g} % of images "
        f"are answered otherwise than at {found.cascade.certificate.reference} px, at "
        f"{100 * found.confidence:g} % confidence"
    )
    shares = " / ".join(f"{100 * share:.0f}" for share in found.answered)
    cells = [f"{found.images:,}", f"{shares} %", f"{100 * found.disagreeing:.2f} %"]
    cells += [f"{found.p_value:.2g}", f"{100 * found.smallest_tolerance:.2f} %"]
    columns = ["images", "answered", "otherwise", "p", "these show"]
    return make_table(title, columns, [cells])


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
