"""A server with the part of the Hugging Face hub's HTTP API that uploads and downloads use.

Its files of 1 kB or more are in large file storage (LFS), which has another host name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_ada": "ada", "hf_bob": "bob"}  # and whose they are
LARGE = 1000


@dataclass
class Repository:
    """Commits, each with all files, and the branches that name them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        before = self.branches.get(branch, "")
        content = self.commits.get(before, {}) | files
        names = [(name, hashlib.sha1(held).hexdigest()) for name, held in content.items()]
        sha = hashlib.sha1(repr((before, message, names)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = content, sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """The hub's state and its requests so far, as "METHOD /path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.storage = f"http://localhost:{self.server_address[1]}/storage"
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self.requests: list[str] = []

    def add(self, name: str, folder: Path, *, inside: str = "", private: bool = False) -> None:
        """Add a folder's files to a repository, in its folder ``inside``."""
        files = {f"{inside}{file.name}": file.read_bytes() for file in folder.iterdir()}
        self.repositories.setdefault(name, Repository(private)).commit("main", files, "added")
        self.stored |= {hashlib.sha256(held).hexdigest(): held for held in files.values()}

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[repository]
        return found.commits[found.find(revision) or ""]

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, one for each time."""
        places = r"GET /(?:[^/]+/[^/]+/resolve|storage)/[^/]+/(.+)"
        got = (re.fullmatch(places, request) for request in self.requests)
        return [match[1] for match in got if match]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


_NAME = r"(?P<repository>[^/]+/[^/]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/models/{_NAME}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/api/models/{_NAME}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "large_files"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]+)", "store"),
    ("POST", r"/storage/verify", "verify"),
    ("GET", r"/storage/(?P<oid>[0-9a-f]+)/.+", "stored"),
    ("GET", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *ignored: Any) -> None:
        pass

    def _route(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for wanted, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, path)
                if wanted == method and match:
                    found = match.groupdict()
                    getattr(self, name)(**{k: v and unquote(v) for k, v in found.items()})
                    return
            raise _Refusal(404, message=f"the fake hub has no {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._answer(
                refusal.status, b'{"error": "no"}', {k: v for k, v in headers.items() if v}
            )

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # Access ---------------------------------------------------------------------------------------

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _read(self, name: str) -> Repository:
        """Missing and private repositories look alike, as the hub's do."""
        user, found = self._user(), self.server.repositories.get(name)
        if found is None or (found.private and user != name.partition("/")[0]):
            raise _Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def _write(self, name: str) -> Repository:
        user = self._user()
        if user is None:
            raise _Refusal(401, message="Invalid username or password.")
        if user != name.partition("/")[0]:
            raise _Refusal(403, message="You don't have the rights")
        return self._read(name)

    def _revision(self, found: Repository, revision: str | None) -> str:
        sha = found.find(revision or "main")
        if sha is None:
            raise _Refusal(404, "RevisionNotFound", "Invalid rev id")
        return sha

    # Requests -------------------------------------------------------------------------------------

    def create(self) -> None:
        asked, user = json.loads(self.body), self._user()
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if user is None:
            raise _Refusal(401, message="Invalid username or password.")
        if user != owner:
            raise _Refusal(403, message="You don't have the rights")
        url = f"{self.server.url}/{name}"
        if name in self.server.repositories:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        private = asked.get("visibility") == "private" or asked.get("private", False)
        made = self.server.repositories[name] = Repository(private)
        made.commit("main", {".gitattributes": b"* -text\n"}, "initial commit")
        self._json({"url": url, "name": name})

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def info(self, repository: str, revision: str | None) -> None:
        found = self._read(repository)
        sha = self._revision(found, revision)
        siblings = [{"rfilename": name} for name in found.commits[sha]]
        described = {"id": repository, "modelId": repository, "sha": sha, "siblings": siblings}
        self._json({**described, "private": found.private, "tags": [], "downloads": 0, "likes": 0})

    def branch(self, repository: str, branch: str) -> None:
        found = self._write(repository)
        if branch in found.branches:
            self._json({"error": "Reference already exists"}, 409)
            return
        found.branches[branch] = found.branches["main"]
        self._json({}, 201)

    def preupload(self, repository: str, revision: str) -> None:
        self._revision(self._write(repository), revision)
        asked = json.loads(self.body)["files"]
        modes = ["lfs" if file["size"] >= LARGE else "regular" for file in asked]
        answers = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            for file, mode in zip(asked, modes, strict=True)
        ]
        self._json({"files": answers})

    def large_files(self, repository: str) -> None:
        self._write(repository)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.stored:
                upload = {"href": f"{self.server.storage}/{asked['oid']}"}
                verify = {"href": f"{self.server.storage}/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400)
        self.server.stored[oid] = self.body
        self._answer(200, b"")

    def verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.server.stored.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(400)
        self._json({})

    def commit(self, repository: str, revision: str) -> None:
        found = self._write(repository)
        self._revision(found, revision)
        files, message = {}, ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        sha = found.commit(revision, files, message)
        url = f"{self.server.url}/{repository}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repository: str, revision: str, file: str) -> None:
        found = self._read(repository)
        sha = self._revision(found, revision)
        content = found.commits[sha].get(file)
        headers = {"X-Repo-Commit": sha}
        if content is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        if len(content) < LARGE:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._answer(200, content, {**headers, "ETag": f'"{blob}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        place = {"Location": f"{self.server.storage}/{oid}/{file}"}
        self._answer(302, b"", {**headers, **linked, **place})

    def stored(self, oid: str) -> None:
        self._answer(200, self.server.stored[oid])
