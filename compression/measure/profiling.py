"""Latency, throughput and memory of a variant in the engine that serves it, at the operating points on the card."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import psutil

from compression.hardware import accelerator_bytes
from compression.progress import Report
from serve.card import Peak, TpotPoint, TtftPoint

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.config import VllmConfig

PROMPT_LENGTHS = (32, 256, 1024)
CONCURRENT_PROMPT_TOKENS = 256
TTFT_CONCURRENCY = (4, 16)
DECODE_CONCURRENCY = (1, 4, 16, 32)
PEAK_PROMPT, PEAK_ANSWER = 64, 32  # tokens; a short question and its answer, so that slow machines get through some
TPOT_WINDOW = 16  # tokens over which one TPOT sample is taken
# a measuring point stops sampling after this time, so that slow machines do not take hours
POINT_TIME_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Performance:
    """The measured part of a card's profile."""

    ttft: tuple[TtftPoint, ...]
    tpot: tuple[TpotPoint, ...]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak: Peak


@dataclass(slots=True)
class _Stream:
    """Time at which each token of one request arrived, seconds."""

    submitted_at: float
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        return (self.tokens[0] - self.submitted_at) * 1000

    def tpot_ms(self) -> Iterator[float]:
        for i in range(0, len(self.tokens) - TPOT_WINDOW, TPOT_WINDOW):
            yield (self.tokens[i + TPOT_WINDOW] - self.tokens[i]) / TPOT_WINDOW * 1000


