"""What a converter is, and how to find one.

A converter is a package that registers under the entry-point group ``patchdeploy.converters``:
it turns a quantised base and its variants into one runtime's file and that file's slot table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from patchdeploy.errors import ConfigError, MissingExtraError
from patchdeploy.fold import FoldedNetwork
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant
from patchdeploy.slots import SlotTable

GROUP = "patchdeploy.converters"


@dataclass(frozen=True)
class WrittenModel:
    """One runtime's file and where a patch may set it."""

    data: bytes
    table: SlotTable


@runtime_checkable
class Converter(Protocol):
    """One runtime's writer.

    Attributes:
        name: "tflite", "onnx": the key of its files in a bundle.
        suffix: file name suffix with its dot.
    """

    name: str
    suffix: str

    def write(self, base: QuantizedBase, variants: Mapping[int, QuantizedVariant]) -> WrittenModel:
        """The int8 file with a signature per resolution (or one, free in height and width).

        Deterministic: the bytes outside slots depend on ``base`` and the resolutions alone.
        """
        ...

    def write_float(self, network: FoldedNetwork, resolutions: Sequence[int]) -> bytes:
        """A stand-alone float32 file of one folded task; it shares nothing."""
        ...


def load_converter(name: str) -> Converter:
    """The installed converter called ``name``.

    Raises:
        ConfigError: no such converter is registered.
        MissingExtraError: its package is there but a dependency is not.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise ConfigError(
            f"no converter {name!r}; installed ones are {', '.join(sorted(found)) or 'none'}; "
            "choose one of them or install the package that registers it"
        )
    try:
        converter = found[name].load()()
    except ImportError as error:
        raise MissingExtraError(
            f"converter {name!r} needs a package that is not installed ({error}); "
            f"run: pip install 'patchdeploy[{name}]'"
        ) from error
    if not isinstance(converter, Converter):
        raise ConfigError(
            f"entry point {name!r} of group {GROUP} is not a Converter; it needs name, suffix, "
            "write and write_float"
        )
    return converter
