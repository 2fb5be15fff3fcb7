"""A base's torch module -> the neutral graph, by rules for operators, not for models.

`program` runs the rules of `layers`, `elementwise` and `views` (registered in `rules`) over the
exported program into a `builder`, and then the `passes`: the graph at one input size. `join` makes
one graph of those of several sizes, `compare` runs a graph against its module, and `sizes` puts
them together.
"""

from patchdeploy.lower.compare import FloatScores, compare_patch, make_pictures
from patchdeploy.lower.sizes import lower_base

__all__ = ["FloatScores", "compare_patch", "lower_base", "make_pictures"]
