"""A stand-in for Google Cloud Storage: as much of its JSON API as gcsfs, tensorstore and google-cloud-storage use here.

Objects are held in memory. What decides about safety is as in the original: an object appears whole or not at all, has
a new generation every time, and conditions on generations hold. Every bucket but ABSENT exists; listings
come in one page.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

ABSENT = "no-such-bucket"
ROUTE = re.compile(
    r"(?:/(?:upload|download))?/storage/v1/b/(?P<bucket>[^/]+)(?:/o(?:/(?P<name>[^/]+)(?P<rest>/.*)?)?)?"
)
MOVE = re.compile(r"/moveTo/o/(?P<name>[^/]+)")


class Stored(NamedTuple):
    """The bytes of an object, and the number of the write that made it."""

    content: bytes
    generation: int


class FakeStorage:
    """The objects, by `BUCKET/NAME`, and a server of them at `url`."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.refused: str | None = None
        """Objects whose name contains this are answered with 403."""
        self.lock = threading.RLock()
        self.writes = 0
        storage = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body in two packets wait for each other's acknowledgement.
            wbufsize = -1

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with storage.lock:
                    status, content, headers = storage.answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": len(content)}.items():
                    self.send_header(key, str(value))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def write(self, key: str, content: bytes) -> Stored:
        """Makes, or replaces, an object."""
        self.writes += 1
        self.objects[key] = Stored(content, self.writes)
        return self.objects[key]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes, dict[str, Any]]:
        """(status, body, headers) of the answer to a request."""
        split = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        route = ROUTE.fullmatch(split.path)
        if route is None:
            return 501, b"", {}
        bucket, rest = route["bucket"], route["rest"]
        if query.get("uploadType") == "resumable":
            # In one piece: where that goes is where any object goes.
            return 200, b"", {"Location": f"{self.url}{split.path}?uploadType=media&name={quote(query['name'])}"}
        if "uploadType" in query:
            name, content = uploaded(query, headers, body)
        else:
            name, content = unquote(route["name"] or ""), None
        key = f"{bucket}/{name}"
        if bucket == ABSENT:
            return 404, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}', {}
        if self.refused is not None and self.refused in key:
            return 403, b"{}", {}
        if route["name"] is None and content is None:
            listed = split.path.endswith("/o")
            return json_answer(self.listing(bucket, query) if listed else {"kind": "storage#bucket", "name": bucket})
        stored = self.objects.get(key)
        generation = stored.generation if stored else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return 412, b"{}", {}
        if content is not None:
            return json_answer(resource(key, self.write(key, content)))
        if stored is None:
            return 404, b"{}", {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if method == "DELETE":
            del self.objects[key]
            return 204, b"", {}
        if rest is not None and (move := MOVE.fullmatch(rest)):
            target = f"{bucket}/{unquote(move['name'])}"
            del self.objects[key]
            return json_answer(resource(target, self.write(target, stored.content)))
        if rest is not None or method != "GET":
            return 501, b"", {}
        if query.get("alt") != "media":
            return json_answer(resource(key, stored))
        return media(stored, headers.get("Range"))

    def listing(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """The objects that begin with `prefix`; those with a `delimiter` after it as the prefixes that they share."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key, stored in sorted(self.objects.items()):
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            folder, slash, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if slash:
                prefixes.add(prefix + folder + slash)
            else:
                items.append(resource(key, stored))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


def uploaded(query: dict[str, str], headers: Any, body: bytes) -> tuple[str, bytes]:
    """The name and the content of an object that is sent in one request."""
    if query["uploadType"] == "media":
        assert headers.get("Content-Range", f"/{len(body)}").endswith(f"/{len(body)}"), "pieces are not played here"
        return query["name"], body
    boundary = re.search(r'boundary="?([^"]+)', headers["Content-Type"])
    assert boundary is not None
    # Lines end as gcsfs has them, or as google-cloud-storage has them.
    described, sent, _ = re.split(rb"\r?\n--" + re.escape(boundary[1].encode()), body)
    (_, resource), (_, content) = (re.split(rb"\r?\n\r?\n", part, maxsplit=1) for part in (described, sent))
    return json.loads(resource)["name"], content


def resource(key: str, stored: Stored) -> dict[str, Any]:
    """What the API says about an object."""
    bucket, _, name = key.partition("/")
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.content)),
        "generation": str(stored.generation),
        "metageneration": "1",
    }


def json_answer(document: dict[str, Any]) -> tuple[int, bytes, dict[str, Any]]:
    return 200, json.dumps(document).encode(), {"Content-Type": "application/json"}


def media(stored: Stored, asked: str | None) -> tuple[int, bytes, dict[str, Any]]:
    """The bytes of an object, or the range `asked` of them: `bytes=FIRST-[LAST]` or `bytes=-COUNT`."""
    headers: dict[str, Any] = {"x-goog-generation": stored.generation, "Content-Type": "application/octet-stream"}
    size = len(stored.content)
    if asked is None:
        return 200, stored.content, headers
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        return 416, b"", headers
    return 206, stored.content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}


@contextmanager
def served() -> Iterator[FakeStorage]:
    """A storage that answers until the block ends."""
    storage = FakeStorage()
    thread = threading.Thread(target=storage.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        storage.server.shutdown()
        storage.server.server_close()
        thread.join()
