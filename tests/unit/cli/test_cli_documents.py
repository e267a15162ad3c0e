"""`gearbox documents` add, list and delete, against a small HTTP server that stores documents like the platform."""

import base64
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app
from serve.cli import documents
from tests.support.http_server import serving

PAGE = b"<html><body><p>A page about gears.</p></body></html>"


class Stub:
    """Documents in memory behind the platform's HTTP interface; `/web/...` are pages to be downloaded."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict] = {}
        self.posts: list[dict] = []
        self.failures: list[tuple[int, dict]] = []  # answered first, to POST
        self.slow_s = 0.0
        self.key: str | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, document: object, kind: str = "application/json", **headers: str) -> None:
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                headers = {"content-type": kind, "content-length": str(len(body)), **headers}
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def error(self, status: int, message: str, code: str = "x") -> None:
                self.answer(status, {"error": {"message": message, "type": "x", "param": None, "code": code}})

            def do_GET(self) -> None:
                at = urlsplit(self.path)
                query = dict(parse_qsl(at.query))
                if at.path.startswith("/web/"):
                    return self.web(at.path)
                if stub.key and self.headers.get("authorization") != f"Bearer {stub.key}":
                    return self.error(401, "no such key")
                names, after = sorted({collection for collection, _ in stub.documents}), query.get("after", "")
                if "collection" not in query:
                    data = [{"collection": name, "documents": 1, "chunks": 2} for name in names if name > after]
                elif query["collection"] not in names:
                    return self.error(404, "there is no such collection", "collection_not_found")
                else:
                    data = [
                        one
                        for (collection, source), one in sorted(stub.documents.items())
                        if collection == query["collection"] and source > after
                    ]
                limit = min(int(query.get("limit", 100)), 3)
                self.answer(200, {"object": "list", "data": data[:limit], "has_more": len(data) > limit})

            def web(self, path: str) -> None:
                if path == "/web/page":
                    return self.answer(200, PAGE, "text/html; charset=utf-8")
                if path == "/web/notes.md":
                    return self.answer(200, b"# Notes", "text/plain")
                if path == "/web/moved":
                    return self.answer(302, b"", location="/web/page")
                if path == "/web/loop":
                    return self.answer(302, b"", location="/web/loop")
                self.answer(404, b"")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if stub.failures:
                    status, headers = stub.failures.pop(0)
                    return self.answer(status, {"error": {"message": "busy"}}, **headers)
                time.sleep(stub.slow_s)
                data = base64.b64decode(body["data"])
                if b"broken" in data:
                    return self.error(422, "the document can't be read: broken")
                stub.posts.append(body)
                key, sha256 = (body["collection"], body["source"]), hashlib.sha256(data).hexdigest()
                before = stub.documents.get(key)
                stub.documents[key] = {
                    "source": body["source"], "title": "", "size": len(data), "chunks": 1, "sha256": sha256,
                    "current": True, "meta": body.get("meta", {}), "indexed_at": 1.0,
                }  # fmt: skip
                left_out = ["navigation (4 characters): Home"] if b"<nav>" in data else None
                status = "replaced" if before else "added"
                self.answer(200, {"status": status, "chunks": 1, "sha256": sha256, "left_out": left_out})

            def do_DELETE(self) -> None:
                query = dict(parse_qsl(urlsplit(self.path).query))
                source = query.get("source")
                deleted = [k for k in stub.documents if k[0] == query["collection"] and source in (None, k[1])]
                for key in deleted:
                    del stub.documents[key]
                self.answer(200, {"deleted": len(deleted)}) if deleted else self.error(
                    404, "there is no such collection"
                )

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def sources(self, collection: str = "default") -> list[str]:
        return sorted(source for found, source in self.documents if found == collection)


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    with serving(stub.server):
        yield stub


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "a.md").write_text("# A")
    (folder / "guide/b.txt").write_text("B")
    (folder / "guide/c.rst").write_text("C")
    (folder / "d.html").write_text("<p>D</p>")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git/x.md").write_text("secret")
    return folder


def run(stub: Stub, *arguments: str, **options: object) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", stub.url], **options)


def summary(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def test_a_folder_is_indexed_whole_but_for_what_is_hidden_or_of_another_type(stub, docs):
    result = run(stub, "documents", "add", str(docs))
    assert summary(result) == "4 added, 0 replaced, 0 unchanged, 0 removed, 0 skipped (1 files of other types left out)"
    assert stub.sources() == ["docs/a.md", "docs/d.html", "docs/guide/b.txt", "docs/guide/c.rst"]


def test_a_second_run_sends_changed_files_and_deletes_removed_ones(stub, docs):
    run(stub, "documents", "add", str(docs))
    stub.posts.clear()
    (docs / "a.md").write_text("# A, changed")
    (docs / "d.html").unlink()
    (docs / "new.md").write_text("new")
    assert summary(run(stub, "documents", "add", str(docs))).startswith(
        "1 added, 1 replaced, 2 unchanged, 1 removed, 0 skipped"
    )
    assert sorted(post["source"] for post in stub.posts) == ["docs/a.md", "docs/new.md"]
    assert "docs/d.html" not in stub.sources()


def test_what_is_not_current_is_sent_again_although_its_bytes_are_the_same(stub, docs):
    run(stub, "documents", "add", str(docs))
    stub.documents["default", "docs/a.md"]["current"] = False
    assert summary(run(stub, "documents", "add", str(docs))).startswith("0 added, 1 replaced, 3 unchanged")


def test_metadata_is_sent_as_json_where_it_is_json_and_then_the_platform_decides(stub, docs):
    run(stub, "documents", "add", str(docs))
    stub.posts.clear()
    run(stub, "documents", "add", str(docs), "--meta", "year=2024", "--meta", "team=core=x", "--meta", 'tags=["a"]')
    assert len(stub.posts) == 4
    assert stub.posts[0]["meta"] == {"year": 2024, "team": "core=x", "tags": ["a"]}
    assert run(stub, "documents", "add", str(docs), "--meta", "year").exit_code == 2


def test_pruning_touches_only_the_folder_and_the_collection_and_can_be_turned_off(stub, docs, tmp_path):
    other = tmp_path / "docs2"
    other.mkdir()
    (other / "z.md").write_text("Z")
    run(stub, "documents", "add", str(docs), str(other))
    run(stub, "documents", "add", str(docs), "--collection", "second")
    (docs / "a.md").unlink()
    assert "0 removed" in summary(run(stub, "documents", "add", str(docs), "--no-prune"))
    assert "1 removed" in summary(run(stub, "documents", "add", str(docs)))
    assert "docs2/z.md" in stub.sources()
    assert "docs/a.md" in stub.sources("second")


def test_an_empty_folder_removes_nothing_for_it_may_not_be_mounted(stub, docs, tmp_path):
    run(stub, "documents", "add", str(docs))
    for file in docs.rglob("*.*"):
        if file.is_file():
            file.unlink()
    (tmp_path / "one.md").write_text("one")
    result = run(stub, "documents", "add", str(docs), str(tmp_path / "one.md"))
    assert "0 removed" in summary(result)
    assert "docs/ is empty or not mounted: its 4 documents stay; --prune removes them" in result.output
    assert "docs/a.md" in stub.sources()
    result = run(stub, "index", str(docs))
    assert (result.exit_code, "--prune removes" in result.output) == (1, True)


def test_another_folder_of_the_same_name_removes_nothing(stub, docs, tmp_path):
    run(stub, "documents", "add", str(docs))
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "z.md").write_text("Z")
    result = run(stub, "documents", "add", str(other))
    assert summary(result).startswith("1 added, 0 replaced, 0 unchanged, 0 removed")
    assert (
        "docs/ has none of the 4 documents of a folder docs/ before: they stay; --prune removes them" in result.output
    )
    assert "docs/a.md" in stub.sources()
    assert "4 removed" in summary(run(stub, "documents", "add", str(other), "--prune"))


def test_prune_removes_the_last_document_of_a_folder(stub, tmp_path):
    for name in ("docs", "docs2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(name)
    run(stub, "index", str(tmp_path / "docs"), str(tmp_path / "docs2"))
    (tmp_path / "docs/a.md").unlink()
    assert "1 removed" in summary(run(stub, "index", str(tmp_path / "docs"), "--prune"))
    assert stub.sources() == ["docs2/a.md"]


def test_links_out_of_the_folder_are_not_followed(stub, docs, tmp_path):
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.md").write_text("secret")
    (docs / "link.md").symlink_to(tmp_path / "secret.md")
    (docs / "folder").symlink_to(tmp_path / "outside")
    (docs / "round").symlink_to(docs)
    (docs / "dangling.md").symlink_to(tmp_path / "none.md")
    (docs / "inside.md").symlink_to(docs / "a.md")
    run(stub, "documents", "add", str(docs))
    assert stub.sources() == ["docs/a.md", "docs/d.html", "docs/guide/b.txt", "docs/guide/c.rst", "docs/inside.md"]


def test_a_pipe_in_a_folder_is_not_waited_for(stub, docs):
    os.mkfifo(docs / "pipe.md")
    assert summary(run(stub, "documents", "add", str(docs))).startswith("4 added")


def test_a_broken_file_is_reported_with_its_reason_and_skipped(stub, docs):
    (docs / "bad.md").write_text("broken")
    result = run(stub, "documents", "add", str(docs))
    assert summary(result).startswith("4 added, 0 replaced, 0 unchanged, 0 removed, 1 skipped")
    assert "bad.md: the document can't be read: broken" in result.output


def test_left_out_content_of_a_document_is_reported(stub, tmp_path):
    (tmp_path / "a.html").write_text("<nav>Home</nav>text")
    result = run(stub, "documents", "add", str(tmp_path / "a.html"))
    assert "a.html: left out: navigation (4 characters): Home" in result.output
    assert summary(result).startswith("1 added, 0 replaced, 0 unchanged, 0 removed, 0 skipped")


def test_when_nothing_can_be_indexed_the_command_fails(stub, tmp_path):
    (tmp_path / "bad.md").write_text("broken")
    assert run(stub, "documents", "add", str(tmp_path / "bad.md")).exit_code == 1
    (tmp_path / "empty").mkdir()
    result = run(stub, "documents", "add", str(tmp_path / "empty"))
    assert (result.exit_code, "nothing to index" in result.output) == (1, True)
    assert run(stub, "documents", "add", str(tmp_path / "none")).exit_code == 2


def test_files_urls_and_lists_of_them_are_taken(stub, docs, tmp_path):
    lines = tmp_path / "list.txt"
    lines.write_text(f"# comment\n{docs / 'a.md'}\n\n{stub.url}/web/page\n")
    result = run(stub, "documents", "add", f"@{lines}", "-", input=f"{stub.url}/web/notes.md\n{stub.url}/web/moved\n")
    assert summary(result).startswith("4 added")
    urls = [f"{stub.url}/web/{name}" for name in ("moved", "notes.md", "page")]
    assert stub.sources() == ["a.md", *urls]
    kinds = {post["source"]: post.get("type") for post in stub.posts}
    assert kinds == {
        "a.md": None,
        urls[0]: "text/html; charset=utf-8",
        urls[1]: "markdown",
        urls[2]: "text/html; charset=utf-8",
    }


def test_urls_that_fail_loop_or_are_too_large_are_skipped(stub, monkeypatch):
    monkeypatch.setattr(documents, "MAX_BYTES", 20)
    bad = [f"{stub.url}/web/{name}" for name in ("missing", "loop", "page")]
    result = run(stub, "documents", "add", *bad, "http://127.0.0.1:1/x", f"{stub.url}/web/notes.md")
    assert summary(result).startswith("1 added, 0 replaced, 0 unchanged, 0 removed, 4 skipped")
    for reason in ("answered 404", "redirects", "larger than", "can't be downloaded"):
        assert reason in result.output


def test_a_request_to_a_busy_platform_is_retried(stub, docs, monkeypatch):
    monkeypatch.setattr(documents, "_delays", lambda: itertools.repeat(0.02))
    stub.failures = [(503, {"retry_after": "0"}), (429, {}), (503, {})]
    assert summary(run(stub, "documents", "add", str(docs))).startswith(
        "4 added, 0 replaced, 0 unchanged, 0 removed, 0 skipped"
    )


def test_a_platform_that_stays_away_ends_the_command(stub, docs, monkeypatch):
    monkeypatch.setattr(documents, "RETRY_S", 0.1)
    stub.failures = [(503, {})] * 50
    result = run(stub, "documents", "add", str(docs))
    assert (result.exit_code, "busy" in result.output) == (1, True)
    result = CliRunner().invoke(app, ["documents", "add", str(docs), "--url", "http://127.0.0.1:1"])
    assert (result.exit_code, "no answer from" in result.output) == (1, True)


def test_a_full_database_ends_the_command(stub, docs):
    run(stub, "documents", "add", str(docs))
    (docs / "a.md").write_text("# A, changed")
    stub.failures = [(507, {})] * 50
    result = run(stub, "documents", "add", str(docs))
    assert (result.exit_code, "busy" in result.output) == (1, True)


def test_a_wrong_key_ends_the_command_at_once(stub, docs):
    stub.key = "right"
    result = run(stub, "documents", "add", str(docs))
    assert (result.exit_code, "no such key" in result.output) == (1, True)
    assert summary(run(stub, "documents", "add", str(docs), "--api-key", "right")).startswith("4 added")


def test_another_service_at_the_address_is_reported(stub, docs):
    result = CliRunner().invoke(app, ["documents", "add", str(docs), "--url", f"{stub.url}/web"])
    assert (result.exit_code, "is not a Gearbox platform" in result.output) == (1, True)


def test_two_files_with_one_name_are_reported(stub, docs, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.md").write_text("another")
    result = run(stub, "documents", "add", str(docs / "a.md"), str(tmp_path / "x/a.md"))
    assert "another file is named a.md" in result.output
    assert summary(result).startswith("1 added, 0 replaced, 0 unchanged, 0 removed, 1 skipped")


def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(stub, docs):
    for i in range(20):
        (docs / f"n{i:02}.md").write_text(f"number {i}")
    stub.slow_s = 0.2
    command = [
        sys.executable,
        "-c",
        "from deployments.cli import main; main()",
        "documents",
        "add",
        str(docs),
        "--url",
        stub.url,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not stub.sources():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the command again to resume" in err
    assert "Traceback" not in err
    assert "removed" in out
    stub.slow_s, already = 0.0, len(stub.sources())
    assert 0 < already < 24
    added, unchanged = re.match(
        r"(\d+) added, 0 replaced, (\d+) unchanged, ", summary(run(stub, "documents", "add", str(docs)))
    ).groups()
    assert len(stub.sources()) == int(added) + int(unchanged) == 24
    assert int(unchanged) >= already  # one more may have been under way


def test_documents_and_collections_are_listed_and_deleted(stub, docs):
    run(stub, "documents", "add", str(docs))
    names = ["default", "four", "one", "three", "two"]
    for name in names[1:]:
        run(stub, "documents", "add", str(docs / "a.md"), "--collection", name)
    collections = run(stub, "documents", "list").output
    assert all(name in collections for name in names)  # more than a page
    missing = run(stub, "documents", "list", "nothing")
    assert (missing.exit_code, "there is no such collection" in missing.output) == (1, True)
    listed = run(stub, "documents", "list", "default").output
    assert all(source in listed for source in stub.sources())  # more than a page
    assert run(stub, "documents", "delete", "default", "docs/a.md").output == "1 deleted\n"
    assert run(stub, "documents", "delete", "default").output == "3 deleted\n"
    deleted = run(stub, "documents", "delete", "default")
    assert (deleted.exit_code, "there is no such collection" in deleted.output) == (1, True)


def test_index_is_an_alias_of_documents_add(stub, docs):
    assert summary(run(stub, "index", str(docs))).startswith("4 added")


def test_a_renamed_command_names_its_replacement(stub):
    result = run(stub, "forget", "default", "docs/a.md", "--anything")
    assert (result.exit_code, result.stderr) == (2, "gearbox: this command was renamed to 'gearbox documents delete'\n")
    assert "forget" not in run(stub, "--help").output


def test_a_collection_where_documents_wants_a_command_names_the_command(stub):
    result = run(stub, "documents", "handbook")
    assert result.exit_code == 2
    assert "documents list handbook" in " ".join(result.stderr.replace("│", " ").split())
