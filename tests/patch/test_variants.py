"""What a patch owns, how it counts, saves and loads."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import (
    ConfigError,
    NonFiniteError,
    PatchdeployError,
    PatchError,
    PatchFileError,
    StorageError,
    UnknownLayerError,
    UnknownResolutionError,
)
from patchdeploy.patch import (
    CONFIG_FILE,
    TENSOR_FILE,
    Kind,
    Patch,
    PatchConfig,
    count_parameters,
    find_sites,
)
from patchdeploy.patch.tensors import trained_names

EVERYTHING = PatchConfig(("scale_bias", "depthwise", "head"))


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.embedded()


@pytest.fixture(scope="module")
def mobilenet_v2() -> Base:
    return Base.from_torchvision("mobilenet_v2", preprocessing=Preprocessing(input_size=32))


def a_patch(seed: int = 0) -> Patch:
    """Two resolutions that share their head and differ in their scales; random values."""
    generator = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    head = {"head.weight": values(2, 4), "head.bias": values(2)}
    variants = {px: {"norm.weight": values(4), **head} for px in (48, 32)}
    config = PatchConfig(("scale_bias", "head"), head_seed=7)
    return Patch("fruit", "ab" * 32, config, ("apple", "pear"), variants, {"top1": 0.5})


def assert_equal(one: Patch, other: Patch) -> None:
    assert (one.task, one.base_sha256, one.config, one.classes, one.metrics) == (
        (other.task, other.base_sha256, other.config, other.classes, other.metrics)
    )
    assert one.resolutions == other.resolutions
    for px in one.resolutions:
        assert set(one.tensors(px)) == set(other.tensors(px))
        for key, value in one.tensors(px).items():
            np.testing.assert_array_equal(value, other.tensors(px)[key])


def test_mobilenet_v2_counts_are_the_papers(mobilenet_v2: Base) -> None:
    counts = count_parameters(mobilenet_v2, EVERYTHING, classes=1000)
    assert counts == {
        "scale_bias": 34_112,
        "statistics": 34_112,
        "depthwise": 64_224,
        "head": 1_281_000,
        "trained": 34_112 + 64_224 + 1_281_000,
        "base": 3_504_872,
    }
    sites = find_sites(mobilenet_v2, EVERYTHING)
    assert (len(sites.norms), len(sites.depthwise), len(sites.explicit)) == (52, 17, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "scale_bias", "depthwise", "head_of_102"),
    [
        # The paper's figures for it: tests/patch/test_counts.py.
        ("inception_v3", {"aux_logits": False, "init_weights": False}, 34_432, 0, 208_998),
        ("resnet18", {}, 9_600, 0, 52_326),
        # 64 channels of the first convolution, 320 squeezed, 2,560 expanded; scale and bias.
        ("squeezenet1_1", {}, 2 * (64 + 320 + 2_560), 0, 52_326),
    ],
)
def test_counts_of_other_networks(
    name: str, arguments: dict[str, Any], scale_bias: int, depthwise: int, head_of_102: int
) -> None:
    px = 96 if name == "inception_v3" else 64
    other = Base.from_torchvision(name, preprocessing=Preprocessing(input_size=px), **arguments)
    counts = count_parameters(other, EVERYTHING, classes=102)
    assert (counts["scale_bias"], counts["depthwise"]) == (scale_bias, depthwise)
    assert counts["head"] == head_of_102


@pytest.mark.parametrize(
    ("kinds", "trained"),
    [
        (("scale_bias",), "scale_bias"),
        (("depthwise",), "depthwise"),
        (("head",), "head"),
    ],
)
def test_each_kind_counts_alone(mobilenet_v2: Base, kinds: tuple[Kind, ...], trained: str) -> None:
    alone = count_parameters(mobilenet_v2, PatchConfig(kinds), classes=10)
    together = count_parameters(mobilenet_v2, EVERYTHING, classes=10)
    assert alone["trained"] == alone[trained] == together[trained] > 0


def test_patterns_choose_and_leave_out_layers(base: Base) -> None:
    config = PatchConfig(include=("features.1*",), exclude=("features.18*",))
    sites = find_sites(base, config)
    assert sites.norms
    assert all(path.startswith("features.1") for path in sites.norms)
    assert not any(path.startswith("features.18") for path in sites.norms)
    assert sites.head == "classifier.1"  # chosen by its kind alone


@pytest.mark.parametrize("where", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_close_ones(base: Base, where: str) -> None:
    config = PatchConfig(**{where: ("feature.0.0",)})  # type: ignore[arg-type]
    with pytest.raises(UnknownLayerError) as caught:
        find_sites(base, config)
    message = str(caught.value)
    assert message.startswith("pattern 'feature.0.0' matches no layer of base")
    assert "features.0.0" in message
    assert message.endswith("; correct it")


def test_config_survives_json_and_refuses_what_it_does_not_know() -> None:
    config = PatchConfig(("depthwise",), ("a*",), ("b",), "batch", 3)
    assert PatchConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match=r"unknown patch key 'kind'; .*did you mean 'kinds'"):
        PatchConfig.from_json({"kind": ["head"]})
    with pytest.raises(ConfigError, match="patch kind 'bias'; the kinds are scale_bias, stat"):
        PatchConfig.from_json({"kinds": ["bias"]})
    with pytest.raises(ConfigError, match="patch statistics 'learned'"):
        PatchConfig.from_json({"statistics": "learned"})


def test_a_saved_patch_loads_to_the_last_bit(tmp_path: Path) -> None:
    patch = a_patch()
    patch.save_pretrained(tmp_path)
    assert_equal(Patch.from_pretrained(tmp_path), patch)
    (tmp_path / CONFIG_FILE).unlink()  # its readable copy; the tensors carry the settings
    assert_equal(Patch.from_pretrained(tmp_path), patch)


def test_what_resolutions_share_is_stored_once(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    a_patch().save_pretrained(tmp_path)
    stored = set(load_file(tmp_path / TENSOR_FILE))
    assert stored == {"all/head.weight", "all/head.bias", "32/norm.weight", "48/norm.weight"}


def test_a_patch_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    a_patch().save_pretrained(tmp_path)
    path = tmp_path / TENSOR_FILE
    whole = path.read_bytes()
    assert len(whole) < 2000
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(PatchFileError, match="it must be the whole file"):
            Patch.from_pretrained(tmp_path)
    path.write_bytes(whole)
    assert_equal(Patch.from_pretrained(tmp_path), a_patch())


def test_every_bit_of_a_patch_counts(tmp_path: Path) -> None:
    """All bits of every fifth byte: a hash over all of it misses none of the others either."""
    a_patch().save_pretrained(tmp_path)
    path = tmp_path / TENSOR_FILE
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(PatchdeployError):
                Patch.from_pretrained(tmp_path)


def test_a_patch_without_a_hash_is_read_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.numpy import load_file, save_file

    a_patch().save_pretrained(tmp_path)
    document = json.loads((tmp_path / CONFIG_FILE).read_text()) | {"format": 1}
    del document["file_sha256"]  # as older versions wrote it
    arrays = load_file(tmp_path / TENSOR_FILE)
    save_file(arrays, tmp_path / TENSOR_FILE, {"patchdeploy": json.dumps(document)})
    assert_equal(Patch.from_pretrained(tmp_path), a_patch())
    assert caplog.messages == [
        f"{tmp_path / TENSOR_FILE} is of a version that wrote no hash: whether it is damaged "
        "cannot be seen; load and save the patch again to give it one"
    ]


def test_a_patch_whose_task_and_metrics_hold_the_words_of_the_hash(tmp_path: Path) -> None:
    odd = f'x"file_sha256": "{"0" * 64}'
    metrics = {"file_sha256": "0" * 64, odd: odd}
    replace(a_patch(), task=odd, metrics=metrics).save_pretrained(tmp_path)
    found = Patch.from_pretrained(tmp_path)
    assert (found.task, found.metrics) == (odd, metrics)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<html>", "an HTML page"),
        (b"", "an empty file"),
    ],
)
def test_what_lies_in_the_place_of_a_patch_is_named(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / TENSOR_FILE).write_bytes(content)
    with pytest.raises(PatchFileError, match=rf"cannot be read \({what}"):
        Patch.from_pretrained(tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_patch_or_a_typed_error(where: float, value: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a_patch().save_pretrained(folder)
        path = Path(folder) / TENSOR_FILE
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] = value
        path.write_bytes(data)
        with contextlib.suppress(PatchdeployError):
            Patch.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("config", 3),
        ("config", ["kinds"]),
        ("config", {"kind": ["head"]}),
        ("config", {"include": [5]}),
        ("metrics", 3),
        ("task", 3),
        ("classes", "ab"),
        ("resolutions", [32, 10**9]),
        ("more", 1),
        ("classes", None),
        ("resolutions", [32]),
        ("resolutions", None),
    ],
)
def test_a_description_of_another_form_is_refused(tmp_path: Path, key: str, value: object) -> None:
    from safetensors.numpy import load_file, save_file

    a_patch().save_pretrained(tmp_path)
    document = json.loads((tmp_path / CONFIG_FILE).read_text()) | {key: value}
    arrays = load_file(tmp_path / TENSOR_FILE)
    save_file(arrays, tmp_path / TENSOR_FILE, {"patchdeploy": json.dumps(document)})
    with pytest.raises((PatchFileError, ConfigError)):
        Patch.from_pretrained(tmp_path)


def test_arrays_that_are_not_float32_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    a_patch().save_pretrained(tmp_path)
    document = {"patchdeploy": (tmp_path / CONFIG_FILE).read_text()}
    arrays = load_file(tmp_path / TENSOR_FILE)
    arrays["all/head.bias"] = arrays["all/head.bias"].astype(np.float16)
    save_file(arrays, tmp_path / TENSOR_FILE, document)
    with pytest.raises(PatchFileError, match=r"array 'all/head\.bias' is float16, not float32"):
        Patch.from_pretrained(tmp_path)


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    a_patch().save_pretrained(tmp_path)
    document = {"patchdeploy": (tmp_path / CONFIG_FILE).read_text()}
    arrays = load_file(tmp_path / TENSOR_FILE)
    arrays["32/norm.weight"][0] = np.nan
    save_file(arrays, tmp_path / TENSOR_FILE, document)
    with pytest.raises(NonFiniteError, match=r"tensor 'norm\.weight' has 1 values"):
        Patch.from_pretrained(tmp_path)


FULL_DISK = """
import resource, signal, sys
from patchdeploy.errors import StorageError
from patchdeploy.patch import Patch
import numpy as np
older = Patch.from_pretrained(sys.argv[1])
bigger = {px: {k: np.tile(v, 100) for k, v in older.tensors(px).items()} for px in (32, 48)}
patch = Patch(older.task, older.base_sha256, older.config, older.classes, bigger)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    patch.save_pretrained(sys.argv[1])
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_older_patch_whole(tmp_path: Path) -> None:
    a_patch().save_pretrained(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    path = re.escape(str(tmp_path / TENSOR_FILE))
    assert re.fullmatch(
        rf"cannot write {path} \(\d+ bytes\): File too large; free space or choose another place; "
        r"what was there is unchanged\n",
        run.stdout,
    )
    assert_equal(Patch.from_pretrained(tmp_path), a_patch())
    assert {one.name for one in tmp_path.iterdir()} == {TENSOR_FILE, CONFIG_FILE}


def test_a_layer_with_a_slash_in_its_name_comes_back(tmp_path: Path) -> None:
    arrays = {"64/conv.weight": np.ones(3, np.float32)}
    patch = Patch("t", "ab" * 32, PatchConfig(), ("a", "b"), {32: arrays})
    patch.save_pretrained(tmp_path)
    assert_equal(Patch.from_pretrained(tmp_path), patch)


def test_a_patch_of_no_resolution_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(PatchError) as caught:
        Patch("t", "ab" * 32, PatchConfig(), ("a", "b"), {}).save_pretrained(tmp_path)
    assert str(caught.value) == (
        "patch 't' has no resolution; a patch to save has at least 1; train one"
    )


def test_one_name_where_a_list_is_wanted_says_how_to_write_it() -> None:
    with pytest.raises(ConfigError) as caught:
        PatchConfig(include="features.*")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "patch include='features.*'; it must be a list of names; write include=('features.*',)"
    )


