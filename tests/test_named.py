"""What a name on the command line stands for."""

import pytest

from patchdeploy.errors import BaseError, ConfigError
from patchdeploy.named import open_base


def test_a_detectors_features_are_a_base_by_name() -> None:
    base = open_base("detector:ssdlite320_mobilenet_v3_large")
    assert base.preprocessing.input_size == 320
    assert base.module.get_submodule(base.head_name).out_features == 1000
    with pytest.raises(BaseError):
        open_base("detector:mobilenet_v2")


def test_a_name_of_no_form_lists_the_forms() -> None:
    with pytest.raises(ConfigError) as caught:
        open_base("detector")
    assert str(caught.value) == (
        "base 'detector' is none of the forms embedded, torchvision:NAME, "
        "torchvision:NAME@WEIGHTS, keras:FILE.h5, checkpoint:NAME:FILE, detector:NAME, "
        "detector:NAME@WEIGHTS or trained:FOLDER (NAME is a torchvision architecture); correct it"
    )
