"""A folder of patch files over HTTP, for development and for networks of one's own.

In: a folder. Out: a Starlette app with the files (ranges, ETag = SHA-256) and ``index.json``, which
names the newest file of each task. The server need not be trusted: whoever fetches a file checks
its signatures, and the index only says where to look.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile.container import MAX_FILE_BYTES, read_container
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.storage import sha256_hex

INDEX = "index.json"
INDEX_FORMAT = 1
MEDIA_TYPE = "application/octet-stream"
MAX_CONNECTIONS = 64

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.pdp")
LOGGER = logging.getLogger("patchdeploy.server")


def make_app(folder: Path) -> Starlette:
    """The app that serves ``folder``; files are looked at anew for each request.

    Raises:
        ConfigError: ``folder`` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; a server needs one with .pdp files in it; correct the path"
        )

    def index(request: Request) -> Response:
        return JSONResponse(make_index(folder), headers={"cache-control": "no-cache"})

    def file(request: Request) -> Response:
        return _answer(folder, request)

    return Starlette(routes=[Route(f"/{INDEX}", index), Route("/{name}", file)])


def make_index(folder: Path) -> dict[str, Any]:
    """What ``index.json`` says: for each task the file with the highest sequence number.

    A file that does not parse is left out, with a logged warning.
    """
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        if _NAME.fullmatch(path.name) is None:
            continue
        try:
            entry = _describe(path)
        except (PatchRefusedError, OSError) as error:
            LOGGER.warning("%s is not listed: %s", path, error)
            continue
        task = entry.pop("task")
        if task not in newest or entry["sequence"] > newest[task]["sequence"]:
            newest[task] = entry
    return {"format": INDEX_FORMAT, "tasks": newest}


def _describe(path: Path) -> dict[str, Any]:
    data, _ = _read(path)
    container = read_container(data)
    header = PatchHeader.from_bytes(container.header)
    return {
        "task": header.task,
        "file": path.name,
        "sequence": header.sequence,
        "sha256": sha256_hex(data),
        "bytes": len(data),
        "expires": header.expires,
        "signatures": len(container.signatures),
    }


def _answer(folder: Path, request: Request) -> Response:
    """One file, or 304, or 404 for every name that is no patch file of the folder."""
    name = request.path_params["name"]
    path = folder / name
    try:
        if _NAME.fullmatch(name) is None:
            raise FileNotFoundError(name)
        data, status = _read(path)
    except OSError:
        return PlainTextResponse("no such patch file\n", status_code=404)
    etag = f'"{sha256_hex(data)}"'
    headers = {"etag": etag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type=MEDIA_TYPE, stat_result=status)


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file that is not a link and no longer than a patch may be.

    Raises:
        OSError: it is another kind of file, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "it is no regular file, or longer than a patch may be")
        return file.read(status.st_size), status


def serve_folder(
    folder: Path, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] | None = None
) -> None:
    """Serve ``folder`` until the process is told to end.

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
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=MAX_CONNECTIONS,
        )
        uvicorn.Server(config).run(sockets=[listener])


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
