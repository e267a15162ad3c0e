"""IPv6 and other addresses to listen on: URLs have brackets, and addresses that cannot be listened on are rejected."""

import socket
import subprocess
import time
from functools import partialmethod
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from benchmarks.lib.sample_catalog import make_config
from deployments.cli import _check_ports
from deployments.gateway import GatewayDeployment
from deployments.listener import listener, ray_host, replica_host
from deployments.ray_internals import ray_environment
from deployments.replicas import ServeReplicas
from serve.config.addresses import authority, listen_host, local_url, socket_address
from serve.config.platform import ConfigError
from serve.config.sections import ServerConfig
from serve.gateway.app import _own_url
from serve.telemetry.metrics_server import MetricsServer, serve_metrics


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:0", "::"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("my_host-1.example.com", "my_host-1.example.com"),
    ],
)
def test_an_address_is_taken_in_its_shortest_form(given: str, host: str) -> None:
    assert listen_host(given) == host


@pytest.mark.parametrize(
    "given",
    ["", " ", "http://localhost", "localhost:8000", "127.0.0.1:80", "[::1]:80", "300.1.1.1", "127.1", "0", "*", "::g", "fe80::1%eth0", "[::1", "a b", "127.0.0.1\n"],
)  # fmt: skip
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"neither an address nor|one network interface"):
        listen_host(given)


def test_urls_have_brackets_and_reach_wildcards_by_loopback() -> None:
    assert authority("::1", 80) == "[::1]:80"
    assert authority("host", 80) == "host:80"
    urls = {host: local_url(host, 8000) for host in ("::", "::1", "0.0.0.0", "10.1.2.3", "localhost")}
    assert urls == {
        "::": "http://[::1]:8000",
        "::1": "http://[::1]:8000",
        "0.0.0.0": "http://127.0.0.1:8000",
        "10.1.2.3": "http://10.1.2.3:8000",
        "localhost": "http://localhost:8000",
    }


def test_the_gateway_reaches_itself_and_its_replicas() -> None:
    config = make_config(server={"host": "::", "port": 8001})
    assert _own_url(config) == "http://[::1]:8001/v1"
    assert config.server.metrics_url == "http://[::1]:9464"
    assert ServeReplicas(replica_host("::1"))._url(("10.0.0.1", 30000)) == "http://127.0.0.1:30000"
    assert ServeReplicas(replica_host("::"))._url(("fd00::1", 30000)) == "http://[fd00::1]:30000"


def test_prometheus_finds_ipv6_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "MetricsExportPort": 9468, "NodeManagerAddress": "fd00::1"}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    gateway = GatewayDeployment.__new__(GatewayDeployment)
    gateway._variants = {}
    for host, target in (("::", "[fd00::1]:9468"), ("::1", "127.0.0.1:9468")):
        gateway._config = make_config(server={"host": host})
        assert gateway._targets()[-1]["targets"] == [target]


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "reached"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("127.0.0.1", ["127.0.0.1"])]
)
def test_metrics_are_served_on_ipv6(host: str, reached: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    serve = partialmethod(MetricsServer.serve_forever, 0.01)  # checks that often whether it should end
    monkeypatch.setattr(MetricsServer, "serve_forever", serve)
    port = free_port("::")
    server = serve_metrics(host, port, CollectorRegistry(), list)
    try:
        for address in reached:
            assert httpx.get(f"http://{authority(address, port)}/metrics").status_code == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("host", "ray"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "0.0.0.0"),
        ("::1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
    ],
)
def test_ray_listens_on_ipv4(host: str, ray: str) -> None:
    assert ray_host(host) == ray


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_no_listener_is_needed_where_ray_listens(host: str) -> None:
    assert listener(host, 8000) is None


@needs_ipv6
@pytest.mark.parametrize(("host", "reached"), [("::1", "::1"), ("::", "::1"), ("127.0.0.2", "127.0.0.2")])
def test_haproxy_forwards_from_an_address_that_ray_cannot_listen_on(tmp_path: Path, host: str, reached: str) -> None:
    port = free_port("::")
    (tmp_path / "haproxy.cfg").write_text(  # in the place of Ray's
        "defaults\n  mode http\n  timeout client 9s\n  timeout server 9s\n  timeout connect 9s\n"
        f"frontend http_frontend\n  bind {ray_host(host).replace('0.0.0.0', '*')}:{port}\n"
        "  http-request return status 200 content-type text/plain string gateway\n"
    )
    text = listener(host, port)
    assert text is not None
    assert ("v6only" in text) == (host == "::"), (
        "or the kernel may hand IPv4 connections to the listener, which would loop"
    )
    (tmp_path / "listener.cfg").write_text(text)
    environment = ray_environment(make_config(), tmp_path) | {
        "GEARBOX_HAPROXY_LISTENER": str(tmp_path / "listener.cfg")
    }
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(tmp_path / "haproxy.cfg")]
    checked = subprocess.run([*command, "-c"], env=environment, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr
    with subprocess.Popen(command, env=environment) as proxy:
        try:
            for address in (reached, "127.0.0.1"):
                assert _text(f"http://{authority(address, port)}/") == "gateway"
        finally:
            proxy.terminate()


def _text(url: str) -> str:
    until = time.monotonic() + 10
    while True:
        try:
            return httpx.get(url).text
        except httpx.ConnectError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _server(**settings: object) -> ServerConfig:
    """On ports that are free now, each as far from the others as the platform wants it."""
    while True:
        port, metrics_port = free_port() - 12_000, free_port() - 12_000  # ephemeral ones begin at 32768
        try:
            server = ServerConfig.model_validate({"port": port, "metrics_port": metrics_port, **settings})
            _check_ports(server.model_copy(update={"host": "0.0.0.0"}))
        except (ValueError, ConfigError):
            continue
        return server


def test_free_ports_are_free_on_every_kind_of_address() -> None:
    for host in ("127.0.0.1", "0.0.0.0", "localhost", *(("::1", "::") if _has_ipv6() else ())):
        _check_ports(_server(host=host))


@pytest.mark.parametrize("after", range(5))
def test_a_derived_port_that_is_taken_is_found_before_anything_starts(after: int) -> None:
    server = _server()
    with (
        socket.create_server(("127.0.0.1", server.metrics_port + after)),
        pytest.raises(
            ConfigError, match=rf"^cannot listen on .*:{server.metrics_port + after}: Address already in use \("
        ),
    ):
        _check_ports(server)


@needs_ipv6
def test_a_taken_port_of_ipv6_is_found() -> None:
    server = _server(host="::1")
    with (
        socket.create_server(("::1", server.port), family=socket.AF_INET6),
        pytest.raises(ConfigError, match=rf"^cannot listen on \[::1\]:{server.port}: .* \(port\)"),
    ):
        _check_ports(server)


def test_a_name_that_nobody_knows_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on no-such-host\.invalid:"):
        _check_ports(_server(host="no-such-host.invalid"))


def test_a_name_with_both_kinds_of_address_is_listened_on_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 80, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert socket_address("both", 80) == (socket.AF_INET, ("127.0.0.1", 80))