def test_a_missing_patch_and_another_file_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(PatchFileError, match="cannot be read"):
        Patch.from_pretrained(tmp_path)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / TENSOR_FILE)
    with pytest.raises(PatchFileError, match="cannot be read"):
        Patch.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_older_patch_whole(tmp_path: Path) -> None:
    older = a_patch(0)
    older.save_pretrained(tmp_path / "patch")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="what was there is unchanged"):
        a_patch(1).save_pretrained(tmp_path / "file" / "below")
    assert_equal(Patch.from_pretrained(tmp_path / "patch"), older)
    names = {path.name for path in (tmp_path / "patch").iterdir()}
    assert names == {TENSOR_FILE, CONFIG_FILE}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_patch_with_nan_or_infinity_names_the_tensor(value: float) -> None:
    tensors = {"norm.weight": np.array([1, value, 2], np.float32)}
    with pytest.raises(NonFiniteError) as caught:
        Patch("fruit", "ab" * 32, PatchConfig(), ("a", "b"), {32: tensors})
    assert str(caught.value) == (
        "patch 'fruit' at 32 px: tensor 'norm.weight' has 1 values that are NaN or infinite; all "
        "must be finite; train again with a smaller learning rate"
    )


def test_a_resolution_that_was_not_trained_is_named_with_those_that_were() -> None:
    with pytest.raises(UnknownResolutionError) as caught:
        a_patch().tensors(96)
    assert str(caught.value) == (
        "patch 'fruit' has no variant for 96 px; it has 32, 48 px; train that resolution too"
    )


def test_a_depthwise_convolution_has_one_group_for_each_channel(base: Base) -> None:
    for path in find_sites(base, EVERYTHING).depthwise:
        layer = base.module.get_submodule(path)
        assert isinstance(layer, nn.Conv2d)
        assert layer.groups == layer.in_channels


def test_a_patch_may_own_statistics_alone_and_then_trains_no_scale(mobilenet_v2: Base) -> None:
    config = PatchConfig(("statistics", "head"), statistics="reestimated")
    counts = count_parameters(mobilenet_v2, config, 10)
    assert counts["scale_bias"] == 0
    assert counts["statistics"] == 34_112
    assert counts["trained"] == counts["head"] == 12_810
    assert trained_names(mobilenet_v2, config) == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ConfigError) as caught:
        PatchConfig(("statistics", "head"))
    assert str(caught.value) == (
        "patch kind 'statistics' with statistics 'frozen'; the patch would own the base's as they "
        "are; choose reestimated or batch, or leave the kind out"
    )
