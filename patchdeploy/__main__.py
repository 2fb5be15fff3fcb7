"""``python -m patchdeploy`` is the command ``patchdeploy``; torchrun starts it this way."""

from patchdeploy.cli import main

if __name__ == "__main__":
    main()
