"""Whether an APK is one that a phone loads fast and that gives nothing away; and what fills it.

In: a signed APK. Out: what is wrong with it, and a table of sizes; exit status 1 where something
is wrong. ``--write`` puts the table into a page between its two marks.

- Native libraries are stored and begin at multiples of 16 KB, and so do their segments: Android 15
  has devices with such pages, which map nothing else.
- Assets are stored, so that the base is mapped and not copied; resources.arsc too, at 4 bytes.
- It is signed by schemes v2 and v3. The signatures themselves are verified by the packager.
- No private key is inside.

    python tests/android/check_apk.py APK [--write docs/android.md]
"""

from __future__ import annotations

import argparse
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

PAGE_BYTES = 16_384
ABIS = ("arm64-v8a", "x86_64")
SCHEMES = {"v2": 0x7109871A, "v3": 0xF05368C0}
BLOCK_MAGIC = b"APK Sig Block 42"
BLOCK_TAIL_BYTES = 24
MARKS = ("<!-- sizes of the APK -->", "<!-- end of sizes -->")
SECRETS = {
    "a private key in PEM": b"PRIVATE KEY-----",
    "a private Ed25519 key": bytes.fromhex("302e020100300506032b657004220420"),
    "a private RSA key": bytes.fromhex("020100300d06092a864886f70d010101050004"),
}
"""By name, bytes that such a key has in any file (PKCS #8; RFC 5958, 8410)."""
KEY_FILES = (".key", ".pem", ".p8", ".p12", ".pfx", ".jks", ".keystore")
_ELF64, _LITTLE, _LOAD = 2, 1, 1


def main(arguments: list[str]) -> int:
    """Check and print; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("apk", type=Path)
    parser.add_argument("--write", type=Path, help="a page that gets the table")
    options = parser.parse_args(arguments)
    faults = list(apk_faults(options.apk))
    table = size_table(options.apk)
    sys.stdout.write("".join(f"WRONG: {fault}\n" for fault in faults) + table)
    if options.write is not None and not faults:
        write_table(options.write, table)
    return 1 if faults else 0


def apk_faults(apk: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    data = apk.read_bytes()
    with zipfile.ZipFile(apk) as archive:
        entries = archive.infolist()
        names = Counter(one.filename for one in entries)
        yield from (f"{name} is there {count} times" for name, count in names.items() if count > 1)
        for wanted in ("AndroidManifest.xml", "classes.dex", "resources.arsc"):
            if wanted not in names:
                yield f"{wanted} is missing"
        if not any(name.endswith(".so") for name in names):
            yield "no native library is there"
        for entry in entries:
            content = archive.read(entry)
            yield from _entry_faults(data, entry, content)
            yield from _secret_faults(entry.filename, content)
    found = signing_schemes(data)
    for name, number in SCHEMES.items():
        if number not in found:
            yield f"no signature of scheme {name}"


def _entry_faults(data: bytes, entry: zipfile.ZipInfo, content: bytes) -> Iterator[str]:
    name, is_stored = entry.filename, entry.compress_type == zipfile.ZIP_STORED
    start = _data_offset(data, entry)
    if name.endswith(".so"):
        if name.split("/")[:-1] not in [["lib", abi] for abi in ABIS]:
            yield f"{name} is not under lib/ and one of {', '.join(ABIS)}"
        if not is_stored or start % PAGE_BYTES:
            yield f"{name} must be stored at a multiple of {PAGE_BYTES}, and is at {start}"
        yield from (f"{name}: {fault}" for fault in library_faults(content))
    if name.startswith("assets/") and not is_stored:
        yield f"{name} is compressed; assets must be stored"
    if name == "resources.arsc" and (not is_stored or start % 4):
        yield f"{name} must be stored at a multiple of 4, and is at {start}"


def _data_offset(data: bytes, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its local header, whose extra field is its own."""
    name_bytes, extra_bytes = struct.unpack_from("<HH", data, entry.header_offset + 26)
    return int(entry.header_offset + 30 + name_bytes + extra_bytes)


def library_faults(data: bytes) -> Iterator[str]:
    """Of a shared library for 64 bits: segments that pages of 16 KB cannot map."""
    if data[:6] != b"\x7fELF" + bytes([_ELF64, _LITTLE]):
        yield "no ELF file of 64 bits"
        return
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads = 0
    for number in range(count):
        kind, _, offset, address, _, _, _, align = struct.unpack_from(
            "<IIQQQQQQ", data, table + number * size
        )
        if kind != _LOAD:
            continue
        loads += 1
        if align % PAGE_BYTES or not align or (address - offset) % PAGE_BYTES:
            yield f"segment {number} is aligned to {align}, from {offset} to address {address}"
    if not loads:
        yield "no segment to load"


def _secret_faults(name: str, content: bytes) -> Iterator[str]:
    if name.lower().endswith(KEY_FILES):
        yield f"{name} has the name of a private key"
    for what, pattern in SECRETS.items():
        if pattern in content:
            yield f"{name} holds {what}"


def signing_schemes(data: bytes) -> set[int]:
    """The numbers in the block before the central directory."""
    end = data.rfind(b"PK\x05\x06")
    (directory,) = struct.unpack_from("<I", data, end + 16)
    if data[directory - 16 : directory] != BLOCK_MAGIC:
        return set()
    (size,) = struct.unpack_from("<Q", data, directory - BLOCK_TAIL_BYTES)
    place, numbers = directory - size, set()
    while place < directory - BLOCK_TAIL_BYTES:
        length, number = struct.unpack_from("<QI", data, place)
        numbers.add(number)
        place += 8 + length
    return numbers


def size_table(apk: Path) -> str:
    """Bytes of the parts as they lie in the APK, in Markdown."""
    with zipfile.ZipFile(apk) as archive:
        sizes: Counter[str] = Counter()
        for entry in archive.infolist():
            sizes[_part(entry.filename)] += entry.compress_size
    sizes["signatures, alignment, directory"] = apk.stat().st_size - sizes.total()
    return _rows({**sizes, "all": apk.stat().st_size})


def _rows(sizes: Mapping[str, int]) -> str:
    rows = sorted(sizes.items(), key=lambda one: (one[0] == "all", one[0]))
    lines = [f"| {name} | {size:,} |\n" for name, size in rows]
    return "".join(["| part of the APK | bytes |\n|---|---|\n", *lines])


def _part(name: str) -> str:
    parts = name.split("/")
    if name.endswith(".so"):
        return f"native library {parts[-1]} ({parts[1]})"
    if parts[0] == "assets":
        if parts[-1].endswith(".pdp"):
            return f"patch {parts[-1]}"
        if len(parts) == 3 and parts[-1].startswith("base."):
            return f"bundle: {parts[-1]}"
        return "assets: " + ("the rest of the bundle" if parts[1] == "bundle" else parts[1])
    return "code (dex)" if name.endswith(".dex") else "resources, manifest"


def write_table(page: Path, table: str) -> None:
    """Between the two marks of a page."""
    start, end = MARKS
    text = page.read_text()
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{page} has no lines '{start}' and '{end}'; put them where the table belongs")
    page.write_text(f"{before}{start}\n\n{table}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
