"""Systems under faults: Gearbox, LiteLLM in front of vLLM servers, Ray Serve LLM; their processes, their load, their health.

All have the same number of engines, if no other is asked for. What a system does not restart by itself (LiteLLM, vLLM's servers) is restarted a second after
its end, as a container would be.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import httpx
import psutil

from benchmarks.cluster.fault_load import COLLECTION, FACT, QUESTION, Kind, send
from benchmarks.lib import platform_session
from benchmarks.lib.processes import System, free_ports
from benchmarks.systems import litellm_proxy
from benchmarks.systems.engine_systems import PATIENCE_S, bare, stock
from benchmarks.systems.ray_serve_baseline import UP
from deployments.ray_internals import replica_app
from deployments.state import load_state, processes_of, state_folder
from serve.config.platform import PlatformConfig

#: Systems, and what faults can hit in each.
TARGETS: Mapping[str, Sequence[str]] = {
    "gearbox": ("engine core", "engine server", "gateway", "haproxy", "database", "disk"),
    "litellm": ("engine core", "engine server", "gateway"),
    "stock": ("engine core", "engine server", "gateway", "haproxy"),
}
STREAM_TOKENS, UNARY_TOKENS = 48, 16
#: Each start in a process group of its own (-m), of which nothing outlives its first process, also when that is killed; as long as
#: that is only stopped, it has not ended (-f).
_RESTART = 'set -m; while :; do "$@" & wait -f $!; kill -9 -- -$!; sleep 1; done'
_HEALTH_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Site:
    """A running system.

    `pinned`: model name that reaches each variant; of systems with equal engines, one name. `replicas`: engines. `disk`: the small
    disk of its state, if any.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    kinds: Sequence[Kind]
    find: Callable[[], dict[str, list[psutil.Process]]]
    pinned: Mapping[str, str]
    replicas: int
    grounds: bool = False
    disk: Path | None = None
    metrics_url: str | None = None
    supervisor: int | None = None  # pid

    def counts(self) -> dict[str, int]:
        """Number of processes by target of faults; of HAProxy at most one, as an old one may finish its connections."""
        counts = {target: len(found) for target, found in self.find().items()}
        return {**counts, "haproxy": min(counts.get("haproxy", 0), 1)}

    def session(self) -> aiohttp.ClientSession:
        """A client with as many connections as requests."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession(self.url, headers=dict(self.headers), connector=connector, timeout=timeout)

    async def answers(self, session: aiohttp.ClientSession, model: str | None = None) -> bool:
        """Whether a small new request is answered."""
        kind = Kind("probe", "/v1/chat/completions", 1, model or self.kinds[0].model, tokens=2)
        return (await send(session, kind, 0, _HEALTH_TIMEOUT_S)).outcome == "ok"

    async def searches(self, session: aiohttp.ClientSession) -> bool:
        """Whether the documents can be searched and written."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await add_document(session)
                body = {"collection": COLLECTION, "query": QUESTION}
                async with session.post("/v1/search", json=body) as response:
                    return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def healthy(self, session: aiohttp.ClientSession, before: Mapping[str, int]) -> bool:
        """Whether as many processes run as `before`, and every engine and the documents answer."""
        now = await asyncio.to_thread(self.counts)
        if any(now.get(target, 0) < count for target, count in before.items()):
            return False
        each = 1 if len(self.pinned) == self.replicas else 2 * self.replicas
        models = [model for model in self.pinned.values() for _ in range(each)]
        checks = [self.answers(session, model) for model in models]
        return all(await asyncio.gather(*checks, *([self.searches(session)] if self.grounds else [])))


async def add_document(session: aiohttp.ClientSession) -> None:
    """Add the document of grounded requests. Raises `aiohttp.ClientError`."""
    body = {"collection": COLLECTION, "source": "norfell.md", "content": f"# Norfell\n\n{FACT}"}
    async with session.post("/v1/documents", json=body) as response:
        response.raise_for_status()


async def delete_document(session: aiohttp.ClientSession) -> None:
    """Delete the document of grounded requests, if the system still answers."""
    with suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            await session.delete("/v1/documents", params={"collection": COLLECTION})


def attached(state_dir: Path, headers: Mapping[str, str], disk: Path | None = None) -> Site:
    """The Gearbox platform with its state in `state_dir`. Raises `NoPlatform`."""
    state = load_state(state_dir)
    if state is None:
        raise platform_session.NoPlatform(f"no platform has its state in {state_dir}")
    names = [name for name, variant in state.variants.items() if variant.phase == "ready"]
    folder = (state_dir / "documents").resolve()

    def find() -> dict[str, list[psutil.Process]]:
        return by_target(processes_of(state.run_id, state.pid), folder)

    # profiles that different variants answer: a fault of any engine interrupts streams
    profiles = ("best", "balanced", "fast")
    kinds = [
        *(
            Kind("stream", "/v1/chat/completions", 0.15, f"{state.model}@{profile}", STREAM_TOKENS, stream=True)
            for profile in profiles
        ),
        Kind("unary", "/v1/chat/completions", 0.25, state.model, UNARY_TOKENS),
    ]
    if state.retrieval is not None:
        kinds.append(Kind("grounded", "/v1/chat/completions", 0.15, state.model))
        kinds.append(Kind("embeddings", "/v1/embeddings", 0.15, ""))
    return Site(
        "gearbox", state.url, headers, kinds, find, {name: f"{state.model}:{name}" for name in names}, len(names),
        state.retrieval is not None, disk, state.metrics_url, state.pid,
    )  # fmt: skip


