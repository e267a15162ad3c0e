"""API keys and rate limits: authentication, limits of each tenant, and Retry-After."""

import time

import pytest

from serve.config.sections import AccessConfig
from serve.errors import RequestError
from serve.gateway.auth import Gatekeeper, hash_key, new_key
from serve.request.caller import Caller

KEY, OTHER = "gbx-one", "gbx-two"


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


def gatekeeper(*, opened: bool = False, **limits: int) -> Gatekeeper:
    keys = [
        {"sha256": hash_key(KEY), "tenant": "acme", "budget": "fast", **limits},
        {"sha256": hash_key(OTHER), "tenant": "other", **limits},
    ]
    return Gatekeeper(AccessConfig(allow_anonymous=opened, keys=keys))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(keeper: Gatekeeper, headers: dict[str, str]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        keeper.authenticate(headers)
    assert caught.value.status == 401
    assert caught.value.headers["www-authenticate"] == "Bearer"
    return caught.value


def test_a_new_key_is_random_and_only_its_hash_is_needed():
    (key, digest), (another, _) = new_key(), new_key()
    assert key.startswith("gbx-")
    assert len(key) > 40
    assert key != another
    assert digest == hash_key(key)
    assert key not in digest
    assert Gatekeeper(AccessConfig(keys=[{"sha256": digest, "tenant": "me"}])).authenticate(bearer(key)).tenant == "me"


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_a_known_key_says_who_is_calling(header):
    caller = gatekeeper().authenticate({"authorization": header})
    assert (caller.tenant, caller.budget) == ("acme", "fast")


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer "}]
)
def test_no_key_is_refused_with_what_is_needed(headers):
    error = refused(gatekeeper(), headers)
    assert error.code == "missing_api_key"
    assert "Authorization: Bearer" in error.message


@pytest.mark.parametrize(
    "header", ["Bearer gbx-three", f"Basic {KEY}", f"Bearer {hash_key(KEY)}", f"Bearer {KEY}x", "Bearer größe"]
)
def test_an_unknown_key_is_refused_without_repeating_it(header):
    error = refused(gatekeeper(), {"authorization": header})
    assert error.code == "invalid_api_key"
    assert header.split(" ", 1)[1] not in error.message


def test_anonymous_access_needs_no_key():
    caller = gatekeeper(opened=True).authenticate({})
    assert (caller.tenant, caller.budget) == ("anonymous", "balanced")
    assert Gatekeeper(AccessConfig(allow_anonymous=True, anonymous_profile="cheap")).authenticate({}).budget == "cheap"


def test_anonymous_access_still_knows_the_keys():
    assert gatekeeper(opened=True).authenticate(bearer(KEY)).tenant == "acme"


def test_anonymous_access_with_keys_refuses_a_wrong_one():
    """Whoever sends a key means to be someone; a typo must not silently lose their budget and limits."""
    assert refused(gatekeeper(opened=True), bearer("gbx-typo")).code == "invalid_api_key"


def test_anonymous_access_without_keys_takes_any():
    assert Gatekeeper(AccessConfig(allow_anonymous=True)).authenticate(bearer("unused")).tenant == "anonymous"


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


def test_a_store_that_would_block_the_gateway_is_refused():
    with pytest.raises(ValueError, match="rate_limit_store"):
        Gatekeeper(AccessConfig(allow_anonymous=True, rate_limit_store="memory://"))


def test_a_caller_has_the_weight_of_its_tenant():
    assert gatekeeper(weight=4).authenticate(bearer(KEY)).weight == 4
    assert gatekeeper(opened=True).authenticate({"host": "127.0.0.1"}).weight == 1
