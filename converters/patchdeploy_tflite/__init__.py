"""Graph -> .tflite: one int8 file, a signature per resolution, and its slot table."""

from patchdeploy_tflite.converter import TFLiteConverter

__all__ = ["TFLiteConverter"]
