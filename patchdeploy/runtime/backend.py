"""What a runtime must do for the Engine: make residents, and run them.

In: slot values. Out: a `Resident`, one task at one resolution, ready to run; it never changes,
so that a swap cannot touch a running inference.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from patchdeploy.slots import PatchValues

PRIVATE_BYTES_PER_FILE_BYTE = 3
"""Memory that a resident holds: its file or initialisers, packed kernels, activations. Measured on
MobileNetV2 1.0 at 224 px, x86-64: 2.3 to 2.8 with LiteRT 2.3, 2.6 with ONNX Runtime 1.32."""


class Resident(Protocol):
    """One task at one resolution, loaded.

    Attributes:
        resident_bytes: an estimate of the private memory that it holds.
    """

    @property
    def resident_bytes(self) -> int: ...

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, px, px, 3] RGB -> float32 [N, head capacity]; may be called from any thread.

        Raises:
            RuntimeBackendError: the runtime failed.
        """
        ...


class Backend(Protocol):
    """One runtime over one bundle's base file.

    Attributes:
        name, version: of the runtime's package.
    """

    name: str
    version: str

    def load(self, values: PatchValues, resolution: int) -> Resident:
        """A new resident; those that exist are not touched.

        Raises:
            RuntimeBackendError: the runtime refused the model.
        """
        ...
