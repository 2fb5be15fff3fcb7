"""Where the cases and proofs that the fault rows share lie: the folders beside this one.

Importing this module makes them importable by their bare names, as they import each other.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

for _folder in (HERE.parent, HERE.parent / "patchfile", HERE.parent / "store", HERE):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
