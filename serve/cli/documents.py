"""`gearbox documents`: add, list and delete the documents of a running platform, over HTTP."""

import asyncio
import base64
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import typer.core
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from serve.cli.client import (
    LOCAL,
    RETRY_S,
    RETRY_STATUSES,
    Key,
    Url,
    checked,
    connection,
    fail,
    not_gearbox,
    platform_client,
)
from serve.cli.document_files import Found, Item, find
from serve.config.renamed import RENAMED_COMMANDS
from serve.retrieval.ingest.convert import ConversionError, charset_of, kind_of

MAX_BYTES = 128 << 20  # size limit of a file here; the platform has its own limit
_DOWNLOAD_S = 120.0
_PAGE = 1000
_LINE_S = 5.0
_DOCUMENTS = "/v1/documents"

Collection = Annotated[str, typer.Option(help="Collection to add the documents to.")]


class _SkippedError(Exception):
    """A document could not be indexed; the message says why."""


class _GoneError(Exception):
    """The platform is unavailable or full, denies access or has no such collection; the message says which."""

    def __init__(self, message: str, code: object = None) -> None:
        super().__init__(message)
        self.code = code  # of the response


class _Documents(typer.core.TyperGroup):
    """`gearbox documents COLLECTION` was a command; its error names the one that lists a collection."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Look up a command; called by Typer. Raises `typer.BadParameter`."""
        if (command := super().get_command(ctx, cmd_name)) is None:
            raise typer.BadParameter(f"no command '{cmd_name}'; a collection is listed by 'documents list {cmd_name}'")
        return command


def add_commands(app: typer.Typer) -> None:
    """Add `documents` with its commands to `app`, the alias `index`, and errors for commands that were renamed."""
    documents = typer.Typer(cls=_Documents, help="Documents to answer from: add, list, delete.", no_args_is_help=True)
    documents.command("add")(add_documents)
    documents.command("list")(list_documents)
    documents.command("delete")(delete_documents)
    app.add_typer(documents, name="documents")
    app.command("index", hidden=True)(add_documents)
    for old, new in RENAMED_COMMANDS.items():
        app.command(old, hidden=True, context_settings=_ANY_ARGUMENTS)(_renamed(new))


_ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True}


def _renamed(new: str) -> Callable[[], None]:
    def command() -> None:
        raise fail(f"this command was renamed to 'gearbox {new}'", 2)

    return command


def add_documents(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, URLs, @FILE with one of them per line, or - for such a list on stdin."),
    ],
    collection: Collection = "default",
    meta: Annotated[list[str] | None, typer.Option(help="KEY=VALUE that filters can use; repeatable.")] = None,
    prune: Annotated[
        bool | None,
        typer.Option(
            help="Remove documents whose files no longer exist: by default, from folders that still have one of theirs."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Documents indexed at once.")] = 2,
    url: Url = LOCAL,
    api_key: Key = "",
) -> None:
    """Add documents, so that answers can be grounded in them. Unchanged documents are skipped.

    Interrupted and run again, it continues where it stopped.
    """
    found = find(paths)
    metadata = dict(map(_key_value, meta or []))
    if prune:
        found.folders += found.empty
        found.empty.clear()
    if not found.items and not found.folders:
        for problem in found.problems:
            typer.echo(problem, err=True)
        hint = "; --prune removes what was indexed from a folder that is empty now" if found.empty else ""
        raise fail(f"there is nothing to index ({found.left_out} files of other types){hint}")
    run = _Run(found, collection, metadata, prune, workers)
    try:
        asyncio.run(run.all(url, api_key))
    except KeyboardInterrupt:
        typer.echo(run.summary())
        raise fail("interrupted; run the command again to resume", 130) from None
    except _GoneError as error:
        typer.echo(run.summary())
        raise fail(str(error)) from error
    typer.echo(run.summary())
    if not run.counts.total() - run.counts["skipped"]:
        raise typer.Exit(1)


def list_documents(
    collection: Annotated[str, typer.Argument(help="Collection to list; without it, all collections.")] = "",
    url: Url = LOCAL,
    api_key: Key = "",
) -> None:
    """List the collections, or the documents of one collection."""
    has_more, query = True, {"limit": str(_PAGE)}
    if collection:
        query["collection"] = collection
        table = Table("source", "title", "kB", "chunks", "indexed", "current")
    else:
        table = Table("collection", "documents", "chunks")
    name = "source" if collection else "collection"
    with platform_client(url, api_key) as client:
        while has_more:
            page = checked(client.get(_DOCUMENTS, params=query))
            for row in page["data"]:
                table.add_row(
                    Text(row[name], overflow="fold"), *(_document_cells if collection else _collection_cells)(row)
                )
            has_more = page["has_more"]
            if has_more:
                query["after"] = page["data"][-1][name]
    Console().print(table)


def _collection_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["documents"]), str(row["chunks"])


