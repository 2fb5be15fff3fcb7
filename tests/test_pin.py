"""A bundle gets another list of trusted keys: it takes every patch, or nothing changes."""

import shutil
from dataclasses import replace

import pytest
from bundle_cases import KEY, make_bundle, make_patch, snapshot

from patchdeploy.bundle import add_task, open_bundle, pin_keys
from patchdeploy.errors import ConfigError, PatchKeyError, PatchRefusedError
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import Release, Signer

NEW = SigningKey.from_seed(b"the key after the one that leaks")
THIRD = SigningKey.from_seed(bytes(32))
BOTH = TrustedKeys((KEY.public, NEW.public), 1)
REVOKED = TrustedKeys((None, NEW.public), 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("pin") / "bundle"
    return make_bundle(place, signed=True, formats=("onnx",))


@pytest.fixture
def bundle(made, tmp_path):
    """A copy for one test."""
    return open_bundle(shutil.copytree(made.path, tmp_path / "bundle"))


def test_a_key_that_is_added_changes_the_manifest_alone(bundle):
    before = snapshot(bundle.path)
    pinned = pin_keys(bundle.path, BOTH)
    assert pinned.signed_again == ()
    assert open_bundle(bundle.path).manifest.trusted == BOTH
    changed = {name for name, data in snapshot(bundle.path).items() if before.get(name) != data}
    assert changed == {"manifest.json"}


def test_a_revoked_key_without_another_names_its_patches_and_changes_nothing(bundle):
    before = snapshot(bundle.path)
    with pytest.raises(ConfigError) as caught:
        pin_keys(bundle.path, REVOKED)
    assert str(caught.value) == (
        f"the new list does not take the patches of first, second in {bundle.path}; every patch of "
        "a bundle must be signed by live keys; pass keys to sign them again, or replace or remove "
        "these tasks first"
    )
    assert snapshot(bundle.path) == before


def test_patches_of_a_revoked_key_are_signed_again_and_stay_what_they_are(bundle):
    before = {task: bundle.check(task) for task in bundle.tasks}
    pinned = pin_keys(bundle.path, REVOKED, [NEW])
    assert pinned.signed_again == ("first", "second")
    opened = open_bundle(bundle.path)
    for task in opened.tasks:
        checked = opened.check(task)
        assert checked.signed_by == (1,)
        assert checked.header == before[task].header
        assert checked.payload == before[task].payload
    assert len(list((bundle.path / "patches").iterdir())) == 2
    assert set(opened.manifest.files) - set(snapshot(bundle.path)) == set()
    release = Release(2, signers=(Signer(KEY, 0),))
    with pytest.raises(PatchRefusedError, match="key_unknown"):
        add_task(bundle.path, make_patch(task="third")[1], release=release)


@pytest.mark.parametrize(
    "older",
    [
        TrustedKeys((KEY.public,), 1),
        BOTH,
        TrustedKeys((KEY.public, NEW.public, SigningKey.from_seed(bytes(32)).public), 1),
    ],
    ids=["shorter", "not revoked", "longer"],
)
def test_a_list_in_which_a_revoked_key_lives_is_not_pinned(bundle, older):
    pin_keys(bundle.path, REVOKED, [NEW])
    before = snapshot(bundle.path)
    with pytest.raises(PatchKeyError, match="is older than the one that"):
        pin_keys(bundle.path, older, [KEY])
    assert snapshot(bundle.path) == before


def test_a_development_bundle_is_pinned_once_its_patches_are_signed(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", tasks=("first",), formats=("onnx",))
    with pytest.raises(ConfigError, match="does not take the patches of first"):
        pin_keys(bundle.path, BOTH)
    assert pin_keys(bundle.path, BOTH, [NEW]).signed_again == ("first",)
    assert open_bundle(bundle.path).check("first").signed_by == (1,)


def test_too_few_keys_and_keys_of_no_list_change_nothing(bundle):
    before = snapshot(bundle.path)
    two = TrustedKeys((None, NEW.public, THIRD.public), 2)
    with pytest.raises(PatchRefusedError, match="threshold"):
        pin_keys(bundle.path, two, [NEW])
    with pytest.raises(PatchKeyError, match="is not among the trusted keys"):
        pin_keys(bundle.path, REVOKED, [THIRD])
    assert snapshot(bundle.path) == before
    assert pin_keys(bundle.path, two, [THIRD, NEW]).signed_again == ("first", "second")


def test_a_patch_that_the_old_list_does_not_take_is_not_signed_again(bundle):
    manifest = replace(bundle.manifest, trusted=TrustedKeys((NEW.public,), 1))
    (bundle.path / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(PatchRefusedError, match="signature"):
        pin_keys(
            bundle.path, TrustedKeys((NEW.public, SigningKey.from_seed(bytes(32)).public), 1), [NEW]
        )
