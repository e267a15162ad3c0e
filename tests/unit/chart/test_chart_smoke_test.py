"""The script of `helm test`, against the real gateway with engine stubs."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL
from helm.chart_render import CHART, example, merged, one, render
from serve.gateway.auth import hash_key
from tests.support.gateway_server import Start, Started
from tests.support.http_server import serving

pytestmark = pytest.mark.slow
SCRIPT = CHART / "tests/smoke_test.py"


def smoke_test(url: str, within_s: float = 20, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "SMOKE_TEST_URL": url,
        "SMOKE_TEST_MODEL": MODEL,
        "SMOKE_TEST_VARIANTS": "full int8",
        "SMOKE_TEST_WITHIN_S": str(within_s),
        **more,
    }
    command = [sys.executable, "-I", str(SCRIPT)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_it_asks_the_model_and_each_variant(gateway: Started) -> None:
    passed = smoke_test(gateway.url)
    assert passed.returncode == 0, passed.stderr
    questions = [f"ok: {MODEL}{variant} answers" for variant in ("", ":full", ":int8")]
    assert [line for line in passed.stdout.splitlines() if line.startswith("ok")] == [
        "ok: is ready", "ok: has the model", *questions,
    ]  # fmt: skip
    assert passed.stdout.count("You said: What is the capital of France?") == 3


def test_it_shows_its_key(start_gateway: Start) -> None:
    access = {"allow_anonymous": False, "keys": [{"sha256": hash_key("gb-right"), "tenant": "alice"}]}
    gateway = start_gateway(access=access)
    assert smoke_test(gateway.url, SMOKE_TEST_KEY="gb-right\n").returncode == 0
    refused = smoke_test(gateway.url)
    assert refused.returncode == 1 and "status 401" in refused.stderr


def test_it_fails_where_nobody_answers_in_time() -> None:
    failed = smoke_test("http://127.0.0.1:9", within_s=0.1)
    assert failed.returncode == 1 and failed.stderr.startswith("is ready: status 0")


def test_it_fails_where_a_variant_is_not_there(gateway: Started) -> None:
    failed = smoke_test(gateway.url, within_s=0.1, SMOKE_TEST_VARIANTS="tiny")
    assert failed.returncode == 1 and f"{MODEL}:tiny answers: status 404" in failed.stderr


class Starting(BaseHTTPRequestHandler):
    """A platform that is ready at the second poll, and that answers nothing."""

    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self._answer(503 if self.paths == ["/readyz"] else 200, {"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(200, {"choices": [{"message": {"content": " "}}]})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_it_waits_for_the_start_and_takes_no_empty_answer_for_one() -> None:
    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Starting,), {"paths": paths}))
    with serving(server) as url:
        failed = smoke_test(url, within_s=3)
    assert paths == ["/readyz", "/readyz", "/v1/models"]
    assert failed.returncode == 1 and f"{MODEL} answers: status 200" in failed.stderr


@pytest.mark.parametrize("name", ["cpu-trial", "one-gpu", "high-availability"])
def test_the_pod_knows_the_service_and_skips_variants_at_zero(name: str) -> None:
    documents = render(merged(example(name), {"tests": {"timeoutSeconds": 90}}))
    pod: dict[str, Any] = one(documents, "Pod")["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["SMOKE_TEST_URL"] == "http://demo-gearbox:8000" and environment["SMOKE_TEST_WITHIN_S"] == "90"
    assert environment["SMOKE_TEST_VARIANTS"] == {"high-availability": "full fp8"}.get(name, "full int8")
    assert ("SMOKE_TEST_KEY" in environment) is (name == "high-availability")
    assert pod["activeDeadlineSeconds"] == 150
    assert container["args"] == [SCRIPT.read_text()]
