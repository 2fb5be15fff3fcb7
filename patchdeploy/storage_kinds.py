"""What a file is that is not what its name says: what a download or a clone leaves in its place.

In: the first bytes of a file. Out: its kind in words and what to do, or None where it is none of
those that people meet: a Git LFS pointer, a web page, an archive, a file of another format.
"""

from __future__ import annotations

HEAD_BYTES = 512
"""How many bytes `describe_content` wants to see."""

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body")
_STARTS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "name it in the form keras:FILE.h5"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"\x93NUMPY", "a numpy array", "save the network's tensors by name"),
    (b"\x89PNG", "a PNG image", "name the checkpoint itself"),
    (b"\xff\xd8\xff", "a JPEG image", "name the checkpoint itself"),
    (b"%PDF-", "a PDF document", "download the file itself"),
)


def describe_content(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with ``head`` is, and what to do about it; None: nothing known.

    Args:
        head: up to `HEAD_BYTES` of its beginning.
    """
    if not head:
        return "an empty file", "copy or download it again"
    if head.startswith(_LFS):
        return (
            "a Git LFS pointer, a few lines of text in the place of the file",
            "run git lfs pull where it was cloned, or download the file itself",
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGE):
        return (
            "an HTML page, as a server sends for an error or a login",
            "open the address in a browser and download the file itself",
        )
    if text.startswith(b"<?xml"):
        return "an XML document, as a server sends for an error", "download the file itself"
    if head[4:8] == b"TFL3":
        return "a TFLite model", "name the checkpoint that it was made from"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    for start, what, remedy in _STARTS:
        if head.startswith(start):
            return what, remedy
    if text.startswith((b"{", b"[")) and _is_text(text):
        return "JSON text", "name the file with the tensors"
    return None


def _is_text(head: bytes) -> bool:
    return not any(byte < 32 and byte not in b"\t\r\n" for byte in head)
