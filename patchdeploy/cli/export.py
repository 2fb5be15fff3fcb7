"""The commands that write a bundle: ``export`` makes one, ``add`` puts one more task into it,
``replace`` a newer version of one that it has, and ``remove`` takes one out.

In: patch folders, their training images, a base and keys. Out: the whole bundle and its bytes as a
table, or the old one as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from patchdeploy.cli.options import (
    BaseOption,
    BundleArgument,
    FormatsOption,
    JsonOption,
    parse_integers,
    parse_words,
    show_progress,
    with_groups,
)
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
from patchdeploy.cli.size_tables import print_sizes
from patchdeploy.errors import ConfigError
from patchdeploy.named import open_base, open_calibration


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
    exact_border: Annotated[
        bool,
        typer.Option(
            "--exact-border",
            help="Pad with the mean pixel of each channel, at the cost of a 1x1 convolution.",
        ),
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
    images = dict(_task_images(one, "--calibration") for one in calibration)
    with show_progress("exporting", lines=True) as report:
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
            exact_border=exact_border,
            coding=coding,
            validation=dict(_task_images(one, "--validation") for one in validation),
            signing=signing,
            unsigned=signing is None,
            progress=report,
        )
    print_sizes(bundle, as_json)


@dataclass(frozen=True)
class AdditionOptions:
    """The options of the commands that put a task into a bundle; `with_groups` shows them."""

    patch: Annotated[Path, typer.Option(help="A patch folder.")]
    calibration: Annotated[str, typer.Option(metavar="IMAGES", help="Training images.")]
    base: BaseOption = "embedded"
    float_files: Annotated[bool, typer.Option("--float", help="Also float32 files.")] = False
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Images that training has not seen, for the budget. Default: the calibration's.",
        ),
    ] = None
    sequence: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sequence number of the patch. Default: one more than the bundle's patch has.",
        ),
    ] = None
    key: KeyOption = None
    expires: ExpiresOption = None
    unsigned: UnsignedOption = False
    budget: BudgetOption = None
    fine: FineOption = False

    def export(self, bundle: Path, as_json: bool, replace_existing: bool) -> None:
        """Put the patch into ``bundle`` and print its bytes."""
        from patchdeploy.export import export_patch
        from patchdeploy.patch import Patch

        coding = read_coding(self.budget, self.fine)
        signing = read_addition_signing(bundle, self.key, self.expires, self.unsigned)
        validation = self.validation
        with show_progress("exporting", lines=True) as report:
            made = export_patch(
                bundle,
                open_base(self.base),
                Patch.from_pretrained(self.patch),
                open_calibration(self.calibration),
                float_files=self.float_files,
                coding=coding,
                validation=None if validation is None else open_calibration(validation),
                signing=signing,
                replace_existing=replace_existing,
                sequence=self.sequence,
                progress=report,
            )
        print_sizes(made, as_json)


@with_groups
def add(bundle: BundleArgument, options: AdditionOptions, as_json: JsonOption = False) -> None:
    """Add one more task to a bundle; the base's files keep their bytes."""
    options.export(bundle, as_json, replace_existing=False)


@with_groups
def replace(bundle: BundleArgument, options: AdditionOptions, as_json: JsonOption = False) -> None:
    """Put a newer version of a task in its place; its sequence number goes up by itself."""
    options.export(bundle, as_json, replace_existing=True)


def remove(
    bundle: BundleArgument,
    task: Annotated[str, typer.Option(help="Which task.")],
    as_json: JsonOption = False,
) -> None:
    """Take one task out of a bundle; the base's files keep their bytes."""
    from patchdeploy.bundle import remove_task

    print_sizes(remove_task(bundle, task), as_json)


def _task_images(text: str, option: str) -> tuple[str, Any]:
    task, _, images = text.partition("=")
    if not images:
        raise ConfigError(
            f"{option} is {text!r}; it must be TASK=IMAGES; "
            "write for instance digits=packaged:digits:train"
        )
    return task, open_calibration(images)
