"""Keys: files that only their owner reads, lists that only grow, and RFC 8032 verification."""

import json
import os
import stat
from pathlib import Path

import pytest
from container_cases import KEYS, SEEDS, TRUSTED
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import PatchKeyError, StorageError
from patchdeploy.patchfile.keys import (
    SigningKey,
    TrustedKeys,
    check_public_key,
    list_keys,
    rotate,
    verify_signature,
)

WYCHEPROOF = Path(__file__).with_name("wycheproof_ed25519.json")
FIELD = 2**255 - 19
PUBLIC = tuple(key.public for key in KEYS)


def message_of(kind: type[Exception], action, *arguments, **named) -> str:
    with pytest.raises(kind) as caught:
        action(*arguments, **named)
    return str(caught.value)


def test_every_wycheproof_vector_gets_wycheproofs_verdict():
    document = json.loads(WYCHEPROOF.read_text())
    tests = document["tests"]
    assert len(tests) == document["numberOfTests"] == 151
    for one in tests:
        key, sig, msg = (bytes.fromhex(one[name]) for name in ("key", "sig", "msg"))
        check_public_key(key)
        assert verify_signature(key, sig, msg) == (one["result"] == "valid"), one["tcId"]
    verdicts = [one["result"] for one in tests]
    assert min(verdicts.count("valid"), verdicts.count("invalid")) > 50  # both are there


def test_a_key_of_rfc_8032_signs_as_the_rfc_says():
    # Section 7.1, TEST 2.
    seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_new_keys_differ_and_never_show_their_private_half():
    one, other = SigningKey.new(), SigningKey.new()
    assert one.public != other.public
    assert repr(KEYS[0]) == f"SigningKey(public={KEYS[0].public!r})"


def test_a_seed_of_another_length_is_refused():
    assert message_of(PatchKeyError, SigningKey.from_seed, bytes(31)) == (
        "seed of 31 bytes; it must be 32 secret random bytes; make a key with SigningKey.new"
    )


def test_a_saved_key_is_for_its_owner_alone_and_comes_back(tmp_path):
    path = tmp_path / "me.pem"
    old = os.umask(0)  # not even a careless umask opens it
    try:
        KEYS[0].save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    again = SigningKey.load(path)
    assert again == KEYS[0]
    assert again.sign(b"message") == KEYS[0].sign(b"message")


def test_a_key_file_is_never_overwritten(tmp_path):
    path = tmp_path / "me.pem"
    KEYS[0].save(path)
    assert message_of(StorageError, KEYS[1].save, path) == (
        f"cannot write key file {path}: File exists; a key is never overwritten; choose a new "
        "name in a folder that is there and can be written"
    )
    assert SigningKey.load(path) == KEYS[0]


