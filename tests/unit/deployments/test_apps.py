"""Application builders named in the rendered Serve config. `tests/cluster` tests that they deploy and answer, except retrieval."""

from typing import Any

import pytest

from deployments import apps
from helm import chart_render

EXAMPLE = chart_render.applications(chart_render.render(chart_render.example("high-availability")))


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "engine_token", lambda: "made in the cluster")


def deployments(name: str) -> dict[str, Any]:
    """The deployments of an application as its builder makes them, by name."""
    application = EXAMPLE[name]
    module, _, builder = application["import_path"].partition(":")
    assert module == apps.__name__
    found: dict[str, Any] = {}
    left = [getattr(apps, builder)(application["args"])]
    while left:
        bound = left.pop()._bound_deployment
        found[bound.name] = bound
        left += [argument for argument in bound.init_args if hasattr(argument, "_bound_deployment")]
    return found


@pytest.mark.parametrize("name", ["gateway", "retrieval"])
def test_what_is_no_engine_runs_in_the_gateways_pool_and_has_the_time_that_answers_take(name: str):
    for deployment in deployments(name).values():
        assert deployment.ray_actor_options["label_selector"] == {"gearbox.io/pool": "gateway"}
        assert deployment.ray_actor_options["num_cpus"] == 0.5
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 900
        assert deployment._deployment_config.max_surge_percent == 100, "its successor answers before it goes"


def test_what_the_config_changes_in_place_are_deployments_that_there_are():
    for name in ("gateway", "retrieval"):
        assert {entry["name"] for entry in EXAMPLE[name].get("deployments", [])} <= deployments(name).keys()


def test_retrieval_gets_its_embedders_folder_and_not_the_database_address():
    made = deployments("retrieval")
    assert set(made) == {"retrieval", "embedder"}
    settings, conninfo, folder, _ = made["retrieval"].init_args
    assert conninfo is None
    assert "database" not in settings
    assert folder == EXAMPLE["retrieval"]["args"]["folder"]
    assert made["embedder"].init_args == (folder,)


def test_arguments_that_the_builder_does_not_know_are_refused():
    with pytest.raises(ValueError, match="weights"):
        apps.gateway({"config": {}, "weights": "/models"})
