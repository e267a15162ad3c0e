"""Failures of the document store's server and the retrieval replica, killed while clients search, chat and index."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from deployments.state import load_state, processes_of
from tests.support.platform import KEYS, Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform
QUESTION, FACT = "Who designed the harbour of Norfell?", "Ada Quist"
COLLECTION = "failures-harbour"
DOCUMENTS = 40


@dataclass(frozen=True)
class Seen:
    """What one client got for one request."""

    what: str
    status: int
    after: float  # seconds since the kill; negative before it
    took: float  # seconds
    right: bool  # the answer that it must be, or an error in the documented shape with a time to retry
    text: str


def server_of(platform: Platform) -> psutil.Process:
    """The platform's PostgreSQL: what the others of its processes were forked from."""
    folder = str((platform.state_dir / "documents").resolve())
    (found,) = (
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "postgres" and "-D" in process.cmdline() and process.cwd() == folder
    )
    return found


def retrieval_of(platform: Platform) -> psutil.Process:
    """The replica that holds the pipelines."""
    state = load_state(platform.state_dir)
    assert state is not None
    (found,) = (p for p in processes_of(state.run_id) if "retrieval:retrieval" in " ".join(p.cmdline()))
    return found


def is_refusal(response: httpx.Response, codes: Iterable[str]) -> bool:
    error = response.json()["error"]
    shaped = set(error) == {"message", "type", "param", "code"} and error["message"]
    return bool(shaped) and error["code"] in codes and int(response.headers["retry-after"]) >= 1


async def watched(platform: Platform, codes: Iterable[str], kill: Callable[[], None]) -> list[Seen]:
    """What clients that search, chat and list get: a second long, then while `kill` strikes, then until all is well."""
    seen: list[Seen] = []
    ended = False
    killed = float("inf")
    headers = {"authorization": f"Bearer {KEYS['alice']['key']}"}

    async with httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=60) as http:
        chat = {
            "model": f"{platform.model}:full+{COLLECTION}", "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 16, "temperature": 0,
        }  # fmt: skip
        requests = {
            "search": ("POST", "/v1/search", {"json": {"collection": COLLECTION, "query": QUESTION}}),
            "chat": ("POST", "/v1/chat/completions", {"json": chat}),
            "list": ("GET", "/v1/documents", {"params": {"collection": COLLECTION}}),
        }

        async def client(what: str) -> None:
            method, path, options = requests[what]
            while not ended:
                started = time.monotonic()
                response = await http.request(method, path, **options)
                now = time.monotonic()
                expected = "norfell.md" if what == "list" else FACT
                right = expected in response.text if response.status_code == 200 else is_refusal(response, codes)
                seen.append(Seen(what, response.status_code, now - killed, now - started, right, response.text[:300]))
                await asyncio.sleep(0.1)

        clients = [asyncio.create_task(client(what)) for what in requests]
        await asyncio.sleep(1)
        kill()
        killed = time.monotonic()
        while time.monotonic() < killed + 45:
            await asyncio.sleep(0.5)
            last = [[one for one in seen if one.what == what][-3:] for what in requests]
            if all(len(three) == 3 and all(one.status == 200 and one.after > 3 for one in three) for three in last):
                break
        ended = True
        await asyncio.gather(*clients)
    assert all(one.right for one in seen), [one for one in seen if not one.right]
    assert all([one.status for one in seen if one.what == what][-3:] == [200] * 3 for what in requests), seen[-12:]
    return seen


def assert_nothing_hangs(seen: Iterable[Seen], most_s: float) -> None:
    """No request waits longer than `most_s`; an answered chat has taken the time of its tokens, too."""
    waited = [one for one in seen if one.what != "chat" or one.status != 200]
    assert all(one.took < most_s for one in waited), max(waited, key=lambda one: one.took)
    assert all(one.took < 45 for one in seen), max(seen, key=lambda one: one.took)


def put_harbour(http: httpx.Client) -> None:
    content = f"# Norfell\n\nThe harbour of Norfell was designed by {FACT} in 1931."
    body = {"collection": COLLECTION, "source": "norfell.md", "content": content}
    assert http.post("/v1/documents", json=body).status_code == 200


async def test_a_killed_database_is_reported_at_once_and_restarts_by_itself(platform: Platform) -> None:
    with platform.http() as http:
        put_harbour(http)
    server = server_of(platform)
    seen = await watched(platform, ["store_unavailable"], server.kill)
    assert server_of(platform).pid != server.pid
    refused = [one for one in seen if one.status != 200]
    assert {one.status for one in refused} == {503}
    assert {one.what for one in refused} >= {"search", "list"}, "a chat that found before may be answered meanwhile"
    assert_nothing_hangs(seen, 12)
    assert max(one.after for one in refused) < 20


