"""Rate limits: requests and tokens per minute of each tenant, and Retry-After."""

import time

import pytest

from serve.config.sections import AccessConfig
from serve.errors import RequestError
from serve.gateway.auth import Gatekeeper, hash_key
from serve.request.caller import Caller
from tests.unit.gateway.test_auth import KEY, OTHER, bearer, gatekeeper


class Clock:
    """The time that the limits see."""

    def __init__(self) -> None:
        self.now = 1_790_000_010.25  # half a minute in

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


async def over_limit(keeper: Gatekeeper, caller: Caller) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await keeper.admit(caller)
    assert caught.value.status == 429
    assert 1 <= int(caught.value.headers["retry-after"]) <= 60
    return caught.value


async def test_requests_over_the_limit_are_429(clock):
    keeper = gatekeeper(requests_per_minute=3)
    caller = keeper.authenticate(bearer(KEY))
    for _ in range(3):
        await keeper.admit(caller)
    error = await over_limit(keeper, caller)
    assert error.code == "requests_per_minute"
    assert "3 requests per minute" in error.message


async def test_each_tenant_has_its_own_limit(clock):
    keeper = gatekeeper(requests_per_minute=1)
    await keeper.admit(keeper.authenticate(bearer(KEY)))
    await keeper.admit(keeper.authenticate(bearer(OTHER)))
    await over_limit(keeper, keeper.authenticate(bearer(KEY)))


async def test_two_keys_of_one_tenant_share_its_limit(clock):
    keys = [{"sha256": hash_key(key), "tenant": "acme", "requests_per_minute": 1} for key in (KEY, OTHER)]
    keeper = Gatekeeper(AccessConfig(keys=keys))
    await keeper.admit(keeper.authenticate(bearer(KEY)))
    await over_limit(keeper, keeper.authenticate(bearer(OTHER)))


@pytest.mark.parametrize("last", [KEY, OTHER, "c"])
async def test_the_use_of_a_tenants_limits_is_that_of_all_its_keys(clock, last):
    limits = {KEY: {"requests_per_minute": 2}, OTHER: {"tokens_per_minute": 10}, "c": {}}
    order = sorted(limits, key=last.__eq__)
    keeper = Gatekeeper(
        AccessConfig(keys=[{"sha256": hash_key(key), "tenant": "acme", **limits[key]} for key in order])
    )
    await keeper.admit(keeper.authenticate(bearer(KEY)))
    await keeper.charge(keeper.authenticate(bearer(OTHER)), 4)
    assert await keeper.used(["acme"]) == [("acme", "requests", 0.5), ("acme", "tokens", pytest.approx(0.4))]


async def test_tokens_over_the_limit_are_429_for_the_next_request(clock):
    keeper = gatekeeper(tokens_per_minute=100)
    caller = keeper.authenticate(bearer(KEY))
    await keeper.admit(caller)
    await keeper.charge(caller, 99)
    await keeper.admit(caller)
    await keeper.charge(caller, 500)  # the answer is longer than what was left: that was not known before
    error = await over_limit(keeper, caller)
    assert error.code == "tokens_per_minute"
    assert "100 tokens per minute" in error.message


async def test_a_request_refused_for_its_tokens_is_not_counted_as_a_request(clock):
    keeper = gatekeeper(tokens_per_minute=10, requests_per_minute=1)
    caller = keeper.authenticate(bearer(KEY))
    await keeper.charge(caller, 10)
    await over_limit(keeper, caller)
    clock.now += 61
    await keeper.admit(caller)


@pytest.mark.parametrize("limits", [{"requests_per_minute": 2}, {"requests_per_minute": 1}, {"tokens_per_minute": 5}])
async def test_a_client_that_waits_for_retry_after_is_admitted(clock, limits):
    keeper = gatekeeper(**limits)
    caller = keeper.authenticate(bearer(KEY))
    for _ in range(limits.get("requests_per_minute", 1)):
        await keeper.admit(caller)
    await keeper.charge(caller, 5)
    error = await over_limit(keeper, caller)
    clock.now += int(error.headers["retry-after"])
    await keeper.admit(caller)


async def test_without_limits_nobody_is_held_up(clock):
    keeper = gatekeeper(opened=True)
    for headers in ({}, bearer(KEY)):
        caller = keeper.authenticate(headers)
        for _ in range(100):
            await keeper.admit(caller)
            await keeper.charge(caller, 10**9)
