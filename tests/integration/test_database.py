"""The PostgreSQL server that the platform starts: ownership of its folder, recovery, permissions."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from deployments.database import _BIN, _LIBRARIES, Database, DatabaseError
from deployments.state import RUN_ID, processes_of


def test_processes_carry_the_mark_of_the_run_and_a_folder_has_one_user(database):
    database.restart_if_dead()
    assert database._process.pid in [process.pid for process in processes_of(os.environ[RUN_ID])]
    with pytest.raises(DatabaseError, match="another platform"):
        Database(database._folder).start()
    assert database.running()


def test_what_a_killed_platform_left_is_ended_and_its_data_taken_over(tmp_path):
    folder = tmp_path / "documents"
    code = (
        "import os, sys; from pathlib import Path; from deployments.database import Database\n"
        "import psycopg; d = Database(Path(sys.argv[1])); c = d.start()\n"
        "k = psycopg.connect(c, autocommit=True); k.execute('CREATE TABLE t AS SELECT 7 AS a')\n"
        "print(d._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    left = int(subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False).stdout)
    assert psutil.pid_exists(left)
    database = Database(folder)
    conninfo = database.start()
    try:
        assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("SELECT a FROM t").fetchone() == (7,)
    finally:
        database.stop()
    assert not any(database._uses_folder(process) for process in psutil.process_iter())
    assert not Path(conninfo.split()[0].removeprefix("host=")).exists()


def test_a_stale_pid_file_with_a_living_number_does_not_matter(tmp_path):
    database = Database(tmp_path / "documents")
    database.start()
    database.stop()
    (tmp_path / "documents/postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path / 'documents'}\n1\n5432\n\n\n")
    database.start()
    assert database.running()
    database.stop()
    assert not database.restart_if_dead()
    assert not database.running()


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(DatabaseError, match="neither empty"):
        Database(folder).start()
    (folder / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="PostgreSQL 16"):
        Database(folder).start()
    assert (folder / "letter.txt").read_text() == "dear"


def modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Permissions and owners of `folder` and of all above it."""
    return {path: (s.st_mode, s.st_uid, s.st_gid) for path in (folder, *folder.parents) if (s := path.stat())}


def test_folders_that_were_there_keep_their_permissions_and_the_server_runs_all_the_same(tmp_path):
    closed = tmp_path / "home/platform"
    closed.mkdir(parents=True)
    for folder in (closed, closed.parent):
        folder.chmod(0o700)
    before = modes(closed)
    database = Database(closed / "documents")
    try:
        with psycopg.connect(database.start(), autocommit=True) as connection:
            connection.execute("CREATE TABLE durable AS SELECT 7 AS a")
            connection.execute("CHECKPOINT")
        os.kill(database._process.pid, signal.SIGKILL)
        database._process.wait()
        assert database.restart_if_dead()
        with psycopg.connect(database.conninfo) as connection:
            assert connection.execute("SELECT a FROM durable").fetchone() == (7,)
    finally:
        database.stop()
    assert modes(closed) == before
    assert database.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_leaves_data_to_its_owner_and_says_what_it_cannot_use(tmp_path, monkeypatch):
    database = Database(tmp_path / "documents")
    database.start()
    database.stop()
    folder = tmp_path / "documents"
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    database.start()
    assert psutil.Process(database._process.pid).uids().real == 65534
    database.stop()
    assert folder.stat().st_uid == 65534
    os.chown(folder, 0, 0)
    with pytest.raises(DatabaseError, match="belongs to root"):
        database.start()
    assert folder.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_programs_that_the_servers_account_cannot_reach_run_from_a_copy_and_are_not_opened(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in (_BIN.parent.relative_to(packages := _BIN.parents[2]), _LIBRARIES):
        shutil.copytree(packages / part, closed / part)
    monkeypatch.setattr("deployments.database._BIN", programs := closed / _BIN.relative_to(packages))
    before = modes(programs)
    database = Database(tmp_path / "documents")
    with psycopg.connect(database.start()) as connection:
        connection.execute("create extension vector")
    assert psutil.Process(database._process.pid).exe().startswith(str(copy := database._copied))
    assert database.restart_if_dead() is False
    psutil.Process(database._process.pid).kill()
    database._process.wait()
    assert database.restart_if_dead()
    database.stop()
    assert modes(programs) == before and not copy.exists()
