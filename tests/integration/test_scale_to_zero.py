"""Scale-to-zero: a variant that starts from zero replicas behind two gateways, on a separate platform."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serve.telemetry.prometheus_text import parse
from tests.support.platform import Platform, engine_processes, gateway_processes, local_settings, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Nothing but `distilled`, at zero."""
    settings = local_settings()
    settings["server"] |= {"port": 18300, "metrics_port": 19664, "gateway_replicas": 2}
    del settings["retrieval"]
    settings["variants"] = [variant for variant in settings["variants"] if variant["name"] == "distilled"]
    settings["variants"][0]["replicas"] = {"min": 0, "max": 1}
    with started(settings, tmp_path_factory.mktemp("idle")) as platform:
        yield platform


def ask(platform: Platform, timeout: float = 240, tokens: int = 4) -> httpx.Response:
    body = {"model": platform.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": tokens}
    body |= {"min_tokens": tokens}
    return httpx.post(f"{platform.url}/v1/chat/completions", json=body, timeout=timeout)


def counted(platform: Platform, name: str) -> float:
    """The sum of a metric's series over all gateways, as either of them reports it."""
    return sum(parse(httpx.get(f"{platform.metrics_url}/metrics").text).get(name, {}).values())


def settled(platform: Platform, name: str) -> float:
    """The sum of a metric's series once both gateways have reported the same for a second: an answer is counted after its last byte."""
    values: list[float] = []
    for _ in range(100):
        values.append(counted(platform, name))
        if len(values) >= 10 and len(set(values[-10:])) == 1:
            return values[-1]
        time.sleep(0.1)
    pytest.fail(f"{name} does not settle: {values}")


def test_the_first_request_starts_a_replica_and_nobody_is_lost(idle: Platform) -> None:
    assert "at zero" in idle.gearbox("status").stdout
    assert not engine_processes(idle, "distilled")
    with pytest.raises(httpx.TimeoutException):
        ask(idle, timeout=2)  # a client that does not wait leaves; the others are answered
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: ask(idle), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    assert "1/1" in idle.gearbox("status").stdout
    assert len(idle.targets()["distilled"]) == 1
    assert settled(idle, "gearbox_cold_start_seconds_count") >= 4
    assert 1 < counted(idle, "gearbox_cold_start_seconds_sum") / counted(idle, "gearbox_cold_start_seconds_count") < 240


def test_a_gateway_that_dies_is_replaced_and_the_other_answers(idle: Platform) -> None:
    ask(idle)
    before = settled(idle, "gearbox_requests_total")
    first, second = gateway_processes(idle)
    first.kill()
    first.wait(10)  # while it dies, what it accepted ends with 502
    assert [ask(idle).status_code for _ in range(6)] == [200] * 6
    eventually(lambda: len(gateway_processes(idle)) == 2, 60, "the gateway is replaced")
    alive = gateway_processes(idle)
    assert second in alive and first not in alive
    settled(idle, "gearbox_requests_total")
    assert [counted(idle, "gearbox_requests_total") for _ in range(6)] == [before + 6] * 6, "nothing it counted is lost"


def test_down_waits_for_the_answers_under_way(idle: Platform) -> None:
    """The last test of this module: it stops the platform."""
    start = time.monotonic()
    ask(idle, tokens=20)
    tokens = min(400, round(20 * 12 / (time.monotonic() - start)))  # about twelve seconds
    body = {"model": idle.model, "messages": [{"role": "user", "content": "Tell me of gears"}], "stream": True}
    body |= {"max_tokens": tokens, "min_tokens": tokens}
    with ThreadPoolExecutor(1) as operator, httpx.Client(timeout=120) as client:
        with client.stream("POST", f"{idle.url}/v1/chat/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            start = time.monotonic()
            down = operator.submit(idle.gearbox, "down", timeout=240)
            *_, last = lines
            seconds = time.monotonic() - start
        assert last == "data: [DONE]"
        assert seconds > 4, "the answer is too short to tell a drain from the 3 s in which Ray ends a process"
        assert down.result().returncode == 0 and "nothing is running" in idle.gearbox("down").stdout
