"""Row 25: clients that hold up the server of patches, and servers and addresses that lead astray.

Clients open three times as many connections as the server keeps and send nothing, half a request,
or whole ones whose answers they do not take: somebody else is answered all the same. Redirects,
addresses and proxies that are none end in a typed error that shows no password.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from container_cases import document, forge, sha
from hostile_server import ADDRESSES, PROXIES, SECRET, TARGETS, reply, serving
from tried import Progress, Told

from patchdeploy.errors import ConfigError, DownloadError
from patchdeploy.patchfile.connections import BoundedProtocol
from patchdeploy.patchfile.download import DownloadLimits, download_patch
from patchdeploy.patchfile.server import make_app, make_server

PAYLOAD = bytes(2**20)
FILE = forge(document(payload={"bytes": len(PAYLOAD), "sha256": sha(PAYLOAD)}), PAYLOAD)
PATIENCE_SECONDS = 60.0
"""Below the time that an answer that is not taken may hold a connection."""
LIMITS = DownloadLimits(connect_seconds=2, read_seconds=2, total_seconds=5)
GREEDY = {
    "nothing": b"",
    "a byte": b"G",
    "half a request": b"GET /a.pdp HTTP/1.1\r\nHost: x\r\n",
    "a body that does not come": b"POST /a.pdp HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    "requests whose answers are not taken": b"GET /a.pdp HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder with one file of a MiB, served; its address."""
    folder.mkdir()
    (folder / "a.pdp").write_bytes(FILE)
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(make_app(folder))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def try_clients(folder: Path, step: int = 1) -> int:
    """Every ``step``-th kind of greedy client; the number of connections."""
    count = 0
    for number, sent in enumerate(list(GREEDY.values())[::-step]):
        with served(folder / str(number)) as url, ExitStack() as stack:
            place = ("127.0.0.1", int(url.rpartition(":")[2]))
            for _ in range(3 * BoundedProtocol.most):
                one = stack.enter_context(socket.create_connection(place, 10))
                one.sendall(sent)
                count += 1
            _ask(url, sent)
    return count


def _ask(url: str, sent: bytes) -> None:
    """An honest client, while others have sent that."""
    try:
        with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            assert client.get(f"{url}/a.pdp").content == FILE, sent
            assert client.get(f"{url}/index.json").status_code == 200, sent
    except httpx.HTTPError as error:
        raise AssertionError(f"{sent!r}: {error!r}") from error


def _typed(address: str, folder: Path, what: object) -> None:
    try:
        download_patch(address, folder, LIMITS)
        said = f"{SECRET}: something was downloaded"
    except (ConfigError, DownloadError) as error:
        said = str(error)
    assert SECRET not in said, f"{what}: {said}"


@contextmanager
def environment(**changes: str) -> Iterator[None]:
    """These variables, and no other proxy."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def try_service(scale: float, folder: Path, progress: Progress) -> Told:
    """Row 25; below full scale every fifth of everything."""
    step = 1 if scale >= 1 else 5
    targets, addresses, proxies = TARGETS[::step], ADDRESSES[::step], PROXIES[::step]
    connections = try_clients(folder, step)
    progress(0.5)
    parts = folder / "parts"
    with environment():
        for target in targets:

            def elsewhere(request: object, connection: socket.socket, target: str = target) -> None:
                reply(connection, b"", "302 Found", location=target)

            with serving(elsewhere) as server:
                _typed(server.url, parts, target)
        for address in addresses:
            _typed(address, parts, address)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        for proxy in proxies:
            with environment(**{name: proxy}):
                _typed("http://example.invalid/x", parts, (name, proxy))
    led = len(targets) + len(addresses) + 3 * len(proxies)
    return Told(
        f"{connections} connections of clients that send or take nothing, "
        f"{3 * BoundedProtocol.most} of a kind at once; {len(targets)} redirects, "
        f"{len(addresses)} addresses and {3 * len(proxies)} proxies that are none",
        "another client was answered each time; a typed error each time, without the password",
        connections + led,
    )
