"""Conversion workers: processes that convert one document at a time and can be killed while converting.

anyio's process pool is not used: it ends with the task that used it first, which in a server is one request among others.
"""

import asyncio
import os
import select
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import BinaryIO

import orjson

from serve.retrieval.ingest.convert import MAX_CHARS, ConversionError, Section, Text, convert_limited

_IDLE_S = 120.0  # idle time after which a process ends, to free its memory for the engines
_MAIN = "from serve.retrieval.ingest.conversion_workers import main; main()"
#: Environment variables that workers inherit. Others may be secrets, such as the database password.
_INHERITED_ENVIRONMENT = (
    "GEARBOX_RUN_ID",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "TMPDIR",
)


class ConversionWorkers:
    """Convert documents in worker processes.

    Args:
        processes: maximum number of processes.
        main: the Python program that the processes run.
    """

    def __init__(self, processes: int = 2, main: str = _MAIN) -> None:
        self._free = asyncio.Semaphore(processes)
        self._idle: list[Process] = []
        self._main = main

    async def convert(self, data: bytes, name: str, kind: str | None, timeout_s: float) -> Text:
        """Convert a document. Raises `ConversionError`, also on a timeout or when the process crashes."""
        async with self._free:
            while self._idle:  # an idle process may have ended meanwhile
                with suppress(_WorkerCrashedError):
                    return await self._convert(self._idle.pop(), data, name, kind, timeout_s)
            try:
                return await self._convert(await self._start(), data, name, kind, timeout_s)
            except _WorkerCrashedError as error:
                raise ConversionError("the conversion process crashed while reading it") from error

    async def close(self) -> None:
        """End all idle processes."""
        while self._idle:
            await _end(self._idle.pop())

    async def _start(self) -> Process:
        environment = {name: os.environ[name] for name in _INHERITED_ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = (sys.executable, "-c", self._main)
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=1 << 20
        )

    async def _convert(self, process: Process, data: bytes, name: str, kind: str | None, timeout_s: float) -> Text:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a conversion worker needs pipes for stdin and stdout")
        try:
            async with asyncio.timeout(timeout_s):
                head = orjson.dumps([name, kind, timeout_s, len(data)])
                process.stdin.write(b"%8d%b%b" % (len(head), head, data))
                await process.stdin.drain()
                size = int(await process.stdout.readexactly(12))
                if size > 8 * MAX_CHARS:
                    raise _WorkerCrashedError
                answer = orjson.loads(await process.stdout.readexactly(size))
        except TimeoutError as error:
            await _end(process)
            raise ConversionError(f"it took longer than {timeout_s:g} s to read") from error
        except (OSError, EOFError, ValueError, RuntimeError) as error:  # uvloop raises RuntimeError for a closed pipe
            await _end(process)
            raise _WorkerCrashedError from error
        except BaseException:
            await _end(process)
            raise
        self._idle.append(process)
        if isinstance(answer, str):
            raise ConversionError(answer)
        return Text(answer[0], tuple(Section(*section) for section in answer[1]), tuple(answer[2]))


class _WorkerCrashedError(Exception):
    """The worker process ended or returned an invalid response."""


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(process.wait())


def main() -> None:
    """The worker's main loop: documents from stdin, texts to stdout, until stdin closes or the worker is idle."""
    requests, responses = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keep output that parsers print out of the responses
    while _has_input(requests) and (size := requests.read(8)):
        name, kind, timeout_s, length = orjson.loads(requests.read(int(size)))
        data = requests.read(length)
        try:
            text = convert_limited(data, name, kind, timeout_s)
            sections = [[section.text, section.heading, section.page] for section in text.sections]
            response = orjson.dumps([text.title, sections, text.left_out])
        except ConversionError as error:
            response = orjson.dumps(str(error))
        except MemoryError:
            response = orjson.dumps("reading it takes too much memory")
        responses.write(b"%12d%b" % (len(response), response))
        responses.flush()
        del data, response


def _has_input(stream: BinaryIO) -> bool:
    return bool(select.select([stream], [], [], _IDLE_S)[0])
