"""A stand-in for the Hugging Face hub: as much of its HTTP API as huggingface_hub downloads models with.

As on the hub, small files are answered directly and named by git's id of them; large ones (here: *.safetensors, *.bin)
redirect to another host, which knows ranges and asks for no token, and are named by their sha256 in X-Linked-Etag.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".bin")
ROUTES = {
    "info": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"),
    "file": re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"),
    "content": re.compile(r"/content/(?P<repo>[^/]+/[^/]+)/(?P<name>.+)"),
}


class Refused(Exception):
    """An answer that is an error: status, and the hub's code for it."""


@dataclass
class FakeHub:
    """Models by ORG/NAME, each a dict of file name to content, and a server of them at `url`."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v1.0", COMMIT)
    gated: str = ""
    """This model needs the token `secret`; the answer to others has this status."""
    gated_status: int = 403
    listed_only: set[str] = field(default_factory=set)
    """Files that are listed and then not found."""
    cut: dict[str, int] = field(default_factory=dict)
    """So many times the connection breaks off in the middle of these files."""
    held: set[str] = field(default_factory=set)
    """These files stop coming after their first half, until `released`."""
    broken: set[str] = field(default_factory=set)
    """These files are answered with 500."""
    released: threading.Event = field(default_factory=threading.Event)
    half_sent: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range) of all that was asked."""
    url: str = ""

    def gets(self) -> Counter[str]:
        """How often each file's content was asked for."""
        kinds = ("/resolve/", "/content/")
        asked = [path for method, path, _ in self.requests if method == "GET" and any(kind in path for kind in kinds)]
        return Counter(path.rpartition("/")[2] for path in asked)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answers a request."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        try:
            kind, match = next((kind, match) for kind, route in ROUTES.items() if (match := route.fullmatch(path)))
        except StopIteration:
            return reply(request, 404)
        found = match.groupdict()
        try:
            if kind == "content":
                return self.send_content(request, found["name"], self.models[found["repo"]][found["name"]])
            files = self.files(found["repo"], found.get("revision"), request.headers.get("Authorization"))
            if kind == "info":
                siblings = [{"rfilename": name} for name in files]
                return reply_json(request, {"id": found["repo"], "sha": COMMIT, "siblings": siblings})
            if kind == "tree":
                return reply_json(request, [tree_entry(name, content) for name, content in files.items()])
            name = found["name"]
            if name not in files or name in self.listed_only:
                raise Refused(404, "EntryNotFound")
            self.send_file(request, found["repo"], name, files[name])
        except Refused as refused:
            status, code = refused.args
            reply(request, status, {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

    def files(self, repo: str, revision: str | None, authorization: str | None) -> dict[str, bytes]:
        """The files of a model, if it is there and may be read."""
        if repo not in self.models:
            raise Refused(401, "RepoNotFound")  # as the hub tells those who have not logged in
        if repo == self.gated and authorization != "Bearer secret":
            raise Refused(self.gated_status, "GatedRepo")
        if revision is not None and revision not in self.revisions:
            raise Refused(404, "RevisionNotFound")
        return self.models[repo]

    def send_file(self, request: BaseHTTPRequestHandler, repo: str, name: str, content: bytes) -> None:
        """A small file itself; of a large one where it is."""
        if not name.endswith(LARGE):
            headers = {"ETag": f'"{git_id(content)}"', "X-Repo-Commit": COMMIT}
            return reply(request, 200, headers, content)
        headers = {
            # Another host by its name: huggingface_hub follows redirects to the same one while it asks for facts.
            "Location": f"{self.url.replace('127.0.0.1', 'localhost')}/content/{repo}/{name}",
            "ETag": '"not-this-one"',
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": COMMIT,
        }
        reply(request, 302, headers)

    def send_content(self, request: BaseHTTPRequestHandler, name: str, content: bytes) -> None:
        """A large file, or its rest from the first byte of a range on; faults included."""
        if name in self.broken:
            return reply(request, 500)
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        rest, status = content[start:], 206 if wanted else 200
        stops = name in self.held or self.cut.get(name, 0) > 0
        if not stops:
            return reply(request, status, headers, rest)
        self.cut[name] = self.cut.get(name, 0) - 1
        reply(request, status, headers | {"Content-Length": str(len(rest))}, rest[: len(rest) // 2])
        request.wfile.flush()
        self.half_sent.set()
        if name in self.held:
            self.released.wait(30)
        request.close_connection = True


def git_id(content: bytes) -> str:
    """git's id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree_entry(name: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a model."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def reply_json(request: BaseHTTPRequestHandler, document: Any) -> None:
    reply(request, 200, {"Content-Type": "application/json"}, json.dumps(document).encode())


def reply(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None, content: bytes = b""
) -> None:
    """Sends an answer, its body unless only the head was asked for."""
    request.send_response(status)
    for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def model_files(folder: Path) -> dict[str, bytes]:
    """The content of a model folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@contextmanager
def served_hub() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in two packets wait for each other's acknowledgement.
        wbufsize = -1

        def answer(self) -> None:
            hub.handle(self)

        do_GET = do_HEAD = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()
