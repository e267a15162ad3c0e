"""`benchmarks.cluster.startup` measures the time of a start, with a stub command in place of `gearbox`."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.cluster import startup
from benchmarks.lib.processes import NotStarted
from benchmarks.reporting import claims

#: Stands for `gearbox up`: writes the state that the supervisor writes, and answers /readyz after 0.3 s.
UP = """
    import http.server, json, os, pathlib, sys, threading, time
    if sys.argv[1:] == ["down"]:
        (pathlib.Path(os.environ["GEARBOX_STATE_DIR"]) / "down").touch()
        sys.exit()
    started = time.monotonic()
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if time.monotonic() - started > 0.3 else 503)
            self.end_headers()
        def log_message(self, *_): pass
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = pathlib.Path(os.environ["GEARBOX_STATE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    def tell(phase, error=None):
        state = {"run_id": os.environ["GEARBOX_RUN_ID"], "pid": os.getpid(), "metrics_url": "", "config": "", "model": "m",
            "url": f"http://127.0.0.1:{server.server_port}", "variants": {"full": {"phase": phase, "error": error}}}
        (folder / "state.new").write_text(json.dumps(state))
        (folder / "state.new").rename(folder / "state.json")
    tell("building")
    time.sleep(TAKES_S)
    tell(*ENDS)
    time.sleep(30)
"""


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes_s: float, *ends: str) -> Path:
    script = tmp_path / "up.py"
    script.write_text(textwrap.dedent(UP).replace("TAKES_S", str(takes_s)).replace("ENDS", repr(ends)))
    monkeypatch.setenv("GEARBOX_RUN_ID", "a-run")
    monkeypatch.setattr(startup, "python", lambda *words: [sys.executable, str(script), words[2]])
    return tmp_path / "x"


def test_a_start_is_timed_to_the_first_answer_and_to_its_end_and_stopped(tmp_path, monkeypatch):
    folder = stand_in(tmp_path, monkeypatch, 1.2, "ready")
    took = startup.start(folder, None)
    assert 0.3 <= took["first_answer_s"] < took["all_ready_s"]
    assert took["all_ready_s"] >= 1.2
    assert took["variants"] == 1
    assert (folder / "state" / "down").exists()


def test_a_start_in_which_a_variant_fails_is_none(tmp_path, monkeypatch):
    folder = stand_in(tmp_path, monkeypatch, 0.1, "failed", "no kernel")
    with pytest.raises(NotStarted, match="'full': 'no kernel'"):
        startup.start(folder, None)
    assert (folder / "state" / "down").exists()


def test_its_claims_have_the_aims():
    machine = json.loads((claims.RESULTS / "decision.json").read_text())["machine"]
    result = {
        "machine": machine, "command": "python -m benchmarks.cluster.startup", "variants": 3, "aims_s": {"built": 1200.0, "cached": 90.0},
        "built": {"first_answer_s": 300.0, "all_ready_s": 1266.0},
        "cached": {key: {"median": 70.0, "min": 69.0, "max": 71.0, "n": 3} for key in ("first_answer_s", "all_ready_s")},
    }  # fmt: skip
    found = {one.id: one.met for one in claims.rows("startup", result, None)}
    assert found == {
        "startup.built.first_answer": None,
        "startup.built.all_ready": False,
        "startup.cached.first_answer": None,
        "startup.cached.all_ready": True,
    }
