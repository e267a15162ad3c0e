"""The client commands against the real gateway, and the `gearbox` command's error messages."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.lib.sample_catalog import make_live_variant, settings, three_gears
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from deployments.cli import app
from deployments.state import PlatformState, VariantState
from serve.config.sections import KeyConfig
from serve.gateway.auth import hash_key
from tests.support.gateway_server import Start, Started

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may see, or stop, a platform that runs on this machine."""
    monkeypatch.setenv("GEARBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GEARBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def gearbox(*arguments: str, typed: str = "") -> Result:
    result = CliRunner().invoke(app, list(arguments), input=typed, catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"a traceback instead of a message: {result.exception!r}") from result.exception
    return result


def one_line(result: Result, code: int = 1) -> str:
    """The single line on standard error with which a command failed."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"gearbox: .+\n", result.stderr), result.stderr
    return result.stderr


@pytest.fixture
def nobody() -> str:
    """A URL on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_new_key_is_shown_once_with_its_line_for_the_configuration():
    result = gearbox("keys", "new", "acme", "--budget", "fast")
    assert result.exit_code == 0
    key = re.search(r"gbx-\S+", result.stdout)[0]
    line = yaml.safe_load(result.stdout.split("configuration:\n")[1])
    assert KeyConfig(**line[0]) == KeyConfig(sha256=hash_key(key), tenant="acme", budget="fast")
    assert result.stdout.count(key) == 1


def test_route_shows_where_a_question_would_go_and_why(gateway: Started):
    result = gearbox("route", "What is a gearbox?", "--url", gateway.url, "--ttft-ms", "250", "--max-tokens", "10")
    assert result.exit_code == 0, result.output
    rows = {row.split("│")[1].strip(): row for row in result.stdout.splitlines() if row.startswith("│")}
    assert set(rows) == {"full", "int8", "distilled"}
    assert "predicted ttft 400 ms > 250 ms" in rows["full"]
    assert "chosen: quality" in rows["int8"]
    assert "fits" in rows["distilled"]
    assert gateway.engine_calls() == {}, "without asking it"


def test_route_takes_every_limit(gateway: Started):
    def chosen(*limits: str) -> str:
        result = gearbox("route", "hi", "--url", gateway.url, *limits)
        assert result.exit_code == 0, result.output
        return next(row.split("│")[1].strip() for row in result.stdout.splitlines() if "chosen: " in row)

    assert chosen("--objective", "cost", "--min-quality", "0.9") == "int8"
    assert chosen("--tpot-ms", "25") == "int8"
    assert chosen("--e2e-ms", "3000") == "distilled"
    assert chosen("--max-cost", "0.00003") == "distilled"
    assert chosen("--model", "smollm2-135m:distilled") == "distilled"


def test_route_says_what_is_wrong_with_the_request(gateway: Started):
    assert "'other' does not exist" in one_line(gearbox("route", "hi", "--url", gateway.url, "--model", "other"))
    assert "objective" in one_line(gearbox("route", "hi", "--url", gateway.url, "--objective", "speed"))


def test_route_says_when_nobody_answers(nobody):
    assert nobody in one_line(gearbox("route", "hi", "--url", nobody))


class Page(BaseHTTPRequestHandler):
    """A proxy in front may answer with a page of its own."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"<html><body><h1>503 Service Unavailable</h1></body></html>")

    def log_message(self, *_: object) -> None:
        pass


class ErrorPages(Page):
    """The same for requests with a body, and an error of another shape."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"detail": "busy"}')


def test_route_says_when_something_else_answers():
    with HTTPServer(("127.0.0.1", 0), Page) as proxy:
        threading.Thread(target=proxy.handle_request, daemon=True).start()
        assert "503" in one_line(gearbox("route", "hi", "--url", f"http://127.0.0.1:{proxy.server_port}"))


def test_keys_are_sent(start_gateway):
    gateway = start_gateway(access={"keys": [{"sha256": hash_key("gbx-1"), "tenant": "acme"}]})
    assert gearbox("route", "hi", "--url", gateway.url, "--api-key", "gbx-1").exit_code == 0
    assert "API key" in one_line(gearbox("route", "hi", "--url", gateway.url))
    assert "not known" in one_line(gearbox("route", "hi", "--url", gateway.url, "--api-key", "gbx-2"))


def test_a_key_from_a_file_has_a_line_end_and_no_key_is_printed(start_gateway, nobody):
    gateway = start_gateway(access={"keys": [{"sha256": hash_key("gbx-1"), "tenant": "acme"}]})
    assert gearbox("route", "hi", "--url", gateway.url, "--api-key", " gbx-1\n").exit_code == 0
    for command in (["route", "hi"], ["documents", "add", __file__]):
        message = one_line(gearbox(*command, "--url", nobody, "--api-key", "gbx-sec\nret"), 2)
        assert "no key has" in message and "sec" not in message


def test_what_is_no_url_is_one_line():
    for command in (["route", "hi"], ["chat"], ["documents", "add", __file__], ["documents", "list"]):
        assert "http://host:80OO is not a URL: " in one_line(gearbox(*command, "--url", "http://host:80OO"), 2)


def test_chat_says_when_something_else_answers():
    with HTTPServer(("127.0.0.1", 0), ErrorPages) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        result = gearbox("chat", "--model", "m", "--url", f"http://127.0.0.1:{proxy.server_port}", typed="hi\n")
        proxy.shutdown()
    assert result.exit_code == 0 and result.output.count("is not a Gearbox platform: its response (503)") == 1


def test_chat_streams_the_answer_and_shows_variant_and_timings(gateway: Started):
    result = gearbox("chat", "--url", gateway.url, typed="hello there\n")
    assert result.exit_code == 0, result.output
    assert "You said: hello there" in result.stdout
    assert re.search(r"full \(quality\) · first token \d+ ms · \d+ tok/s · \d+\.\d\d s · quality 1\.000", result.stdout)


def test_chat_shows_what_an_answer_rests_on(start_gateway: Start):
    retrieval = FakeRetrieval()
    gateway = start_gateway(searches=retrieval, retrieval={"ground_by_default": True})
    shown = " ".join(gearbox("chat", "--url", gateway.url, typed="Who leads Larkhaven?\n2 + 2\n").stdout.split())
    assert "· grounded" in shown
    assert "source 1: News" in shown
    assert "2 + 2 = 4" in shown
    assert "no variant (computed)" in shown


def test_chat_remembers_until_it_is_reset_and_changes_the_model(gateway: Started):
    typed = "one\ntwo\n/reset\nthree\n/model smollm2-135m:int8\nfour\n\n"
    assert gearbox("chat", "--url", gateway.url, typed=typed).exit_code == 0
    conversations = [[m["content"] for m in body["messages"]] for body in gateway.engines["full"].requests]
    assert conversations == [["one"], ["one", "You said: one", "two"], ["three"]]
    conversations = [[m["content"] for m in body["messages"]] for body in gateway.engines["int8"].requests]
    assert conversations == [["three", "You said: three", "four"]]


def test_chat_goes_on_after_an_error_which_leaves_no_trace_in_the_conversation(gateway: Started):
    result = gearbox("chat", "--url", gateway.url, "--model", "other", typed="one\n/model smollm2-135m\ntwo\n")
    assert result.exit_code == 0, result.output
    assert "model 'other' does not exist" in result.stdout
    assert [m["content"] for m in gateway.engines["full"].requests[-1]["messages"]] == ["two"]


def test_chat_shows_that_an_answer_broke_off(start_gateway: Start):
    gateway = start_gateway(variants=[make_live_variant("full")])
    gateway.engines["full"].behaviour = "die mid-stream"
    result = gearbox("chat", "--url", gateway.url, typed="hello\n")
    assert result.exit_code == 0, result.output
    assert "was interrupted" in result.stdout


def test_chat_shows_an_engines_message_with_brackets_in_it(gateway: Started):
    gateway.engines["full"].behaviour = "400"
    gateway.engines["full"].error = "1 error: bad [type=missing, input=[/x]]"
    result = gearbox("chat", "--url", gateway.url, typed="hello\n")
    assert result.exit_code == 0, result.output
    assert "bad [type=missing, input=[/x]]" in result.stdout


def test_chat_says_when_nobody_answers(nobody):
    assert nobody in one_line(gearbox("chat", "--url", nobody, typed="hello\n"))


@pytest.fixture
def write(tmp_path: Path):
    def to_file(**changes: object) -> str:
        file = tmp_path / "platform.yaml"
        file.write_text(yaml.safe_dump(settings(**changes)))
        return str(file)

    return to_file


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"variants": [{"name": "full", "recipe": "full"}, {"name": "full", "recipe": "int8"}]}, "two variants"),
        ({"variants": [{"name": "own", "weights": "/nowhere"}]}, "variant 'own': no card.json in /nowhere"),
        ({"variants": [{"name": "full", "recipe": "int3"}]}, "int3.yaml"),
        ({"model": {"name": "m", "source": "no such thing"}}, "'no such thing' is no model source"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_code_2_and_nothing_is_started(write, tmp_path, changes, says):
    assert says in one_line(gearbox("up", "--config", write(**changes)), 2)
    assert not (tmp_path / "state").exists()


def test_a_port_that_is_taken_is_a_bad_configuration(write):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = one_line(gearbox("up", "--config", write(server={"port": port})), 2)
    assert f"cannot listen on 127.0.0.1:{port}: " in message


def test_an_unknown_variant_on_the_command_line_is_refused(write):
    assert "unknown variant 'int4'" in one_line(gearbox("up", "--config", write(), "--variants", "full, int4"), 2)


def test_the_real_command_ends_with_exit_code_2(tmp_path):
    """As a process, because that is what scripts see."""
    command = [sys.executable, "-m", "deployments.cli", "up", "--config", str(tmp_path / "nowhere.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gearbox: {tmp_path / 'nowhere.yaml'}: No such file or directory\n"


def test_down_and_status_say_when_nothing_runs():
    assert gearbox("down").stdout == "nothing is running\n"
    assert "nothing is running" in one_line(gearbox("status"))


def test_down_and_status_recognise_a_platform_that_has_ended(tmp_path):
    (tmp_path / "state").mkdir()
    PlatformState(
        run_id="gone", pid=os.getpid(), url="http://127.0.0.1:1", metrics_url="", config="", model="m",
        variants={variant.name: VariantState(phase="ready") for variant in three_gears()},
    ).save(tmp_path / "state")  # fmt: skip
    assert gearbox("down").stdout == "nothing is running\n"
    assert "the last platform ended by itself" in one_line(gearbox("status")), "not by `gearbox down`"
    assert json.loads((tmp_path / "state/state.json").read_text())["run_id"] == "gone"
