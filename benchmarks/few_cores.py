"""What the engine's settings for few CPU cores give: `python -m benchmarks.few_cores`.

The same engine and weights as vLLM starts it, and with each setting of ours added in turn; alone, and two at once.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.overhead_engine import CONFIG, NoWeights, full_weights
from benchmarks.processes import NotStarted, System, interruptible, python
from benchmarks.report import Progress, save, spread
from compression.hardware import compute_dtype

PROMPT, STREAMS, TOKENS = 32, 16, 24
TOGETHER_S = 15.0


@dataclass(slots=True, frozen=True)
class Setting:
    """One way to start the engine."""

    label: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


VLLM_OWN = {"VLLM_PLUGINS": "", "OMP_WAIT_POLICY": "ACTIVE"}
SETTINGS = {
    "vllm": Setting("vLLM's own", {"dtype": "bfloat16"}, VLLM_OWN),
    "dtype": Setting(f"+ {compute_dtype()}", {"dtype": compute_dtype()}, VLLM_OWN),
    "process": Setting("+ model in the core's process", {}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    "passive": Setting("+ passive waiting (as served)", {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
}


def measure(repeats: int, config_file: Path, weights: Path | None) -> dict[str, object]:
    """All settings, in turn. Returns the result document without the machine. Raises `NoWeights`, `NotStarted`."""
    config, folder = full_weights(config_file, weights)
    arguments = config.engine_args(config.variants[0])
    plan = [(name, i) for i in range(repeats) for name in SETTINGS]
    progress = Progress([(name, 150.0) for name, _ in plan])
    found: dict[str, dict[str, list[float]]] = {name: {} for name in SETTINGS}
    for name, i in plan:
        progress.step(f"{SETTINGS[name].label}, round {i + 1} of {repeats}")
        with ExitStack() as stack:
            one, other = (stack.enter_context(_engine(SETTINGS[name], arguments, config.env, folder)) for _ in range(2))
            sample = one("alone")
            both = [engine.send("together") for engine in (one, other)]
            sample["together_per_s"] = sum(engine.receive()["per_s"] for engine in both)
        for key, value in sample.items():
            found[name].setdefault(key, []).append(value)
        print("    " + ", ".join(f"{key} {value:.1f}" for key, value in sample.items()), flush=True)
    return {
        "repeats": repeats,
        "prompt_tokens": PROMPT,
        "streams": STREAMS,
        "engine_args": arguments,
        "settings": {
            name: {"label": SETTINGS[name].label, **{key: spread(values) for key, values in samples.items()}}
            for name, samples in found.items()
        },
    }


class _Child:
    """An engine in a process of its own that measures when it is told to."""

    def __init__(self, system: System) -> None:
        assert system.process is not None
        self._system, self._process = system, system.process

    def __call__(self, what: str) -> dict[str, float]:
        return self.send(what).receive()

    def send(self, what: str) -> "_Child":
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self

    def receive(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise NotStarted(f"an engine ended before it had measured: {self._system.last_words()}")


@contextmanager
def _engine(
    setting: Setting, arguments: Mapping[str, object], env: Mapping[str, str], weights: Path
) -> Iterator[_Child]:
    command = python("-m", "benchmarks.few_cores", "--weights", str(weights))
    command += ["--child", json.dumps({**arguments, **setting.arguments})]
    with System("engine", command, {**env, **setting.env}, piped=True) as system:
        engine = _Child(system)
        engine.receive()
        yield engine


def child(arguments: Mapping[str, object], weights: Path) -> None:
    """Start the engine, then answer each line of standard input with a measurement."""
    import random

    from vllm import LLM, SamplingParams, TokensPrompt

    began = time.perf_counter()
    llm = LLM(model=str(weights), **arguments)  # type: ignore[arg-type]
    chance = random.Random(0)
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def seconds(streams: int, tokens: int) -> float:
        prompts = [
            TokensPrompt(prompt_token_ids=[chance.randrange(vocabulary) for _ in range(PROMPT)]) for _ in range(streams)
        ]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
        started = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - started

    seconds(1, 2)
    print(json.dumps({"start_s": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        if line.strip() == "alone":
            first = sorted(seconds(1, 1) for _ in range(5))[2]
            one = (TOKENS - 1) / (seconds(1, TOKENS) - first)
            crowd_first = seconds(STREAMS, 1)
            crowd = STREAMS * (TOKENS - 1) / (seconds(STREAMS, TOKENS) - crowd_first)
            answer = {"ttft_ms": first * 1000, "one_per_s": one, "crowd_per_s": crowd}
        else:
            end, tokens = time.perf_counter() + TOGETHER_S, 0
            started = time.perf_counter()
            while time.perf_counter() < end:
                seconds(4, 8)
                tokens += 32
            answer = {"per_s": tokens / (time.perf_counter() - started)}
        print(json.dumps(answer), flush=True)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--weights", type=Path, help="folder of `full`; else the one that `gearbox up` has built")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.weights)
        return 0
    interruptible()
    try:
        save("few-cores", measure(given.repeats, given.config, given.weights))
    except (NotStarted, NoWeights) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
