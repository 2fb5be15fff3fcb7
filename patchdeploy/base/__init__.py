"""A frozen network that patches are trained over: module, preprocessing, content hash.

`network` has `Base`; `plain` brings a module into the form that patches know, `layers` and
`statistics` are what a base must know of it, `function` and `operators` what it computes, as text;
`state` its file of tensors; `keras` and `detector` where else a base can come from.
"""

from patchdeploy.base.network import EMBEDDED_FACTS, EMBEDDED_WEIGHTS, Base, OldHashWarning
from patchdeploy.base.state import read_state

__all__ = ["EMBEDDED_FACTS", "EMBEDDED_WEIGHTS", "Base", "OldHashWarning", "read_state"]