def by_target(processes: Sequence[psutil.Process], database: Path | None = None) -> dict[str, list[psutil.Process]]:
    """Targets of faults among `processes`; `database` is the data folder of the platform's PostgreSQL."""
    found: dict[str, list[psutil.Process]] = {
        target: [] for target in ("engine core", "engine server", "gateway", "haproxy", "database")
    }
    for process in processes:
        try:
            target = target_of(process.cmdline())
            if target is None and process.name() == "postgres" and "-D" in process.cmdline():
                target = "database" if database and process.cwd() == str(database) else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if target is not None:
            found[target].append(process)
    return found


def target_of(command: Sequence[str]) -> str | None:
    """What a process of any of the systems is, by its command line; None: nothing that faults hit."""
    first, line = (command[0] if command else ""), " ".join(command)
    app = replica_app(command)
    if "EngineCore" in first:
        return "engine core"
    if app == "gateway" or (app is not None and "Ingress" in first):
        return "gateway"
    if app is not None and (app.startswith("variant-") or "LLMServer" in first):
        return "engine server"
    if Path(first).name == "haproxy":
        return "haproxy"
    if Path(first).name.startswith("python"):
        if "vllm.entrypoints.openai.api_server" in line:
            return "engine server"
        if f"{litellm_proxy.ENVIRONMENT.name}/bin/litellm" in line:
            return "gateway"
    return None


def narrowed(site: Site, variant: str) -> Site:
    """The platform where faults hit no engine but that of `variant`."""

    def find() -> dict[str, list[psutil.Process]]:
        found = site.find()
        servers = [one for one in found.get("engine server", ()) if replica_app(one.cmdline()) == f"variant-{variant}"]
        pids = {one.pid for one in servers}
        return {
            **found,
            "engine server": servers,
            "engine core": [one for one in found.get("engine core", ()) if one.ppid() in pids],
        }

    return replace(site, find=find)


@contextmanager
def gearbox(config: Path | None, disk: Path | None) -> Iterator[Site]:
    """The running platform; else one that is started, and stopped after the block. `disk`: where its state may be."""
    with platform_session.platform(None, config):
        ours = disk is not None and state_folder().is_relative_to(disk)
        yield attached(state_folder(), platform_session.headers(), disk if ours else None)


@contextmanager
def litellm(config: PlatformConfig, weights: Path, engines: int) -> Iterator[Site]:
    """LiteLLM in front of vLLM servers of the same engine."""
    litellm_proxy.install()
    port, *ports = free_ports(engines + 1)
    backends = [f"http://127.0.0.1:{one}" for one in ports]
    systems = [bare(config, weights, one) for one in ports]
    proxy = litellm_proxy.proxy(port, *backends, model=config.model.name)
    with ExitStack() as started:
        for system in (*systems, proxy):
            system.command = restarted(system.command)
            started.enter_context(system)
        for system, backend in zip(systems, backends, strict=True):
            system.wait(lambda backend=backend: httpx.get(f"{backend}/health").status_code == 200, PATIENCE_S)  # type: ignore[misc]
        site = _plain("litellm", port, config.model.name, engines, [*systems, proxy])
        proxy.wait(lambda: httpx.get(f"{site.url}/health/liveliness").status_code == 200, PATIENCE_S)
        yield site


@contextmanager
def ray_serve_llm(config: PlatformConfig, weights: Path, engines: int) -> Iterator[Site]:
    """Ray Serve LLM's own app, with HAProxy."""

    def up() -> bool:  # its ingress answers as soon as one engine is up
        return UP in system.log.read_text(errors="replace") and httpx.get(f"{url}/v1/models").status_code == 200

    port = free_ports(10)[0]
    url = f"http://127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix="gb-"))
    with stock("stock", config, weights, port, folder, engines) as system:
        system.wait(up, PATIENCE_S * engines)  # they start at the same time, on cores that all share
        yield _plain("stock", port, config.model.name, engines, [system])


def _plain(name: str, port: int, model: str, engines: int, systems: Sequence[System]) -> Site:
    kinds = (
        Kind("stream", "/v1/chat/completions", 0.65, model, STREAM_TOKENS, stream=True),
        Kind("unary", "/v1/chat/completions", 0.35, model, UNARY_TOKENS),
    )

    def find() -> dict[str, list[psutil.Process]]:
        return by_target([process for system in systems for process in system.processes()])

    headers = {"authorization": "Bearer none"}
    return Site(name, f"http://127.0.0.1:{port}", headers, kinds, find, {"engine": model}, engines)


def restarted(command: Sequence[str]) -> list[str]:
    """`command` in a loop: when it has ended, the processes that it left are killed, and it is started again a second later.

    As in a container. The engine core of a killed vLLM server would keep its memory, and go on with its requests.
    """
    return ["bash", "-c", _RESTART, "restarted", *command]
