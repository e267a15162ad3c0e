"""Chats at running engines, OpenAI servers of the same model: this client chooses the replica of each turn as a gateway would."""

import asyncio
import itertools
import os
import time
from collections.abc import Sequence

import aiohttp
import orjson

from benchmarks.lib.vllm_bench import random_words
from benchmarks.routing.chats import SYSTEM_TOKENS, Chat, chats, chats_per_s
from benchmarks.routing.replica_choices import CHOICES, Arriving, load_at
from benchmarks.routing.simulate import catalog
from benchmarks.routing.simulated_replicas import VARIANT, Served
from serve.request.call import parse_call
from serve.routing.output_lengths import OutputLengths
from serve.routing.prediction import Features, Latency

_WORDS_PER_TOKEN = 0.8
_CHARS_PER_TOKEN = 4
_JSON = {"content-type": "application/json"}


class LiveSite:
    """One gateway in front of the engines at `urls`; the key that they ask for is taken from `OPENAI_API_KEY`."""

    def __init__(self, choice: str, urls: Sequence[str], seed: int, session: aiohttp.ClientSession, model: str) -> None:
        self._choose, self._session, self._model = CHOICES[choice](seed), session, model
        self._salt = f"{choice}-{seed}-{time.time_ns()}"  # nothing of the runs before is in the caches
        self.variant = catalog([VARIANT])[0]
        self._live = self.variant.live
        self._live.update_from_engines(len(urls), 0, 0, 0.0, self.variant.profile.peak.kv_cache_tokens)
        self._live.update_replicas(dict.fromkeys(urls, 0))
        self._lengths = OutputLengths()
        self.served: list[Served] = []

    async def chat(self, chat: Chat, started: float) -> None:
        """All turns of `chat`, from its arrival on."""
        await asyncio.sleep(max(started + chat.at / 1000 - time.perf_counter(), 0))
        system = random_words(round(SYSTEM_TOKENS[chat.application] * _WORDS_PER_TOKEN), f"system-{chat.application}")
        messages = [{"role": "system", "content": system}]
        for number, turn in enumerate(chat.turns):
            if number:
                await asyncio.sleep(turn.think_s)
            message = random_words(max(round(turn.new_tokens * _WORDS_PER_TOKEN), 1), f"{chat.number}-{number}")
            messages.append({"role": "user", "content": message})
            answer = await self._turn(chat, messages, turn.output_tokens, started)
            messages.append({"role": "assistant", "content": answer})

    async def _turn(self, chat: Chat, messages: list[dict[str, str]], tokens: int, started: float) -> str:
        body = {
            "model": self._model, "messages": messages, "stream": True, "stream_options": {"include_usage": True},
            "max_tokens": tokens, "min_tokens": tokens,
        }  # fmt: skip
        call = parse_call(orjson.dumps(body), "chat", self._salt)
        prompt = call.prompt_tokens + call.prompt_chars // _CHARS_PER_TOKEN
        features = Features(prompt, self._lengths.expect("", "", 200), call.blocks)
        queues = {name: state.in_flight for name, state in self._live.by_replica.items()}
        arriving = Arriving(chat.number, features, self.variant, queues)
        replica = self._choose(arriving)
        load = load_at(arriving, replica)
        prediction = self.variant.latency.predict(features, load)
        sent = time.perf_counter()
        served = Served((sent - started) * 1000, replica, prompt, tokens, prediction.expected, load.cached_tokens)
        self.served.append(served)
        uncached = prompt - load.cached_tokens
        self._live.on_dispatch(uncached, 1, features.output_tokens, replica)
        first, text = 0.0, ""
        try:
            async with self._session.post(
                f"{replica}/v1/chat/completions", data=call.payload(self._model), headers=_JSON
            ) as response:
                response.raise_for_status()
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = orjson.loads(line[6:])
                    if usage := chunk.get("usage"):
                        served.prompt_tokens = usage["prompt_tokens"]
                        served.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    if chunk["choices"] and (part := chunk["choices"][0]["delta"].get("content")):
                        if not first:
                            first = time.perf_counter()
                            self._live.on_first_token(uncached, replica)
                        text += part
        finally:
            if not first:
                self._live.on_first_token(uncached, replica)
            self._live.on_complete(1, replica)
        now = time.perf_counter()
        first = first or now
        tpot = (now - first) * 1000 / (tokens - 1) if tokens > 1 else 0.0
        served.took = Latency((first - sent) * 1000, tpot, (now - sent) * 1000)
        self._live.remember_prefix(features.blocks, replica)
        self._lengths.observe("", "", tokens)
        prediction.observe(served.took.ttft_ms, tpot or None, served.took.e2e_ms)
        return text


async def serve(
    choice: str, urls: Sequence[str], load: float, seed: int, seconds: float, warmup_s: float
) -> list[Served]:
    """The turns that started after the warm-up. Raises `aiohttp.ClientError` where an engine refuses one."""
    headers = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    until_s = seconds + warmup_s
    rate = load * len(urls) * chats_per_s(catalog([VARIANT])[0].profile)
    arrivals = list(itertools.takewhile(lambda chat: chat.at < until_s * 1000, chats(rate, seed)))
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        async with session.get(f"{urls[0]}/v1/models") as response:
            response.raise_for_status()
            model = (await response.json())["data"][0]["id"]
        site = LiveSite(choice, urls, seed, session, model)
        started = time.perf_counter()
        tasks = [asyncio.create_task(site.chat(chat, started)) for chat in arrivals]
        try:
            done, _ = await asyncio.wait(tasks, timeout=until_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if (left_s := started + until_s - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [one for one in site.served if one.at >= warmup_s * 1000]
