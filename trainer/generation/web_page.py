"""Serves a page that continues prompts, to browsers on this machine.

The page is `templates/demo.html`. It sends its form to `/generate`, and receives JSON
objects, one a line: pieces of the text, and what was wrong. It loads nothing else.
"""

import contextlib
import functools
import http.server
import json
import secrets
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from configs.errors import UserError
from trainer.generation.settings import HELP, NUMBERS, Settings

_ADDRESS = "127.0.0.1"
# Each makes a graph, and needs a trace of some seconds.
_MAX_SAMPLERS = 8
_MAX_DIGITS = 7  # of the bytes of a request


class Server(http.server.ThreadingHTTPServer):
    """Listens on a port of 127.0.0.1; browsers wait until `serve`.

    Args:
      port: 0: any that is free.

    Attributes:
      url: of the page.

    Raises:
      UserError: the port cannot be used.
    """

    def __init__(self, port: int):
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(
                f"`--port` must be free, and one that you may open. Received: {port}: "
                f"{error.strerror}. Use another, or 0, which takes any that is free."
            ) from error
        self.url = f"http://{_ADDRESS}:{self.server_port}/"

    def serve(self, create_sampler: functools.partial[Any], name: str) -> None:
        """Answers browsers until Ctrl-C.

        Args:
          create_sampler: (settings, keywords of `Sampler`) -> `Sampler`.
          name: of the model, for people.
        """
        self._create_sampler = functools.lru_cache(_MAX_SAMPLERS)(create_sampler)
        # TensorFlow's own threads share the work of one text.
        self._lock = threading.Lock()
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("trainer.generation"),
            autoescape=True,  # names and texts are text, never markup
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        nonce = secrets.token_urlsafe(16)
        self.page = environment.get_template("demo.html").render(
            name=name,
            nonce=nonce,
            numbers={n: v for n, v in NUMBERS.items() if n != "num_beams"},
            help=HELP,
            padding_text=create_sampler.keywords["padding_text"],
        )
        # Whatever a text holds, only the page's own script runs.
        self.policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            f"script-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        self._is_ending = False
        with contextlib.suppress(KeyboardInterrupt):
            self.serve_forever()
        # The process would abort if it ended while TensorFlow computes.
        self._is_ending = True
        self._lock.acquire()

    def generate(
        self, values: Mapping[str, str], send: Callable[[dict[str, Any]], None]
    ) -> None:
        """Continues a prompt.

        Args:
          values: of the page's form.
          send: receives objects: the text's next piece, and the tokens and the seconds
            up to it.

        Raises:
          UserError: a value is out of range, or the prompt is too long.
        """
        settings, seed = _settings(values)
        with self._lock:
            if self._is_ending:
                raise ConnectionAbortedError
            sampler = self._create_sampler(
                settings,
                padding_text=values.get("padding_text", ""),
                begins_document="document" in values,
            )
            before, start = sampler.num_generated, time.perf_counter()

            def write(text: str) -> None:
                if self._is_ending:
                    raise ConnectionAbortedError
                seconds = time.perf_counter() - start
                tokens = sampler.num_generated - before
                send({"text": text, "tokens": tokens, "seconds": seconds})

            sampler.stream(values.get("prompt", ""), seed=seed, write=write)
            write("")  # tokens behind the last piece

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports a fault, with its stack trace; a browser that leaves is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self._is_refused("/"):
            self._begin("text/html; charset=utf-8")
            self.wfile.write(self.server.page.encode())

    def do_POST(self) -> None:
        if self._is_refused("/generate"):
            return
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > _MAX_DIGITS:
            self.send_error(400)
            return
        body = self.rfile.read(int(length))
        values = urllib.parse.parse_qsl(
            body.decode(errors="replace"), keep_blank_values=True
        )
        self._begin("application/x-ndjson")
        wrong = ""
        try:
            self.server.generate(dict(values), self._send)
        except UserError as error:
            wrong = str(error)
        self._send({"wrong": wrong})

    def _is_refused(self, path: str) -> bool:
        """Returns whether a request is wrong, or another site's, and answers it."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin", f"http://{host}")
        name, _, _ = host.partition(":")
        if name not in (_ADDRESS, "localhost") or origin != f"http://{host}":
            self.send_error(403, f"Open http://{_ADDRESS} on this machine")
        elif self.path != path:
            self.send_error(404)
        else:
            return False
        return True

    def _begin(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _send(self, values: dict[str, Any]) -> None:
        self.wfile.write(f"{json.dumps(values)}\n".encode())

    def log_message(self, *arguments: Any) -> None:
        """Requests are not logged."""


def _settings(values: Mapping[str, str]) -> tuple[Settings, int]:
    """Returns the settings and the seed of a form."""
    fields: dict[str, Any] = {}
    for name in NUMBERS.keys() & values.keys():
        parser = NUMBERS[name].parser
        try:
            fields[name] = parser.parse(values[name])
        except ValueError as error:
            raise UserError(
                f"`{name}` must be {parser.syntactic_help}. Received: {values[name]!r}."
            ) from error
    seed = fields.pop("seed", 0)
    for name in ("bad_words", "stop"):
        lines = values.get(name, "").split("\n")
        # A line end in a text is `\n`, since each line is a text.
        fields[name] = tuple(line.replace("\\n", "\n") for line in lines if line)
    settings = Settings(**fields)
    settings.check(1)
    return settings, seed
