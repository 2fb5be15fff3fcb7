"""The rows of this folder import each other, and the cases of other folders, by bare names."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

import case_folders  # noqa: E402, F401  (adds the other folders)
