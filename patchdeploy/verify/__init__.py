"""Is a bundle what it says, and do the runtimes compute what the reference computes?

`checks` runs them all; `patch` those of the patch files, `images` those that run the models.
"""

from patchdeploy.verify.checks import VerifyReport, verify_bundle

__all__ = ["VerifyReport", "verify_bundle"]
