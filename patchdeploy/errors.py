"""Every exception that patchdeploy raises on bad input.

Each message states the value, the rule and the remedy. Specific errors also subclass the
built-in that a caller would expect, so ``except ValueError`` keeps working.

    PatchdeployError
    +-- DataError (ValueError)              images, labels, calibration sets
    |   +-- UnreadableImageError
    |   +-- EmptyCalibrationError
    +-- BaseError (ValueError)              a base network or its checkpoint
    |   +-- CheckpointError
    |   +-- NonFiniteError
    +-- PatchError (ValueError)             a patch, or how it is attached
    |   +-- WrongBaseError
    |   +-- AlreadyAttachedError
    |   +-- UnknownTaskError (also KeyError)
    |   +-- UnknownLayerError
    |   +-- NegativeScaleError
    +-- UnsupportedOperatorError (NotImplementedError)
    +-- QuantizationError (ValueError)
    +-- HeadCapacityError (ValueError)
    +-- UnknownResolutionError (ValueError)
    +-- ConfigError (ValueError)            a key or value in a config, a manifest, an option
    +-- FileFormatError (ValueError)        a file that is truncated or does not parse
    |   +-- SlotTableError
    |   +-- PatchFileError
    +-- IntegrityError (ValueError)         a file whose hash is not the one recorded
    +-- StorageError (OSError)              a disk that is full or not writable
    +-- MissingExtraError (ImportError)
    +-- RuntimeBackendError (RuntimeError)  a runtime refused a model
    +-- TrainingError (RuntimeError)        training cannot go on
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


class UnsupportedOperatorError(PatchdeployError, NotImplementedError):
    """An operator that has no lowering rule."""


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


class SlotTableError(FileFormatError):
    """A slot table that is truncated, or does not fit its base file."""


class PatchFileError(FileFormatError):
    """A patch file that is truncated, or holds values that a slot may not take."""


class IntegrityError(PatchdeployError, ValueError):
    """A file whose SHA-256 is not the one that the manifest records."""


class StorageError(PatchdeployError, OSError):
    """The disk is full, or the place cannot be written."""


class MissingExtraError(PatchdeployError, ImportError):
    """An optional dependency that is not installed."""


class RuntimeBackendError(PatchdeployError, RuntimeError):
    """A runtime could not load or run a model."""


class TrainingError(PatchdeployError, RuntimeError):
    """Training cannot go on (a loss that is not finite, for instance)."""
