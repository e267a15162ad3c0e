"""Documents on the started platform: indexed by the command, searched over HTTP, isolated between tenants."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import httpx
import pytest

from tests.support.answers import error_of
from tests.support.pdf_files import pdf
from tests.support.platform import KEYS, Platform

pytestmark = pytest.mark.platform
FACTS = {
    "guide/intro.md": "The Corvale gear was cast by Ines Holm.",
    "notes.txt": "The Tarn valve opens at nine bars.",
    "page.html": "The Weller spring is wound eleven times.",
    "spec.rst": "The Odell axle carries six tonnes.",
    "letter.docx": "The Brandt clutch was sold in Uppsala.",
    "report.pdf": "The Quill rotor turns to the left.",
}


def make_folder(at: Path) -> Path:
    """A folder with a document of every kind, one that is broken and one that is none."""
    folder = at / "manual"
    (folder / "guide").mkdir(parents=True)
    (folder / "guide/intro.md").write_text(f"# Gears\n\n## Casting\n\n{FACTS['guide/intro.md']}\n")
    (folder / "notes.txt").write_text(FACTS["notes.txt"])
    hidden = '<p style="display:none">The Weller spring is made of cheese.</p>'
    page = f"<html><head><title>Springs</title></head><body><h1>Springs</h1><p>{FACTS['page.html']}</p>{hidden}</body>"
    (folder / "page.html").write_text(page)
    (folder / "spec.rst").write_text(f"Axles\n=====\n\n{FACTS['spec.rst']}\n")
    letter = docx.Document()
    letter.add_heading("Clutches", 1)
    letter.add_paragraph(FACTS["letter.docx"])
    letter.save(str(folder / "letter.docx"))
    (folder / "report.pdf").write_bytes(pdf("A page without much on it.", FACTS["report.pdf"], title="Rotors"))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing of the kind")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def command(platform: Platform) -> Callable[..., str]:
    """The `gearbox` command as alice; returns what it prints."""

    def run(*arguments: str) -> str:
        done = platform.gearbox(*arguments, "--url", platform.url, "--api-key", KEYS["alice"]["key"])
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    return run


def gone(http: httpx.Client, collection: str, **more: Any) -> bool:
    """Whether a search is refused since the collection does not exist."""
    response = http.post("/v1/search", json={"collection": collection, "query": "x", **more})
    return error_of(response, 404)["code"] == "collection_not_found"


def search(http: httpx.Client, collection: str, query: str, **more: Any) -> dict[str, Any]:
    response = http.post("/v1/search", json={"collection": collection, "query": query, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_folder_is_indexed_updated_listed_and_deleted(
    platform: Platform, command: Callable[..., str], tmp_path: Path
) -> None:
    folder, collection = make_folder(tmp_path), "documents-manual"
    with platform.http() as http:
        http.delete("/v1/documents", params={"collection": collection})

        def index() -> str:
            return command("documents", "add", str(folder), "--collection", collection)

        said = index()
        assert "6 added, 0 replaced, 0 unchanged, 0 removed, 1 skipped (1 files of other types left out)" in said
        assert "broken.pdf: the document can't be read" in said
        for name, fact in FACTS.items():
            best = search(http, collection, fact)["data"][0]
            assert best["source"] == f"manual/{name}" and fact in best["content"], best
        assert "cheese" not in json.dumps(search(http, collection, "What is the Weller spring made of?", min_score=0))
        page = search(http, collection, FACTS["report.pdf"])["data"][0]
        assert page["page"] == 2 and page["title"] == "Rotors"
        assert search(http, collection, FACTS["guide/intro.md"])["data"][0]["heading"] == "Gears › Casting"

        assert "0 added, 0 replaced, 6 unchanged, 0 removed, 1 skipped" in index()
        (folder / "notes.txt").write_text("The Tarn valve opens at twelve bars.")
        (folder / "spec.rst").unlink()
        assert "0 added, 1 replaced, 4 unchanged, 1 removed, 1 skipped" in index()
        texts = [hit["content"] for hit in search(http, collection, "Tarn valve", mode="keyword", min_score=0)["data"]]
        assert any("twelve" in text for text in texts) and not any("nine" in text for text in texts)
        assert "Odell" not in json.dumps(search(http, collection, "Odell axle", min_score=0))

        listed = command("documents", "list", collection)
        assert all(f"manual/{name}" in listed for name in FACTS if name != "spec.rst")
        assert "spec.rst" not in listed and "broken.pdf" not in listed
        assert "1 deleted" in command("documents", "delete", collection, "manual/notes.txt")
        assert "4 deleted" in command("documents", "delete", collection)
        assert collection not in command("documents", "list")
        assert gone(http, collection)


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"source": "a.exe", "data": "eA=="}, 415, "unknown_type"),
            ({"source": "a.md", "content": "x", "type": "image/png"}, 415, "unknown_type"),
            ({"source": "a.pdf", "data": base64.b64encode(b"%PDF-1.7 no").decode()}, 422, "unreadable_document"),
            ({"source": "a.docx", "data": base64.b64encode(b"PK\x03\x04 no").decode()}, 422, "unreadable_document"),
            ({"source": "a.md", "content": " \n "}, 422, "unreadable_document"),
            ({"source": "a.md", "content": ""}, 422, "unreadable_document"),
            ({"source": "a.txt", "content": "x" * (33 << 20)}, 413, "document_too_large"),
            ({"source": "a.md", "data": "no base64!"}, 400, "invalid_base64"),
            ({"source": "a.md"}, 400, "invalid_document"),
            ({"source": "a.md", "content": "x", "data": "eA=="}, 400, "invalid_document"),
            ({"source": "", "content": "x"}, 400, "invalid_field"),
            ({"source": "a\nb.md", "content": "x"}, 400, "invalid_source"),
            ({"source": "a.md", "content": "x", "collection": "../etc"}, 400, "invalid_field"),
            ({"source": "a.md", "content": "x", "meta": {"a": {"b": 1}}}, 400, "invalid_meta"),
            ({"source": "a.md", "content": "x", "extra": 1}, 400, "invalid_field"),
            ([], 400, "invalid_body"),
        ],
    )
    def test_a_document_that_is_not_taken(self, platform: Platform, body: object, status: int, code: str) -> None:
        with platform.http() as http:
            response = http.post("/v1/documents", json=body)
        assert error_of(response, status)["code"] == code

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"query": ""}, 400, "invalid_field"),
            ({"query": "x", "top_k": 51}, 400, "invalid_field"),
            ({"query": "x", "mode": "nope"}, 400, "invalid_mode"),
            ({"query": "x", "filters": {"field": "meta.a", "operator": "~", "value": 1}}, 400, "invalid_filter"),
            ({"query": "x" * 20_001}, 400, "invalid_field"),
            ({"query": "x", "collection": "a' OR true --"}, 400, "invalid_field"),
        ],
    )
    def test_a_search_that_can_t_be_made(self, platform: Platform, body: object, status: int, code: str) -> None:
        with platform.http() as http:
            assert error_of(http.post("/v1/search", json=body), status)["code"] == code

    def test_other_methods_and_unknown_parameters(self, platform: Platform) -> None:
        with platform.http() as http:
            assert http.put("/v1/documents", json={}).status_code == 405
            assert http.get("/v1/search").status_code == 405
            assert error_of(http.get("/v1/documents", params={"colection": "x"}), 400)["code"] == "invalid_query"
            assert error_of(http.get("/v1/documents?collection=x&limit=0"), 400)["code"] == "invalid_limit"
            assert error_of(http.get(f"/v1/documents?collection=x&limit={'9' * 5000}"), 400)["code"] == "invalid_limit"
            assert error_of(http.delete("/v1/documents"), 400)["code"] == "missing_collection"
            for name in ("documents-nothing", "", "UPPER"):
                for method in ("GET", "DELETE"):
                    error = error_of(http.request(method, "/v1/documents", params={"collection": name}), 404)
                    assert (error["code"], error["param"]) == ("collection_not_found", "collection")
        assert error_of(httpx.get(f"{platform.url}/v1/documents"), 401)["code"] == "missing_api_key"

    @pytest.mark.parametrize(
        "query", ["naïve ☃ \U0001f600 שלום", "'; DROP TABLE gearbox.sources; --", "a & b | !c <-> (", "\\"]
    )
    def test_any_text_can_be_searched_for(self, platform: Platform, query: str) -> None:
        with platform.http() as http:
            body = {"collection": "documents-any-text", "source": "a.md", "content": FACTS["notes.txt"]}
            assert http.post("/v1/documents", json=body).status_code == 200
            for mode in ("hybrid", "dense", "keyword"):
                assert search(http, "documents-any-text", query, mode=mode)["data"] == []
                assert gone(http, "documents-nothing", mode=mode)


async def test_two_tenants_collections_of_one_name_stay_apart(platform: Platform) -> None:
    """Four clients of each at once; what the one tenant's documents say never reaches the other."""
    names = {"alice": "Ada Quist", "bob": "Bruno Tarn"}
    question, collection = "Who designed the harbour of Norfell?", "documents-shared"

    async def use(tenant: str, http: httpx.AsyncClient) -> None:
        own, other = names[tenant], next(name for who, name in names.items() if who != tenant)
        found = await http.post("/v1/search", json={"collection": collection, "query": question, "min_score": 0})
        body = {
            "model": f"{platform.model}:int8+{collection}", "messages": [{"role": "user", "content": question}],
            "max_tokens": 24, "temperature": 0,
        }  # fmt: skip
        answer = await http.post("/v1/chat/completions", json=body)
        listed = await http.get("/v1/documents", params={"collection": collection})
        assert own in answer.json()["choices"][0]["message"]["content"], answer.text
        assert own in found.text and listed.json()["data"][0]["title"] == f"Of {tenant}"
        assert [one["source"] for one in listed.json()["data"]] == [f"{tenant}.md", "norfell.md"]
        for response in (found, answer, listed):
            assert response.status_code == 200
            assert other not in response.text

    clients = {
        tenant: httpx.AsyncClient(
            base_url=platform.url, headers={"authorization": f"Bearer {KEYS[tenant]['key']}"}, timeout=60
        )
        for tenant in names
    }
    async with clients["alice"] as alice, clients["bob"] as bob:
        for tenant, http in clients.items():
            await http.delete("/v1/documents", params={"collection": collection})
            fact = f"The harbour of Norfell was designed by {names[tenant]} in 1931."
            for source in ("norfell.md", f"{tenant}.md"):
                body = {"collection": collection, "source": source, "content": fact, "title": f"Of {tenant}"}
                assert (await http.post("/v1/documents", json=body)).status_code == 200
        await asyncio.gather(*(use(tenant, http) for tenant, http in clients.items() for _ in range(4)))

        not_his = await bob.delete("/v1/documents", params={"collection": collection, "source": "alice.md"})
        assert error_of(not_his, 404)["code"] == "document_not_found"
        assert (await bob.delete("/v1/documents", params={"collection": collection})).json() == {"deleted": 2}
        assert len((await alice.get("/v1/documents", params={"collection": collection})).json()["data"]) == 2
        nothing = await bob.post("/v1/search", json={"collection": collection, "query": question, "min_score": 0})
        never = await bob.post(
            "/v1/search", json={"collection": "documents-nothing", "query": question, "min_score": 0}
        )
        assert error_of(nothing, 404)["message"] == error_of(never, 404)["message"].replace(
            "documents-nothing", collection
        )
        assert collection not in (await bob.get("/v1/documents")).text
        assert (await alice.delete("/v1/documents", params={"collection": collection})).json() == {"deleted": 2}
