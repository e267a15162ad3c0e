"""Processes that read documents, each one at a time, and that can be ended in the middle of one.

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
_KEPT = ("GEARBOX_RUN_ID", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


class Readers:
    """Reads documents in processes of their own.

    Args:
        processes: the most that run at once.
        main: the program that they run.
    """

    def __init__(self, processes: int = 2, main: str = _MAIN) -> None:
        self._free = asyncio.Semaphore(processes)
        self._idle: list[Process] = []
        self._main = main

    async def read(self, data: bytes, name: str, kind: str | None, within_s: float) -> Text:
        """The text of a document. Raises `ConversionError`, also when it takes longer or breaks the process."""
        async with self._free:
            while self._idle:  # one of these may have ended meanwhile
                with suppress(_BrokenError):
                    return await self._read(self._idle.pop(), data, name, kind, within_s)
            try:
                return await self._read(await self._started(), data, name, kind, within_s)
            except _BrokenError as error:
                raise ConversionError("reading it broke the process that did") from error

    async def close(self) -> None:
        """End the processes that wait."""
        while self._idle:
            await _end(self._idle.pop())

    async def _started(self) -> Process:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = (sys.executable, "-c", self._main)
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=1 << 20
        )

    async def _read(self, process: Process, data: bytes, name: str, kind: str | None, within_s: float) -> Text:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a reading process is asked through pipes")
        try:
            async with asyncio.timeout(within_s):
                head = orjson.dumps([name, kind, within_s, len(data)])
                process.stdin.write(b"%8d%b%b" % (len(head), head, data))
                await process.stdin.drain()
                size = int(await process.stdout.readexactly(12))
                if size > 8 * MAX_CHARS:
                    raise _BrokenError
                answer = orjson.loads(await process.stdout.readexactly(size))
        except TimeoutError as error:
            await _end(process)
            raise ConversionError(f"it took longer than {within_s:g} s to read") from error
        except (OSError, EOFError, ValueError, RuntimeError) as error:  # the last is uvloop's, of a pipe that is closed
            await _end(process)
            raise _BrokenError from error
        except BaseException:
            await _end(process)
            raise
        self._idle.append(process)
        if isinstance(answer, str):
            raise ConversionError(answer)
        return Text(answer[0], tuple(Section(*section) for section in answer[1]), tuple(answer[2]))


class _BrokenError(Exception):
    """The process ended, or answered nonsense."""


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await asyncio.shield(process.wait())


def main() -> None:
    """What a process does: documents from stdin, texts to stdout, until it is left or has nothing to do for a while."""
    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what parsers print is no answer
    while _waits(given) and (size := given.read(8)):
        name, kind, within_s, length = orjson.loads(given.read(int(size)))
        data = given.read(length)
        try:
            text = convert_limited(data, name, kind, within_s)
            sections = [[one.text, one.heading, one.page] for one in text.sections]
            answer = orjson.dumps([text.title, sections, text.left_out])
        except ConversionError as error:
            answer = orjson.dumps(str(error))
        except MemoryError:
            answer = orjson.dumps("reading it takes too much memory")
        answers.write(b"%12d%b" % (len(answer), answer))
        answers.flush()
        del data, answer


def _waits(given: BinaryIO) -> bool:
    return bool(select.select([given], [], [], _IDLE_S)[0])
