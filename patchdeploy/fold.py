"""Graph + patch -> every convolution with its effective scale[c] and bias[c]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import Graph


@dataclass(frozen=True)
class FoldedConv:
    """``y[c] = scale[c] * (weight[c] * x) + bias[c]``, then the convolution's activation.

    Attributes:
        weight: float32 [O, kh, kw, I/groups], not scaled.
        scale: float64 [O], the effective s = gamma / sqrt(var + eps); may be of any sign.
        bias: float64 [O], the effective b = beta + (conv_bias - mu) * s.
        patched: the kernel is the task's own, not the base's.
    """

    weight: NDArray[np.float32]
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]
    patched: bool


@dataclass(frozen=True)
class FoldedNetwork:
    """A graph and its folded convolutions; the input is raw uint8 pixels minus ``input_offset``.

    Attributes:
        graph: the structure.
        convs: by convolution name.
        input_offset: integer in [0, 255]: the pixel value that zero padding stands for.
        classes: rows of the head that this task uses.
    """

    graph: Graph
    convs: Mapping[str, FoldedConv]
    input_offset: int
    classes: int
