"""Every exception that patchdeploy raises on bad input.

Each message states the value, the rule and the remedy. Specific errors also subclass the
built-in that a caller would expect, so ``except ValueError`` keeps working.

    PatchdeployError
    +-- DataError (ValueError)              images, labels, calibration sets
    |   +-- UnreadableImageError
    |   +-- EmptyCalibrationError
    |   +-- ThinCalibrationError        pictures that show no ranges
    +-- BaseError (ValueError)              a base network or its checkpoint
    |   +-- CheckpointError
    |   +-- NonFiniteError
    +-- PatchError (ValueError)             a patch, or how it is attached
    |   +-- WrongBaseError
    |   +-- AlreadyAttachedError
    |   +-- UnknownTaskError (also KeyError)
    |   +-- UnknownLayerError
    |   +-- NegativeScaleError
    +-- PatchKeyError (ValueError)          a signing key, or a list of trusted keys
    +-- UnsupportedOperatorError (NotImplementedError)
    |   +-- LoweringMismatchError       a graph that computes something else than its module
    +-- QuantizationError (ValueError)
    +-- HeadCapacityError (ValueError)
    +-- UnknownResolutionError (ValueError)
    +-- ConfigError (ValueError)            a key or value in a config, a manifest, an option
    +-- FileFormatError (ValueError)        a file that is truncated or does not parse
    |   +-- IrregularFileError          a link, pipe, device or folder, or a file that is too long
    |   +-- SlotTableError
    |   +-- PatchFileError
    |   |   +-- PatchRefusedError       one check of docs/patch-format.md, by code
    |   +-- CanonicalTextError          JSON that is not in the one form that is signed or hashed
    +-- IntegrityError (ValueError)         a file whose hash is not the one recorded
    +-- StorageError (OSError)              a disk that is full or not writable
    +-- DownloadError (OSError)             a server that is gone, slow, or says what it must not
    +-- CertificationError (ValueError)     too few images to show what a cascade loses
    +-- MissingExtraError (ImportError)
    +-- RuntimeBackendError (RuntimeError)  a runtime refused a model
    +-- TrainingError (RuntimeError)        training cannot go on
        +-- NonFiniteLossError              a loss that is NaN or infinite
"""

from __future__ import annotations


class PatchdeployError(Exception):
    """The root of every error that patchdeploy raises on purpose."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DataError(PatchdeployError, ValueError):
    """Images, labels or splits that cannot be used."""


class UnreadableImageError(DataError):
    """An image file that no decoder reads."""


class EmptyCalibrationError(DataError):
    """A calibration set with no image in it."""


class ThinCalibrationError(DataError):
    """Calibration images that cannot show what ranges activations take."""


class BaseError(PatchdeployError, ValueError):
    """A base network that cannot be used."""


class CheckpointError(BaseError):
    """A checkpoint that does not fit the network."""


class NonFiniteError(BaseError):
    """NaN or infinity among parameters."""


class PatchError(PatchdeployError, ValueError):
    """A patch that cannot be attached, saved or used."""


class WrongBaseError(PatchError):
    """A patch that was made for another base (compared by content hash)."""


class AlreadyAttachedError(PatchError):
    """A task name, or a resolution of it, that is attached already."""


class UnknownTaskError(PatchError, KeyError):
    """A task that is not there."""


class UnknownLayerError(PatchError):
    """A layer or name pattern that selects nothing in the base."""


class NegativeScaleError(PatchError):
    """A patch whose effective scale turns negative on a row that tasks share."""


class PatchKeyError(PatchdeployError, ValueError):
    """A signing key or a list of trusted keys that cannot be used."""


class UnsupportedOperatorError(PatchdeployError, NotImplementedError):
    """An operator that has no lowering rule."""


class LoweringMismatchError(UnsupportedOperatorError):
    """A lowered graph that computes something else than its module, at a named resolution."""


class QuantizationError(PatchdeployError, ValueError):
    """Values that cannot be quantised."""


class HeadCapacityError(PatchdeployError, ValueError):
    """A task with more classes than the exported head has rows."""


class UnknownResolutionError(PatchdeployError, ValueError):
    """A resolution that was not trained or not exported."""


class ConfigError(PatchdeployError, ValueError):
    """A setting, manifest key or option that is unknown or out of range."""


class FileFormatError(PatchdeployError, ValueError):
    """A file that is truncated or does not follow its format."""


class IrregularFileError(FileFormatError):
    """A link, a pipe, a device or a folder where a file must be, or a file longer than allowed."""


class SlotTableError(FileFormatError):
    """A slot table that is truncated, or does not fit its base file."""


class PatchFileError(FileFormatError):
    """A patch file that is truncated, or holds values that a slot may not take."""


class PatchRefusedError(PatchFileError):
    """A patch file that failed one of the checks of docs/patch-format.md.

    Attributes:
        code: of the check, the same in every language.
        field: what was checked.
        expected: the rule.
        got: the value that was found; untrusted, so quoted and cut short.
        remedy: what to do about it.
    """

    def __init__(self, code: str, field: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(
            f"patch refused ({code}): {field} is {got}; it must be {expected}; {remedy}"
        )
        self.code = code
        self.field = field
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[PatchRefusedError], tuple[str, str, str, str, str]]:
        """All five parts, so that an error from another process arrives whole."""
        return type(self), (self.code, self.field, self.expected, self.got, self.remedy)


class CanonicalTextError(FileFormatError):
    """JSON that is not in the canonical form of docs/patch-format.md.

    Attributes:
        expected: the rule.
        got: what was found, and where.
    """

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"text is not canonical: it has {got}; it must be {expected}")
        self.expected = expected
        self.got = got

    def __reduce__(self) -> tuple[type[CanonicalTextError], tuple[str, str]]:
        return type(self), (self.expected, self.got)


class IntegrityError(PatchdeployError, ValueError):
    """A file whose SHA-256 is not the one that the manifest records."""


class StorageError(PatchdeployError, OSError):
    """The disk is full, or the place cannot be written."""


class DownloadError(PatchdeployError, OSError):
    """A download that did not come to an end: no server, too slow, cut short, or a redirect."""


class CertificationError(PatchdeployError, ValueError):
    """No cascade could be certified on so many images."""


class MissingExtraError(PatchdeployError, ImportError):
    """An optional dependency that is not installed."""


class RuntimeBackendError(PatchdeployError, RuntimeError):
    """A runtime could not load or run a model."""


class TrainingError(PatchdeployError, RuntimeError):
    """Training cannot go on (a rank that stopped, for instance)."""


class NonFiniteLossError(TrainingError):
    """A loss that is not finite: most often a learning rate that is too large."""
