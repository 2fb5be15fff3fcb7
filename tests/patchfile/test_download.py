"""Downloads from servers that are broken, slow or hostile; over real sockets on loopback."""

import asyncio
import gzip
import os
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_server import first_byte, reply, serving

from patchdeploy.errors import ConfigError, DownloadError, PatchRefusedError, StorageError
from patchdeploy.patchfile import MAX_FILE_BYTES
from patchdeploy.patchfile.download import DownloadLimits, download_patch, fetch_patch
from patchdeploy.patchfile.partial import open_partial, remove_partials

BODY = bytes(range(256)) * 200
ETAG = '"first"'
LIMITS = DownloadLimits(
    file_bytes=100_000,
    connect_seconds=5.0,
    read_seconds=5.0,
    total_seconds=30.0,
    window_seconds=5.0,
    window_bytes=1,
)
"""Times so long that no busy machine reaches one by itself; each test shortens the one it is of."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fetch(server, folder, **limits):
    return download_patch(server.url, folder, replace(LIMITS, **limits))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def whole(request, connection):
    reply(connection, BODY, etag=ETAG)


def with_ranges(body, etag, stop=None):
    """An honest server, which ends the first connection after ``stop`` bytes."""
    seen = []

    def answer(request, connection):
        start = first_byte(request) if request.get("if-range") == etag else 0
        rest = body[start:]
        sent = rest[:stop] if stop is not None and not seen else rest
        seen.append(start)
        fields = {"etag": etag, "length": len(rest)}
        if start:
            fields |= {"content_range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        reply(connection, sent, "206 Partial Content" if start else "200 OK", **fields)

    return answer


def cut_short(body=BODY, etag=ETAG, stop=20_000):
    """A server that ends every connection after ``stop`` bytes."""

    def answer(request, connection):
        reply(connection, body[:stop], etag=etag, length=len(body))

    return answer


def test_a_whole_file_arrives_and_leaves_nothing_behind(tmp_path):
    with serving(whole) as server:
        found = fetch(server, tmp_path)
    assert (found.data, found.etag, found.resumed_bytes) == (BODY, ETAG, 0)
    assert found.url == server.url
    assert parts(tmp_path) == []
    (request,) = server.requests
    assert request["accept-encoding"] == "identity"
    assert "range" not in request


def test_the_longest_file_is_taken_and_one_byte_more_is_not(tmp_path):
    with serving(whole) as server:
        assert fetch(server, tmp_path, file_bytes=len(BODY)).data == BODY
        with pytest.raises(PatchRefusedError) as caught:
            fetch(server, tmp_path, file_bytes=len(BODY) - 1)
    assert caught.value.code == "too_large"
    assert str(caught.value) == (
        "patch refused (too_large): file length is 51200 bytes or more; it must be at most 51199 "
        "bytes; do not use the file; no patch is that long"
    )
    assert parts(tmp_path) == []


def test_the_default_limit_is_that_of_the_format():
    assert DownloadLimits().file_bytes == MAX_FILE_BYTES == 8_454_420


@pytest.mark.parametrize("length", [None, 10**14])
def test_an_endless_body_stops_at_the_limit(tmp_path, length):
    def answer(request, connection):
        reply(connection, b"", etag=ETAG, length="x", content_length=length)
        with suppress(OSError):
            while True:
                connection.sendall(bytes(65_536))

    with serving(answer) as server, pytest.raises(PatchRefusedError) as caught:
        fetch(server, tmp_path)
    assert caught.value.code == "too_large"
    assert parts(tmp_path) == []


def test_an_endless_chunked_body_stops_at_the_limit(tmp_path):
    def answer(request, connection):
        reply(connection, b"", content_length=None, transfer_encoding="chunked")
        with suppress(OSError):
            while True:
                connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    with serving(answer) as server, pytest.raises(PatchRefusedError, match="too_large"):
        fetch(server, tmp_path)


def test_memory_stays_at_one_file(tmp_path):
    """The body is on disk while it comes, and is read once at the end."""
    body = os.urandom(6_000_000)

    def answer(request, connection):
        reply(connection, b"", etag=ETAG, length=len(body))
        connection.sendall(body)

    with serving(answer) as server:
        fetch(server, tmp_path, file_bytes=MAX_FILE_BYTES)  # imports and caches
        tracemalloc.start()
        try:
            fetch(server, tmp_path, file_bytes=MAX_FILE_BYTES)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # One copy of the body is the result; 1 MB is room for buffers of 64 kB and the event loop.
    assert len(body) <= peak < len(body) + 1_000_000


def test_a_body_shorter_than_announced_is_kept_and_gone_on_with(tmp_path):
    with serving(with_ranges(BODY, ETAG, stop=20_000)) as server:
        with pytest.raises(DownloadError) as caught:
            fetch(server, tmp_path)
        (part,) = parts(tmp_path)
        assert part.read_bytes() == ETAG.encode() + b"\n" + BODY[:20_000]
        found = fetch(server, tmp_path)
    assert found.data == BODY
    assert found.resumed_bytes == 20_000
    assert server.requests[1]["range"] == "bytes=20000-"
    assert server.requests[1]["if-range"] == ETAG
    assert parts(tmp_path) == []
    assert str(caught.value) == (
        f"{server.url} ended before the whole file was here (peer closed connection without "
        "sending complete message body (received 20000 ...); it must send what it has announced; "
        "run it again: it goes on where it stopped, if the server lets it"
    )


def test_a_body_longer_than_announced_ends_where_it_was_said_to(tmp_path):
    def answer(request, connection):
        reply(connection, BODY + b"more", etag=ETAG, length=len(BODY))

    with serving(answer) as server:
        assert fetch(server, tmp_path).data == BODY


@pytest.mark.parametrize("length", ["-1", "12, 13", "0x10", "", "9" * 400])
def test_a_content_length_that_is_none_is_an_error_with_a_type(tmp_path, length):
    def answer(request, connection):
        reply(connection, BODY, etag=ETAG, content_length=length, length=0)

    with serving(answer) as server, pytest.raises((DownloadError, PatchRefusedError)):
        fetch(server, tmp_path)


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "bare", '"' + 300 * "x" + '"', '"sp ace"'])
def test_without_a_strong_etag_nothing_is_kept(tmp_path, etag):
    with serving(cut_short(etag=etag)) as server, pytest.raises(DownloadError):
        fetch(server, tmp_path)
    assert parts(tmp_path) == []


def leave_part(server, folder, body=BODY[:20_000], etag=ETAG):
    """A part of an earlier download from the same address."""
    with open_partial(folder, server.url) as part:
        part.restart(etag)
        part.append(body)


def test_another_file_since_is_fetched_from_its_beginning(tmp_path):
    new = BODY[::-1]
    with serving(with_ranges(new, '"second"')) as server:
        leave_part(server, tmp_path)
        found = fetch(server, tmp_path)
    assert (found.data, found.etag, found.resumed_bytes) == (new, '"second"', 0)
    assert server.requests[0]["range"] == "bytes=20000-"


def test_nothing_of_another_file_stays_behind_a_new_beginning(tmp_path):
    new = BODY[::-1]
    with serving(cut_short(new, '"second"', 10_000)) as server:
        leave_part(server, tmp_path, BODY[:40_000])
        with pytest.raises(DownloadError):
            fetch(server, tmp_path)
    (part,) = parts(tmp_path)
    assert part.read_bytes() == b'"second"\n' + new[:10_000]


def lying(**fields):
    """Answers a range with 206 and what ``fields`` say; without one it is honest."""

    def answer(request, connection):
        start = first_byte(request)
        if not start:
            return reply(connection, BODY, etag=ETAG)
        given = {"etag": ETAG, "content_range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"}
        return reply(connection, BODY[start:], "206 Partial Content", **(given | fields))

    return answer


@pytest.mark.parametrize(
    "fields",
    [
        {"etag": '"second"'},
        {"etag": None},
        {"content_range": None},
        {"content_range": "bytes 0-51199/51200"},
        {"content_range": "bytes 20000-51199/*"},
        {"content_range": "bytes 20000-51198/51200"},
        {"content_range": "bytes 20001-51199/51200"},
        {"content_range": "nonsense"},
    ],
)
def test_a_range_that_is_not_the_rest_of_the_same_file_is_not_joined_to_it(tmp_path, fields):
    with serving(lying(**fields)) as server:
        leave_part(server, tmp_path, BODY[:20_000])
        found = fetch(server, tmp_path)
    assert found.data == BODY
    assert found.resumed_bytes == 0
    assert ["range" in one for one in server.requests] == [True, False]


def chunked(body):
    """A 206 that ends in order behind ``body``, whatever its range has announced."""

    def answer(request, connection):
        start = first_byte(request)
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        connection.sendall(
            f"HTTP/1.1 206 Partial Content\r\netag: {ETAG}\r\ncontent-range: {span}\r\n"
            "transfer-encoding: chunked\r\n\r\n".encode()
            + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        )  # fmt: skip

    return answer


def test_a_rest_that_ends_before_its_range_does_is_kept_and_gone_on_with(tmp_path):
    def short(request, connection):  # the length is that of the body, not that of the range
        start = first_byte(request)
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        reply(connection, BODY[start:30_000], "206 Partial Content", etag=ETAG, content_range=span)

    for answer, have in ((short, 30_000), (chunked(BODY[20_000:25_000]), 25_000)):
        folder = tmp_path / str(have)
        folder.mkdir()
        with serving(answer) as server:
            leave_part(server, folder, BODY[:20_000])
            with pytest.raises(DownloadError) as caught:
                fetch(server, folder)
        assert f"ended with {have} of 51200 bytes here; it must send what" in str(caught.value)
        (part,) = parts(folder)
        assert part.read_bytes() == f"{ETAG}\n".encode() + BODY[:have]


def test_a_rest_that_goes_on_behind_its_range_is_thrown_away(tmp_path):
    with serving(chunked(BODY[20_000:] + b"more")) as server:
        leave_part(server, tmp_path, BODY[:20_000])
        with pytest.raises(DownloadError, match="ended with 51204 of 51200 bytes here"):
            fetch(server, tmp_path)
    assert parts(tmp_path) == []


def test_a_rest_that_is_too_long_is_refused_before_it_comes(tmp_path):
    fields = {"content_range": "bytes 20000-199999/200000", "length": 180_000}
    with serving(lying(**fields)) as server:
        leave_part(server, tmp_path)
        with pytest.raises(PatchRefusedError, match="too_large"):
            fetch(server, tmp_path)
    assert parts(tmp_path) == []


@pytest.mark.parametrize("stored", [b"", b"no newline", b"\nbody", b"\xff\n" + BODY, b'"x"\n'])
def test_a_part_that_is_no_part_is_begun_anew(tmp_path, stored):
    with serving(whole) as server:
        leave_part(server, tmp_path)
        (part,) = parts(tmp_path)
        part.write_bytes(stored)
        assert fetch(server, tmp_path).data == BODY
    assert "range" not in server.requests[0]


def test_a_part_that_is_whole_already_is_fetched_again(tmp_path):
    def answer(request, connection):
        if first_byte(request) >= len(BODY):
            return reply(connection, b"", "416 Range Not Satisfiable")
        return reply(connection, BODY, etag=ETAG)

    with serving(answer) as server:
        leave_part(server, tmp_path, BODY)
        assert fetch(server, tmp_path).data == BODY
    assert len(server.requests) == 2


def test_an_answer_of_206_to_no_range_is_refused(tmp_path):
    def answer(request, connection):
        reply(connection, BODY, "206 Partial Content", content_range="bytes 0-51199/51200")

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    assert str(caught.value) == (
        f"{server.url} answers 206 Partial Content; it must answer 200 OK; correct the address"
    )


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 x", "307 x", "308 x", "300 x"])
def test_a_redirect_is_never_followed(tmp_path, status):
    def elsewhere(request, connection):
        reply(connection, BODY)

    with serving(elsewhere) as other:

        def answer(request, connection):
            reply(connection, b"", status, location=other.url)

        with serving(answer) as server, pytest.raises(DownloadError) as caught:
            fetch(server, tmp_path)
    assert other.requests == []
    assert str(caught.value) == (
        f"{server.url} redirects to '{other.url}'; a redirect is never followed; if you trust that "
        "address, name it"
    )


def test_what_a_server_says_reaches_a_terminal_short_and_printable(tmp_path):
    def answer(request, connection):
        reply(connection, b"", "302 Found", location="http://\x9b31m" + "x" * 200)

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("404 Nothing", "answers 404 Not Found"),
        ("500 x", "answers 500 Internal Server Error"),
        ("429 x", "answers 429 Too Many Requests"),
        ("204 x", "answers 204 No Content"),
        ("799 x", "answers 799;"),
    ],
)
def test_another_status_is_named_in_our_words(tmp_path, status, words):
    def answer(request, connection):
        reply(connection, b"", status)

    with serving(answer) as server, pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path)
    assert parts(tmp_path) == []


def test_an_error_in_the_middle_of_a_download_leaves_the_part(tmp_path):
    def answer(request, connection):
        reply(connection, b"", "503 x")

    with serving(answer) as server:
        leave_part(server, tmp_path)
        with pytest.raises(DownloadError, match="answers 503 Service Unavailable"):
            fetch(server, tmp_path)
    (part,) = parts(tmp_path)
    assert part.read_bytes().endswith(BODY[:20_000])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_coded_body_is_refused_and_never_inflated(tmp_path, coding):
    bomb = gzip.compress(bytes(50_000_000))

    def answer(request, connection):
        reply(connection, bomb, etag=ETAG, content_encoding=coding)

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, file_bytes=10**6)
    assert str(caught.value) == (
        f"{server.url} sends the file coded as '{coding}'; it must send it as it is; use another "
        "server, or fetch the file by other means"
    )


def test_a_slow_drip_of_the_body_is_ended(tmp_path):
    def answer(request, connection):
        reply(connection, b"", etag=ETAG, length=len(BODY))
        server.drip(connection, b"x")

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, window_seconds=0.3, window_bytes=10_000)
    assert " bytes in 0.3 s; it must send 10000; run it again" in str(caught.value)
    (part,) = parts(tmp_path)  # what came is kept: the line may be slow and honest
    assert part.stat().st_size > len(ETAG) + 1


def test_a_slow_drip_of_headers_ends_at_the_deadline(tmp_path):
    """Each byte is in time, so no timeout of a read ever ends it."""

    def answer(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        server.drip(connection, b"x: y\r\n")

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, total_seconds=0.5)
    assert str(caught.value) == (
        f"{server.url} is not done after 0.5 s; that is the longest it may take; run it again: it "
        "goes on where it stopped, if the server lets it"
    )
    assert parts(tmp_path) == []


def test_endless_interim_answers_end_at_the_deadline(tmp_path):
    def answer(request, connection):
        server.drip(connection, b"HTTP/1.1 102 Processing\r\n\r\n", 0.001)

    with serving(answer) as server, pytest.raises(DownloadError, match="is not done after"):
        fetch(server, tmp_path, total_seconds=0.5)


def test_endless_headers_are_ended(tmp_path):
    def answer(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        with suppress(OSError):
            while True:
                connection.sendall(b"y" * 65_536)

    with serving(answer) as server, pytest.raises(DownloadError, match="ended before the whole"):
        fetch(server, tmp_path)


def test_a_server_that_says_nothing_is_left(tmp_path):
    def answer(request, connection):
        server.wait()

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, read_seconds=0.2)
    assert str(caught.value) == (
        f"{server.url} does not answer; a connection may take 5 s, the next bytes 0.2 s; run it "
        "again: it goes on where it stopped, if the server lets it"
    )


@pytest.mark.parametrize("data", [b"", b"\x00\xff nonsense\r\n\r\n", b"HTTP/x.y 200 OK\r\n\r\n"])
def test_what_is_no_http_is_an_error_with_a_type(tmp_path, data):
    def answer(request, connection):
        connection.sendall(data)

    with serving(answer) as server, pytest.raises(DownloadError, match="ended before the whole"):
        fetch(server, tmp_path)


def test_a_server_that_is_not_there_says_how_to_go_on(tmp_path):
    with serving(whole) as server:
        pass
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    assert str(caught.value) == (
        f"{server.url} cannot be reached (All connection attempts failed); the server must run "
        "and take connections; correct the address, or start the server"
    )


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "file:///etc/hostname",
        "http://",
        "http:///x",
        "flowers.pdp",
        "http://[::1",
        "http://a:99999/x",
        "http://a:0/x",
        "http://\ud800/",
        "",
    ],
)
def test_an_address_that_is_none_shows_how_to_write_it(tmp_path, url):
    with pytest.raises(ConfigError) as caught:
        download_patch(url, tmp_path, LIMITS)
    assert str(caught.value) == (
        f"address {url!r}; it must be http:// or https:// and a host; correct it"
    )
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@", "http://"),
        ("http://me:secret@a:99999/x", "http://a:99999/x"),
        ("http://me:sec@ret@[::1/", "http://[::1/"),
        ("ftp://me:secret@a/b?token=secret", "ftp://a/b"),
        ("http:me:secret@a", "a"),
        ("https://me:secret@xn--/#secret", "https://xn--/"),
    ],
)
def test_an_address_that_is_none_is_shown_without_its_secrets(tmp_path, url, shown):
    with pytest.raises(ConfigError) as caught:
        download_patch(url, tmp_path, LIMITS)
    assert str(caught.value) == (
        f"address {shown!r}; it must be http:// or https:// and a host; correct it"
    )


@pytest.mark.parametrize("host", ["xn--", "xn--a-", "xn--99999999", "a..b", "-", "*", "[::1%25]"])
def test_a_host_that_is_no_name_is_an_error_with_a_type(tmp_path, host):
    with pytest.raises((ConfigError, DownloadError)):
        download_patch(f"http://{host}/x", tmp_path, LIMITS)


@pytest.mark.parametrize(
    "target",
    [
        *("javascript:1", "data:,x", "mailto:a", "x:y:z", "http://xn--/", "http://[", "//", ""),
        *(
            "http://a:99999999/",
            "http://a b/",
            "http://" + "a" * 300,
            "http://me:secret@a/",
        ),
    ],
)
def test_a_redirect_to_what_is_no_address_is_an_error_with_a_type(tmp_path, target):
    def answer(request, connection):
        reply(connection, b"", "302 Found", location=target)

    with serving(answer) as server, pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    assert "secret" not in str(caught.value)
    assert "a redirect is never followed" in str(caught.value)


def test_a_host_name_that_is_too_long_is_an_error_with_a_type(tmp_path):
    with pytest.raises(DownloadError, match="cannot be reached"):
        download_patch(f"http://{'a' * 70}.invalid/x", tmp_path, LIMITS)


def test_a_password_in_the_address_is_used_and_never_shown(tmp_path):
    def answer(request, connection):
        reply(connection, b"", "404 x" if "authorization" in request else "401 x")

    with serving(answer) as server:
        url = server.url.replace("http://", "http://me:secret@") + "?token=secret"
        with pytest.raises(DownloadError, match="404") as caught:
            download_patch(url, tmp_path, LIMITS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["nonsense://me:secret@here", "socks5://me:secret@127.0.0.1:1", "socks5h://here"]
)
def test_a_proxy_that_is_none_is_a_setting_to_correct(tmp_path, monkeypatch, name, proxy):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigError, match="ALL_PROXY must be addresses of HTTP pr") as caught:
        download_patch("http://example.invalid/x", tmp_path, LIMITS)
    assert "secret" not in str(caught.value)


def test_a_proxy_that_cannot_be_reached_is_an_error_with_a_type(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    for proxy in ("http://me:secret@127.0.0.1:1", "http://me:secret@127.0.0.1:999999"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(DownloadError, match="cannot be reached") as caught:
            download_patch("http://example.invalid/x", tmp_path, LIMITS)
        assert "secret" not in str(caught.value)


def test_two_downloads_of_one_address_do_not_mix(tmp_path):
    with serving(whole) as server:
        with open_partial(tmp_path, server.url), pytest.raises(DownloadError) as caught:
            fetch(server, tmp_path)
        assert fetch(server, tmp_path).data == BODY
    assert "one may do so at a time; wait for it" in str(caught.value)


def test_two_addresses_have_two_parts(tmp_path):
    with serving(cut_short()) as server:
        for url in (server.url, server.url + "?other"):
            with pytest.raises(DownloadError):
                download_patch(url, tmp_path, LIMITS)
    assert len(parts(tmp_path)) == 2


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    folder = tmp_path / "folder"
    with serving(whole) as server:
        with open_partial(folder, server.url) as part:
            pass
        part.path.symlink_to(target)
        with pytest.raises(StorageError, match="cannot keep a download in"):
            fetch(server, folder)
    assert target.read_bytes() == b"mine"
    assert server.requests == []


def test_a_folder_in_the_place_of_a_part_is_a_storage_error(tmp_path):
    with serving(whole) as server:
        with open_partial(tmp_path, server.url) as part:
            pass
        part.path.mkdir()
        with pytest.raises(StorageError, match="cannot keep a download in"):
            fetch(server, tmp_path)


def test_a_download_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory; free space, correct the"):
        download_patch("http://127.0.0.1:1/x", tmp_path / "no" / "such", LIMITS)


def test_a_full_disk_is_a_storage_error_and_no_download_error(tmp_path, monkeypatch):
    def full(handle, data, place):
        raise OSError(28, "No space left on device")

    with serving(whole) as server:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="No space left on device; free space"):
            fetch(server, tmp_path)


def test_parts_that_nobody_holds_are_removed(tmp_path):
    with serving(cut_short()) as server:
        for url in (server.url, server.url + "?other"):
            with pytest.raises(DownloadError):
                download_patch(url, tmp_path, LIMITS)
    (tmp_path / "mine.txt").write_text("stays")
    with open_partial(tmp_path, server.url) as held:
        removed = remove_partials(tmp_path)
        assert held.path.exists()
    assert len(removed) == 1
    assert {one.name for one in parts(tmp_path)} == {held.path.name, "mine.txt"}
    assert remove_partials(tmp_path / "nowhere") == ()


def test_it_runs_inside_an_event_loop_too(tmp_path):
    with serving(whole) as server:
        assert asyncio.run(fetch_patch(server.url, tmp_path, LIMITS)).data == BODY
