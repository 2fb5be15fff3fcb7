"""What a name on the command line stands for."""

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from patchdeploy.errors import BaseError, CheckpointError, ConfigError
from patchdeploy.named import open_base


def test_a_detectors_features_are_a_base_by_name() -> None:
    base = open_base("detector:ssdlite320_mobilenet_v3_large")
    assert base.preprocessing.input_size == 320
    assert base.module.get_submodule(base.head_name).out_features == 1000
    with pytest.raises(BaseError):
        open_base("detector:mobilenet_v2")


def test_a_checkpoint_of_a_whole_detector_is_a_base_by_name(tmp_path: Path) -> None:
    """Trained on three kinds of objects, not on the 90 that torchvision's function assumes."""
    torch.manual_seed(5)
    trained = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=4)
    torch.save(trained.state_dict(), tmp_path / "objects.pt")
    base = open_base(f"detector:ssdlite320_mobilenet_v3_large:{tmp_path / 'objects.pt'}")
    expected = trained.backbone.features[0][0][0].weight
    assert torch.equal(base.module.features[0][0][0].weight, expected)  # type: ignore[index, union-attr]
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_base(f"detector:ssdlite320_mobilenet_v3_large:{tmp_path / 'no.pt'}")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        open_base(f"detector:ssd300_vgg16:{tmp_path / 'objects.pt'}")


def test_a_name_of_no_form_lists_the_forms() -> None:
    with pytest.raises(ConfigError) as caught:
        open_base("detector")
    assert str(caught.value) == (
        "base 'detector' is none of the forms embedded, torchvision:NAME, "
        "torchvision:NAME@WEIGHTS, keras:FILE.h5, checkpoint:NAME:FILE, detector:NAME, "
        "detector:NAME@WEIGHTS, detector:NAME:FILE or trained:FOLDER (NAME is a torchvision "
        "architecture); correct it"
    )
