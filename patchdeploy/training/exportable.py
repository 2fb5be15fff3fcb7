"""What `export` would refuse, before the first step: a run may take hours.

In: a base, names, labels, sides in pixels. Out: nothing, or the error that export would raise, with
the way to train all the same. The checks are export's own functions: what passes here is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchdeploy.base import Base
from patchdeploy.errors import ConfigError, PatchdeployError
from patchdeploy.lower import lower_base
from patchdeploy.task_names import check_labels, check_task_name
from patchdeploy.training.config import TrainConfig

MOST_RESOLUTIONS, MOST_RESOLUTION = 16, 4096
"""Of a patch file (docs/patch-format.md)."""
MOST_REMEMBERED = 64

_sound: dict[tuple[object, ...], None] = {}
"""What was checked before in this process: lowering a large base takes seconds."""


def check_exportable(
    base: Base,
    tasks: Mapping[str, Sequence[str]],
    resolutions: Sequence[int],
    config: TrainConfig,
) -> None:
    """Refuse what could be trained and not exported; with ``config.check_export`` alone.

    Args:
        tasks: labels by name.
        resolutions: all that will be trained.

    Raises:
        ConfigError: a task name, labels or a resolution that no patch file holds.
        UnsupportedOperatorError, BaseError: a base that cannot be lowered, or does not serve a
            resolution.
    """
    if not config.check_export:
        return
    try:
        for task, labels in tasks.items():
            check_task_name(task)
            check_labels(task, labels)
        _check_resolutions(resolutions)
        _check_base(base, tuple(sorted(set(resolutions))))
    except PatchdeployError as error:
        remedy = "or set check_export to false, to train what cannot be exported"
        error.args = (f"{error}, {remedy}", *error.args[1:])
        raise


def _check_resolutions(resolutions: Sequence[int]) -> None:
    sides = sorted(set(resolutions))
    if len(sides) > MOST_RESOLUTIONS or sides[-1] > MOST_RESOLUTION:
        raise ConfigError(
            f"{len(sides)} resolutions up to {sides[-1]} px; a patch file holds at most "
            f"{MOST_RESOLUTIONS}, each of at most {MOST_RESOLUTION} px; leave some out"
        )


def _check_base(base: Base, sides: tuple[int, ...]) -> None:
    # The content hash alone would not do: another forward pass may have the same weights.
    key = (base.sha256, type(base.module), repr(base.module), sides)
    if key in _sound:
        return
    lower_base(base, sides)
    if len(_sound) >= MOST_REMEMBERED:
        _sound.clear()
    _sound[key] = None
