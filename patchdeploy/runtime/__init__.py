"""Running a bundle: one Engine, two back ends."""

from patchdeploy.runtime.choose import RUNTIME_FORMATS
from patchdeploy.runtime.engine import Engine
from patchdeploy.runtime.prediction import Prediction

__all__ = ["RUNTIME_FORMATS", "Engine", "Prediction"]
