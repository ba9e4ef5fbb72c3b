"""Serves a model hub on this machine that huggingface_hub takes for Hugging Face's.

It implements what `create_repo`, `upload_folder`, `hf_hub_download` and
`snapshot_download` request from the branch "main" of models, and refuses as the real
hub does. Large files arrive by LFS's basic transfer, one PUT each. Two differences: a
new repository is empty, without .gitattributes, and a model card may hold any YAML.
"""

import base64
import collections
import contextlib
import hashlib
import http.server
import json
import re
import secrets
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import yaml

_LFS_SUFFIXES = (".bin", ".h5", ".safetensors")
_LFS_BYTES = 10_000_000  # from here on whatever the name
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.M)


class Hub:
    """Holds the hub's address, repositories and record of requests.

    Attributes:
      repositories: {"user/name": {path: content}}; a test may add another user's.
      private: names of the repositories that only the token may read.
      requests: "METHOD path" of each request, in order, without the query.
      commits: messages of the commits, in order.
    """

    def __init__(self, token: str, user: str):
        self.token = token
        self.user = user
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.commits: list[str] = []
        self.lock = threading.Lock()
        self.heads: dict[str, str] = collections.defaultdict(
            lambda: secrets.token_hex(20)
        )
        # By (repository, SHA-256): sizes that may be PUT, and contents that were PUT.
        self.granted: dict[tuple[str, ...], int] = {}
        self.large: dict[tuple[str, ...], bytes] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead a program to this hub, read at its start."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def serving(*, token: str, user: str) -> Iterator[Hub]:
    """Yields an empty hub that knows one user by one token."""
    hub = Hub(token, user)
    try:
        yield hub
    finally:
        hub.close()


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **body: object):
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        self.headers = {"X-Error-Message": message, "X-Error-Code": code}


