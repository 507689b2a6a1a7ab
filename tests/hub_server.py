"""A hub in 200 lines: the endpoints that huggingface_hub's client asks for creating, committing and fetching.

Repositories live in memory. A commit is whole or not there; ``wrong`` makes a request fail as a network does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_may_write"
READER = "hf_a_token_that_may_read"


@dataclass
class Repository:
    """One repository: commits in order, each (sha, name -> bytes)."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Hub:
    """The server's state: what tests look at and change."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    #: called with "METHOD path" before each request; returns an HTTP status to fail with, or "cut" to end in mid-body
    wrong: Callable[[str], int | str | None] = lambda request: None

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository made by somebody else."""
        repository = self.repositories.setdefault(name, Repository(private))
        repository.commit(files)
        return repository


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub()

    class Bound(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_any()

    do_HEAD = do_POST = do_GET

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        self.failure = self.state.wrong(f"{self.command} {path}")
        if isinstance(self.failure, int):
            return self.answer(self.failure, {"error": "as the test wants it"})
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"]:
            return self.api(parts[1:], body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.answer(404, {"error": "nothing here"})

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline().strip() or b"0", 16))
        self.rfile.readline()
        return data

    @property
    def writes(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def reads(self) -> bool:
        return self.writes or self.headers.get("Authorization") == f"Bearer {READER}"

    def api(self, parts: list[str], body: bytes) -> None:
        if parts == ["validate-yaml"]:
            good = json.loads(body)["content"].startswith("---\n")
            return self.answer(200 if good else 400, {} if good else {"errors": [{"message": "no front matter"}]})
        if parts == ["repos", "create"]:
            return self.create(json.loads(body))
        name = "/".join(parts[1:3])
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self.reads):
            return self.missing("RepoNotFound", 404 if self.reads else 401)
        action, revision = (parts[3:4] or ["revision"])[0], (parts[4:5] or ["main"])[0]
        if action == "revision":
            return self.describe(name, found, revision)
        if not self.writes:
            return self.answer(403, {"error": "this token may not write"})
        if action == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        return self.commit(name, found, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict) -> None:
        if not self.reads:
            return self.answer(401, {"error": "Invalid credentials"})
        name = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
        if name in self.state.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"/{name}"})
        if not self.writes:
            return self.answer(403, {"error": "this token may not write"})
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.state.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        return self.answer(200, {"url": f"{self.state.address}/{name}", "name": name})

    def describe(self, name: str, found: Repository, revision: str) -> None:
        commit = found.at(revision)
        if commit is None:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": file, "size": len(data)} for file, data in commit[1].items()]
        return self.answer(
            200, {"id": name, "modelId": name, "sha": commit[0], "private": found.private, "siblings": siblings}
        )

    def commit(self, name: str, found: Repository, lines: list[dict]) -> None:
        files, header = dict(found.files), lines[0]["value"]
        if header.get("parentCommit") not in (None, found.commits[-1][0]):
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self.answer(400, {"error": f"{line['key']} is not known here"})
        sha = found.commit(files, header["summary"])
        return self.answer(200, {"success": True, "commitUrl": f"{self.state.address}/{name}/commit/{sha}",
                                 "commitOid": sha, "hookOutput": ""})  # fmt: skip

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self.reads):
            return self.missing("RepoNotFound", 404 if self.reads else 401)
        commit = found.at(revision)
        if commit is None:
            return self.missing("RevisionNotFound")
        if path not in commit[1]:
            return self.missing("EntryNotFound")
        data = commit[1][path]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.answer(200, data, {"ETag": etag, "X-Repo-Commit": commit[0]})

    def missing(self, code: str, status: int = 404) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.failure == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)
