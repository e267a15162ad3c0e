"""Conversion workers: processes that convert documents to text, one at a time each, and can be killed while converting.

(anyio's pool of processes ends with the task that used it first: in a server, in the middle of other requests.)
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

_IDLE_S = 120.0  # after which a process ends; its memory is the engines' then
_MAIN = "from serve.retrieval.ingest.conversion_workers import main; main()"
#: What they have of the environment. The rest may be secrets, such as the database's password, and parsers need none.
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
        processes: the most that run at once.
        main: the program that they run.
    """

    def __init__(self, processes: int = 2, main: str = _MAIN) -> None:
        self._free = asyncio.Semaphore(processes)
        self._idle: list[Process] = []
        self._main = main

    async def convert(self, data: bytes, name: str, kind: str | None, timeout_s: float) -> Text:
        """The text of a document. Raises `ConversionError`, also when it takes longer or breaks the process."""
        async with self._free:
            while self._idle:  # one of these may have ended meanwhile
                with suppress(_WorkerCrashedError):
                    return await self._convert(self._idle.pop(), data, name, kind, timeout_s)
            try:
                return await self._convert(await self._start(), data, name, kind, timeout_s)
            except _WorkerCrashedError as error:
                raise ConversionError("reading it broke the process that did") from error

    async def close(self) -> None:
        """End the processes that wait."""
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
            raise TypeError("a reading process is asked through pipes")
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
        except (OSError, EOFError, ValueError, RuntimeError) as error:  # the last is uvloop's, of a pipe that is closed
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
    """The process ended, or answered nonsense."""


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(process.wait())


def main() -> None:
    """The worker's main loop: documents from stdin, texts to stdout, until it is left or has nothing to do for a while."""
    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what parsers print is no answer
    while _has_input(given) and (size := given.read(8)):
        name, kind, timeout_s, length = orjson.loads(given.read(int(size)))
        data = given.read(length)
        try:
            text = convert_limited(data, name, kind, timeout_s)
            sections = [[one.text, one.heading, one.page] for one in text.sections]
            answer = orjson.dumps([text.title, sections, text.left_out])
        except ConversionError as error:
            answer = orjson.dumps(str(error))
        except MemoryError:
            answer = orjson.dumps("reading it takes too much memory")
        answers.write(b"%12d%b" % (len(answer), answer))
        answers.flush()
        del data, answer


def _has_input(given: BinaryIO) -> bool:
    return bool(select.select([given], [], [], _IDLE_S)[0])