def measure_performance(llm: "LLM", config: "VllmConfig", seed: int, report: Report) -> Performance:
    """Time the engine. Prompts are random tokens, so the prefix cache cannot help.

    TTFT at concurrency c: c streams in a closed loop, each asking again as soon as it is answered, so that a prompt meets
    answers under way; the burst at the start is left out. TPOT at c: c short prompts at once, over windows of 16 tokens.
    On slow hardware points have fewer samples, see `POINT_TIME_LIMIT_S`, but never less than three requests. Concurrencies beyond what the
    engine runs at once are left out. Last the peak, see `Peak`.
    """
    engine = _Engine(llm, config.model_config.get_vocab_size(), seed)
    max_model_len, streams = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
    lengths = [length for length in PROMPT_LENGTHS if length + 1 <= max_model_len] or [max_model_len // 2]
    concurrencies = [
        concurrency
        for concurrency in TTFT_CONCURRENCY
        if concurrency <= streams and max_model_len >= CONCURRENT_PROMPT_TOKENS + 48
    ]
    decode_concurrencies = [concurrency for concurrency in DECODE_CONCURRENCY if concurrency <= streams]
    answer = min(4 * TPOT_WINDOW + 1, max_model_len - 32)
    total = itertools.count(1)
    points = 3 + len(lengths) + len(concurrencies) + len(decode_concurrencies)

    def done() -> None:
        report("profile", next(total), points, "points")

    engine.burst([engine.prompt(length) for length in (32, lengths[-1])], 8)
    done()
    ttft = []
    for length in lengths:
        bursts = (engine.burst([engine.prompt(length)], 1) for _ in range(9))
        times = [burst[0].ttft_ms for burst in _until_time_limit(bursts)]
        ttft.append(TtftPoint(prompt_tokens=length, concurrency=1, **_quantiles(times)))
        done()
    for concurrency in concurrencies:
        times = [
            stream.ttft_ms for stream in engine.closed_loop(concurrency, CONCURRENT_PROMPT_TOKENS, 16 + concurrency)
        ]
        ttft.append(TtftPoint(prompt_tokens=CONCURRENT_PROMPT_TOKENS, concurrency=concurrency, **_quantiles(times)))
        done()
    tpot = []
    for concurrency in decode_concurrencies:
        length = answer if concurrency <= 4 else min(answer, 2 * TPOT_WINDOW + 1)
        bursts = (
            engine.burst([engine.prompt(32) for _ in range(concurrency)], length)
            for _ in range(3 if concurrency == 1 else 1)
        )
        burst = list(_until_time_limit(bursts, min_samples=1))
        times = [sample for streams_ in burst for stream in streams_ for sample in stream.tpot_ms()]
        tpot.append(TpotPoint(concurrency=concurrency, **_quantiles(times)))
        done()
    decode = _tokens_per_s(burst[-1])
    prompts = [engine.prompt(lengths[-1]) for _ in range(3)]
    started = time.perf_counter()
    engine.burst(prompts, 1)
    prefill = sum(map(len, prompts)) / (time.perf_counter() - started)
    done()
    peak = _peak(engine, streams, max_model_len, _cache_tokens(config))
    done()
    return Performance(tuple(ttft), tuple(tpot), prefill, decode, peak)


def _peak(engine: "_Engine", streams: int, max_model_len: int, kv_cache_tokens: int) -> Peak:
    """Throughput of the engine at full load, for `POINT_TIME_LIMIT_S` from when the first burst is under way."""
    prompt = min(PEAK_PROMPT, max_model_len // 2)
    answer = min(PEAK_ANSWER, max_model_len - prompt)
    tokens, seconds = engine.saturate(streams, prompt, answer)
    return Peak(
        concurrency=streams,
        prompt_tokens=prompt,
        answer_tokens=answer,
        requests_per_s=round(tokens / answer / seconds, 3),
        output_tokens_per_s=round(tokens / seconds, 1),
        kv_cache_tokens=kv_cache_tokens,
        accelerator_bytes=accelerator_bytes(),
    )


def _cache_tokens(config: "VllmConfig") -> int:
    cache = config.cache_config  # the front end learns both from the engine; vLLM says GPU on CPUs too
    return cache.kv_cache_size_tokens or (cache.num_gpu_blocks or 0) * cache.block_size


def resident_bytes() -> int:
    """Memory of this process and all its children, with shared pages counted once (the sum of PSS).

    This process counts: it holds the engine's front end, as a serving replica does.
    """
    here = psutil.Process()
    total = 0
    for process in [here, *here.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        total += getattr(memory, "pss", memory.rss)  # only Linux knows PSS
    return total


class _Engine:
    """Requests to vLLM's synchronous engine, with the time of every token."""

    def __init__(self, llm: "LLM", vocabulary: int, seed: int) -> None:
        self._engine = llm.llm_engine
        self._vocabulary = vocabulary
        self._random = np.random.default_rng(seed)
        self._numbers = itertools.count()

    def prompt(self, length: int) -> list[int]:
        return self._random.integers(self._vocabulary, size=length).tolist()

    def burst(self, prompts: Sequence[list[int]], answer: int) -> list[_Stream]:
        """All `prompts` at once, `answer` tokens each."""
        running = dict(self._submit(prompt, answer) for prompt in prompts)
        streams = list(running.values())
        while running:
            self._step(running)
        return streams

    def closed_loop(self, concurrency: int, length: int, requests: int) -> list[_Stream]:
        """`concurrency` streams, each sending its next request when answered, until `requests` were sent after the first burst."""
        answers = itertools.cycle((24, 40, 32, 16, 48))  # of several lengths, so that the streams fall out of step
        running = dict(self._submit(self.prompt(length), next(answers)) for _ in range(concurrency))
        measured: list[_Stream] = []
        end = time.perf_counter() + POINT_TIME_LIMIT_S
        while running:
            for _ in range(self._step(running)):
                if len(measured) < requests and (time.perf_counter() < end or len(measured) < min(concurrency, 8)):
                    name, stream = self._submit(self.prompt(length), next(answers))
                    running[name] = stream
                    measured.append(stream)
        return measured

    def saturate(self, concurrency: int, length: int, answer: int) -> tuple[int, float]:
        """Tokens of all streams and the seconds they took, while each of `concurrency` streams sends its next request when answered.

        Counted from when every stream of the first burst has begun, over at least `POINT_TIME_LIMIT_S` and one answer's time;
        what is then under way is aborted. Answers of the first burst have several lengths, so that streams fall out of step.
        """
        running = dict(
            self._submit(self.prompt(length), 1 + (i + 1) * (answer - 1) // concurrency) for i in range(concurrency)
        )
        first = list(running.values())
        all_streams = list(first)
        while any(not stream.tokens for stream in first):
            self._step(running)
        start = now = time.perf_counter()
        while now < start + POINT_TIME_LIMIT_S or len(all_streams) < 2 * concurrency:
            for _ in range(concurrency - len(running)):
                name, stream = self._submit(self.prompt(length), answer)
                running[name] = stream
                all_streams.append(stream)
            self._step(running)
            now = time.perf_counter()
        self._engine.abort_request(list(running))
        return sum(start < moment <= now for stream in all_streams for moment in stream.tokens), now - start

    def _submit(self, prompt: list[int], answer: int) -> tuple[str, _Stream]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        name = f"profile-{next(self._numbers)}"
        params = SamplingParams(
            max_tokens=answer, temperature=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        stream = _Stream(time.perf_counter())
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)
        return name, stream

    def _step(self, running: dict[str, _Stream]) -> int:
        """One engine step; returns how many requests ended."""
        ended = 0
        outputs = self._engine.step()
        now = time.perf_counter()
        for output in outputs:
            stream = running[output.request_id]
            stream.tokens += [now] * len(output.outputs[0].token_ids)
            if output.finished:
                del running[output.request_id]
                ended += 1
        return ended


def _until_time_limit(samples: Iterator[list[_Stream]], min_samples: int = 3) -> Iterator[list[_Stream]]:
    """`samples` until they have taken `POINT_TIME_LIMIT_S`, but no fewer than `min_samples`."""
    end = time.perf_counter() + POINT_TIME_LIMIT_S
    for count, sample in enumerate(samples, 1):
        yield sample
        if count >= min_samples and time.perf_counter() > end:
            return


def _tokens_per_s(streams: Sequence[_Stream]) -> float:
    """Tokens of all streams together, from when the last of them started to when the first ended."""
    start, end = max(stream.tokens[0] for stream in streams), min(stream.tokens[-1] for stream in streams)
    return sum(start < moment <= end for stream in streams for moment in stream.tokens) / (end - start)


def _quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    return {
        "p50_ms": round(float(np.quantile(times_ms, 0.5)), 2),
        "p95_ms": round(float(np.quantile(times_ms, 0.95)), 2),
    }