def test_a_key_is_not_written_through_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "me.pem").symlink_to(tmp_path / "elsewhere")
    message_of(StorageError, KEYS[0].save, tmp_path / "me.pem")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_cannot_be_written_whole_leaves_no_file(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "me.pem"
    monkeypatch.setattr(os, "fsync", fail)
    assert message_of(StorageError, KEYS[0].save, path) == (
        f"cannot write key file {path}: No space left on device; a key is never overwritten; "
        "choose a new name in a folder that is there and can be written"
    )
    assert not path.exists()


def test_the_name_of_a_key_is_synced_too(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    KEYS[0].save(tmp_path / "me.pem")
    assert synced == [False, True]


@pytest.mark.parametrize("folder", [False, True])
def test_an_interrupted_save_leaves_no_key(tmp_path, monkeypatch, folder):
    def interrupt(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folder:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        KEYS[0].save(tmp_path / "me.pem")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_key_file_that_others_can_touch_is_refused(tmp_path, mode):
    path = tmp_path / "me.pem"
    KEYS[0].save(path)
    path.chmod(mode)
    assert message_of(PatchKeyError, SigningKey.load, path) == (
        f"key file {path} has mode {mode:04o}; group and others must have no access to it; if "
        "nobody has read it, chmod 600, else make a new key"
    )


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_its_owner_alone_is_read(tmp_path, mode):
    path = tmp_path / "me.pem"
    KEYS[0].save(path)
    path.chmod(mode)
    assert SigningKey.load(path) == KEYS[0]


def test_a_key_file_that_is_not_there_is_a_storage_error(tmp_path):
    path = tmp_path / "none.pem"
    assert message_of(StorageError, SigningKey.load, path) == (
        f"cannot read key file {path}: No such file or directory; name a file that is there and "
        "that you own"
    )


def private_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def pem(private, password: bytes | None = None) -> bytes:
    cipher = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"key",
        b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
        pem(Ed25519PrivateKey.from_private_bytes(SEEDS[0]))[:60],
        pem(Ed25519PrivateKey.from_private_bytes(SEEDS[0]), b"password"),
    ],
    ids=["empty", "no PEM", "no PKCS #8", "cut short", "with a password"],
)
def test_a_file_that_is_no_key_is_refused(tmp_path, data):
    path = private_file(tmp_path / "me.pem", data)
    assert message_of(PatchKeyError, SigningKey.load, path) == (
        f"key file {path} does not parse; it must be a PEM file of an Ed25519 private key "
        "(PKCS #8) without a password; make one with patchdeploy keys new"
    )


def test_a_key_of_another_kind_is_refused(tmp_path):
    path = private_file(tmp_path / "me.pem", pem(generate_private_key(SECP256R1())))
    assert message_of(PatchKeyError, SigningKey.load, path) == (
        f"key file {path} holds a key of another kind; it must be Ed25519; make one with "
        "patchdeploy keys new"
    )


def test_a_huge_key_file_is_refused(tmp_path):
    path = private_file(tmp_path / "me.pem", bytes(65_537))
    assert message_of(PatchKeyError, SigningKey.load, path) == (
        f"key file {path} has more than 65536 bytes; it must be one PEM key; make one with "
        "patchdeploy keys new"
    )


def test_a_folder_of_keys_is_listed_by_name_with_what_is_wrong(tmp_path):
    for name, key in (("b", KEYS[1]), ("a", KEYS[0])):
        key.save(tmp_path / f"{name}.pem")
    open_to_all = tmp_path / "c.pem"
    KEYS[2].save(open_to_all)
    open_to_all.chmod(0o644)
    (tmp_path / "notes.txt").write_text("not a key")
    found = list_keys(tmp_path)
    assert [(one.path.name, one.public) for one in found] == [
        ("a.pem", KEYS[0].public),
        ("b.pem", KEYS[1].public),
        ("c.pem", None),
    ]
    assert [one.problem is None for one in found] == [True, True, False]
    assert "has mode 0644" in found[2].problem


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    assert message_of(StorageError, list_keys, tmp_path / "none") == (
        f"cannot read key folder {tmp_path / 'none'}: No such file or directory; name a folder "
        "that is there"
    )


def test_trusted_keys_come_back_from_their_file(tmp_path):
    trusted = TrustedKeys((PUBLIC[0], None, PUBLIC[1]), 2)
    expected = f'{{"format":1,"keys":["{PUBLIC[0].hex()}",null,"{PUBLIC[1].hex()}"],"threshold":2}}'
    assert trusted.to_bytes() == expected.encode()
    trusted.save(tmp_path / "trusted.json")
    assert (tmp_path / "trusted.json").read_text() == expected + "\n"
    assert TrustedKeys.load(tmp_path / "trusted.json") == trusted
    assert TrustedKeys.from_bytes(expected.encode()) == trusted


def test_trusted_keys_that_are_not_there_are_a_storage_error(tmp_path):
    path = tmp_path / "none.json"
    assert message_of(StorageError, TrustedKeys.load, path) == (
        f"cannot read trusted keys {path}: No such file or directory; name the file that "
        "patchdeploy keys wrote"
    )


NO_PARSE = "list of trusted keys does not parse: it has "
OTHER_PARTS = (
    "list of trusted keys has other parts than it must have: format 1, keys and threshold; take "
    "the file that patchdeploy keys wrote, or upgrade patchdeploy"
)
TAKE = "; take the file that patchdeploy keys wrote"
TEXTS = {
    b'{"format": 1}': NO_PARSE + "' ' outside a string; it must be objects, lists, strings and "
    "whole numbers from 0, with no space between" + TAKE,
    b"1" * 65_537: NO_PARSE + "65537 bytes; it must be at most 65536 bytes" + TAKE,
    b"[]": OTHER_PARTS,
    b'{"format":1}': OTHER_PARTS,
    b'{"format":2,"keys":[],"threshold":1}': OTHER_PARTS,
    b'{"format":1,"keys":{},"threshold":1}': OTHER_PARTS,
    b'{"format":1,"keys":[],"more":1,"threshold":1}': OTHER_PARTS,
    b'{"format":1,"keys":["AA"],"threshold":1}': "trusted key 'AA'; it must be 64 lower-case "
    "hexadecimal digits, or null for a revoked one; correct the list",
    b'{"format":1,"keys":[1],"threshold":1}': "trusted key '1'; it must be 64 lower-case "
    "hexadecimal digits, or null for a revoked one; correct the list",
    b'{"format":1,"keys":[],"threshold":1}': "threshold 1 over 0 live keys; it must be an integer "
    "from 1 to 4 and at most the live keys; add keys or lower it",
    b'{"format":1,"keys":[null],"threshold":null}': "threshold None over 0 live keys; it must be "
    "an integer from 1 to 4 and at most the live keys; add keys or lower it",
}


@pytest.mark.parametrize("data", TEXTS, ids=lambda data: repr(data[:50]))
def test_a_list_of_trusted_keys_that_breaks_a_rule_is_refused(data):
    assert message_of(PatchKeyError, TrustedKeys.from_bytes, data) == TEXTS[data]


@pytest.mark.parametrize("threshold", [0, 5, 6, -1, True])
def test_a_threshold_outside_1_to_4_is_refused(threshold):
    assert message_of(PatchKeyError, TrustedKeys, PUBLIC, threshold) == (
        f"threshold {threshold} over 5 live keys; it must be an integer from 1 to 4 and at most "
        "the live keys; add keys or lower it"
    )


def test_a_threshold_that_the_live_keys_cannot_reach_is_refused():
    TrustedKeys((PUBLIC[0], PUBLIC[1], None), 2)
    message_of(PatchKeyError, TrustedKeys, (PUBLIC[0], None, None), 2)


def test_a_key_that_is_there_twice_is_refused():
    assert message_of(PatchKeyError, TrustedKeys, (PUBLIC[0], PUBLIC[1], PUBLIC[0]), 1) == (
        f"trusted key {PUBLIC[0].hex()} is there twice; each must be there once, or one person "
        "could reach the threshold alone; remove one"
    )


def test_256_keys_fit_and_257_do_not():
    keys = tuple(SigningKey.from_seed(bytes([k] * 32)).public for k in range(256))
    assert TrustedKeys.from_bytes(TrustedKeys(keys, 4).to_bytes()).keys == keys
    assert message_of(PatchKeyError, TrustedKeys, (*keys, None), 1) == (
        "257 trusted keys; there must be at most 256, since an index is one byte; start a new "
        "list with the keys that live"
    )


def test_a_key_is_found_by_its_position():
    assert [TRUSTED.find(key.public) for key in KEYS] == [0, 1, 2, 3, 4]
    other = SigningKey.from_seed(bytes(32)).public
    assert message_of(PatchKeyError, TRUSTED.find, other) == (
        f"key {other.hex()} is not among the trusted keys; a patch is signed with a key that "
        "readers pin; add it with patchdeploy keys rotate"
    )


def test_rotation_appends_and_revokes_and_leaves_every_other_index():
    before = TrustedKeys(PUBLIC[:2], 2)
    after = rotate(before, PUBLIC[2], revoke=0)
    assert after == TrustedKeys((None, PUBLIC[1], PUBLIC[2]), 2)
    assert before == TrustedKeys(PUBLIC[:2], 2)
    assert rotate(before, PUBLIC[2]).keys == PUBLIC[:3]
    assert rotate(TrustedKeys(PUBLIC[:3], 2), revoke=2).keys == (*PUBLIC[:2], None)


@pytest.mark.parametrize("revoke", [-1, 2, 3])
def test_only_a_live_key_is_revoked(revoke):
    trusted = TrustedKeys((PUBLIC[0], PUBLIC[1], None), 1)
    assert message_of(PatchKeyError, rotate, trusted, revoke=revoke) == (
        f"key {revoke} cannot be revoked; it must be one of the 3 trusted keys and not be revoked "
        "yet; see patchdeploy keys list"
    )


def test_a_key_that_is_trusted_or_just_revoked_is_not_appended():
    for revoke in (None, 0):
        assert message_of(PatchKeyError, rotate, TRUSTED, PUBLIC[0], revoke=revoke) == (
            f"key {PUBLIC[0].hex()} is trusted already; a new key must be another one; make one "
            "with patchdeploy keys new"
        )


def test_the_last_key_cannot_be_revoked_without_another():
    message_of(PatchKeyError, rotate, TrustedKeys(PUBLIC[:1], 1), revoke=0)
    rotate(TrustedKeys(PUBLIC[:1], 1), PUBLIC[1], revoke=0)


def small_order_ys() -> set[int]:
    """y of every point P with 8 P = the neutral point, found on the curve itself.

    -x^2 + y^2 = 1 + d x^2 y^2. Doubling: y(2P) = (y^2 + x^2) / (1 - d x^2 y^2), and the curve
    gives x^2 = (y^2 - 1) / (d y^2 + 1), so the y of a double depends on y alone. The neutral
    point has y = 1; walk backwards by solving for y^2 three times.
    """
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    found = {1}
    for _ in range(3):
        found |= {y for target in found for y in halves(target, d)}
    return found


def halves(target: int, d: int) -> set[int]:
    """Every y whose point doubles to ``target``: a quadratic equation in u = y^2.

    With x^2 = (u - 1) / (d u + 1): u (d u + 1) + (u - 1) = target ((d u + 1) - d u (u - 1)), so
    d (1 + t) u^2 + 2 (1 - d t) u - (1 + t) = 0 for t = target.
    """
    t = target
    a, half_b, c = d * (1 + t) % FIELD, (1 - d * t) % FIELD, -(1 + t) % FIELD
    if a == 0:
        us = {-c * pow(2 * half_b, -1, FIELD) % FIELD}
    else:
        roots = square_roots((half_b * half_b - a * c) % FIELD)
        us = {(root - half_b) * pow(a, -1, FIELD) % FIELD for root in roots}
    ys = {y for u in us for y in square_roots(u)}
    return {y for y in ys if square_roots((y * y - 1) * pow(d * y * y + 1, -1, FIELD) % FIELD)}


def square_roots(value: int) -> set[int]:
    """Of ``value`` modulo 2^255 - 19, which is 5 modulo 8."""
    root = pow(value, (FIELD + 3) // 8, FIELD)
    candidates = {root, root * pow(2, (FIELD - 1) // 4, FIELD) % FIELD}
    return {y for one in candidates for y in (one, -one % FIELD) if y * y % FIELD == value}


def test_every_key_of_small_order_is_refused_in_every_spelling():
    ys = small_order_ys()
    assert len(ys) == 5  # 8 points: y = 1 and -1 once, the others with x and -x
    for y in ys:
        for spelling in (y, y + FIELD):
            for sign in (0, 1):
                if spelling < 2**255:
                    key = (spelling | sign << 255).to_bytes(32, "little")
                    with pytest.raises(PatchKeyError):
                        check_public_key(key)


def test_a_key_of_small_order_would_take_signatures_that_anyone_makes():
    """Why they are refused: the library takes them."""
    neutral = (1).to_bytes(32, "little")
    assert verify_signature(neutral, neutral + bytes(32), b"any message")
    assert message_of(PatchKeyError, TrustedKeys, (neutral,), 1) == (
        f"public key {neutral.hex()} of 32 bytes; it must be an Ed25519 key of 32 bytes, y below "
        "2^255 - 19 and not of small order; make one with patchdeploy keys new"
    )


@pytest.mark.parametrize("spelling", [FIELD + 3, 2**255 - 1])
def test_a_second_spelling_of_a_y_is_refused(spelling):
    for sign in (0, 1):
        with pytest.raises(PatchKeyError):
            check_public_key((spelling | sign << 255).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_another_length_is_refused(length):
    with pytest.raises(PatchKeyError, match=f"of {length} bytes"):
        check_public_key(b"\5" * length)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=80), st.binary(max_size=20))
def test_any_key_and_signature_give_a_verdict_and_never_another_error(key, signature, message):
    try:
        check_public_key(key)
    except PatchKeyError:
        return
    assert verify_signature(key, signature, message) is False
