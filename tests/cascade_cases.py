"""Bundles whose first task carries a cascade, and images that each stage answers half of."""

from dataclasses import replace

import numpy as np
import slow_cascade
from bundle_cases import KEY
from graph_cases import random_images

from patchdeploy.bundle import add_task
from patchdeploy.cascade import Cascade, CascadeRule, Certificate, Stage
from patchdeploy.cascade.scores import exponential_ratio
from patchdeploy.patchfile.pack import Release, Signer
from patchdeploy.runtime import Engine
from patchdeploy.runtime.self_test import score_codes

IMAGES = random_images(40, 30)
KINDS = ("margin", "probability", "entropy")
RUNTIMES = ("litert", "onnxruntime")
CERTIFICATE = Certificate(24, 0.01, 0.95, 100, True)


def with_cascade(bundle, task, rule, sequence, certificate=CERTIFICATE):
    patch = replace(bundle.patch(task), cascade=Cascade(rule, certificate))
    release = Release(sequence, signers=(Signer(KEY, 0),))
    return add_task(bundle.path, patch, replace_existing=True, release=release)


def make_rule(bundle, kind, threshold=None):
    """A first stage that answers about half of IMAGES, by the scores of its own model."""
    values = bundle.patch("first").values[16]
    scale = float(values.activation_scale[bundle.coding_table.output_index])
    ratio = 0 if kind == "margin" else exponential_ratio(scale)
    if threshold is None:
        found = [slow_cascade.confidence(kind, one, ratio) for one in codes_of(bundle)]
        threshold = int(np.median(found))
        assert min(found) < threshold <= max(found)
    return CascadeRule(kind, (Stage(16, threshold, ratio), Stage(24, 0, 0)))


def codes_of(bundle, runtime="litert"):
    values = bundle.patch("first").values[16]
    with Engine.open(bundle, runtime) as engine:
        scores = np.stack([one.scores for one in engine.classify(list(IMAGES), "first", 16)])
    return score_codes(scores, values, bundle.coding_table).tolist()
