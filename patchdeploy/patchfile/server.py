"""A folder of patch files over HTTP, for development and for networks of one's own.

A public one belongs behind a content delivery network: see `connections`.

In: a folder. Out: a Starlette app with the files (ranges, ETag = SHA-256) and ``index.json``, which
names the newest signed file of each task. The server need not be trusted: whoever fetches a file
checks its signatures, and the index only says where to look.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile.connections import BoundedProtocol
from patchdeploy.patchfile.container import (
    ENTRY_BYTES,
    MAX_FILE_BYTES,
    MAX_SIGNATURES,
    PREFIX_BYTES,
    read_container,
)
from patchdeploy.patchfile.header import MAX_HEADER_BYTES, PatchHeader
from patchdeploy.storage import sha256_hex

INDEX = "index.json"
INDEX_FORMAT = 1
MEDIA_TYPE = "application/octet-stream"
_PIECE_BYTES = 65_536
_REQUEST_BYTES = 16_384
"""The longest request, its headers included."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.pdp")
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
_START_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES + MAX_SIGNATURES * ENTRY_BYTES
"""All of a file but its payload, at most."""
LOGGER = logging.getLogger("patchdeploy.server")


def make_app(folder: Path) -> Starlette:
    """The app that serves ``folder``; files are looked at anew for each request.

    Raises:
        ConfigError: ``folder`` is no folder.
    """
    folder = Path(folder)
    if not _is_folder(folder):
        raise ConfigError(
            f"{folder} is not a folder; a server needs one with .pdp files in it; correct the path"
        )

    known = Known()

    def index(request: Request) -> Response:
        try:
            document = make_index(folder, known)
        except OSError as error:
            LOGGER.warning("%s cannot be read: %s", folder, error)
            return PlainTextResponse("the folder cannot be read now\n", status_code=503)
        return JSONResponse(document, headers={"cache-control": "no-cache"})

    def file(request: Request) -> Response:
        return _answer(folder, request)

    return Starlette(routes=[Route(f"/{INDEX}", index), Route("/{name}", file)])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


Identity = tuple[int, ...]
_SETTLED_NS = 2 * 10**9
"""A file that has not changed for so long has other times once it changes again."""


