"""torchvision's own weights, read for their tensors alone.

In: a member of a weights enum. Out: its state dict, from torch's download cache or the network.
torchvision itself unpickles the file in that cache, which runs whatever a pickle there says; here
it is read as any checkpoint is (`base.state`), and compared with the hash in its name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlparse

import torch

from patchdeploy.base.state import read_state
from patchdeploy.storage import open_regular

_HASH = re.compile(r"-([0-9a-f]{6,64})\.")
_lock = RLock()
_log = logging.getLogger("patchdeploy.base")


@contextmanager
def tensors_alone() -> Iterator[None]:
    """A block in which torchvision's model functions take weights from `read_weights`."""
    from torchvision.models import WeightsEnum

    with _lock:
        before = WeightsEnum.get_state_dict
        WeightsEnum.get_state_dict = lambda self, *_, **__: read_weights(self.url)
        try:
            yield
        finally:
            WeightsEnum.get_state_dict = before


def read_weights(url: str) -> dict[str, Any]:
    """The state dict at ``url``, downloaded into torch's cache where it is not there yet.

    Raises:
        CheckpointError: what is in the cache is no state dict.
        OSError, RuntimeError: it cannot be downloaded, or is not what its name says.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    found = _HASH.search(name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = found[1] if found else None
        torch.hub.download_url_to_file(url, str(path), prefix, progress=False)
    elif found and not _sha256(path).startswith(found[1]):
        _log.warning(
            "%s is not the file that torchvision publishes under that name (its SHA-256 begins "
            "otherwise): other weights, or a damaged file; remove it to download it again",
            path,
        )
    return dict(read_state(path))


def _sha256(path: Path) -> str:
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
