"""Is a bundle what it says, and do the runtimes compute what the reference computes?

`checks` runs them all; `patch` those of the patch files, `images` those that run the models,
`float` those that compare them with the float network.
"""

from patchdeploy.verify.checks import VerifyReport, verify_bundle
from patchdeploy.verify.float import FloatNetwork

__all__ = ["FloatNetwork", "VerifyReport", "verify_bundle"]
