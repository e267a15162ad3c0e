"""HAProxy is started without splice(), see `deployments/haproxy`."""

import subprocess
from pathlib import Path

from deployments.supervisor import ray_environment
from tests.catalog import make_config


def test_rays_haproxy_gets_the_switch_and_all_its_arguments(tmp_path: Path) -> None:
    environment = ray_environment(make_config(), tmp_path)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", "a b.cfg"]
    said = subprocess.run(command, env={"GEARBOX_HAPROXY": "/bin/echo"}, capture_output=True, text=True, check=True)
    assert said.stdout == "-dS -f a b.cfg\n"
    version = subprocess.run([command[0], "-v"], env=environment, capture_output=True, text=True, check=True)
    assert version.stdout.startswith("HAProxy version")
