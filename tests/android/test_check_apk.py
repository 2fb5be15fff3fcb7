"""The check of an APK, over small archives with one thing wrong in each."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from check_apk import MARKS, SCHEMES, apk_faults, main, size_table

from patchdeploy.patchfile.keys import SigningKey

PAGE = 16_384
BOTH = tuple(SCHEMES.values())


def library(align: int = PAGE, address: int = 0, kind: int = 1, bits: int = 2) -> bytes:
    """An ELF file of one segment."""
    head = b"\x7fELF" + bytes([bits, 1]) + bytes(26) + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 1)
    head = head.ljust(64, b"\0")
    return head + struct.pack("<IIQQQQQQ", kind, 5, 0, address, address, 120, 120, align)


def files() -> dict[str, tuple[bytes, bool]]:
    """Name, content, and whether it is stored."""
    return {
        "AndroidManifest.xml": (b"manifest", False),
        "classes.dex": (b"dex", False),
        "resources.arsc": (b"arsc", True),
        "assets/bundle/base.tflite": (bytes(5000), True),
        "assets/bundle/patches/digits.pdp": (bytes(300), True),
        "lib/arm64-v8a/libone.so": (library(), True),
        "lib/x86_64/libone.so": (library(align=2 * PAGE, address=PAGE), True),
    }


def write_apk(path: Path, content: dict[str, tuple[bytes, bool]], schemes=BOTH):
    """A zip with each library at a page, and a signing block of these schemes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (data, is_stored) in content.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
            step = PAGE if name.endswith(".so") else 4
            start = archive.fp.tell() + 30 + len(name) + 4
            entry.extra = struct.pack("<HH", 0xD935, -start % step) + bytes(-start % step)
            archive.writestr(entry, data)
    data = path.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    directory = struct.unpack_from("<I", data, end + 16)[0]
    pairs = b"".join(struct.pack("<QI", 4 + 9, number) + b"signature" for number in schemes)
    size = struct.pack("<Q", len(pairs) + 24)
    block = size + pairs + size + b"APK Sig Block 42" if schemes else b""
    moved = data[end : end + 16] + struct.pack("<I", directory + len(block)) + data[end + 20 :]
    path.write_bytes(data[:directory] + block + data[directory:end] + moved)
    return path


def test_a_good_one_has_no_fault_and_its_parts_add_up(tmp_path, capsys):
    apk = write_apk(tmp_path / "one.apk", files())
    assert list(apk_faults(apk)) == []
    assert main([str(apk)]) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    sizes = {name.strip(): int(size.replace(",", "")) for name, size in rows}
    assert sizes.pop("all") == sum(sizes.values()) == apk.stat().st_size
    assert sizes["patch digits.pdp"] == 300
    assert sizes["bundle: base.tflite"] == 5000
    assert sizes["native library libone.so (arm64-v8a)"] == len(library())


def changed(name: str, data: bytes | None, is_stored: bool = True) -> Callable[[], dict]:
    """The good files with one of them changed, added or (None) left out."""

    def make() -> dict[str, tuple[bytes, bool]]:
        rest = {key: one for key, one in files().items() if key != name}
        return rest if data is None else {**rest, name: (data, is_stored)}

    return make


LIBRARY = "lib/arm64-v8a/libone.so"
SECRET = SigningKey.new()


def pem(tmp_path: Path) -> bytes:
    """A private key as patchdeploy writes it."""
    SECRET.save(tmp_path / "secret")
    return (tmp_path / "secret").read_bytes()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (changed(LIBRARY, library(), is_stored=False), "must be stored at a multiple"),
        (changed(LIBRARY, library(align=4096)), "segment 0 is aligned to 4096"),
        (changed(LIBRARY, library(address=4096)), "segment 0 is aligned to 16384, from 0 to"),
        (changed(LIBRARY, library(align=0)), "segment 0 is aligned to 0"),
        (changed(LIBRARY, library(kind=2)), "no segment to load"),
        (changed(LIBRARY, library(bits=1)), "no ELF file of 64 bits"),
        (changed("lib/armeabi-v7a/libone.so", library()), "is not under lib/"),
        (changed("assets/bundle/base.tflite", bytes(5000), is_stored=False), "must be stored"),
        (changed("resources.arsc", b"arsc", is_stored=False), "must be stored at a multiple of 4"),
        (changed("classes.dex", None), "classes.dex is missing"),
        (changed("AndroidManifest.xml", None), "AndroidManifest.xml is missing"),
        (changed("assets/debug.KEYSTORE", b"?"), "has the name of a private key"),
        (changed("assets/seed", bytes.fromhex("302e020100300506032b657004220420")), "Ed25519 key"),
    ],
)
def test_one_thing_that_is_wrong_is_the_one_fault_that_is_named(tmp_path, make, fault):
    faults = list(apk_faults(write_apk(tmp_path / "one.apk", make())))
    assert len(faults) == 1, faults
    assert fault in faults[0]


def test_a_library_between_two_pages_is_named(tmp_path):
    apk = tmp_path / "one.apk"
    write_apk(apk, files())
    with zipfile.ZipFile(apk, "a") as archive:
        archive.writestr("lib/arm64-v8a/libtwo.so", library())
    assert [fault for fault in apk_faults(apk) if "libtwo.so must be stored at" in fault]


def test_a_compressed_private_key_is_found(tmp_path):
    content = {**files(), "res/raw.txt": (b"x" * 999 + pem(tmp_path), False)}
    faults = list(apk_faults(write_apk(tmp_path / "one.apk", content)))
    assert faults == ["res/raw.txt holds a private key in PEM"]


@pytest.mark.parametrize(
    ("schemes", "missing"), [(("v2",), ["v3"]), (("v3",), ["v2"]), ((), ["v2", "v3"])]
)
def test_a_scheme_without_a_signature_is_named(tmp_path, schemes, missing):
    numbers = tuple(SCHEMES[name] for name in schemes)
    faults = list(apk_faults(write_apk(tmp_path / "one.apk", files(), numbers)))
    assert faults == [f"no signature of scheme {name}" for name in missing]


def test_the_table_is_written_between_its_marks_and_only_for_a_good_one(tmp_path, capsys):
    apk, page = write_apk(tmp_path / "one.apk", files()), tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert main([str(apk), "--write", str(page)]) == 0
    assert page.read_text() == (f"before\n{MARKS[0]}\n\n{size_table(apk)}\n{MARKS[1]}\nafter\n")
    bad = write_apk(tmp_path / "bad.apk", changed("classes.dex", None)())
    before = page.read_text()
    assert main([str(bad), "--write", str(page)]) == 1
    assert page.read_text() == before
    assert "WRONG: classes.dex is missing" in capsys.readouterr().out
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        main([str(apk), "--write", str(page)])
