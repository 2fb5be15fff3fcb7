"""A server on loopback that answers each request with the bytes that a test gives it."""

import itertools
import re
import socket
import threading
from contextlib import contextmanager, suppress

SECRET = "sesame"
"""The password in what follows; no error may show it."""
TARGETS = (
    *("javascript:1", "data:,x", "mailto:a", "x:y:z", "http://xn--/", "http://[", "//", "", "?"),
    *("http://a:99999999/", "http://a b/", "http://" + "a" * 300, f"http://me:{SECRET}@a/"),
    *("http://[::1%25/", "http://a..b/", "ftp://x", "http:///x", "http:", "////", "#", "/up"),
)
"""Where a redirect may lead."""
ADDRESSES = (
    *(f"http://me:{SECRET}@", f"http://me:{SECRET}@a:99999/x", f"http://me:se@{SECRET}@[::1/"),
    *(f"ftp://me:{SECRET}@a/b?token={SECRET}", f"http:me:{SECRET}@a", f"me:{SECRET}@a://x"),
    *(f"https://me:{SECRET}@xn--/#{SECRET}", f"http://me:{SECRET}@127.0.0.1:1/?t={SECRET}"),
    *("http://xn--/", "http://xn--a-/x", "http://xn--99999999/", "http://a..b/", "http://..", ""),
    *("http://[::1%25]/", "http://\ud800/", "http://%00/", "javascript:1", "http://a b/"),
    *("http://" + "a" * 70 + ".invalid/", "http://" + ".".join(["a" * 60] * 5) + "/"),
)
PROXIES = (
    *(f"socks5://me:{SECRET}@127.0.0.1:1", "socks5h://127.0.0.1:1", "socks4://x", "://"),
    *(f"xx://me:{SECRET}@h", f"http://me:{SECRET}@[", f"http://me:{SECRET}@xn--/"),
    *(f"http://me:{SECRET}@127.0.0.1:1", f"http://me:{SECRET}@127.0.0.1:999999"),
)


class HostileServer:
    """One thread a connection; ``answer(request, connection)`` writes whatever it likes.

    Attributes:
        url: of a file on it.
        requests: header fields of each request, names in lower case.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self._stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/flowers.pdp"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            connection, _ = self._socket.accept()
            if self._stopped.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection):
        with connection, suppress(OSError):
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                more = connection.recv(4096)
                if not more:
                    return
                data += more
            lines = data.decode("latin-1").split("\r\n")[1:]
            pairs = (line.split(": ", 1) for line in lines if ": " in line)
            request = {name.lower(): value for name, value in pairs}
            self.requests.append(request)
            self.answer(request, connection)

    def drip(self, connection, data, seconds=0.02):
        """``data`` again and again, a byte at a time, until the test is over or 10 s are."""
        for byte in itertools.islice(itertools.cycle(data), int(10 / seconds)):
            if self._stopped.wait(seconds):
                return
            connection.sendall(bytes([byte]))

    def wait(self):
        """Say nothing until the test is over."""
        self._stopped.wait(10)

    def close(self):
        self._stopped.set()
        # A thread that waits in accept does not see the close: it gets a last connection.
        socket.create_connection(self._socket.getsockname(), timeout=10).close()
        for thread in self._threads:
            thread.join(10)
        self._socket.close()


@contextmanager
def serving(answer):
    server = HostileServer(answer)
    try:
        yield server
    finally:
        server.close()


def reply(connection, body=b"", status="200 OK", length=None, **fields):
    """One whole answer; a field of None is left out, ``_`` stands for a hyphen."""
    lines = {"content-length": len(body) if length is None else length, "connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    connection.sendall(f"HTTP/1.1 {status}\r\n{text}\r\n".encode("latin-1") + body)


def first_byte(request):
    """Where the range that is asked for begins; 0 where none is."""
    found = re.fullmatch(r"bytes=(\d+)-", request.get("range", ""))
    return int(found[1]) if found else 0
