"""Parameter counts of the paper's Tables 2 to 5, exact at full size, from our own counting.

Each test states what its figures count. Parameters are gamma and beta but not mu and var, heads
have a bias, and ImageNet has 1000 classes, unless a comment says otherwise. The printed figures
are held to what they round or cut to; where ours differs, the difference is asserted and the
reason is beside it. "Cut" means that digits were dropped, not rounded.
"""

import re
from functools import cache

import pytest
import torchvision
from torch import nn

from patchdeploy.base import Base
from patchdeploy.base.detector import build_ssdlite
from patchdeploy.data import Preprocessing
from patchdeploy.errors import PatchError
from patchdeploy.patch import Kind, PatchConfig, count_parameters
from patchdeploy.patch.counts import FamilyCount, count_family

IMAGENET, PLACES = 1000, 365
FLOWERS, CARS, AIRCRAFT = 102, 196, 100
LAST: tuple[Kind, ...] = ("head",)
SCALE_BIAS: tuple[Kind, ...] = ("scale_bias",)
BOTH: tuple[Kind, ...] = ("scale_bias", "head")
RESOLUTIONS = 5


@cache
def mobilenet_v2() -> Base:
    return Base.from_torchvision("mobilenet_v2", preprocessing=Preprocessing(input_size=32))


@cache
def inception_v3() -> Base:
    """With the auxiliary classifier, as it is trained; no forward pass at inference reaches it."""
    module = torchvision.models.inception_v3(init_weights=False)
    return Base.from_module(module, Preprocessing(input_size=96), "inception_v3")


def trained(base: Base, kinds: tuple[Kind, ...], classes: int) -> int:
    return count_parameters(base, PatchConfig(kinds), classes)["trained"]


def family(kinds: tuple[Kind, ...], *classes: int) -> FamilyCount:
    return count_family(mobilenet_v2(), PatchConfig(kinds), classes)


def thousands_cut(count: int) -> int:
    return count // 1_000


def thousands(count: int) -> int:
    return round(count / 1_000)


def millions(count: int, digits: int) -> float:
    return round(count / 1e6, digits)


def test_table_2_last_layers_are_2048_weights_and_a_bias_per_class() -> None:
    heads = [trained(inception_v3(), LAST, n) for n in (FLOWERS, CARS, AIRCRAFT)]
    assert heads == [208_998, 401_604, 204_900]
    assert thousands_cut(heads[0]) == 208  # printed 208 K: cut
    assert [thousands(one) for one in heads[1:]] == [402, 205]  # printed, rounded


def test_table_2_scale_bias_of_36k_counts_the_auxiliary_classifier() -> None:
    base = inception_v3()
    deployed = trained(base, SCALE_BIAS, FLOWERS)
    auxiliary = [base.module.get_submodule(path) for path in base.unused]
    norms = [one for one in auxiliary if isinstance(one, nn.BatchNorm2d)]
    assert deployed == 34_432
    assert sum(2 * one.num_features for one in norms) == 2 * (128 + 768)
    assert thousands(deployed + 2 * (128 + 768)) == 36  # printed; 34 K without that classifier


@pytest.mark.parametrize(
    ("classes", "printed_thousands", "ours", "with_auxiliary"),
    [
        (FLOWERS, 244, 243_430, 245_222),
        (CARS, 437, 436_036, 437_828),
        (AIRCRAFT, 241, 239_332, 241_124),
    ],
)
def test_table_2_scale_bias_and_last_layer_within_1700_of_the_printed(
    classes: int, printed_thousands: int, ours: int, with_auxiliary: int
) -> None:
    counted = trained(inception_v3(), BOTH, classes)
    assert counted == ours
    # Ours lacks the auxiliary classifier's 1,792. With it Cars and Aircraft are the printed
    # figures, cut; Flowers is 1 K more than printed, which is 208 + 36 of the rows above it.
    assert counted + 1_792 == with_auxiliary
    assert thousands_cut(with_auxiliary) - printed_thousands == (1 if classes == FLOWERS else 0)
    assert abs(counted - 1_000 * printed_thousands) < 1_700


@pytest.mark.parametrize(
    ("classes", "expected"), [(FLOWERS, 24_630_700), (CARS, 24_895_592), (AIRCRAFT, 24_625_064)]
)
def test_table_2_all_of_25m_counts_the_auxiliary_classifier(classes: int, expected: int) -> None:
    base = inception_v3()
    (separate,) = count_family(base, PatchConfig(BOTH), [classes]).separate
    # `separate` has a new head of its own; the auxiliary head is still that of 1000 classes.
    auxiliary_head = base.module.get_submodule("AuxLogits.fc")
    assert isinstance(auxiliary_head, nn.Linear)
    per_class = auxiliary_head.in_features + 1
    everything = separate - (IMAGENET - classes) * per_class
    assert everything == expected
    assert millions(everything, 0) == 25  # printed
    # A deployed network has no auxiliary classifier: 22 M.
    auxiliary = sum(
        one.numel() for name, one in base.module.named_parameters() if name.startswith("Aux")
    )
    assert millions(separate - auxiliary, 0) == 22


def test_table_3_scale_bias_is_34k_and_all_weights_are_3_5m() -> None:
    assert trained(mobilenet_v2(), SCALE_BIAS, IMAGENET) == 34_112  # printed 34 K
    total = count_parameters(mobilenet_v2(), PatchConfig(BOTH), IMAGENET)["base"]
    assert total == 3_504_872  # printed 3.5 M


