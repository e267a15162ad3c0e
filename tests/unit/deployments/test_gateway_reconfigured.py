"""Reconfiguration of a running gateway: a new catalog, cards that appear later, rotated keys."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.lib.sample_catalog import make_card, make_config, make_live_variant
from deployments import gateway
from deployments.gateway import GatewayDeployment, settings_of
from serve.config.platform import ConfigError, PlatformConfig
from serve.errors import RequestError
from serve.gateway.auth import hash_key
from serve.routing.live_state import LiveState
from serve.routing.prediction import Features, Load
from tests.support.gateway_server import Started

NEW, OLD = "gbx-new", "gbx-old"


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Callable[[PlatformConfig], GatewayDeployment]:
    """The deployment without Serve: its replicas are never polled."""
    monkeypatch.setattr(gateway, "serve_metrics", lambda *_: None)
    monkeypatch.setattr(gateway, "log_with_serve", lambda: None)

    def make(config: PlatformConfig) -> GatewayDeployment:
        made = GatewayDeployment(settings_of(config), "token")
        made._refreshing = object()  # nothing is watched
        return made

    return make


def variants(*names: str) -> dict[str, object]:
    return {"variants": [{"name": name, "weights": "/none", "replicas": {"max": 4}} for name in names]}


async def test_the_catalog_changes_and_estimates_of_remaining_variants_are_retained(deployment):
    own = deployment(make_config())
    cards = {name: make_card(name).model_dump(mode="json") for name in ("full", "int8", "distilled")}
    await own.reconfigure({"config": variants("full", "int8"), "catalog": {n: cards[n] for n in ("full", "int8")}})
    known = own._variants["full"].live
    assert own._metrics.registry.get_sample_value("gearbox_gateway_starts_total") == 1
    await own.reconfigure(
        {"config": variants("full", "distilled"), "catalog": {n: cards[n] for n in ("full", "distilled")}}
    )
    assert list(own._variants) == ["full", "distilled"]
    assert own._variants["full"].live is known
    assert own._variants["distilled"].max_replicas == 4


async def test_a_gateway_knows_the_replicas_before_its_first_request(deployment, monkeypatch):
    own = deployment(make_config())
    own._refreshing = None
    looks: list[str] = []

    async def refresh(variant: str, live: LiveState, _: object) -> None:
        looks.append(variant)
        live.update_from_engines(len(looks) > 2, 0, 0, 0.0)  # Serve tells of the replicas a moment later

    async def sync(_: object) -> None: ...

    monkeypatch.setattr(own._replicas, "sync", sync)
    monkeypatch.setattr(own._replicas, "refresh", refresh)
    monkeypatch.setattr(own, "_restore_learned", lambda: None)
    try:
        await own.reconfigure({"config": variants("full"), "catalog": {"full": make_card().model_dump(mode="json")}})
        assert own._variants["full"].live.replicas == 1
        assert looks == ["full"] * 3
    finally:
        own._refreshing.cancel()


@pytest.mark.parametrize("failure", [None, OSError("secret")])
async def test_a_gateway_starts_without_replicas_too(deployment, monkeypatch, caplog, failure):
    own = deployment(make_config())
    own._refreshing = None
    monkeypatch.setattr(gateway, "_FIND_S", 0.06)

    async def sync(_: object) -> None:
        if failure:
            raise failure

    monkeypatch.setattr(own._replicas, "sync", sync)
    monkeypatch.setattr(own, "_restore_learned", lambda: None)
    try:
        await own.reconfigure({"config": variants("full"), "catalog": {"full": make_card().model_dump(mode="json")}})
    finally:
        own._refreshing.cancel()
    assert own._variants["full"].live.replicas == 0
    assert "secret" not in caplog.text


async def test_gateways_tell_each_other_which_prompts_were_read_where(deployment, monkeypatch):
    stored: dict[bytes, bytes] = {}
    monkeypatch.setattr(gateway, "put_shared_value", stored.__setitem__)
    monkeypatch.setattr(gateway, "shared_values", lambda prefix: dict(stored))
    monkeypatch.setattr(gateway, "delete_shared_value", stored.pop)
    monkeypatch.setattr(gateway, "_SILENT", 3)
    pair = [deployment(make_config(server={"gateway_replicas": 2})) for _ in range(2)]
    url, features = "http://10.0.0.1:1", Features(800, 10, blocks=range(7))
    for own in pair:
        await own.reconfigure({"config": variants("full"), "catalog": {"full": make_card().model_dump(mode="json")}})
        own._variants["full"].live.update_from_engines(1, 0, 0, 0.0, kv_tokens=10_000)
        own._variants["full"].live.update_replicas({url: 0})
    pair[0]._variants["full"].live.remember_prefix(features.blocks, url)
    for own in pair:
        await own._exchange_prefixes()
    assert pair[1]._variants["full"].load(features).cached_tokens == 700
    for _ in range(2):
        await pair[1]._exchange_prefixes()
    assert len(stored) == 2
    await pair[1]._exchange_prefixes()
    assert len(stored) == 1, "the message of a gateway that has stopped is removed"
    stored.clear()
    await deployment(make_config())._exchange_prefixes()
    assert not stored, "a single gateway has nobody to tell"


async def test_an_invalid_configuration_changes_nothing_of_a_running_gateway(deployment, caplog):
    own = deployment(make_config())
    full = {"full": make_card().model_dump(mode="json")}
    await own.reconfigure({"config": variants("full"), "catalog": full})
    before, known = own._config, own._variants["full"]
    wrong = {"profiles": {}, "access": {"allow_anonymous": True, "anonymous_profile": "nowhere"}}
    await own.reconfigure({"config": wrong, "catalog": {}})
    assert own._config is before and own._variants == {"full": known}
    assert "unknown budget profile 'nowhere'" in caplog.text
    own._refreshing = None
    with pytest.raises(ValueError, match="unknown budget profile 'nowhere'"):
        await own.reconfigure({"config": wrong, "catalog": {}})


async def test_a_card_that_appears_later_is_taken_then(deployment, tmp_path: Path):
    own = deployment(make_config())
    folders = {name: tmp_path / name for name in ("full", "int8")}
    catalog = {name: str(folder) for name, folder in folders.items()}
    folders["full"].mkdir()
    make_card("full").save(folders["full"])
    await own.reconfigure({"config": variants("full", "int8"), "catalog": catalog})
    assert list(own._variants) == ["full"], "gateways answer with what is there"
    known = own._variants["full"].live
    await own._reload_files()
    assert list(own._variants) == ["full"]
    folders["int8"].mkdir()
    make_card("int8").save(folders["int8"])
    await own._reload_files()
    assert set(own._variants) == {"full", "int8"}
    assert own._variants["full"].live is known


async def test_a_variant_goes_on_with_the_card_it_has_until_its_new_weights_are_there(deployment, tmp_path: Path):
    own = deployment(make_config())
    old, new = tmp_path / "int8-old", tmp_path / "int8-new"
    old.mkdir()
    make_card("int8", quality=0.9).save(old)
    await own.reconfigure({"config": variants("int8"), "catalog": {"int8": str(old)}})
    known = own._variants["int8"].live
    await own.reconfigure({"config": variants("int8"), "catalog": {"int8": str(new)}})
    assert own._variants["int8"].quality.quality == 0.9, "its engines run as before"
    new.mkdir()
    make_card("int8", quality=0.8).save(new)
    await own._reload_files()
    assert own._variants["int8"].quality.quality == 0.8
    assert own._variants["int8"].live is known
    await own.reconfigure({"config": variants("full"), "catalog": {}})
    assert list(own._variants) == []


@pytest.mark.parametrize("content", ["{", json.dumps({"name": "int8"}), None])
async def test_a_card_that_is_none_costs_the_others_nothing(deployment, tmp_path: Path, caplog, content: str | None):
    own = deployment(make_config())
    good, bad = tmp_path / "full", tmp_path / "int8"
    for folder in (good, bad):
        folder.mkdir()
    make_card("full").save(good)
    make_card("int8", quality=None).save(bad) if content is None else (bad / "card.json").write_text(content)
    await own.reconfigure({"config": variants("full", "int8"), "catalog": {"full": str(good), "int8": str(bad)}})
    await own._reload_files()
    assert list(own._variants) == ["full"]
    assert [record.getMessage().count("int8 is not served") for record in caplog.records] == [1], "logged once"


def keys(*given: str) -> str:
    return yaml.safe_dump([{"sha256": hash_key(key), "tenant": key.removeprefix("gbx-")} for key in given])


def authenticated(own: GatewayDeployment, key: str) -> str:
    try:
        return own._app._gatekeeper.authenticate({"authorization": f"Bearer {key}"}).tenant
    except RequestError as error:
        return str(error.code)


async def test_keys_are_rotated_without_a_restart(deployment, tmp_path: Path):
    file = tmp_path / "keys.yaml"
    file.write_text(keys(OLD))
    own = deployment(make_config(access={"keys_file": str(file)}))
    await own.reconfigure({"config": {}, "catalog": {}})
    assert (authenticated(own, OLD), authenticated(own, NEW)) == ("old", "invalid_api_key")
    file.write_text(keys(OLD, NEW))
    await own._reload_files()
    assert (authenticated(own, OLD), authenticated(own, NEW)) == ("old", "new")
    file.write_text(keys(NEW))
    await own._reload_files()
    assert (authenticated(own, OLD), authenticated(own, NEW)) == ("invalid_api_key", "new")
    zeros = {sample.labels["tenant"] for metric in own._metrics.tenant_requests.collect() for sample in metric.samples}
    assert {"old", "new"} <= zeros, "a tenant that came later has a label of its own"


@pytest.mark.parametrize("broken", ["[", "[]", "- {sha256: short, tenant: x}", None])
async def test_a_broken_keys_file_locks_nobody_out(deployment, tmp_path: Path, broken: str | None):
    file = tmp_path / "keys.yaml"
    file.write_text(keys(OLD))
    own = deployment(make_config(access={"keys_file": str(file)}))
    await own.reconfigure({"config": {}, "catalog": {}})
    file.unlink() if broken is None else file.write_text(broken)
    with pytest.raises(Exception, match="keys_file"):  # the loop around it logs that and goes on
        await own._reload_files()
    assert authenticated(own, OLD) == "old"
    await own.reconfigure({"config": {}, "catalog": {}})
    assert authenticated(own, OLD) == "old"
    file.write_text(keys(NEW))
    await own._reload_files()
    assert authenticated(own, NEW) == "new"


async def test_a_gateway_does_not_start_without_its_keys(deployment, tmp_path: Path):
    own = deployment(make_config(access={"keys_file": str(tmp_path / "keys.yaml")}))
    own._refreshing = None  # as before the first time
    with pytest.raises(ConfigError, match="keys_file"):
        await own.reconfigure({"config": {}, "catalog": {}})


async def test_keys_may_name_profiles_that_come_with_the_sections_that_change_in_place(
    deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"sha256": hash_key(OLD), "tenant": "old", "budget": "strict"}]))
    own = deployment(make_config(access={"keys_file": str(file)}))
    own._refreshing = None
    monkeypatch.setattr(own, "_run_background", lambda: asyncio.sleep(0))
    await own.reconfigure({"config": {"profiles": {"strict": {"min_quality": 0.9}}}, "catalog": {}})
    assert authenticated(own, OLD) == "old"


def test_a_gateway_takes_over_when_no_variant_is_still_starting(gateway: Started):
    ready = lambda: gateway.http.get("/readyz/all")  # noqa: E731
    live = {name: variant.live for name, variant in gateway.variants.items()}
    for one in live.values():
        one.replicas, one.been_up = 0, False
    assert ready().json()["error"]["code"] == "not_ready"
    for name in ("full", "int8"):
        live[name].update_from_engines(1, 0, 0, 0.0)
        assert gateway.http.get("/readyz").status_code == 200
        assert ready().status_code == 503
    assert "distilled starting" in ready().text
    live["distilled"].update_from_engines(1, 0, 0, 0.0)
    assert ready().status_code == 200
    live["int8"].update_from_engines(0, 0, 0, 0.0)
    assert ready().status_code == 200, "one that dies later is no reason to turn clients away"
    gateway.variants["new"] = make_live_variant("new", replicas=0)
    gateway.variants["new"].live.been_up = False
    assert ready().status_code == 200, "nor is one that is added"
    for one in live.values():
        one.update_from_engines(0, 0, 0, 0.0)
    assert ready().status_code == 503


def test_a_variant_that_rests_at_zero_is_not_waited_for(start_gateway: Callable[..., Started]):
    resting = make_live_variant("distilled", min_replicas=0, replicas=0)
    gateway = start_gateway(variants=[make_live_variant("full"), resting])
    gateway.variants["full"].live.been_up = True
    assert not resting.live.been_up
    assert gateway.http.get("/readyz/all").status_code == 200


async def test_an_added_variant_is_counted_from_zero(deployment):
    own = deployment(make_config())
    await own.reconfigure(
        {"config": variants("full", "late"), "catalog": {"full": make_card("full").model_dump(mode="json")}}
    )
    zeros = {sample.labels["variant"] for metric in own._metrics.failovers.collect() for sample in metric.samples}
    assert "late" in zeros, "a counter that appears with its first event hides that event's rate"


def test_a_variant_that_never_starts_does_not_keep_the_gateway_from_its_clients_for_ever(gateway: Started):
    gateway.variants["int8"].live.been_up = False
    assert gateway.http.get("/readyz/all").status_code == 503
    gateway.app._started_at -= 15 * 60
    assert gateway.http.get("/readyz/all").status_code == 200


async def test_a_gateway_begins_with_what_the_killed_one_had_saved(
    deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    saved: dict[bytes, bytes] = {}
    monkeypatch.setattr(gateway, "put_shared_value", saved.__setitem__)
    monkeypatch.setattr(gateway, "get_shared_value", saved.get)
    monkeypatch.delenv("GEARBOX_STATE_DIR", raising=False)
    config = make_config()
    settings = {"config": variants("full"), "catalog": {"full": make_card("full").model_dump(mode="json")}}

    async def started() -> GatewayDeployment:
        new = deployment(config)
        await new.reconfigure(settings)
        new._restore_learned()
        return new

    first = await started()
    before = first._variants["full"].latency.drift
    for _ in range(50):
        first._variants["full"].latency.observe_steps(500.0, 20.0, 1.0, Load(requests=1))
        first._variants["full"].latency.tick()
    assert (learned := first._variants["full"].latency.drift) != before
    await first._save_learned()
    assert (await started())._variants["full"].latency.drift == pytest.approx(learned)
    saved.clear()
    assert (await started())._variants["full"].latency.drift == before, "a cluster has nothing else"
    monkeypatch.setenv("GEARBOX_STATE_DIR", str(tmp_path))
    on_disk = deployment(config)
    on_disk._app = first._app
    await on_disk._save_learned()
    saved.clear()
    assert (await started())._variants["full"].latency.drift == pytest.approx(learned), "Ray was killed, too"
    assert [file.name for file in tmp_path.iterdir()] == ["learned-smollm2-135m.json"]


@pytest.mark.parametrize("stored", [b"", b"half of", ConnectionError("the control store is away")])
async def test_a_gateway_starts_without_what_was_learned_where_that_cannot_be_read(
    deployment, monkeypatch: pytest.MonkeyPatch, caplog, stored: bytes | Exception
):
    def get(key: bytes) -> bytes:
        if isinstance(stored, Exception):
            raise stored
        return stored

    monkeypatch.setattr(gateway, "get_shared_value", get)
    new = deployment(make_config())
    await new.reconfigure({"config": variants("full"), "catalog": {"full": make_card("full").model_dump(mode="json")}})
    new._restore_learned()
    assert "routing starts from the cards" in caplog.text
