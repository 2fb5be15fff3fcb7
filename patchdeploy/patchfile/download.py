"""Fetching a patch file from a server that may be broken or hostile.

In: an address, a folder for what is not finished, limits. Out: the bytes of one file, none of them
trusted yet, or a typed error; memory stays at one file of the longest length. What arrived of a
download that was cut short lies in the folder and is gone on with where the server says, by a
strong ETag, that the file is still the same. Nothing is followed, inflated or guessed.

    <32 hex digits of SHA-256 of the address>.part      the ETag, a newline, then the bytes so far
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import httpx

from patchdeploy.errors import ConfigError, DownloadError, PatchRefusedError
from patchdeploy.patchfile.container import MAX_FILE_BYTES
from patchdeploy.patchfile.partial import PartialFile, open_partial

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TAIL = re.compile(r"[?#]")
_LENGTH = re.compile(r"[0-9]{1,15}")
_AGAIN = "run it again: it goes on where it stopped, if the server lets it"
_OTHER = "use another server, or fetch the file by other means"


@dataclass(frozen=True)
class DownloadLimits:
    """What a server may take.

    Attributes:
        file_bytes: longest file; the transfer stops there.
        connect_seconds: until the connection stands.
        read_seconds: until the next bytes arrive.
        total_seconds: for everything together, also a server that sends its headers drop by drop.
        window_seconds, window_bytes: the least that must arrive in each such time.
    """

    file_bytes: int = MAX_FILE_BYTES
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    total_seconds: float = 300.0
    window_seconds: float = 30.0
    window_bytes: int = 16_384


@dataclass(frozen=True)
class Downloaded:
    """A file as a server gave it; it must pass every check before anything is done with it.

    Attributes:
        data: its bytes.
        url: where it came from, without user name and password.
        etag: the server's name for these bytes, or None.
        resumed_bytes: how many of them an earlier download had left.
    """

    data: bytes = field(repr=False)  # an event loop prints results when it ends
    url: str
    etag: str | None
    resumed_bytes: int


def download_patch(url: str, folder: Path, limits: DownloadLimits | None = None) -> Downloaded:
    """`fetch_patch` for callers without an event loop.

    Raises:
        ConfigError, DownloadError, PatchRefusedError, StorageError: see `fetch_patch`.
    """
    return asyncio.run(fetch_patch(url, folder, limits))


async def fetch_patch(url: str, folder: Path, limits: DownloadLimits | None = None) -> Downloaded:
    """Fetch the file at ``url``; what an earlier call left in ``folder`` is gone on with.

    Args:
        folder: made if need be; its parent must exist.

    Raises:
        ConfigError: ``url`` is not an http or https address.
        PatchRefusedError: code "too_large"; nothing of the file is kept.
        DownloadError: no answer, not 200, too slow, cut short, a redirect, a coded body, or another
            process fetches the same.
        StorageError: ``folder`` cannot be written.
    """
    address = _parse_url(url)
    limits = limits or DownloadLimits()
    with open_partial(Path(folder), url) as part:
        transfer = _Transfer(address, part, limits)
        try:
            async with asyncio.timeout(limits.total_seconds):
                return await transfer.run()
        except TimeoutError as error:
            raise transfer.fail(
                f"is not done after {limits.total_seconds:g} s", "that is the longest it may take"
            ) from error
        except httpx.TimeoutException as error:
            raise transfer.fail(
                "does not answer",
                f"a connection may take {limits.connect_seconds:g} s, the next bytes "
                f"{limits.read_seconds:g} s",
            ) from error
        except (httpx.ConnectError, UnicodeError, OverflowError, ExceptionGroup) as error:
            # UnicodeError: a host name too long; the last two: a proxy's port of six digits
            raise transfer.fail(
                f"cannot be reached ({_reason(error)})",
                "the server must run and take connections",
                "correct the address, or start the server",
            ) from error
        except httpx.HTTPError as error:
            raise transfer.fail(
                f"ended before the whole file was here ({_reason(error)})",
                "it must send what it has announced",
            ) from error


def _parse_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
        host, port = url.host, url.port  # an international name is decoded here
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _bad_url(text) from error
    is_port = port is None or 0 < port < 65_536
    if url.scheme not in ("http", "https") or not host or not is_port:
        raise _bad_url(text)
    return url


def _bad_url(text: str) -> ConfigError:
    return ConfigError(
        f"address {_without_secrets(text)[:80]!r}; it must be http:// or https:// and a host; "
        "correct it"
    )


def _without_secrets(text: str) -> str:
    """An address as it may be shown: what stands before an @ can be a password, and what follows a
    question mark a token."""
    secret, at, rest = text.rpartition("@")
    scheme = _SCHEME.match(secret) if at else None
    return _TAIL.split((scheme[0] if scheme else "") + rest, maxsplit=1)[0]


def _reason(error: Exception) -> str:
    text = str(error)
    return type(error).__name__ if not text or "@" in text else _cut(text)


def _cut(text: str) -> str:
    """What a server said, short and without control characters."""
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


class _StaleError(Exception):
    """What is in the part is not the beginning of what the server has now."""


@dataclass
class _Transfer:
    """One file on its way."""

    address: httpx.URL
    part: PartialFile
    limits: DownloadLimits
    clock: Callable[[], float] = field(default=time.monotonic)

    @property
    def shown(self) -> str:
        """The address without user name and password."""
        return _cut(str(self.address.copy_with(userinfo=b"", query=None, fragment=None)))

    def fail(self, what: str, rule: str, remedy: str = _AGAIN) -> DownloadError:
        return DownloadError(f"{self.shown} {what}; {rule}; {remedy}")

    async def run(self) -> Downloaded:
        async with self._client() as client:
            try:
                return await self._ask(client)
            except _StaleError:
                self.part.restart(None)
                return await self._ask(client)  # of an empty part nothing is stale

    def _client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(self.limits.read_seconds, connect=self.limits.connect_seconds)
        try:
            hooks = {"response": [self._refuse_redirect]}
            return httpx.AsyncClient(timeout=timeout, follow_redirects=False, event_hooks=hooks)
        except (ValueError, OSError, ImportError, httpx.InvalidURL) as error:
            raise ConfigError(
                "the environment's proxy or certificates cannot be used: "
                f"{_reason(error)}; HTTP_PROXY, HTTPS_PROXY and ALL_PROXY must be addresses of "
                "HTTP proxies (no SOCKS), SSL_CERT_FILE a file; correct them"
            ) from error

    async def _ask(self, client: httpx.AsyncClient) -> Downloaded:
        headers = {"Accept-Encoding": "identity", "User-Agent": "patchdeploy"}
        resumed, etag = self.part.body_bytes, self.part.etag
        total: int | None = None
        if etag is not None and resumed:
            headers |= {"Range": f"bytes={resumed}-", "If-Range": etag}
        else:
            resumed = 0
        async with client.stream("GET", self.address, headers=headers) as response:
            if resumed and response.status_code != HTTPStatus.OK:
                total = self._check_continues(response, resumed, etag)
            else:
                resumed = 0
                self._check_whole(response)
                self.part.restart(_strong_etag(response))
            self._check_coding(response)
            await self._receive(response)
        self._check_total(total)
        return Downloaded(self.part.finish(), self.shown, self.part.etag, resumed)

    async def _refuse_redirect(self, response: httpx.Response) -> None:
        """Called before the client looks where a redirect leads: that may be no address."""
        if 300 <= response.status_code < 400:
            target = _without_secrets(response.headers.get("location", "nowhere"))
            raise self.fail(
                f"redirects to {_cut(target)!r}",
                "a redirect is never followed",
                "if you trust that address, name it",
            )

    def _check_whole(self, response: httpx.Response) -> None:
        """An answer that begins at the first byte."""
        code = response.status_code
        if code != HTTPStatus.OK:
            raise self.fail(
                f"answers {_name(code)}", "it must answer 200 OK", "correct the address"
            )

    def _check_continues(self, response: httpx.Response, have: int, etag: str | None) -> int:
        """An answer that begins where the part ends, of the same file; the length of that file.

        Raises:
            _StaleError: the part must be thrown away.
        """
        code = response.status_code
        if code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _StaleError
        if code != HTTPStatus.PARTIAL_CONTENT:
            self._check_whole(response)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or _strong_etag(response) != etag:
            raise _StaleError
        first, last, total = (int(number) for number in found.groups())
        if first != have or last + 1 != total:
            raise _StaleError
        self._check_length(total)
        return total

    def _check_total(self, total: int | None) -> None:
        """A body can end in order and yet before (or behind) the end that its range announced."""
        have = self.part.body_bytes
        if total is None or have == total:
            return
        if have > total:  # then nobody can tell which of the bytes are the file's
            self.part.discard()
        raise self.fail(
            f"ended with {have} of {total} bytes here", "it must send what it has announced"
        )

    def _check_coding(self, response: httpx.Response) -> None:
        coding = response.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise self.fail(
                f"sends the file coded as {_cut(coding)!r}", "it must send it as it is", _OTHER
            )

    def _check_length(self, length_bytes: int) -> None:
        """Check 1 of docs/patch-format.md, before and while bytes arrive."""
        if length_bytes > self.limits.file_bytes:
            self.part.discard()
            raise PatchRefusedError(
                "too_large",
                "file length",
                f"at most {self.limits.file_bytes} bytes",
                f"{length_bytes} bytes or more",
                "do not use the file; no patch is that long",
            )

    async def _receive(self, response: httpx.Response) -> None:
        announced = response.headers.get("content-length", "")
        if _LENGTH.fullmatch(announced):
            self._check_length(self.part.body_bytes + int(announced))
        begun, arrived = self.clock(), 0
        async for chunk in response.aiter_raw():
            self._check_length(self.part.body_bytes + len(chunk))
            self.part.append(chunk)
            arrived += len(chunk)
            now = self.clock()
            if now - begun >= self.limits.window_seconds:
                self._check_rate(arrived)
                begun, arrived = now, 0

    def _check_rate(self, arrived: int) -> None:
        if arrived < self.limits.window_bytes:
            raise self.fail(
                f"sent {arrived} bytes in {self.limits.window_seconds:g} s",
                f"it must send {self.limits.window_bytes}",
            )


def _strong_etag(response: httpx.Response) -> str | None:
    """The ETag, where it names these very bytes (a weak one does not)."""
    found = response.headers.get("etag", "")
    return found if _STRONG_ETAG.fullmatch(found) else None


def _name(code: int) -> str:
    """A status in our words: the server's own may say anything."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)
