"""Authentication: API keys, anonymous access, and the tenant of a caller."""

import pytest

from serve.config.sections import AccessConfig
from serve.errors import RequestError
from serve.gateway.auth import Gatekeeper, hash_key, new_key

KEY, OTHER = "gbx-one", "gbx-two"


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


def test_a_caller_has_the_weight_of_its_tenant():
    assert gatekeeper(weight=4).authenticate(bearer(KEY)).weight == 4
    assert gatekeeper(opened=True).authenticate({"host": "127.0.0.1"}).weight == 1
