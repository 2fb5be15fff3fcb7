"""A Keras file read without TensorFlow computes what Keras computes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from patchdeploy.base import Base

# In a process of its own: TensorFlow's LLVM and Triton's, which torch loads, abort one that holds
# both.
KERAS = """
import sys
import numpy as np
import keras
keras.utils.set_random_seed(0)
network = keras.applications.MobileNetV2(
    weights=None, input_shape=(96, 96, 3), classes=7, classifier_activation=None
)
generator = np.random.default_rng(0)
ranges = {"gamma": (-1.4, 1.4), "beta": (-0.5, 0.5), "moving_mean": (-0.2, 0.2),
          "moving_variance": (0.3, 2.0)}
for variable in network.weights:
    name, shape = variable.path.rpartition("/")[2], variable.shape
    if name in ranges:
        values = generator.uniform(*ranges[name], shape)
    elif len(shape) == 4:  # He's, so that images still differ at the end
        fan_in = np.prod(shape[:2]) if "depthwise" in variable.path else np.prod(shape[:3])
        values = generator.standard_normal(shape) * np.sqrt(2 / fan_in)
    else:
        continue
    variable.assign(values.astype(np.float32))
network.save(sys.argv[1] + "/model.h5")
images = generator.uniform(-1, 1, (3, 96, 96, 3)).astype(np.float32)
scores = np.asarray(network(images, training=False))
np.savez(sys.argv[1] + "/scores.npz", images=images, scores=scores)
"""


def test_a_file_that_keras_saved_gives_kerass_scores(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="h5py (extra keras) is not installed")
    run = subprocess.run(
        [sys.executable, "-c", KERAS, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if "No module named 'keras'" in run.stderr:
        pytest.skip("tensorflow-cpu (extra dev) is not installed")
    assert run.returncode == 0, run.stderr
    base = Base.from_keras_mobilenet_v2(tmp_path / "model.h5")
    assert base.preprocessing.input_size == 96
    with np.load(tmp_path / "scores.npz") as stored:
        images, expected = stored["images"], stored["scores"]
    with torch.no_grad():
        found = base.module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    # Two float32 implementations of 53 layers: sums of up to 1,280 terms round differently by
    # about sqrt(1280) = 36 half-ulps each (2**-24), and 53 such errors add up at worst:
    # 53 * 36 * 2**-24 = 1.1e-4 of the largest score. Padding or epsilon of PyTorch's kind miss it
    # by far.
    bound = 1.1e-4 * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 100 * bound  # the images matter
    assert np.abs(found - expected).max() < bound
    for layer in base.module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-5
    with torch.no_grad():
        wrong = base.module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(wrong - expected).max() > 10 * bound
