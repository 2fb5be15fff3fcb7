"""A Keras file read without TensorFlow computes what Keras computes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from patchdeploy.base import Base


@pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras' own, at import and on saving .h5
def test_a_file_that_keras_saved_gives_kerass_scores(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="tensorflow-cpu (extra dev) is not installed")
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), classes=7, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    ranges = {
        "gamma": (-1.4, 1.4),
        "beta": (-0.5, 0.5),
        "moving_mean": (-0.2, 0.2),
        "moving_variance": (0.3, 2.0),
    }
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
    path = tmp_path / "model.h5"
    network.save(path)
    base = Base.from_keras_mobilenet_v2(path)
    assert base.preprocessing.input_size == 96
    images = generator.uniform(-1, 1, (3, 96, 96, 3)).astype(np.float32)
    expected = np.asarray(network(images, training=False))
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
