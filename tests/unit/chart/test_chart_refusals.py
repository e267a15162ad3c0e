"""Incompatible chart values are rejected with a message that names the error and its correction."""

from typing import Any

import pytest

from helm.chart_render import OPEN, example, merged, refusal
from tests.unit.chart.test_chart_refusals_catalog import pools, variant

KEY = {"sha256": "0" * 64, "tenant": "alice", "budget": "speedy"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nobody may call": (
        {"platform": {"access": {"allow_anonymous": False}}},
        "platform.access: there is no API key, so nobody could call. Create keys with `gearbox keys new TENANT`",
    ),
    "keys where nothing is mounted": (
        {"platform": {"access": {"keys_file": "/keys.yaml"}}},
        "the chart mounts no '/keys.yaml'; leave it out and set secrets.keys",
    ),
    "keys twice": (
        {"secrets": {"keys": {"existingSecret": "a", "entries": [KEY | {"budget": "fast"}]}}},
        "secrets.keys: existingSecret and entries are both set",
    ),
    "a key's unknown profile": (
        {"secrets": {"keys": {"entries": [KEY]}}},
        "the key of tenant 'alice' has the budget 'speedy', which is not a profile; use one of best, balanced, fast, cheap",
    ),
    "an unknown profile of anonymous access": (
        {"platform": {"access": {"anonymous_profile": "speedy"}}},
        "platform.access.anonymous_profile: 'speedy' is not a profile",
    ),
    "a password in the limits' store": (
        {"platform": {"access": {"rate_limit_store": "async+redis://:secret@redis:6379"}}},
        "put the URI into a Secret and name it in secrets.rateLimitStore.existingSecret",
    ),
    "an open Ingress": (
        {"ingress": {"enabled": True, "hosts": ["a.example"]}},
        "lets everybody in who reaches the platform, and ingress.enabled would let in everybody outside",
    ),
    "an open route and Service": (
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}, "service": {"type": "LoadBalancer"}},
        "httpRoute.enabled and service.type would let in everybody outside",
    ),
    "an Ingress for all hosts": ({"ingress": {"enabled": True}}, "ingress.hosts is empty"),
    "a route of no Gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
    "the latest image": ({"image": {"tag": "latest"}}, "image: the tag 'latest' can become another image"),
    "the latest image of a pool": (pools({"image": {"tag": "latest"}}), "image of pool 'engine': the tag 'latest'"),
    "the latest image of a store": ({"redis": {"image": {"tag": "latest"}}}, "redis.image: the tag 'latest'"),
    "a digest that cannot build": (
        {"image": {"digest": "sha256:" + "1" * 64}},
        "weights.job.image: recipes are made by the image that builds",
    ),
    "no drain": (
        {"platform": {"server": {"drain_timeout_s": 0}}},
        "platform.server.drain_timeout_s is 0: every pod that stops would cut its answers",
    ),
    "loopback": (
        {"platform": {"server": {"host": "127.0.0.1"}}},
        "no other pod could reach a gateway or an engine; use 0.0.0.0",
    ),
    "one address of a pod": (
        {"platform": {"server": {"host": "10.1.2.3"}}},
        "platform.server.host is 10.1.2.3: no other pod could reach a gateway or an engine; use 0.0.0.0",
    ),
    "a port of Ray's HAProxy": (
        {"platform": {"server": {"metrics_port": 9101}}},
        "platform.server.metrics_port: 9101 is the port of HAProxy's metrics",
    ),
    "a port of Ray's": (
        {"platform": {"server": {"metrics_port": 8080}}},
        "platform.server.metrics_port: 8080 is the port of Ray's metrics",
    ),
    "a port of root's": ({"platform": {"server": {"port": 80}}}, "it cannot listen on 80; use one from 1024 on"),
    "one port twice": ({"platform": {"server": {"port": 9464}}}, "port and metrics_port are both 9464"),
    "a name that KubeRay refuses": ({"fullnameOverride": "7b.model"}, "KubeRay does not accept the name '7b.model'"),
    "no weights": (variant(recipe=None), "variant 'full' needs exactly one of 'recipe' and 'weights'"),
    "two origins": (variant(weights="s3://models/full"), "variant 'full' needs exactly one of 'recipe' and 'weights'"),
    "a digest of what is yet to be made": (
        variant(digest="sha256:" + "1" * 64),
        "variant 'full' has a digest, but a recipe makes other weights",
    ),
    "weights of an unknown kind": (
        variant(recipe=None, weights="ftp://models"),
        "neither an absolute path nor a URI that begins with s3://, gs://, abfs:// or hf://",
    ),
    "weights where nothing is mounted": (
        variant(recipe=None, weights="/data/full"),
        "the pods have the volume at /models, and what an image brings belongs below /opt",
    ),
    "a recipe in each pod": (
        merged({"weights": {"mode": "pod"}}, variant()),
        "weights.mode pod: every pod of variant 'full' would build the weights again from its recipe",
    ),
    "a copy without a digest": (
        merged({"weights": {"mode": "pod"}}, variant(recipe=None, weights="s3://m")),
        "variant 'full' has no digest, so pods could run different weights",
    ),
    "a path in an empty volume": (
        merged({"weights": {"mode": "pod"}}, variant(recipe=None, weights="/models/full")),
        "/models is empty when a pod starts",
    ),
    "no database": (
        {"platform": {"retrieval": {}}},
        "platform.retrieval has no database: name a Secret with its connection string in secrets.database",
    ),
    "a database for all to read": (
        {
            "platform": {"retrieval": {"database": "postgresql://a:b@c/d"}},
            "secrets": {"database": {"existingSecret": "a"}},
        },
        "platform.retrieval.database would be read by all who may read a RayService",
    ),
    "two databases": (
        {
            "platform": {"retrieval": {}},
            "secrets": {"database": {"existingSecret": "a"}},
            "postgresql": {"enabled": True, "auth": {"password": "trialtrial"}},
        },
        "secrets.database.existingSecret and postgresql.enabled are both set",
    ),
    "a database for nobody": (
        {"postgresql": {"enabled": True, "auth": {"password": "trialtrial"}}},
        "postgresql.enabled, but nothing uses it",
    ),
    "no password": (
        {"redis": {"enabled": True}},
        "redis.auth: no password is generated; set existingSecret, or password for a trial",
    ),
    "two passwords": (
        {"redis": {"enabled": True, "auth": {"password": "trialtrial", "existingSecret": "a"}}},
        "redis.auth: password and existingSecret are both set",
    ),
    "two stores": (
        {
            "redis": {"enabled": True, "auth": {"password": "trialtrial"}},
            "secrets": {"rateLimitStore": {"existingSecret": "a"}},
        },
        "secrets.rateLimitStore.existingSecret and redis.enabled are both set",
    ),
    "fault tolerance without Redis": (
        {"ray": {"gcsFaultTolerance": {"enabled": True}}},
        "ray.gcsFaultTolerance.enabled needs redisAddress",
    ),
    "a Redis that is not used": (
        {"ray": {"gcsFaultTolerance": {"redisAddress": "a:1"}}},
        "ray.gcsFaultTolerance has a Redis but is not enabled",
    ),
    "a token that is not enabled": (
        {"ray": {"auth": {"enabled": False, "existingSecret": "a"}}},
        "ray.auth.existingSecret is set but ray.auth.enabled is false",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_a_reason(values: dict[str, Any], message: str) -> None:
    assert message in refusal(merged(OPEN, values))


def test_all_problems_are_reported_at_once() -> None:
    values = merged({"image": {"tag": "latest"}, "ingress": {"enabled": True}}, variant(resources={"cpus": 5}))
    text = refusal(merged(OPEN, values))
    assert text.startswith("execution error") and "these values cannot work:\n" in text
    assert text.count("\n  - ") == 4


def test_openness_to_the_world_can_be_meant() -> None:
    values = merged(OPEN, {"ingress": {"enabled": True, "hosts": ["a.example"]}, "allowPublicAnonymousAccess": True})
    assert refusal(values) == ""
    with_keys = merged(example("high-availability"), {"service": {"type": "LoadBalancer"}})
    assert refusal(with_keys) == ""
