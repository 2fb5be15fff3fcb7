"""The server of patch files, and a download from it, over real sockets on loopback."""

import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
import uvicorn
from container_cases import document, forge, sha
from hostile_server import reply, serving

from patchdeploy.errors import ConfigError, DownloadError
from patchdeploy.patchfile import MAX_FILE_BYTES
from patchdeploy.patchfile import server as patchfile_server
from patchdeploy.patchfile.connections import BoundedProtocol
from patchdeploy.patchfile.download import DownloadLimits, download_patch
from patchdeploy.patchfile.server import Known, make_app, make_index, make_server, serve_folder

OLD = forge(document(sequence=7))
NEW = forge(document(sequence=8, expires=99), signers=(0, 1))
OTHER = forge(document(task="food", sequence=3), signers=())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "served"
    place.mkdir()
    for name, data in (("a.pdp", NEW), ("b.pdp", OLD), ("food.pdp", OTHER)):
        (place / name).write_bytes(data)
    return place


@contextmanager
def running(folder):
    """The app under uvicorn in a thread; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(make_app(folder))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture
def server(folder):
    with running(folder) as url, httpx.Client(base_url=url) as client:
        yield client


def test_the_index_names_the_newest_file_of_each_task(server):
    answer = server.get("/index.json")
    assert answer.status_code == 200
    assert answer.json() == {
        "format": 1,
        "tasks": {
            "flowers": {
                "file": "a.pdp",
                "sequence": 8,
                "sha256": sha(NEW),
                "bytes": len(NEW),
                "expires": 99,
                "signatures": 2,
            },
            "food": {
                "file": "food.pdp",
                "sequence": 3,
                "sha256": sha(OTHER),
                "bytes": len(OTHER),
                "expires": 0,
                "signatures": 0,
            },
        },
    }


def test_a_file_that_is_no_patch_is_left_out_and_logged(folder, caplog):
    (folder / "huge.pdp").write_bytes(bytes(MAX_FILE_BYTES + 1))
    (folder / "short.pdp").write_bytes(OLD[:20])
    (folder / "notes.txt").write_text("no patch")
    with caplog.at_level(logging.WARNING):
        found = make_index(folder)
    assert found["tasks"]["flowers"]["file"] == "a.pdp"
    assert set(found["tasks"]) == {"flowers", "food"}
    assert "short.pdp is not listed: patch refused (truncated)" in caplog.text


def test_an_unsigned_file_hides_no_signed_one(folder):
    (folder / "zz.pdp").write_bytes(forge(document(sequence=900), signers=()))
    (folder / "0.pdp").write_bytes(forge(document(sequence=901), signers=()))
    assert make_index(folder)["tasks"]["flowers"]["file"] == "a.pdp"
    for signed in ("a.pdp", "b.pdp"):
        (folder / signed).unlink()
    assert make_index(folder)["tasks"]["flowers"]["sequence"] == 901


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "must have"),
        (lambda data: data + b"x", "must have"),
        (lambda data: data[:-1] + b"x", "its payload is not the one that its header names"),
    ],
)
def test_a_damaged_file_hides_no_whole_one(folder, caplog, damage, words):
    (folder / "new.pdp").write_bytes(damage(forge(document(sequence=9))))
    with caplog.at_level(logging.WARNING):
        assert make_index(folder)["tasks"]["flowers"]["file"] == "a.pdp"
    assert "new.pdp is not listed" in caplog.text
    assert words in caplog.text


def test_the_index_reads_whole_only_the_files_that_it_names(folder, monkeypatch):
    payload = bytes(2**20)
    for sequence in range(1, 6):
        about = {"bytes": len(payload), "sha256": sha(payload)}
        fields = document(task="big", sequence=sequence, payload=about)
        (folder / f"big{sequence}.pdp").write_bytes(forge(fields, payload))
    read = []
    real = patchfile_server._read

    def note(path, *most):
        data, length = real(path, *most)
        read.append((path.name, len(data)))
        return data, length

    monkeypatch.setattr(patchfile_server, "_read", note)
    assert make_index(folder)["tasks"]["big"]["file"] == "big5.pdp"
    big = [one for one in read if one[0].startswith("big")]
    assert [name for name, count in big if count > 2**20] == ["big5.pdp"]
    # All that a file may have before its payload: 16 bytes, the longest header, four signatures.
    assert all(count <= 16 + 65_536 + 4 * 65 for name, count in big[:-1])


def test_a_folder_that_goes_away_is_told_and_comes_back(server, folder, caplog):
    away = folder.with_name("away")
    folder.rename(away)
    with caplog.at_level(logging.WARNING):
        answer = server.get("/index.json")
        assert (answer.status_code, answer.text) == (503, "the folder cannot be read now\n")
        assert server.get("/a.pdp").status_code == 404
    assert "cannot be read" in caplog.text
    assert "Traceback" not in caplog.text
    away.rename(folder)
    assert server.get("/index.json").status_code == 200


def test_the_bytes_that_are_sent_are_those_that_were_hashed(server, folder, monkeypatch):
    """The file is swapped for another as soon as it has been read."""
    real = patchfile_server._read

    def swap(path, *most):
        found = real(path, *most)
        path.write_bytes(OLD)
        return found

    monkeypatch.setattr(patchfile_server, "_read", swap)
    answer = server.get("/a.pdp")
    assert (answer.content, answer.headers["etag"]) == (NEW, f'"{sha(NEW)}"')


def test_a_file_is_its_bytes_and_its_hash_is_the_etag(server):
    answer = server.get("/a.pdp")
    assert answer.content == NEW
    assert answer.headers["etag"] == f'"{sha(NEW)}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_range_is_answered_with_those_bytes_alone(server):
    answer = server.get("/a.pdp", headers={"Range": "bytes=10-"})
    assert answer.status_code == 206
    assert answer.content == NEW[10:]
    assert answer.headers["content-range"] == f"bytes 10-{len(NEW) - 1}/{len(NEW)}"
    beyond = server.get("/a.pdp", headers={"Range": f"bytes={len(NEW)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(NEW)}"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-0", 0, 0), ("5-9", 5, 9), ("-3", -3, -1), ("-999999", 0, -1), ("3-999999", 3, -1)],
)
def test_a_range_has_both_ends_or_one(server, asked, first, last):
    first, last = (place % len(NEW) for place in (first, last))
    answer = server.get("/a.pdp", headers={"Range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (206, NEW[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(NEW)}"
    assert answer.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", ["-", "1-2,4-5", "x-y", "--1", "9" * 16 + "-"])
def test_a_range_that_is_not_one_range_gets_the_whole(server, asked):
    answer = server.get("/a.pdp", headers={"Range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (200, NEW)


def test_a_range_of_an_older_file_gets_the_whole_new_one(server):
    fields = {"Range": "bytes=10-", "If-Range": f'"{sha(OLD)}"'}
    answer = server.get("/a.pdp", headers=fields)
    assert (answer.status_code, answer.content) == (200, NEW)


def test_who_has_the_file_already_is_told_so(server):
    answer = server.get("/a.pdp", headers={"If-None-Match": f'"{sha(NEW)}"'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert server.get("/a.pdp", headers={"If-None-Match": '"x"'}).status_code == 200


def test_a_file_that_is_replaced_is_seen_at_once(server, folder):
    (folder / "new").write_bytes(OLD)
    (folder / "new").replace(folder / "a.pdp")
    assert server.get("/a.pdp").content == OLD
    assert server.get("/index.json").json()["tasks"]["flowers"]["sequence"] == 7


@pytest.mark.parametrize(
    "path",
    [
        "/", "/missing.pdp", "/secret.pem", "/%2e%2e%2fsecret.pdp", "/..%2fsecret.pdp",
        "/sub/inside.pdp", "/sub%2finside.pdp", "/link.pdp", "/folder.pdp", "/.hidden.pdp",
        "/a.pdp%00", "/a.pdp/", "/long.pdp", "/pipe.pdp",
    ],
)  # fmt: skip
def test_nothing_but_patch_files_of_the_folder_is_served(server, folder, path):
    (folder.parent / "secret.pdp").write_bytes(NEW)
    (folder / "secret.pem").write_text("secret")
    (folder / ".hidden.pdp").write_bytes(NEW)
    (folder / "sub").mkdir()
    (folder / "sub" / "inside.pdp").write_bytes(NEW)
    (folder / "folder.pdp").mkdir()
    (folder / "link.pdp").symlink_to(folder.parent / "secret.pdp")
    os.mkfifo(folder / "pipe.pdp")
    with (folder / "long.pdp").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    answer = server.get(path)
    assert answer.status_code in (307, 404)
    assert NEW not in answer.content
    assert b"secret" not in answer.content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(server, folder, method):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert server.request(method, "/a.pdp", content=b"x").status_code == 405
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_head_tells_the_length_and_the_hash(server):
    answer = server.head("/a.pdp")
    assert answer.headers["content-length"] == str(len(NEW))
    assert answer.headers["etag"] == f'"{sha(NEW)}"'
    assert answer.content == b""


def test_a_download_from_it_goes_on_where_another_stopped(folder, tmp_path):
    with running(folder) as url:
        address = f"{url}/a.pdp"
        etag = f'"{sha(NEW)}"'

        def stop_early(request, connection):
            reply(connection, NEW[:100], etag=etag, length=len(NEW))

        with serving(stop_early) as mirror:
            name = sha(address.encode())[:32] + ".part"
            with pytest.raises(DownloadError):
                download_patch(mirror.url, tmp_path / "parts")
            (part,) = (tmp_path / "parts").iterdir()
            part.rename(part.with_name(name))
        found = download_patch(address, tmp_path / "parts")
    assert found.data == NEW
    assert found.resumed_bytes == 100
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_download_of_a_file_that_is_not_there_says_404(folder, tmp_path):
    with running(folder) as url, pytest.raises(DownloadError, match="answers 404 Not Found"):
        download_patch(f"{url}/none.pdp", tmp_path / "parts", DownloadLimits())


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_app(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none'} is not a folder; a server needs one with .pdp files in it; correct "
        "the path"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.7", "no such host", "::2"])
def test_an_address_that_cannot_be_listened_on_is_refused(tmp_path, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"cannot listen on .* choose another"):
            serve_folder(tmp_path, host, port)


def test_it_says_its_address_once_it_can_be_reached(folder, monkeypatch):
    """`ready` is called while the socket listens: a connection made then is answered."""
    answers = []

    def ready(url):
        def ask():
            answers.append(httpx.get(f"{url}/index.json").json())
            stop.append(True)

        threading.Thread(target=ask, daemon=True).start()

    stop = []
    loop = uvicorn.Server.on_tick

    async def tick(self, counter):
        return await loop(self, counter) or bool(stop)

    monkeypatch.setattr(uvicorn.Server, "on_tick", tick)
    serve_folder(folder, ready=ready)
    assert set(answers[0]["tasks"]) == {"flowers", "food"}


def count_reads(monkeypatch):
    read = []
    real = patchfile_server._read

    def note(path, *most):
        read.append(path.name)
        return real(path, *most)

    monkeypatch.setattr(patchfile_server, "_read", note)
    return read


def test_a_file_that_has_not_changed_is_not_read_again(folder, monkeypatch, caplog):
    monkeypatch.setattr(patchfile_server, "_SETTLED_NS", 0)
    (folder / "short.pdp").write_bytes(OLD[:20])
    time.sleep(0.01)
    known, read = Known(), count_reads(monkeypatch)
    first = make_index(folder, known)
    # Three whole headers and one that is none, then the two files that are named.
    assert sorted(read) == ["a.pdp", "a.pdp", "b.pdp", "food.pdp", "food.pdp", "short.pdp"]
    read.clear()
    assert make_index(folder, known) == make_index(folder, known) == first
    assert read == []
    assert caplog.text.count("short.pdp is not listed") == 1
    (folder / "a.pdp").write_bytes(forge(document(sequence=9)))
    assert make_index(folder, known)["tasks"]["flowers"]["sequence"] == 9
    assert read == ["a.pdp", "a.pdp"]
    (folder / "a.pdp").unlink()
    assert make_index(folder, known)["tasks"]["flowers"]["file"] == "b.pdp"


def test_a_file_that_changed_just_now_is_read_each_time(folder, monkeypatch):
    """Its times could stay the same if it changed again within the same tick of the clock."""
    known, read = Known(), count_reads(monkeypatch)
    make_index(folder, known)
    read.clear()
    make_index(folder, known)
    assert len(read) == 5


def test_who_opens_connections_and_sends_half_a_request_shuts_no_other_out(folder):
    with running(folder) as url, ExitStack() as stack:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(3 * BoundedProtocol.most):
            connection = stack.enter_context(socket.create_connection(place, 10))
            connection.sendall(b"GET /a.pdp HTTP/1.1\r\nHost: x\r\n")
        started = time.monotonic()
        assert httpx.get(f"{url}/a.pdp", timeout=5).content == NEW
        assert time.monotonic() - started < BoundedProtocol.request_seconds / 2


def test_who_asks_for_files_and_reads_none_shuts_no_other_out(folder):
    payload = bytes(2**20)
    about = {"bytes": len(payload), "sha256": sha(payload)}
    big = forge(document(task="big", payload=about), payload)
    (folder / "big.pdp").write_bytes(big)
    with running(folder) as url, ExitStack() as stack:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(BoundedProtocol.most + 10):
            connection = stack.enter_context(socket.create_connection(place, 10))
            connection.sendall(b"GET /big.pdp HTTP/1.1\r\nHost: x\r\n\r\n")
        assert httpx.get(f"{url}/big.pdp", timeout=20).content == big


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /a.pdp HTTP/1.1\r\n", b"GET /a.pdp HTTP/1.1\r\nHost: x\r\n\r\nGET /a"],
    ids=["nothing", "half a request", "a request and a half"],
)
def test_a_request_that_does_not_come_ends_the_connection(folder, monkeypatch, sent):
    monkeypatch.setattr(BoundedProtocol, "request_seconds", 0.3)
    with running(folder) as url:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(place, 10) as connection:
            connection.sendall(sent)
            received = b""
            with suppress(ConnectionResetError):
                while more := connection.recv(65_536):
                    received += more
            assert (NEW in received) == (sent.count(b"GET") == 2)


def test_an_answer_that_is_not_taken_ends_the_connection(folder, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "answer_seconds", 0.3)
    payload = bytes(8 * 2**20)
    about = {"bytes": len(payload), "sha256": sha(payload)}
    (folder / "big.pdp").write_bytes(forge(document(task="big", payload=about), payload))
    with running(folder) as url:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(place)
            connection.sendall(b"GET /big.pdp HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(1)
            received = 0
            with suppress(ConnectionResetError):
                while more := connection.recv(2**20):
                    received += len(more)
        assert received < len(payload)


def test_a_client_that_keeps_its_connection_is_served_again_and_again(folder, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "request_seconds", 0.5)
    with running(folder) as url, httpx.Client(base_url=url) as client:
        for _ in range(4):
            assert client.get("/a.pdp").content == NEW
            time.sleep(0.2)
