"""Keys: who may sign a patch, and whose signatures a reader takes.

In: key files. Out: a `SigningKey`, which never leaves its file of mode 0600, and `TrustedKeys`, the
public keys that a reader pins. Ed25519 (RFC 8032) from `cryptography`: one byte form of a
signature, S below the group order, no cofactor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from patchdeploy.errors import (
    CanonicalTextError,
    IrregularFileError,
    PatchKeyError,
    StorageError,
)
from patchdeploy.patchfile.json import encode_canonical, parse_canonical
from patchdeploy.patchfile.key_files import MAX_FILE_BYTES, is_pem, read_private, write_private
from patchdeploy.storage import read_regular, write_atomic

FORMAT = 1
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_KEYS = 256
MAX_THRESHOLD = 4
KEY_FILE_SUFFIX = ".pem"

_HEX64 = re.compile(r"[0-9a-f]{64}")
_FIELD = 2**255 - 19
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})
"""y of the eight points of order 1, 2, 4 and 8: under such a key anyone can make signatures."""


@dataclass(frozen=True)
class SigningKey:
    """A private key. Printing it shows its public half.

    Attributes:
        public: 32 bytes, what readers pin.
    """

    _private: Ed25519PrivateKey = field(repr=False, compare=False)
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public", self._private.public_key().public_bytes_raw())

    @classmethod
    def new(cls) -> SigningKey:
        """A key from the operating system's random numbers."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of 32 secret bytes (the private key of RFC 8032).

        Raises:
            PatchKeyError: not 32 bytes.
        """
        if len(seed) != KEY_BYTES:
            raise PatchKeyError(
                f"seed of {len(seed)} bytes; it must be {KEY_BYTES} secret random bytes; "
                "make a key with SigningKey.new"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same message gives the same signature."""
        return self._private.sign(message)

    def save(self, path: Path | str) -> None:
        """Write a PEM file (PKCS #8, not encrypted) that only its owner can read, mode 0600.

        Raises:
            StorageError: there is such a file already, which stays as it is, or it cannot be
                written to the disk; then there is none.
        """
        data = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(Path(path), data)

    @classmethod
    def load(cls, path: Path | str) -> SigningKey:
        """The key in a file that only its owner can read.

        Raises:
            PatchKeyError: others can read or write it, or it is not an Ed25519 key in PEM.
            StorageError: it is not there or cannot be read.
        """
        data = read_private(Path(path))
        try:
            private = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise PatchKeyError(
                f"key file {path} does not parse; it must be a PEM file of an Ed25519 private key "
                "(PKCS #8) without a password; make one with patchdeploy keys new"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise PatchKeyError(
                f"key file {path} holds a key of another kind; it must be Ed25519; make one with "
                "patchdeploy keys new"
            )
        return cls(private)


@dataclass(frozen=True)
class ListedKey:
    """A file of a folder of keys.

    Attributes:
        path: of the file.
        public: its public key; None where the file cannot be used.
        problem: why not, or None.
    """

    path: Path
    public: bytes | None
    problem: str | None


def list_keys(folder: Path) -> tuple[ListedKey, ...]:
    """The key files of ``folder``, by name; one that cannot be used says why.

    Those are every ``*.pem``, and every file that begins as a PEM file does.

    Raises:
        StorageError: the folder cannot be read.
    """
    try:
        paths = sorted(path for path in Path(folder).iterdir() if is_key_file(path))
    except OSError as error:
        raise StorageError(
            f"cannot read key folder {folder}: {error.strerror or error}; name a folder that is "
            "there"
        ) from error
    return tuple(_list_key(path) for path in paths)


def is_key_file(path: Path) -> bool:
    """Whether ``path`` is meant to be a private key, by its name or by how it begins."""
    return path.suffix == KEY_FILE_SUFFIX or is_pem(path)


def _list_key(path: Path) -> ListedKey:
    try:
        return ListedKey(path, SigningKey.load(path).public, None)
    except (PatchKeyError, StorageError) as error:
        return ListedKey(path, None, str(error))


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys that a reader pins. A key's index is its position, for good.

    Attributes:
        keys: 32 bytes each; None where a key was revoked. Only ever appended to.
        threshold: how many different keys must have signed.

    Raises:
        PatchKeyError: a key that cannot be one or stands there twice, no key, more than 256, or a
            threshold that the live keys cannot reach.
    """

    keys: tuple[bytes | None, ...]
    threshold: int

    def __post_init__(self) -> None:
        if len(self.keys) > MAX_KEYS:
            raise PatchKeyError(
                f"{len(self.keys)} trusted keys; there must be at most {MAX_KEYS}, since an index "
                "is one byte; start a new list with the keys that live"
            )
        live = [key for key in self.keys if key is not None]
        for key in live:
            check_public_key(key)
        if len(set(live)) < len(live):
            twice = next(key for key in live if live.count(key) > 1)
            raise PatchKeyError(
                f"trusted key {twice.hex()} is there twice; each must be there once, or one "
                "person could reach the threshold alone; remove one"
            )
        most = min(MAX_THRESHOLD, len(live))
        if type(self.threshold) is not int or not 1 <= self.threshold <= most:
            raise PatchKeyError(
                f"threshold {self.threshold!r} over {len(live)} live keys; it must be an integer "
                f"from 1 to {MAX_THRESHOLD} and at most the live keys; add keys or lower it"
            )

    def find(self, public: bytes) -> int:
        """The index of a key.

        Raises:
            PatchKeyError: it is not among them.
        """
        if public not in self.keys:
            raise PatchKeyError(
                f"key {public.hex()} is not among the trusted keys; a patch is signed with a key "
                "that readers pin; add it with patchdeploy keys rotate"
            )
        return self.keys.index(public)

    def to_document(self) -> dict[str, object]:
        """The list as plain JSON values."""
        keys = [None if key is None else key.hex() for key in self.keys]
        return {"format": FORMAT, "keys": keys, "threshold": self.threshold}

    def to_bytes(self) -> bytes:
        """Canonical JSON, what readers ship with."""
        return encode_canonical(self.to_document())

    @classmethod
    def from_document(cls, document: object) -> TrustedKeys:
        """The inverse of `to_document`.

        Raises:
            PatchKeyError: other values, or keys that `TrustedKeys` refuses.
        """
        return cls(*_parse_trusted(document))

    @classmethod
    def from_bytes(cls, data: bytes) -> TrustedKeys:
        """Parse what `to_bytes` writes; one newline may follow.

        Raises:
            PatchKeyError: any other text, or keys that `TrustedKeys` refuses.
        """
        try:
            if len(data) > MAX_FILE_BYTES:
                raise CanonicalTextError(f"at most {MAX_FILE_BYTES} bytes", f"{len(data)} bytes")
            document = parse_canonical(data.removesuffix(b"\n"), allow_null=True)
        except CanonicalTextError as error:
            raise PatchKeyError(
                f"list of trusted keys does not parse: it has {error.got}; it must be "
                f"{error.expected}; take the file that patchdeploy keys wrote"
            ) from error
        return cls.from_document(document)

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all; it holds no secret.

        Raises:
            StorageError: as `write_atomic`; it says whether the old list stands or the new one.
        """
        write_atomic(Path(path), self.to_bytes() + b"\n")

    @classmethod
    def load(cls, path: Path | str) -> TrustedKeys:
        """Read a file of `save`.

        Raises:
            PatchKeyError: as `from_bytes`.
            StorageError: it is not there or cannot be read.
        """
        try:
            data = read_regular(Path(path), MAX_FILE_BYTES, follow=True)
        except IrregularFileError as error:
            raise PatchKeyError(f"list of trusted keys {error}") from error
        except OSError as error:
            raise StorageError(
                f"cannot read trusted keys {path}: {error.strerror or error}; name the file that "
                "patchdeploy keys wrote"
            ) from error
        return cls.from_bytes(data)


def _parse_trusted(document: object) -> tuple[tuple[bytes | None, ...], int]:
    if (
        not isinstance(document, dict)
        or set(document) != {"format", "keys", "threshold"}
        or document["format"] != FORMAT
        or not isinstance(document["keys"], list)
    ):
        raise PatchKeyError(
            "list of trusted keys has other parts than it must have: format 1, keys and "
            "threshold; take the file that patchdeploy keys wrote, or upgrade patchdeploy"
        )
    for key in document["keys"]:
        if key is not None and (not isinstance(key, str) or _HEX64.fullmatch(key) is None):
            raise PatchKeyError(
                f"trusted key {str(key)[:80]!r}; it must be 64 lower-case hexadecimal digits, or "
                "null for a revoked one; correct the list"
            )
    keys = tuple(None if key is None else bytes.fromhex(key) for key in document["keys"])
    return keys, document["threshold"]


def rotate(
    trusted: TrustedKeys, new_public: bytes | None = None, revoke: int | None = None
) -> TrustedKeys:
    """A key appended, another revoked, or both at once; every other index stays.

    Never append a key again that was revoked: the list no longer knows it.

    Raises:
        PatchKeyError: ``revoke`` is no live index, or the new list would break a rule of
            `TrustedKeys`.
    """
    keys = list(trusted.keys)
    if revoke is not None:
        if not 0 <= revoke < len(keys) or keys[revoke] is None:
            raise PatchKeyError(
                f"key {revoke} cannot be revoked; it must be one of the {len(keys)} trusted keys "
                "and not be revoked yet; see patchdeploy keys list"
            )
        keys[revoke] = None
    if new_public is not None:
        if new_public in trusted.keys:
            raise PatchKeyError(
                f"key {new_public.hex()} is trusted already; a new key must be another one; make "
                "one with patchdeploy keys new"
            )
        keys.append(new_public)
    return TrustedKeys(tuple(keys), trusted.threshold)


def check_public_key(public: bytes) -> None:
    """Refuse bytes that no honest signer's key has.

    A y not below the field's prime is a second spelling of a key; a point of small order lets
    anyone sign. Bytes that are no point at all are harmless: no signature verifies under them.

    Raises:
        PatchKeyError: not 32 bytes, not the one spelling, or a point of order 1, 2, 4 or 8.
    """
    y = int.from_bytes(public, "little") & (2**255 - 1)
    if len(public) != KEY_BYTES or y >= _FIELD or y in _SMALL_ORDER_Y:
        raise PatchKeyError(
            f"public key {public[:40].hex()} of {len(public)} bytes; it must be an Ed25519 key of "
            f"{KEY_BYTES} bytes, y below 2^255 - 19 and not of small order; make one with "
            "patchdeploy keys new"
        )


def verify_signature(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is that of ``message`` under ``public`` (32 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True