class Known:
    """What was found in the files of a folder; of one that has not changed nothing is read again.

    A file is known by device, inode, length and times; threads take turns.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._found: dict[tuple[Path, str], tuple[Identity, Any]] = {}

    def look(self, path: Path, what: str, read: Callable[[Path], Any]) -> Any:
        """``read(path)``, or what it gave or raised when the file was the same.

        Raises:
            PatchRefusedError, OSError: whatever ``read`` raises; logged when it is new.
        """
        identity = _identify(path)
        held = self._found.get((path, what))
        if held is not None and held[0] == identity:
            outcome = held[1]
        else:
            try:
                outcome = read(path)
            except (PatchRefusedError, OSError) as error:
                LOGGER.warning("%s is not listed: %s", path, error)
                outcome = error.with_traceback(None)
            newest = max(identity[-2:])
            if time.time_ns() - newest > _SETTLED_NS and _identify(path) == identity:
                self._found[path, what] = identity, outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def forget_others(self, paths: Iterable[Path]) -> None:
        """Keep what is known of these alone."""
        kept = set(paths)
        self._found = {key: one for key, one in self._found.items() if key[0] in kept}


def _identify(path: Path) -> Identity:
    status = path.lstat()
    return (
        *(status.st_dev, status.st_ino, status.st_mode, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def make_index(folder: Path, known: Known | None = None) -> dict[str, Any]:
    """What ``index.json`` says: for each task the signed file with the highest sequence number.

    An unsigned file is named only where the task has no signed one: no reader takes it in place of
    one. Whether signatures are valid nobody can tell here. Of all files the headers are read, and
    whole only those that are named. A file that does not hold together is left out, with a logged
    warning, and the next best one is named.

    Args:
        known: what earlier calls have found; files that are the same are not read again.

    Raises:
        OSError: the folder cannot be read.
    """
    known = known or Known()
    paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    with known.lock:
        known.forget_others(paths)
        found: dict[str, list[tuple[bool, int, Path]]] = {}
        for path in paths:
            with suppress(PatchRefusedError, OSError):  # logged
                header, signatures = known.look(path, "header", _read_header)
                found.setdefault(header.task, []).append((signatures > 0, header.sequence, path))
        newest = {task: _find_newest(known, task, one) for task, one in found.items()}
    return {"format": INDEX_FORMAT, "tasks": {task: one for task, one in newest.items() if one}}


def _find_newest(
    known: Known, task: str, candidates: list[tuple[bool, int, Path]]
) -> dict[str, Any] | None:
    """The entry of the best of ``candidates`` that holds together."""
    # Of equals the first by name: sorted() keeps their order.
    for _, _, path in sorted(candidates, key=lambda one: one[:2], reverse=True):
        with suppress(PatchRefusedError, OSError):  # logged
            of, entry = known.look(path, "entry", _describe)
            if of == task:  # else it was replaced meanwhile
                described: dict[str, Any] = entry
                return described
    return None


def _read_header(path: Path) -> tuple[PatchHeader, int]:
    """The header and the count of signatures, from the first bytes of a file of the right length.

    Raises:
        PatchRefusedError, OSError: they cannot be read.
    """
    start, length_bytes = _read(path, _START_BYTES)
    container = read_container(start)
    header = PatchHeader.from_bytes(container.header)
    expected = len(start) - len(container.payload) + header.payload_bytes
    if length_bytes != expected:
        raise OSError(errno.EINVAL, f"it has {length_bytes} bytes and must have {expected}")
    return header, len(container.signatures)


def _describe(path: Path) -> tuple[str, dict[str, Any]]:
    """The task of a file, and its entry.

    Raises:
        PatchRefusedError, OSError: it does not hold together.
    """
    data, _ = _read(path)
    container = read_container(data)
    header = PatchHeader.from_bytes(container.header)
    if sha256_hex(container.payload) != header.payload_sha256:
        raise OSError(errno.EINVAL, "its payload is not the one that its header names")
    return header.task, {
        "file": path.name,
        "sequence": header.sequence,
        "sha256": sha256_hex(data),
        "bytes": len(data),
        "expires": header.expires,
        "signatures": len(container.signatures),
    }


def _answer(folder: Path, request: Request) -> Response:
    """One file, or 304, or 404 for every name that is no patch file of the folder.

    The file is read once: the bytes that are sent are those that the ETag is the hash of.
    """
    name = request.path_params["name"]
    try:
        if _NAME.fullmatch(name) is None:
            raise FileNotFoundError(name)
        data, _ = _read(folder / name)
    except OSError:
        return PlainTextResponse("no such patch file\n", status_code=404)
    etag = f'"{sha256_hex(data)}"'
    headers = {"etag": etag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return _send(data, etag, headers, request)


def _send(data: bytes, etag: str, headers: dict[str, str], request: Request) -> Response:
    """The whole, or the one range that is asked for (RFC 9110, 14); several ranges: the whole."""
    headers = headers | {"accept-ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or request.headers.get("if-range", etag) != etag or asked[0] == "bytes=-":
        return _stream(memoryview(data), 200, headers)
    first, last = _place_range(asked[1], asked[2], len(data))
    if first > last:
        headers |= {"content-range": f"bytes */{len(data)}"}
        return Response(status_code=416, headers=headers)
    headers |= {"content-range": f"bytes {first}-{last}/{len(data)}"}
    return _stream(memoryview(data)[first : last + 1], 206, headers)


def _stream(body: memoryview, status: int, headers: dict[str, str]) -> Response:
    """``body`` in pieces: no more of it is copied than the client takes."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _PIECE_BYTES):
            await asyncio.sleep(0)  # a connection that was ended meanwhile gets no more
            yield bytes(body[start : start + _PIECE_BYTES])

    headers = headers | {"content-length": str(len(body))}
    return StreamingResponse(pieces(), status, headers, MEDIA_TYPE)


def _place_range(first: str, last: str, length: int) -> tuple[int, int]:
    """The first and the last byte of a range of ``length`` bytes; none: first above last."""
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last), length - 1) if last else length - 1


def _read(path: Path, most_bytes: int = MAX_FILE_BYTES + 1) -> tuple[bytes, int]:
    """The first bytes and the length of a regular file, no link, no longer than a patch may be.

    Raises:
        OSError: it is another kind of file, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        data = file.read(most_bytes) if stat.S_ISREG(status.st_mode) else None
    if data is None or max(len(data), status.st_size) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "it is no regular file, or longer than a patch may be")
    return data, status.st_size


def serve_folder(
    folder: Path, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] | None = None
) -> None:
    """Serve ``folder`` until Ctrl-C, which is how it ends, or until the process is told to.

    Args:
        port: 0: one that is free.
        ready: called with the address once connections are taken.

    Raises:
        ConfigError: ``folder`` is no folder, or the address cannot be listened on.
    """
    app = make_app(folder)
    listener = _listen(host, port)
    with listener:
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn passes it on once its answers are sent
            make_server(app).run(sockets=[listener])


def make_server(app: Starlette) -> uvicorn.Server:
    """The server of ``app``, with `connections.BoundedProtocol`; it is not started yet."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http=BoundedProtocol,
        h11_max_incomplete_event_size=_REQUEST_BYTES,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; it must be an address of this machine "
            "and a port that is free; choose another"
        ) from error
