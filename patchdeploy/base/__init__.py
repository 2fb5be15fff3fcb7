"""A frozen network that patches are trained over: module, preprocessing, content hash.

`network` has `Base`; `layers` and `statistics` what it must know of a module, `state` its file of
tensors; `keras` and `detector` where else a base can come from.
"""

from patchdeploy.base.network import EMBEDDED_FACTS, EMBEDDED_WEIGHTS, Base
from patchdeploy.base.state import read_state

__all__ = ["EMBEDDED_FACTS", "EMBEDDED_WEIGHTS", "Base", "read_state"]
