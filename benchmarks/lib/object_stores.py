"""Local S3 bucket and Hugging Face hub with the operations that `deployments.fetch` uses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse
from xml.sax.saxutils import escape


class _Store(BaseHTTPRequestHandler):
    """Serves the files below `folder`."""

    folder: Path
    requested: list[str]
    cut_after: int | None = None  # bytes after which an answer is cut off
    more_names: tuple[str, ...] = ()  # listed in addition; their content is "evil"

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and len(body) > self.cut_after:
            self.wfile.write(body[: self.cut_after])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()


class S3(_Store):
    """A bucket called `models`; credentials are required."""

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        self.requested.append(self.path)
        url = urlparse(self.path)
        if "authorization" not in self.headers:
            return self._send(403, b"<Error><Code>AccessDenied</Code></Error>", content_type="application/xml")
        query, key = parse_qs(url.query), url.path.removeprefix("/models").lstrip("/")
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            found = [f for f in sorted(self.folder.rglob("*")) if f.is_file()]
            names = [(f.relative_to(self.folder).as_posix(), f.stat().st_size) for f in found]
            names += [(name, 4) for name in self.more_names]
            rows = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
                for name, size in names
                if name.startswith(prefix) or name in self.more_names
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
            return self._send(200, body.encode(), content_type="application/xml")
        if unquote(key) in self.more_names:
            return self._send(200, b"evil", etag='"x"')
        file = self.folder / key
        if not key or not file.is_file():
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")
        data = file.read_bytes()
        if (span := self.headers.get("range")) and span.startswith("bytes="):
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            part = data[int(first) : end + 1]
            return self._send(206, part, content_range=f"bytes {first}-{end}/{len(data)}", etag='"x"')
        self._send(200, data, etag='"x"')


class Hub(_Store):
    """One repository, `org/name`, whose branches `v1` and `main` are at `commit`."""

    commit = "a" * 40

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        self.requested.append(self.path)
        files = [f for f in sorted(self.folder.rglob("*")) if f.is_file()]
        path = urlparse(self.path).path
        if path in (f"/api/models/org/name/revision/{known}" for known in ("v1", "main", self.commit)):
            names = [{"rfilename": f.relative_to(self.folder).as_posix()} for f in files]
            names += [{"rfilename": name} for name in self.more_names]
            body = {"id": "org/name", "sha": self.commit, "siblings": names}
            return self._send(200, json.dumps(body).encode(), content_type="application/json")
        if path.startswith("/api/models/org/name/tree/"):
            rows = [
                {
                    "type": "file",
                    "path": f.relative_to(self.folder).as_posix(),
                    "size": f.stat().st_size,
                    "oid": "0" * 40,
                }
                for f in files
            ]
            rows += [{"type": "file", "path": name, "size": 4, "oid": "0" * 40} for name in self.more_names]
            return self._send(200, json.dumps(rows).encode(), content_type="application/json")
        name = unquote(path).removeprefix(f"/org/name/resolve/{self.commit}/")
        file = self.folder / name
        if name in self.more_names:
            return self._send(200, b"evil", etag='"x"', x_repo_commit=self.commit)
        if name == path or not file.is_file():
            return self._send(404, b"", x_error_code="EntryNotFound" if name != path else "RepoNotFound")
        data = file.read_bytes()
        etag = hashlib.sha1(data).hexdigest()
        self._send(200, data, etag=f'"{etag}"', x_repo_commit=self.commit)


@contextmanager
def serving(kind: type[_Store], folder: Path, **more: object) -> Iterator[tuple[str, list[str]]]:
    """Serve a store; yields its URL and the requested paths. `more` sets the store's attributes."""
    paths: list[str] = []
    handler = type(kind.__name__, (kind,), {"folder": folder, "requested": paths, **more})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
    finally:
        server.shutdown()
