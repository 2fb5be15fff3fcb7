"""What a task and its classes may be called, so that a patch file can hold it.

In: a name, labels. Out: nothing or bytes, or a ConfigError. One rule for training, which refuses a
name before it takes an hour, and for the writer and the readers of patch files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from patchdeploy.errors import ConfigError

TASK_NAME = re.compile(r"[a-z0-9_-]{1,64}")
TASK_RULE = "1 to 64 of a-z, 0-9, underscore and hyphen"
MOST_CLASSES = 65_536
MAX_TEXT_BYTES = 1 << 20
"""Of all labels together, in UTF-8."""


def check_task_name(task: str) -> None:
    """Raise unless a file can be called so.

    Raises:
        ConfigError: a name outside the rule.
    """
    if TASK_NAME.fullmatch(task) is None:
        raise ConfigError(f"task name {task!r}; it must be {TASK_RULE}; rename it")


def check_labels(task: str, labels: Sequence[str]) -> None:
    """Raise unless ``labels`` are the classes of a task that can be exported.

    Raises:
        ConfigError: fewer than 2, more than `MOST_CLASSES`, a label twice; see `encode_labels`.
    """
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError(
            f"task {task!r} has {len(labels)} classes, {len(set(labels))} of them different; "
            "it must have at least 2, each once; correct the labels"
        )
    if len(labels) > MOST_CLASSES:
        raise ConfigError(
            f"task {task!r} has {len(labels)} classes; a patch file holds at most {MOST_CLASSES}; "
            "leave some out"
        )
    encode_labels(labels)


def encode_labels(labels: Sequence[str]) -> list[bytes]:
    """Each label in UTF-8.

    Raises:
        ConfigError: a label that is no Unicode text or is longer than 65,535 bytes; too long
            together.
    """
    try:
        coded = [label.encode() for label in labels]
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"label {error.object!r} is not Unicode text; a file holds UTF-8; correct the label"
        ) from error
    if any(len(label) > 0xFFFF for label in coded) or sum(map(len, coded)) > MAX_TEXT_BYTES:
        raise ConfigError(
            f"labels of {sum(map(len, coded))} bytes; all together take at most {MAX_TEXT_BYTES}, "
            "one at most 65535; shorten them"
        )
    return coded
