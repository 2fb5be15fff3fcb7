"""The demo's cascades: fitted on training images that no patch was trained with.

In: the bundle, and for each task what training left over and the test images. Out: the bundle with
the cascades that could be certified, and what each does on the test images, or why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

from patchdeploy.bundle import Bundle, open_bundle
from patchdeploy.data import ImageDataset
from patchdeploy.errors import CertificationError
from patchdeploy.evaluate_cascade import evaluate_cascade
from patchdeploy.export import Signing
from patchdeploy.fit_cascade import CascadeConfig, attach_cascade, fit_cascade
from patchdeploy.report import CascadeResult

TOLERANCE = 0.02
"""About what a few hundred images can certify."""
LEAST_IMAGES = 1000


def fit_cascades(
    bundle: Bundle,
    unused: Mapping[str, ImageDataset],
    tests: Mapping[str, ImageDataset],
    signing: Signing,
) -> tuple[Bundle, list[CascadeResult]]:
    """Fit, certify, write and evaluate a cascade for each task that has the images for it."""
    results = []
    for task, images in unused.items():
        reason = ""
        if len(images) < LEAST_IMAGES:
            reason = f"{len(images):,} images are left to certify with, below {LEAST_IMAGES:,}"
        else:
            try:
                fit = fit_cascade(bundle, images, task, CascadeConfig(tolerance=TOLERANCE))
                bundle = attach_cascade(bundle, fit, signing)
            except CertificationError as error:
                reason = str(error)
        found = None if reason else evaluate_cascade(bundle, tests[task], task)
        results.append(CascadeResult(task, found, reason))
    return open_bundle(bundle.path), results