class _Server(http.server.ThreadingHTTPServer):
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores connections that break because a test kills a program."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        self.hub = self.server.hub
        self.extra: dict[str, str] = {}
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {url.path}")
            try:
                content = self._result(urllib.parse.unquote(url.path), body)
                status = 200
            except _RefusedError as error:
                status, content = error.status, error.body
                self.extra |= {k: v for k, v in error.headers.items() if v}
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            self.extra["Content-Type"] = "application/json"
        self.send_response_only(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _result(self, path: str, body: bytes) -> Any:
        """Returns the body of the response: bytes, or what becomes JSON."""
        authorization = self.headers.get("Authorization")
        self.known = authorization == f"Bearer {self.hub.token}"
        if authorization and not self.known:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for pattern, action in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return action(self, body, *match.groups())
        raise _RefusedError(404, "Sorry, we can't find the page you are looking for.")

    def _files(
        self, name: str, revision: str | None = None, *, write: bool = False
    ) -> dict[str, bytes]:
        """Returns a repository's files; refuses who may not read, or write, them."""
        exists = name in self.hub.repositories
        if not self.known and (write or not exists or name in self.hub.private):
            # The real hub sends no code: over https, the client infers it by the URL.
            raise _RefusedError(401, "Invalid username or password.", "RepoNotFound")
        if not exists:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        if write and name.split("/")[0] != self.hub.user:
            remedy = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise _RefusedError(403, f"Forbidden: {remedy}")
        if revision not in (None, "main", self.hub.heads[name]):
            raise _RefusedError(404, "Invalid rev id", "RevisionNotFound")
        self.extra["X-Repo-Commit"] = self.hub.heads[name]
        return self.hub.repositories[name]

    def _create(self, body: bytes) -> dict:
        if not self.known:
            raise _RefusedError(401, "Invalid username or password.")
        wanted = json.loads(body)
        user = wanted["organization"] or self.hub.user
        if user != self.hub.user:
            message = "You don't have the rights to create a model under the namespace"
            raise _RefusedError(403, f'{message} "{user}"')
        name = f"{user}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            raise _RefusedError(409, "You already created this model repo", **answer)
        self.hub.repositories[name] = {}
        if wanted.get("private"):
            self.hub.private.add(name)
        return answer

    def _validate(self, body: bytes) -> dict:
        """Reads the YAML at the beginning of a model card; needs no token."""
        front_matter = _FRONT_MATTER.match(json.loads(body)["content"])
        if not front_matter:
            message = "empty or missing yaml metadata in repo card"
            return {"warnings": [{"message": message}]}
        with contextlib.suppress(yaml.YAMLError):
            if isinstance(yaml.safe_load(front_matter[1]), dict):
                return {"warnings": []}
        message = "Invalid YAML metadata"
        raise _RefusedError(400, message, errors=[{"message": message}])

    def _info(self, _: bytes, name: str, revision: str | None) -> dict:
        siblings = [{"rfilename": k} for k in sorted(self._files(name, revision))]
        private = name in self.hub.private
        sha = self.hub.heads[name]
        return {"id": name, "private": private, "sha": sha, "siblings": siblings}

    def _tree(self, _: bytes, name: str, revision: str, folder: str | None) -> list:
        """Lists the files in a folder and below it."""
        inside = [
            {"type": "file", "path": k, "size": len(v), "oid": _oid(k, v)}
            for k, v in sorted(self._files(name, revision).items())
            if not folder or k.startswith(f"{folder}/")
        ]
        if folder and not inside:
            raise _RefusedError(404, "The folder does not exist", "EntryNotFound")
        return inside

    def _resolve(self, _: bytes, name: str, revision: str, path: str) -> bytes:
        files = self._files(name, revision)
        if path not in files:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        self.extra["ETag"] = f'"{_oid(path, files[path])}"'
        return files[path]

    def _preupload(self, body: bytes, name: str, revision: str) -> dict:
        files = self._files(name, revision, write=True)
        result = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if _is_large(path, file["size"]) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in files:
                answer["oid"] = _oid(path, files[path])
            result.append(answer)
        return {"files": result}

    def _batch(self, body: bytes, name: str) -> dict:
        self._files(name, write=True)
        objects = json.loads(body)["objects"]
        for wanted in objects:
            key = name, wanted["oid"]
            if key not in self.hub.large:
                self.hub.granted[key] = wanted["size"]
                href = f"{self.hub.url}/{name}.git/lfs/{wanted['oid']}"
                verify = {"href": f"{href}/verify"}
                wanted["actions"] = {"upload": {"href": href}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def _put(self, body: bytes, *key: str) -> bytes:
        """Accepts what a batch granted, without the token, as a signed URL does."""
        if key not in self.hub.granted:
            raise _RefusedError(403, "AccessDenied")
        digest = hashlib.sha256(body).hexdigest()
        if (len(body), digest) != (self.hub.granted[key], key[1]):
            raise _RefusedError(400, "BadDigest")
        self.hub.large[key] = body
        return b""

    def _verify(self, body: bytes, *key: str) -> bytes:
        self._files(key[0], write=True)
        size = len(self.hub.large.get(key, b""))
        if json.loads(body) != {"oid": key[1], "size": size}:
            raise _RefusedError(404, "The object is not there, or of another size")
        return b""

    def _commit(self, body: bytes, name: str, revision: str) -> dict:
        files = dict(self._files(name, revision, write=True))
        header, *operations = map(json.loads, body.splitlines())
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and (name, value["oid"]) in self.hub.large:
                files[value["path"]] = self.hub.large[name, value["oid"]]
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise _RefusedError(400, f"Impossible operation: {kind}")
        self.hub.repositories[name] = files
        self.hub.commits.append(header["value"]["summary"])
        self.hub.heads[name] = commit = secrets.token_hex(20)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url}


def _is_large(path: str, size: int) -> bool:
    """Returns whether a file goes through LFS; an empty file never does."""
    return size >= _LFS_BYTES or (size > 0 and path.endswith(_LFS_SUFFIXES))


def _oid(path: str, content: bytes) -> str:
    """Returns the SHA-256 of an LFS file, and git's SHA-1 of any other."""
    if _is_large(path, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME = "((?:[^/]+/)?[^/]+?)"
_ROUTES: dict[str, Any] = {
    "POST /api/repos/create": _Handler._create,
    "POST /api/validate-yaml": _Handler._validate,
    f"GET /api/models/{_NAME}(?:/revision/([^/]+))?": _Handler._info,
    f"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.+))?": _Handler._tree,
    f"GET /{_NAME}/resolve/([^/]+)/(.+)": _Handler._resolve,
    f"POST /api/models/{_NAME}/preupload/([^/]+)": _Handler._preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler._batch,
    rf"PUT /{_NAME}\.git/lfs/([0-9a-f]+)": _Handler._put,
    rf"POST /{_NAME}\.git/lfs/([0-9a-f]+)/verify": _Handler._verify,
    f"POST /api/models/{_NAME}/commit/([^/]+)": _Handler._commit,
}
for _method in ("GET", "HEAD", "POST", "PUT"):
    setattr(_Handler, f"do_{_method}", _Handler._respond)
