"""Measure a variant through the engine that serves it and complete its card: `python -m compression.measure --help`.

Runs in the engine's environment, with the engine arguments of serving. Progress goes to standard output as JSON lines.
Anything that goes wrong and has a known cause is one line on standard error and exit code 2; the card stays as it was.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from compression import hardware
from compression.build import clear_line
from compression.family import MEASURED_FILE
from compression.profiling import measure_speeds, resident_bytes
from compression.progress import Report, report_on_stdout
from compression.quality import VARIANT_TOP, ReferenceMissing, measure_quality
from compression.text import HELD_OUT_COUNT, HELD_OUT_LENGTH, held_out_sequences, load_corpus, sequences_digest
from serve.card import Card, Profile, load_card

if TYPE_CHECKING:
    from vllm import LLM


class EngineFailed(Exception):
    """The engine does not start with these weights and arguments."""


def measure(
    variant: Path,
    full: Path,
    engine_args: dict[str, object],
    price: float,
    text: Path | None,
    report: Report,
) -> Card:
    """Start the engine once, measure profile and quality, and return the completed card (it is not written).

    Raises:
        EngineFailed, ReferenceMissing, TextError, CardError: with one clear line.
    """
    card = load_card(variant)
    report("start", 0, 1, "engines")
    llm = _start(variant, engine_args)
    startup_s = _uptime_s()
    report("start", 1, 1, "engines")

    config = llm.llm_engine.vllm_config
    longest, streams = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
    speeds = measure_speeds(llm, config.model_config.get_vocab_size(), longest, streams, card.seed, report)
    profile = Profile(
        hardware=hardware.label(),
        engine=_engine_label(engine_args, config.model_config.dtype),
        ttft=speeds.ttft,
        tpot=speeds.tpot,
        prefill_tokens_per_s=round(speeds.prefill_tokens_per_s, 1),
        decode_tokens_per_s=round(speeds.decode_tokens_per_s, 1),
        startup_s=round(startup_s, 1),
        resident_bytes=resident_bytes(),
        price_usd_per_hour=price,
    )

    tokenizer = llm.get_tokenizer()
    corpus = load_corpus(text)
    sequences = held_out_sequences(
        corpus,
        lambda words: tokenizer(words, add_special_tokens=False, verbose=False).input_ids,
        tokenizer.decode,
        min(HELD_OUT_LENGTH, longest - 1),
        HELD_OUT_COUNT,
    )
    name = f"held-out {corpus.description}, {len(sequences)} sequences of {len(sequences[0])} tokens"
    is_full = variant.resolve() == full.resolve()
    quality = measure_quality(llm, sequences, name, sequences_digest(sequences), full, is_full, report)
    return card.model_copy(update={"quality": quality, "profile": profile})


def _start(variant: Path, engine_args: dict[str, object]) -> "LLM":
    """The engine, after its first answer."""
    from vllm import LLM, SamplingParams, TokensPrompt

    try:
        llm = LLM(model=str(variant), **{"max_logprobs": VARIANT_TOP, **engine_args})
        llm.generate([TokensPrompt(prompt_token_ids=[1] * 8)], SamplingParams(max_tokens=1), use_tqdm=False)
    except Exception as error:  # vLLM raises many kinds; the log above has the trace of its processes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineFailed(f"the engine does not start with {variant.name}: {reason}") from error
    return llm


def _engine_label(engine_args: dict[str, object], dtype: object) -> str:
    import vllm

    return f"vllm {vllm.__version__}, {str(dtype).removeprefix('torch.')}, {json.dumps(engine_args, sort_keys=True)}"


def _uptime_s() -> float:
    import time

    return time.time() - psutil.Process().create_time()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m compression.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--variant", type=Path, required=True, help="folder of the variant")
    parser.add_argument("--full", type=Path, required=True, help="folder of the variant it is compared with")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="vLLM engine arguments, JSON")
    parser.add_argument("--price-usd-per-hour", type=float, default=0.0)
    parser.add_argument("--text", type=Path, help="text file to measure on instead of Python's documentation")
    parser.add_argument("--key", default="", help="kept beside the card: says what these measurements were made with")
    given = parser.parse_args(arguments)
    report = report_on_stdout()
    try:
        card = measure(
            given.variant,
            given.full,
            given.engine_args,
            given.price_usd_per_hour,
            given.text,
            report,
        )
        card.save(given.variant)
        record = {"key": given.key, "engine_args": given.engine_args}
        (given.variant / MEASURED_FILE).write_text(json.dumps(record, indent=2) + "\n")
    except Exception as error:
        line = str(error) if isinstance(error, EngineFailed | ReferenceMissing) else clear_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # the engine's threads may abort an orderly exit, after everything has been written
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(code)
