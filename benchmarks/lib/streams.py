"""Token timings of streamed completions, and the speed measurements of `benchmarks.compression.variants`."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from benchmarks.lib.vllm_bench import prompts


class StreamError(Exception):
    """An unexpected answer: the measurement is invalid."""


@dataclass(slots=True)
class Stream:
    """Send and token arrival times of one request in seconds; its token counts by the engine."""

    sent_at: float
    tokens: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.tokens[0] - self.sent_at


async def ask(session: aiohttp.ClientSession, model: str, prompt: str, tokens: int) -> Stream:
    """Stream one answer of exactly `tokens` tokens. Raises `StreamError`."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stream = Stream(time.perf_counter())
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise StreamError(f"{model}: status {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if event.get("choices"):
                stream.tokens.append(time.perf_counter())
            if usage := event.get("usage"):
                stream.prompt_tokens, stream.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if stream.output_tokens != tokens or not stream.tokens:
        raise StreamError(f"{model}: {stream.output_tokens} of {tokens} tokens came back")
    return stream


async def decode_alone(session: aiohttp.ClientSession, model: str, tokens: int, seed: str) -> float:
    """Tokens per second of a single stream after its first token."""
    stream = await ask(session, model, prompts(1, 16, seed)[0], tokens)
    return (tokens - 1) / (stream.tokens[-1] - stream.tokens[0])


async def decode_crowd(session: aiohttp.ClientSession, model: str, crowd: int, tokens: int, seed: str) -> float:
    """Tokens per second of `crowd` streams together, from the last stream's first token to the first stream's end."""
    streams = await asyncio.gather(*(ask(session, model, prompt, tokens) for prompt in prompts(crowd, 16, seed)))
    return together(streams)


def together(streams: Sequence[Stream]) -> float:
    """Tokens per second while all streams were under way. Raises `StreamError` when they never overlapped."""
    start, end = max(stream.tokens[0] for stream in streams), min(stream.tokens[-1] for stream in streams)
    if end <= start:
        raise StreamError("the streams did not overlap; ask for longer answers")
    return sum(start < moment <= end for stream in streams for moment in stream.tokens) / (end - start)


async def prefill(session: aiohttp.ClientSession, model: str, words: int, count: int, seed: str) -> float:
    """Prompt tokens per second up to the first token: the median of `count` long prompts, one after another."""
    rates = []
    for prompt in prompts(count, words, seed):
        stream = await ask(session, model, prompt, 1)
        rates.append(stream.prompt_tokens / stream.ttft_s)
    return statistics.median(rates)