def _document_cells(row: Mapping[str, Any]) -> tuple[Text | str, ...]:
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["indexed_at"]))
    size = f"{row['size'] / 1e3:.1f}"
    return Text(row["title"]), size, str(row["chunks"]), at, "yes" if row["current"] else "no"


def delete_documents(
    collection: Annotated[str, typer.Argument(help="Collection.")],
    source: Annotated[str, typer.Argument(help="Document to delete; without it, the whole collection.")] = "",
    url: Url = LOCAL,
    api_key: Key = "",
) -> None:
    """Delete a document, or a whole collection."""
    query = {"collection": collection, **({"source": source} if source else {})}
    with platform_client(url, api_key) as client:
        typer.echo(f"{checked(client.delete(_DOCUMENTS, params=query))['deleted']} deleted")


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise fail(f"--meta {text}: KEY=VALUE is needed", 2)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


class _Run:
    """One run of `gearbox documents add`."""

    def __init__(self, found: Found, collection: str, meta: dict[str, Any], prune: bool | None, workers: int) -> None:
        self._found, self._collection, self._meta = found, collection, meta
        self._prune, self._workers = prune, workers
        self._progress = Progress(
            "[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), DownloadColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.counts: Counter[str] = Counter()

    def summary(self) -> str:
        """Number of documents by result."""
        kinds = ("added", "replaced", "unchanged", "removed", "skipped")
        left_out = f" ({self._found.left_out} files of other types left out)" if self._found.left_out else ""
        return ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds) + left_out

    async def all(self, url: str, api_key: str) -> None:
        """Index all documents, then prune. Raises `_GoneError`."""
        timeout = httpx.Timeout(600, connect=5)
        async with (
            httpx.AsyncClient(**connection(url, api_key), timeout=timeout) as platform,
            httpx.AsyncClient(timeout=30, follow_redirects=True, max_redirects=5) as web,
        ):
            for problem in self._found.problems:
                self._skip(problem)
            known = {document["source"]: document async for document in self._listed(platform)}
            items = list(self._found.items.values())
            async with self._shown(items) as done:
                await self._each(items, known, platform, web, done)
            if self._prune is not False:
                await self._remove_missing(known, platform)

    async def _each(
        self,
        items: list[Item],
        known: dict[str, Any],
        platform: httpx.AsyncClient,
        web: httpx.AsyncClient,
        done: "_Done",
    ) -> None:
        waiting = iter(items)

        async def worker() -> None:
            for item in waiting:
                try:
                    self.counts[await self._one(item, known.get(item.source), platform, web)] += 1
                except _SkippedError as error:
                    self._skip(f"{item.path or item.source}: {error}")
                done(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(worker())
        except* _GoneError as errors:
            raise errors.exceptions[0] from None

    async def _one(
        self, item: Item, before: dict[str, Any] | None, platform: httpx.AsyncClient, web: httpx.AsyncClient
    ) -> str:
        """Index one document; returns its status. Raises `_SkippedError`, `_GoneError`."""
        kind = None
        if item.path is None:
            data, kind = await _downloaded(web, item.source)
        else:
            data = await asyncio.to_thread(_read, item.path)
        sha256 = hashlib.sha256(data).hexdigest()
        if before and before["sha256"] == sha256 and before["current"] and not self._meta:
            return "unchanged"
        body: dict[str, Any] = {"collection": self._collection, "source": item.source}
        body |= {name: value for name, value in (("type", kind), ("meta", self._meta)) if value}
        body["data"] = base64.b64encode(data).decode()
        result = await _request(platform, "POST", _DOCUMENTS, json=body)
        for left_out in result.get("left_out") or ():
            self._say(f"{item.path or item.source}: left out: {left_out}")
        return str(result["status"])

    async def _listed(self, platform: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
        query = {"collection": self._collection, "limit": str(_PAGE)}
        while True:
            try:
                page = await _request(platform, "GET", _DOCUMENTS, params=query)
            except _GoneError as error:
                if error.code != "collection_not_found":
                    raise
                return
            except _SkippedError as error:
                raise _GoneError(str(error)) from error
            for document in page["data"]:
                yield document
            if not page["has_more"]:
                return
            query["after"] = page["data"][-1]["source"]

    async def _remove_missing(self, known: dict[str, Any], platform: httpx.AsyncClient) -> None:
        for folder in self._found.empty:
            if number := sum(source.startswith(folder) for source in known):
                self._say(f"{folder} is empty or not mounted: its {number} documents stay; --prune removes them")
        folders = [folder for folder in self._found.folders if self._prune or self._is_still(folder, known)]
        for source in known:
            if source.startswith(tuple(folders)) and source not in self._found.items:
                query = {"collection": self._collection, "source": source}
                try:
                    await _request(platform, "DELETE", _DOCUMENTS, params=query)
                    self.counts["removed"] += 1
                except _SkippedError as error:  # another run removed it first
                    self._skip(f"{source}: {error}")

    def _is_still(self, folder: str, known: dict[str, Any]) -> bool:
        """Whether a folder has a document that it had before: another one of that name has none."""
        before = [source for source in known if source.startswith(folder)]
        if not before or any(source in self._found.items for source in before):
            return True
        self._say(
            f"{folder} has none of the {len(before)} documents of a folder {folder} before: they stay; --prune removes them"
        )
        return False

    def _skip(self, message: str) -> None:
        self.counts["skipped"] += 1
        self._say(message)

    def _say(self, message: str) -> None:
        self._progress.console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)

    @asynccontextmanager
    async def _shown(self, items: list[Item]) -> AsyncIterator["_Done"]:
        done = _Done(items, self._progress)
        with self._progress:
            yield done


class _Done:
    """Reports progress: a bar on a terminal, a line every few seconds otherwise."""

    def __init__(self, items: list[Item], progress: Progress) -> None:
        self._files, self._total = len(items), sum(map(_weight, items))
        self._progress, self._task = progress, progress.add_task("indexing", total=self._total)
        self._started_at = self._printed_at = time.monotonic()
        self._number, self._weight = 0, 0

    def __call__(self, item: Item) -> None:
        self._number, self._weight = self._number + 1, self._weight + _weight(item)
        self._progress.update(self._task, completed=self._weight)
        now = time.monotonic()
        if self._progress.disable and now - self._printed_at >= _LINE_S:
            self._printed_at = now
            left = (self._total - self._weight) / self._weight * (now - self._started_at)
            typer.echo(f"{self._number} of {self._files} documents, {left:.0f} s left", err=True)


def _weight(item: Item) -> int:
    """Weight of an item in the progress estimate, bytes; the size of a URL's document is unknown."""
    return max(item.size, 1000) if item.path else 100_000


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _SkippedError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise _SkippedError(error.strerror or type(error).__name__) from error


async def _downloaded(web: httpx.AsyncClient, url: str) -> tuple[bytes, str]:
    """Download `url`; the type is that of the server or, where it is unspecific, of the file extension."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_DOWNLOAD_S), web.stream("GET", url) as response:
            if response.status_code != 200:
                raise _SkippedError(f"its server answered {response.status_code}")
            async for part in response.aiter_bytes():
                parts.append(part)
                if (size := size + len(part)) > MAX_BYTES:
                    raise _SkippedError(f"it is larger than {MAX_BYTES >> 20} MiB")
            content_type = response.headers.get("content-type", "")
            kind, charset = content_type.partition(";")[0].strip().lower(), charset_of(content_type)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise _SkippedError(f"it can't be downloaded: {error or type(error).__name__}") from error
    if kind in ("", "text/plain", "application/octet-stream"):
        try:
            kind = kind_of(url)
        except ConversionError:
            kind = "text/plain"
    return b"".join(parts), f"{kind}; charset={charset[:80]}" if charset else kind


async def _request(platform: httpx.AsyncClient, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Send a request to the platform; retried for `RETRY_S` when it is busy or unavailable.

    Raises:
        _SkippedError: the platform rejects this document.
        _GoneError: the platform is unavailable or full, or denies access.
    """
    until = time.monotonic() + RETRY_S
    for delay in _delays():
        wait = delay
        try:
            response = await platform.request(method, path, **options)
        except httpx.TransportError as error:
            why = f"no answer from {platform.base_url}: {error or type(error).__name__}"
        else:
            document = _json(response)
            if response.status_code == 200:
                return document
            error_body = document.get("error")
            error_body = error_body if isinstance(error_body, dict) else {}
            why = str(error_body.get("message", f"it answered {response.status_code}"))
            if response.status_code in (401, 403, 404, 405, 507) and method != "DELETE":
                raise _GoneError(why, error_body.get("code"))
            if response.status_code not in RETRY_STATUSES:
                raise _SkippedError(why)
            after = response.headers.get("retry-after", "")
            wait = max(delay, min(float(after), 30.0)) if after.isdecimal() else delay
        if time.monotonic() + wait > until:
            raise _GoneError(why)
        await asyncio.sleep(wait)
    raise AssertionError


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        if response.status_code in RETRY_STATUSES:  # a proxy in front of the gateway
            return {}
        raise _GoneError(not_gearbox(response))
    return document


def _delays() -> Iterator[float]:
    """Delays between retries, seconds."""
    delay = 0.25
    while True:
        yield delay
        delay = min(2 * delay, 5.0)
