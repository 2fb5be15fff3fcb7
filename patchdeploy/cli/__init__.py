"""The command line: every job of the library as one command.

`app` gathers the commands: its own, and those of `train`, `keys`, `patch` and `store`. What they
share: `options`, `tables`, `signing`, `inspect`, `ranks` (torchrun), `exit` (exit codes).
"""

from patchdeploy.cli.app import main

__all__ = ["main"]