def test_table_3_the_detectors_features_are_all_of_mobilenet_v2_but_its_last_layer() -> None:
    ssdlite = build_ssdlite(classes=18, width_mult=1.0, size_px=64)
    features = Base.from_detector(ssdlite, classes=IMAGENET)
    config = PatchConfig(("scale_bias", "depthwise", "head"))
    expected = count_parameters(mobilenet_v2(), config, IMAGENET)
    assert count_parameters(features, config, IMAGENET) == expected
    # The extra feature maps and the heads of the detector, which are left out.
    assert sum(one.numel() for one in ssdlite.parameters()) > expected["base"] - 1_281_000


def test_table_3_last_layer_is_about_30k_below_the_printed() -> None:
    last, both = (trained(mobilenet_v2(), kinds, IMAGENET) for kinds in (LAST, BOTH))
    assert (last, both) == (1_281_000, 1_315_112)
    # Printed 1.31 M and 1.35 M: both about 0.03 M more than ours, their difference is ours. The
    # paper's introduction has 1.2 M for the same layer (ours, cut). One count that gives both,
    # cut: 1001 classes (TensorFlow's background) and the statistics, mu and var, that a last layer
    # trained with its own statistics has too. Which it was, the paper does not say.
    assert 1_310_000 - last == 29_000
    assert 1_350_000 - both == 34_888
    statistics = count_parameters(mobilenet_v2(), PatchConfig(BOTH), IMAGENET)["statistics"]
    with_background = trained(mobilenet_v2(), LAST, IMAGENET + 1) + statistics
    assert with_background // 10_000 == 131
    assert (with_background + 34_112) // 10_000 == 135


def test_table_4_tasks_that_share_add_a_patch_each() -> None:
    both, last = (family(kinds, IMAGENET, PLACES) for kinds in (BOTH, LAST))
    assert (both.together(), last.together()) == (4_006_549, 3_972_437)
    # Printed 3.97 M and 3.93 M: one set of gamma and beta, 34,112, less than ours in each column.
    # So the paper counts the second task's scales and biases as the addition, and none for the
    # base, as the MobileNetV2 page of TensorFlow does (3.47 M for a network of 3.50 M).
    assert both.together() - last.together() == 34_112
    assert (both.together() - 34_112) // 10_000 == 397
    assert (last.together() - 34_112) // 10_000 == 393


def test_table_4_separate_networks_have_6_2m_where_6_05m_is_printed() -> None:
    both = family(BOTH, IMAGENET, PLACES)
    assert both.separate == (3_504_872, 2_691_437)
    assert both.separately() == 6_196_309
    # 0.15 M (2.4 %) more than printed. Without any gamma and beta, as in the other two columns, it
    # is 6.13 M, still 0.08 M more; we know no count of two such networks that gives 6.05 M.
    assert both.separately() - 6_050_000 == 146_309
    assert both.separately() - 2 * 34_112 == 6_128_085
    # The claims hold either way: about 1 % more than a shared last layer, a third less than apart
    # (the paper writes 50 % less, and prints 3.97 of 6.05, which is 34 % less).
    assert 34_112 / family(LAST, IMAGENET, PLACES).together() < 0.01
    assert both.together() / both.separately() == pytest.approx(0.6466, abs=5e-5)  # last digit


def test_table_5_each_further_resolution_costs_one_percent() -> None:
    private = family(SCALE_BIAS, *[IMAGENET] * RESOLUTIONS)
    assert private.private == (34_112,) * RESOLUTIONS
    assert private.shared == 3_504_872 - 34_112
    assert private.together() == 3_641_320
    # Printed 3.7 M. Ours rounds to 3.6 M; with the base's own set kept beside the five, or with one
    # set of mu and var counted, as 17.7 M needs below, it is 3,675,432: 3.7 M.
    assert millions(private.together() + 34_112, 1) == 3.7
    assert private.private[0] / 3_504_872 == pytest.approx(0.00973, abs=5e-6)  # last digit
    # A set of mu and var for each resolution, which this patch stores, makes it 3.8 M.
    assert private.together(statistics=True) == 3_811_880


def test_table_5_one_network_is_3_5m_and_five_are_17_7m_with_statistics() -> None:
    alone = family(SCALE_BIAS, IMAGENET)
    assert millions(alone.together(), 1) == millions(alone.together(statistics=True), 1) == 3.5
    five = family(SCALE_BIAS, *[IMAGENET] * RESOLUTIONS)
    assert five.separately() == 17_524_360  # 17.5 M of trained parameters
    assert five.separately(statistics=True) == 17_694_920  # printed 17.7 M: mu and var as well


def test_a_family_of_explicit_scales_adds_them_to_the_base() -> None:
    base = Base.from_torchvision("squeezenet1_1", preprocessing=Preprocessing(input_size=64))
    counted = count_family(base, PatchConfig(BOTH), [10, 20])
    alone = count_parameters(base, PatchConfig(BOTH), 10)
    head = 1_000 * (512 + 1)  # a 1x1 convolution
    assert counted.shared == alone["base"] - head
    assert counted.private == (5_888 + 10 * 513, 5_888 + 20 * 513)
    assert counted.separate == (counted.shared + 10 * 513, counted.shared + 20 * 513)
    assert counted.together(statistics=True) == counted.together()


def test_a_head_is_shared_only_by_members_of_as_many_classes() -> None:
    for kinds, classes in ((SCALE_BIAS, (1000, 365)), (BOTH, ())):
        message = (
            f"members of {list(classes)} classes share all but {list(kinds)}; there must be at "
            "least 1 member, and those that share a head have as many classes; add the kind head"
        )
        with pytest.raises(PatchError, match=re.escape(message)):
            family(kinds, *classes)
