"""Ports of the platform: those derived from the configured ones, and collisions."""

import pytest

from benchmarks.lib.sample_catalog import make_config
from deployments.ray_internals import ray_environment
from serve.config.platform import load_config
from tests.support.config_files import problem


def test_one_port_cannot_be_listened_on_twice(write):
    assert "port" in problem(write(server={"port": 9000, "metrics_port": 9000}))


@pytest.mark.parametrize(
    ("server", "key", "says"),
    [
        ({"port": 9465}, "port", "9465 is for HAProxy's metrics"),
        ({"port": 9466}, "port", "9466 is for HAProxy's statistics"),
        ({"port": 9467}, "port", "9467 is for Serve's own proxy"),
        ({"port": 9468}, "port", "9468 is for Ray's metrics"),
        ({"port": 8002, "metrics_port": 8000}, "metrics_port", "8002 is for HAProxy's statistics"),
        ({"port": 9464}, "port", "port and metrics_port are both 9464"),
        ({"metrics_port": 65533}, "metrics_port", "there is no port 65536 for Serve's own proxy"),
        ({"port": 30000}, "port", "one of the replicas' ports"),
        ({"port": 31000}, "port", "one of the replicas' ports"),
        ({"metrics_port": 29996}, "metrics_port", "meet the replicas' ports"),
        ({"metrics_port": 30500}, "metrics_port", "meet the replicas' ports"),
        ({"host": "http://localhost"}, "host", "without scheme and port"),
        ({"host": ""}, "host", "neither an address nor a host name"),
    ],
)
def test_ports_that_meet_and_hosts_that_are_none_are_refused(write, server, key, says):
    message = problem(write(server=server))
    assert message.startswith(f"server.{key}: ")
    assert says in message


@pytest.mark.parametrize(
    "server",
    [
        {"port": 9463},
        {"port": 9469},
        {"metrics_port": 65531},
        {"port": 29999},
        {"port": 31001},
        {"metrics_port": 29995},
    ],
)
def test_ports_beside_those_of_the_platform_are_free_to_use(write, server):
    load_config(write(server=server))


def test_every_derived_port_is_one_that_the_platform_gives_to_ray(tmp_path):
    config = make_config(server={"metrics_port": 7000})
    environment = ray_environment(config, tmp_path)
    assert list(config.server.derived_ports.values()) == [7001, 7002, 7003, 7004]
    given = {int(value) for name, value in environment.items() if name.endswith("_PORT")}
    assert given == {7001, 7002, 7003}, "7004 is given to ray.init"
