"""The client of the live routing benchmark: sends a trace open-loop, and measures times, refusals and its own CPU."""

import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import orjson

from benchmarks.routing.dispatchers import Dispatcher, Place
from benchmarks.routing.workloads import Outcome, Request, after_wait
from serve.routing.prediction import Latency

VOCABULARY = 40_000  # token ids in random prompts
MAX_CPU = 0.3  # share of a core from which the client's own work is in the measured times


@dataclass(slots=True, frozen=True)
class Replayed:
    """Outcomes of a trace, and the client's share in them."""

    outcomes: list[Outcome]
    cpu_share: float  # of a core
    send_lag_p99_ms: float  # requests sent later than the trace says

    def client(self) -> dict[str, float]:
        """What the client cost."""
        return {"client_cpu_share": self.cpu_share, "send_lag_p99_ms": self.send_lag_p99_ms}


async def replay(
    url: str, dispatcher: Dispatcher, trace: Sequence[Request], qualities: Mapping[str, float], seed: int
) -> Replayed:
    """Send the requests of `trace` at their times; return every outcome as the client saw it, in the order of the trace."""
    drawn = random.Random(seed)
    prompts = [[drawn.randrange(100, VOCABULARY) for _ in range(request.prompt_tokens)] for request in trace]
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    lags_ms = [0.0]
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        started, cpu_s = time.perf_counter(), time.process_time()

        async def one(request: Request, prompt: list[int]) -> Outcome:
            due = started + request.at / 1000
            await asyncio.sleep(due - time.perf_counter())
            lags_ms.append((time.perf_counter() - due) * 1000)
            return await ask(session, dispatcher, request, prompt, qualities)

        outcomes = list(await asyncio.gather(*(one(*pair) for pair in zip(trace, prompts, strict=True))))
        share = (time.process_time() - cpu_s) / max(time.perf_counter() - started, 1e-9)
    if share > MAX_CPU:
        print(
            f"warning: the client used {share:.0%} of a core (nice {os.nice(0)}): its own work is in the measured times",
            flush=True,
        )
    lags_ms.sort()
    return Replayed(outcomes, share, lags_ms[int(0.99 * (len(lags_ms) - 1))])


async def ask(
    session: aiohttp.ClientSession,
    dispatcher: Dispatcher,
    request: Request,
    prompt: list[int],
    qualities: Mapping[str, float],
) -> Outcome:
    """Stream one answer of exactly the request's length. An error is an outcome too; waiting for a place counts."""
    outcome = Outcome(request)
    sent_at = time.perf_counter()
    place = await dispatcher.place(request)
    if place is None:
        outcome.reason, outcome.refused_ms = "shed", (time.perf_counter() - sent_at) * 1000
        return outcome
    try:
        await _stream(session, dispatcher, place, outcome, prompt, qualities, sent_at)
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.took, outcome.reason = None, f"failed: {type(error).__name__}"
    finally:
        dispatcher.on_end(place, outcome)
    return outcome


async def _stream(
    session: aiohttp.ClientSession,
    dispatcher: Dispatcher,
    place: Place,
    outcome: Outcome,
    prompt: list[int],
    qualities: Mapping[str, float],
    sent_at: float,
) -> None:
    request = outcome.request
    waited_ms = (time.perf_counter() - sent_at) * 1000
    body = {
        "model": place.model,
        "prompt": prompt,
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "user": request.kind,
        **({} if place.budget is None else {"budget": place.budget}),
    }
    first = last = 0.0
    headers = {"content-type": "application/json"}
    async with session.post("/v1/completions", data=orjson.dumps(body), headers=headers) as response:
        if response.status != 200:
            outcome.reason, outcome.refused_ms = str(response.status), (time.perf_counter() - sent_at) * 1000
            await response.read()
            return
        outcome.variant, outcome.reason = response.headers["x-gearbox-variant"], response.headers["x-gearbox-reason"]
        metadata = None
        async for line in response.content:
            if not line.startswith(b"data: {"):
                if line.startswith(b"event: error"):
                    outcome.reason = "interrupted"
                    return
                continue
            last = time.perf_counter()
            if not outcome.first_token:
                first, outcome.first_token = last, True
                dispatcher.on_first_token(request, place)
            if b'"gearbox"' in line:
                metadata = orjson.loads(line[6:])["gearbox"]
    if metadata is None:
        outcome.reason = "interrupted"
        return
    outcome.quality, outcome.cost_usd = qualities[outcome.variant], metadata["cost_usd"]
    steps = request.output_tokens - 1
    outcome.took = Latency(*((first - sent_at) * 1000, (last - first) * 1000 / max(steps, 1), (last - sent_at) * 1000))
    predicted = metadata["predicted"]  # from when it was sent on: the wait before is known
    outcome.expected = after_wait(waited_ms, Latency(*(predicted[f"{name}_ms"] for name in ("ttft", "tpot", "e2e"))))
    outcome.tail = after_wait(waited_ms, Latency(*(predicted[f"{name}_p95_ms"] for name in ("ttft", "tpot", "e2e"))))
