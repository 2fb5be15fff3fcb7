"""A .pt file read for its tensors alone: nothing in it is ever run or imported.

In: an open regular file that torch.save wrote. Out: what it holds; an object of a class that
torch does not list as plain data is an empty mapping or an empty `Placeholder` in its place. So a
checkpoint with its settings beside the weights (argparse.Namespace, paths, numpy numbers) is read,
and a file that would run a program is as harmless as any other.

Bounded before torch sees it: parts of a zip are stored, not compressed, so that none is longer than
the file; the pickle itself is short.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import torch

from patchdeploy.errors import CheckpointError

MOST_PICKLE_BYTES = 8 * 2**20
"""Of the part that says what is in the file; 1,000 tensors take 0.2 MB."""
MOST_RECORDS = 200_000
LEGACY_PICKLES = 4
"""torch before 1.6 wrote a magic number, a version, the system, and then the object."""


MOST_ATTEMPTS = 16
_PROGRAMS = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "importlib", "ctypes", "socket")
    + tuple(f"builtins.{one}" for one in ("eval", "exec", "compile", "open", "__import__"))
)
_NOT_FILLED = re.compile(r"Can only (SETITEM|append|extend).*Placeholder(\d+)_", re.DOTALL)
"""What torch says of an object that a pickle fills as a mapping or a list."""


class Placeholder:
    """In the place of an object that is not read; takes what the pickle says of it, keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        """Whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


def read_pickled(file: BinaryIO) -> Any:
    """What torch.save wrote into ``file``, on the CPU; see the module.

    Raises:
        CheckpointError: a TorchScript archive, a compressed or an odd zip; text is a reason.
        Exception: whatever torch raises on damaged bytes.
    """
    names = sorted(_find_globals(_pickles(file)))
    _refuse_programs(names)
    filled: dict[str, type] = {name: OrderedDict for name in names if name.lower().endswith("dict")}
    for _ in range(MOST_ATTEMPTS):
        try:
            return _load(file, names, filled)
        except Exception as error:
            found = _NOT_FILLED.search(str(error))
            if found is None:
                raise
            filled[names[int(found[2])]] = OrderedDict if found[1] == "SETITEM" else list
    raise CheckpointError("it holds objects of too many unknown classes; save the tensors alone")


def _refuse_programs(names: Collection[str]) -> None:
    """It would be as harmless as any other placeholder, but no trainer writes one."""
    for name in names:
        first = name.partition(".")[0]
        if first in _PROGRAMS or name in _PROGRAMS:
            raise CheckpointError(
                f"it names {name}, which runs programs, and no weights need that; do not use it, "
                "and ask where it comes from"
            )


def _load(file: BinaryIO, names: list[str], filled: Mapping[str, type]) -> Any:
    stand_ins: list[Any] = [(_stand_in(k, name, filled), name) for k, name in enumerate(names)]
    file.seek(0)
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about pickle protocols and old storages
        return torch.load(file, map_location="cpu", weights_only=True)


def _stand_in(number: int, name: str, filled: Mapping[str, type]) -> type[Placeholder]:
    """A class for the name with that number. torch fills none but its own mappings and lists, so an
    object that is to be filled is one of these."""
    made: dict[str, Any] = {"name": name}
    if name in filled:
        made["__new__"] = lambda *_, **__: filled[name]()
    return type(f"Placeholder{number}_", (Placeholder,), made)


def _pickles(file: BinaryIO) -> BinaryIO:
    """The pickles in ``file``, one behind the other, to be looked through."""
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return io.BytesIO(file.read(MOST_PICKLE_BYTES))
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        _check_records(records, _length_of(file))
        (record,) = [one for one in records if one.filename.endswith("data.pkl")]
        return io.BytesIO(archive.read(record))


def _length_of(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _check_records(records: list[zipfile.ZipInfo], length_bytes: int) -> None:
    names = [one.filename for one in records]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "it is a TorchScript archive, a program; save the state_dict() of the module that "
            "torch.jit.load gives"
        )
    pickles = [one.file_size for one in records if one.filename.endswith("data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError("it is a zip archive that torch.save did not write; unpack it")
    if (
        len(records) > MOST_RECORDS
        or pickles[0] > MOST_PICKLE_BYTES
        or any(one.compress_type != zipfile.ZIP_STORED for one in records)
        or sum(one.file_size for one in records) > length_bytes
    ):
        raise CheckpointError(
            "its parts are compressed or longer than the file, which torch.save does not write; "
            "save it again with torch.save"
        )


def _find_globals(stream: BinaryIO) -> set[str]:
    """Dotted names of every class and function that the pickles name."""
    found: set[str] = set()
    for _ in range(LEGACY_PICKLES):
        try:
            for operator, argument, _ in pickletools.genops(stream):
                if operator.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    mapped = NAME_MAPPING.get(
                        (module, name), (IMPORT_MAPPING.get(module, module), name)
                    )
                    found |= {f"{module}.{name}", ".".join(mapped)}
        except ValueError:  # not a pickle, or its end; torch says what is wrong
            break
    return found
