"""A base's torch module -> the neutral graph, by rules for operators, not for models.

`program` runs the rules of `layers`, `elementwise` and `views` (registered in `rules`) over the
exported program into a `builder`, and then the `passes`.
"""

from patchdeploy.lower.program import lower_base

__all__ = ["lower_base"]
