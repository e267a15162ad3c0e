"""Measure each variant's quality, speed and memory on the running platform: `python -m benchmarks.compression.variants`.

Quality is from the cards (measured through the serving engine on held-out text); speed and memory are measured here,
one variant at a time while all are loaded, the order rotating over the repeats.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.lib.platform_session import NoPlatform, cards, headers, platform, resident_bytes
from benchmarks.lib.processes import NotStarted, command
from benchmarks.lib.streams import StreamError, decode_alone, decode_crowd, prefill
from benchmarks.reporting import plots
from benchmarks.reporting.results import Progress, save, spread

CROWD = 32
SPEEDS = ("decode_1", "decode_32", "prefill")


@dataclass(slots=True, frozen=True)
class Size:
    """Numbers of requests and tokens for each variant in one repeat."""

    repeats: int
    alone_tokens: int
    crowd_tokens: int
    prefill_words: int
    prefills: int

    @property
    def seconds(self) -> float:
        """A rough time for one variant and repeat."""
        return self.alone_tokens / 50 + self.crowd_tokens * CROWD / 500 + self.prefills * self.prefill_words / 600 + 2


QUICK = Size(1, 24, 24, 200, 1)
FULL = Size(5, 96, 64, 600, 3)


async def measure(url: str, size: Size) -> dict[str, object]:
    """Measure all variants. Returns the result document without the machine. Raises `NoPlatform`, `StreamError`."""
    model, by_name, prices = cards(url)
    if not by_name:
        raise NoPlatform(f"no variant answers at {url}")
    names = list(by_name)
    progress = Progress([(name, size.seconds) for name in names * size.repeats])
    samples: dict[str, dict[str, list[float]]] = {name: {speed: [] for speed in SPEEDS} for name in names}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    async with aiohttp.ClientSession(url, headers=headers(), timeout=timeout) as session:
        for i in range(size.repeats):
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                progress.step(f"{name}, repeat {i + 1} of {size.repeats}")
                for speed, value in (await _measure_once(session, f"{model}:{name}", size, i)).items():
                    samples[name][speed].append(value)
    reference = "full" if "full" in by_name else names[0]
    rows = {name: _row(name, by_name[name], prices[name], samples[name]) for name in names}
    return {
        "model": model,
        "reference": reference,
        "size": {"repeats": size.repeats, "crowd": CROWD, "prefill_words": size.prefill_words},
        "quality_set": by_name[reference]["quality"]["set"],
        "quality_derivation": by_name[reference]["quality"]["derivation"],
        "variants": {name: {**row, "ratios": _ratios(row, rows[reference])} for name, row in rows.items()},
    }


async def _measure_once(session: aiohttp.ClientSession, model: str, size: Size, number: int) -> dict[str, float]:
    """Measure every speed of one variant once, after a short warm-up; prompts are new in every repeat."""
    seed = f"{number}/{model.partition(':')[0]}"  # the same prompts for every variant
    await decode_alone(session, model, 4, f"{seed}/warm-up")
    return {
        "decode_1": await decode_alone(session, model, size.alone_tokens, f"{seed}/alone"),
        "decode_32": await decode_crowd(session, model, CROWD, size.crowd_tokens, f"{seed}/crowd"),
        "prefill": await prefill(session, model, size.prefill_words, size.prefills, f"{seed}/prefill"),
    }


def _row(name: str, card: Mapping[str, dict], price: float, samples: Mapping[str, list[float]]) -> dict[str, object]:
    quality = card["quality"]
    speeds = {speed: spread(values, 1) for speed, values in samples.items()}
    measured = resident_bytes(name)
    usd = {
        kind: round(price / 3600 / speeds[speed]["median"] * 1e6, 4)
        for kind, speed in (("input", "prefill"), ("output", "decode_32"))
    }
    return {
        "technique": " + ".join(step["technique"] for step in card["steps"] if step["technique"] != "load") or "none",
        "parameters": card["parameters"],
        "bytes": card["bytes_on_disk"],
        "resident_bytes": measured or card["profile"]["resident_bytes"],
        "resident_from": "processes" if measured else "card",
        **speeds,
        "quality": quality["quality"],
        "perplexity": quality["perplexity"],
        "kl_to_full": quality["kl_to_full"],
        "kl_ci95": quality["kl_ci95"],
        "top1_agreement": quality["top1_agreement"],
        "tokens_measured": quality["tokens"],
        "price_usd_per_hour": round(price, 4),
        "usd_per_million": usd,
    }


def _ratios(row: Mapping[str, object], full: Mapping[str, object]) -> dict[str, float]:
    """Ratio of each number to that of `full`."""

    def value(of: Mapping[str, object], key: str) -> float:
        number = of[key]
        if isinstance(number, dict):
            number = number["median"] if "median" in number else number["output"]
        return float(number)  # type: ignore[arg-type]

    keys = ("bytes", "resident_bytes", *SPEEDS, "perplexity", "usd_per_million")
    return {key: round(value(row, key) / value(full, key), 3) for key in keys if value(full, key)}


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a platform that runs; else the one of 'gearbox up', else one is started")
    parser.add_argument("--config", type=Path, help="what to start, if nothing runs")
    parser.add_argument("--quick", action="store_true", help="a few tokens, once: shows that it works, proves nothing")
    parser.add_argument("--repeats", type=int, help="rounds over all variants")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    if args.repeats:
        size = Size(args.repeats, size.alone_tokens, size.crowd_tokens, size.prefill_words, size.prefills)
    known = (NoPlatform, NotStarted, StreamError, aiohttp.ClientError)
    with command(known, "what was started for it is stopped"), platform(args.url, args.config) as url:
        result = asyncio.run(measure(url, size))
    save("variants", result)
    plots.variants(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
