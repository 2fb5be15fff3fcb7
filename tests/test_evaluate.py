"""Accuracy and names of data sets; the command's tests run the rest."""

import numpy as np
import pytest

from patchdeploy.data import ImageDataset, load_packaged
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.evaluate import sample
from patchdeploy.named import open_base, open_images


def test_a_sample_is_the_same_each_time_and_keeps_the_mixture_of_classes():
    images = np.zeros((100, 4, 4, 3), np.uint8)
    dataset = ImageDataset("sorted", images, np.repeat(np.arange(2), 50), ("a", "b"))
    first, again = sample(dataset, 40), sample(dataset, 40)
    np.testing.assert_array_equal(first.labels, again.labels)
    # 40 of 50 + 50 without replacement: fewer than 8 of a class has probability below 1e-6.
    assert 8 <= int((first.labels == 0).sum()) <= 32
    assert sample(dataset, 100) is dataset
    assert sample(dataset, None) is dataset


def test_packaged_images_are_named_by_set_and_part():
    train, test = load_packaged("faces")
    np.testing.assert_array_equal(open_images("packaged:faces:train").labels, train.labels)
    np.testing.assert_array_equal(open_images("packaged:faces:test").labels, test.labels)
    with pytest.raises(ConfigError, match=r"write packaged:faces:train"):
        open_images("packaged:faces:validation")
    with pytest.raises(DataError, match="unknown packaged set 'cats'"):
        open_images("packaged:cats:train")


@pytest.mark.parametrize("name", ["", "embeded", "torchvision:", "checkpoint:resnet18", "keras:"])
def test_a_base_name_of_no_form_lists_the_forms(name):
    with pytest.raises(ConfigError, match="is none of the forms embedded, torchvision:NAME"):
        open_base(name)