async def test_a_killed_retrieval_replica_comes_back_and_nothing_is_answered_without_it(platform: Platform) -> None:
    """Requests wait for the new replica as long as their time allows, so that few are refused."""
    with platform.http() as http:
        put_harbour(http)
    replica = retrieval_of(platform)
    seen = await watched(platform, ["retrieval_unavailable", "retrieval_timeout"], replica.kill)
    assert retrieval_of(platform).pid != replica.pid
    assert {one.status for one in seen} <= {200, 503, 504}
    refused = [one.took for one in seen if one.what == "chat" and one.status != 200]
    assert all(took < 10 for took in refused), max(refused)
    assert_nothing_hangs(seen, 45)


def incomplete(platform: Platform) -> list[tuple[str, int, int]]:
    """Documents whose chunks are not those that were counted when they were indexed, of all tenants."""
    command = server_of(platform).cmdline()
    with psycopg.connect(host=command[command.index("-k") + 1], user="postgres", dbname="postgres") as connection:
        return connection.execute(
            """SELECT s.name, s.chunks, count(c.position) FROM gearbox.sources s LEFT JOIN gearbox.chunks c ON c.source_id = s.id
               GROUP BY s.id HAVING s.chunks <> count(c.position) OR max(c.position) <> s.chunks - 1"""
        ).fetchall()


class TestIngestion:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Documents of several chunks; what is in the last tells them apart."""
        folder = tmp_path / "many"
        folder.mkdir()
        for i in range(DOCUMENTS):
            sections = [f"## Part {part}\n\n" + f"Gear {i} of part {part} turns. " * 20 for part in range(5)]
            text = f"# Number {i}\n\n" + "\n\n".join(sections) + f"\n\n## End\n\nThe word of number {i} is zq{i}zq.\n"
            (folder / f"{i:03}.md").write_text(text)
        return folder

    def test_documents_are_there_once_and_whole_after_the_database_and_the_command_were_killed(
        self, platform: Platform, folder: Path
    ) -> None:
        collection = "failures-many"
        arguments = [
            "documents", "add", str(folder), "--collection", collection, "--url", platform.url, "--api-key", KEYS["alice"]["key"],
        ]  # fmt: skip

        def started() -> "subprocess.Popen[str]":
            command = [str(Path(sys.executable).with_name("gearbox")), *arguments]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        with platform.http() as http:
            http.delete("/v1/documents", params={"collection": collection})

            def listed() -> list[dict]:
                response = http.get("/v1/documents", params={"collection": collection, "limit": 1000})
                return response.json()["data"] if response.status_code == 200 else []

            def whole() -> dict[str, tuple[int, str]]:
                return {one["source"]: (one["chunks"], one["sha256"]) for one in listed()}

            first = started()
            eventually(lambda: len(listed()) >= 5, 30, "some documents are there")
            first.kill()  # the client itself, in the middle of a document
            first.communicate()
            second = started()
            before = len(listed())
            assert before < DOCUMENTS
            eventually(lambda: len(listed()) > before + 3, 30, "more documents are there")
            assert len(listed()) < DOCUMENTS
            server_of(platform).kill()
            said, _ = second.communicate(timeout=100)
            assert second.returncode == 0, said  # it retries until the database is back
            assert "0 skipped" in said and "Traceback" not in said
            here = whole()
            assert len(listed()) == len(here) == DOCUMENTS
            assert {chunks for chunks, _ in here.values()} == {next(iter(here.values()))[0]}

            third = started()
            said, _ = third.communicate(timeout=60)
            assert f"0 added, 0 replaced, {DOCUMENTS} unchanged, 0 removed, 0 skipped" in said
            assert whole() == here
            for i in range(0, DOCUMENTS, 7):
                body = {
                    "collection": collection, "query": f"zq{i}zq", "mode": "keyword", "min_score": 0, "top_k": 20,
                }  # fmt: skip
                hits = [
                    hit for hit in http.post("/v1/search", json=body).json()["data"] if f"zq{i}zq" in hit["content"]
                ]
                assert [hit["source"] for hit in hits] == [f"many/{i:03}.md"], json.dumps(hits)[:500]
            assert incomplete(platform) == []
            http.delete("/v1/documents", params={"collection": collection})
