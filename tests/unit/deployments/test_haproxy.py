"""Ray's HAProxy, started by `deployments/haproxy`: without splice(), and with errors in the documented format."""

import http.server
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from benchmarks.lib.sample_catalog import make_config
from deployments.ray_internals import ray_environment
from tests.support.answers import error_of
from tests.support.http_server import serving

WRAPPER = Path(__file__).parents[3] / "deployments/haproxy"
Run = Callable[..., str]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def written_by_ray(folder: Path, port: int, servers: list[int] | None, metrics_port: int = 1) -> Path:
    """The configuration that Ray writes for a gateway on these ports; None: no application is deployed yet."""
    backends = {}
    if servers is not None:
        targets = [ServerConfig(f"replica{at}", "127.0.0.1", at) for at in servers]
        backends["gateway"] = BackendConfig("gateway", "/", app_name="gateway", servers=targets, timeout_server_s=1)
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"), server_state_base=str(folder), nbthread=1, metrics_enabled=False,
        server_state_file=str(folder / "server-state"), metrics_port=metrics_port, is_head=True,
        http_options=HTTPOptions(host="127.0.0.1", port=port), has_received_routes=True, has_received_servers=True,
        timeout_connect_s=1,
    )  # fmt: skip
    file = folder / "haproxy.cfg"
    HAProxyApi(config, backends, str(file))._generate_config_file_internal()
    return file


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs HAProxy as Ray does, with its configuration for gateways on the given ports; gives the address."""
    running: list[subprocess.Popen[bytes]] = []

    def start(servers: list[int] | None) -> str:
        port = free_port()
        file = written_by_ray(tmp_path, port, servers, free_port())
        environment = ray_environment(make_config(), tmp_path)
        command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file), "-dR"]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            assert running[-1].poll() is None, "HAProxy does not take the configuration"
            time.sleep(0.01)
        raise AssertionError("HAProxy does not listen")

    yield start
    for process in running:
        process.kill()
        process.wait()


class Replica(http.server.BaseHTTPRequestHandler):
    """A gateway's replica as HAProxy sees one: healthy, and able to answer with a status, hang or break off."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/hang":
            time.sleep(2)
        if self.path in ("/hang", "/break"):
            self.close_connection = True
            return
        status = 404 if self.path in ("/own", "/deleted") else 200
        body = b"own" if status == 404 else self.headers.get("x-request-id", "none").encode("latin-1")
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if self.path == "/deleted":
            self.send_header("content-type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def replica() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    with serving(server):
        yield server.server_port


def raw(url: str, request: bytes) -> httpx.Response:
    """The answer to bytes that no client would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]


def test_rays_haproxy_gets_the_switch_and_all_its_arguments(tmp_path: Path) -> None:
    environment = ray_environment(make_config(), tmp_path)
    file = tmp_path / "a b.cfg"
    file.write_text("global\n")
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", str(file), "-sf", "7"]
    path = {"GEARBOX_HAPROXY": "/bin/echo", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert said.stdout == f"-dS -f {file} -sf 7\n"
    version = subprocess.run([command[0], "-v"], env=environment, capture_output=True, text=True, check=True)
    assert version.stdout.startswith("HAProxy version")


def test_a_proxy_that_takes_a_new_configuration_finishes_its_streams_as_long_as_replicas_do(tmp_path: Path) -> None:
    config = make_config(server={"drain_timeout_s": 299.5})
    assert ray_environment(config, tmp_path)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "300"


def test_the_configuration_is_amended_once_each_time_ray_has_written_it(tmp_path: Path) -> None:
    environment = {"GEARBOX_HAPROXY": shutil.which("true") or "", "PATH": "/usr/bin:/bin"}

    def amended(file: Path) -> str:
        subprocess.run([WRAPPER, "-f", str(file)], env=environment, check=True)
        return file.read_text()

    first = amended(written_by_ray(tmp_path, 1, [2]))
    assert first.count("http-error status 503") == first.count("del-header x-request-id") == 1
    assert first.count("timeout http-request 60s") == 1
    assert "http-reuse safe" in first and "http-reuse always" not in first
    assert "errorfile" not in first and "not found. Ping" not in first
    assert amended(tmp_path / "haproxy.cfg") == first
    assert amended(written_by_ray(tmp_path, 1, [2])) == first


def test_serves_own_404_of_a_gateway_that_is_being_deleted_is_503(run: Run, replica: int) -> None:
    response = httpx.get(f"{run([replica])}/deleted")
    assert error_of(response, 503)["code"] == "not_ready"
    assert response.headers["retry-after"] == "2"


def test_answers_of_the_gateway_pass_as_they_are(run: Run, replica: int) -> None:
    url = run([replica])
    response = httpx.get(f"{url}/own")
    assert (response.status_code, response.text) == (404, "own")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_before_the_gateway_is_deployed_the_platform_is_starting(run: Run, method: str) -> None:
    response = httpx.request(method, f"{run(None)}/v1/models")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    if method != "HEAD":
        error = error_of(response, 503)
        assert (error["code"], error["type"]) == ("not_ready", "service_unavailable_error")


def test_without_a_gateway_the_answer_is_503(run: Run) -> None:
    response = httpx.get(f"{run([free_port()])}/v1/models")
    assert error_of(response, 503)["code"] == "gateway_unavailable"
    assert int(response.headers["retry-after"]) >= 1


def test_a_gateway_that_breaks_off_is_502_and_one_that_hangs_504(run: Run, replica: int) -> None:
    url = run([replica])
    assert error_of(httpx.get(f"{url}/break"), 502)["code"] == "bad_gateway"
    response = httpx.get(f"{url}/hang", timeout=5)
    assert error_of(response, 504)["code"] == "gateway_timeout"


@pytest.mark.parametrize("body", [b"", b"unread"], ids=["end", "reset"])
def test_a_gateway_that_breaks_off_is_502_though_haproxy_keeps_connections_to_it(
    run: Run, replica: int, body: bytes
) -> None:
    """If a reused connection failed, HAProxy would close the client's connection without a response."""
    url = run([replica])
    for _ in range(10):
        assert httpx.get(url).status_code == 200
        assert error_of(httpx.post(f"{url}/break", content=body), 502)["code"] == "bad_gateway"


def test_what_is_not_http_is_400_and_reaches_no_gateway(run: Run) -> None:
    """The page is HAProxy's own: it has it compiled in and takes no other. A gateway would be unreachable here."""
    url = run([free_port()])
    for request in (
        b"hello\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-big: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nbad header: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    ):
        assert raw(url, request).status_code == 400, request[:80]


def test_what_the_gateways_server_would_answer_in_a_way_of_its_own_is_answered_in_shape(run: Run, replica: int) -> None:
    url = run([replica])
    for method in ("BREW", "TRACE", "get"):
        request = f"{method} /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        assert error_of(raw(url, request.encode()), 501)["code"] == "unknown_method"
    star = raw(url, b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert error_of(star, 400)["code"] == "bad_request"


def test_a_request_id_that_is_not_printable_ascii_is_left_out(run: Run, replica: int) -> None:
    url = run([replica])
    for hostile in (b"\xff\xfe", b"a b", b"x" * 129, "größe".encode()):
        assert httpx.get(url, headers={b"x-request-id": hostile}).text == "none"
    assert httpx.get(url, headers={"x-request-id": "mine-7"}).text == "mine-7"
