"""The command line: every job of the library as one command.

`app` lists the commands: its own, and those of `train`, `export`, `bundle` (`inspect` for a patch
file), `keys`, `patch` and `store`. What they share: `options`, `signing`, `places` and `tables`.
How they end: `exit` (exit codes), `output`, `ranks` (torchrun).
"""

from patchdeploy.cli.app import main

__all__ = ["main"]
