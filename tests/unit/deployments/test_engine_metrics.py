"""Load read from metrics pages: label values may contain any character."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import psutil
import pytest

from deployments import drain
from deployments.replicas import _engine_stats
from tests.support.http_server import serving

ODD = 'model_name="a}b \\"{c\\n,=",engine="0"'
PAGE = f"""# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{ODD}}} 2.0
vllm:num_requests_waiting{{{ODD}}} 3.0
vllm:num_requests_waiting_by_reason{{reason="x"}} 50.0
vllm:kv_cache_usage_perc{{{ODD}}} 0.25
vllm:cache_config_info{{block="}}",enable_prefix_caching="True",kv_cache_size_tokens="4096"}} 1.0
gearbox_requests_open{{model="a}}b"}} 4.0
"""


class Pages:
    """A metrics page on a port of loopback."""

    def __init__(self) -> None:
        self.page = PAGE
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(pages.page.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port


@pytest.fixture
def pages() -> Iterator[Pages]:
    pages = Pages()
    with serving(pages.server):
        yield pages


async def test_the_load_of_an_engine(pages):
    async with aiohttp.ClientSession() as session:
        stats = await _engine_stats(session, f"http://127.0.0.1:{pages.port}")
        assert stats == {
            "num_requests_running": 2, "num_requests_waiting": 3, "kv_cache_usage_perc": 0.25, "kv_tokens": 4096,
        }  # fmt: skip
        pages.page = 'vllm:num_requests_running{model_name="a} 2'
        assert await _engine_stats(session, f"http://127.0.0.1:{pages.port}") == {}


def test_a_draining_node_counts_every_request(pages, monkeypatch):
    monkeypatch.setattr(drain, "REPLICA_PORTS", [pages.port])
    url = f"http://127.0.0.1:{pages.port}"
    assert drain._engine_requests(psutil.Process()) == 5
    assert drain.gateway_requests(url) == 4
    pages.page = "gearbox_uptime_seconds 5\n"
    assert drain.gateway_requests(url) is None, "as on a full disk"
    pages.page = 'gearbox_requests_open{model="a} x'
    assert drain.gateway_requests(url) is None
    assert drain._engine_requests(psutil.Process()) == 1
