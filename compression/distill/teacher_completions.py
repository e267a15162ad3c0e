"""A teacher's own completions of training text, to learn from: `python -m compression.distill.teacher_completions --help`.

Sequence-level distillation (Kim & Rush 2016, Sequence-Level Knowledge Distillation): the student learns from what the
teacher writes. They take the teacher's most likely sequence; here completions are sampled at temperature 1, because the most
likely text of a language model repeats itself (Holtzman et al. 2020), and because the mean over samples estimates the
cross entropy with the teacher's distribution over sequences itself.

Runs in the engine's environment. Token ids go into a file beside the teacher's weights that is found by its content; a run that
was interrupted goes on after the last batch that is in it. Free of torch and vllm but for the writing itself.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import UserError, run_command
from compression.progress import Report, progress_on_stdout
from compression.recipe.schema import Distill, load_recipe
from compression.text import load_corpus, sequences_digest, training_sequences
from serve.card import load_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = Sequence[int]
Complete = Callable[[Sequence[Tokens], int], list[list[int]]]  # (prompts, number of the first) -> completions

FORMAT = 1  # raise it when the same prompts would be completed differently
BATCH = 64  # prompts between two writes


class CompletionsError(UserError):
    """Completions that are missing or cannot be made."""


def evenly_spaced(sequences: Sequence[Tokens], count: int) -> list[Tokens]:
    """`count` of `sequences` from all over the text; all of them if there are fewer."""
    return list(sequences[:: max(1, len(sequences) // count)][:count])


def completions_file(parent: Path, prompts: Sequence[Tokens], length: int, seed: int) -> Path:
    """File that stores the completions of `prompts` by the variant in `parent`; its name has everything that changes them.

    Args:
        length: tokens of prompt and completion together, at most.
    """
    content = f"{FORMAT} {load_card(parent).weights_digest} {sequences_digest(prompts)} {length} {seed}"
    return parent / f"completions-{hashlib.sha256(content.encode()).hexdigest()[:16]}.jsonl"


def read_completions(file: Path, prompts: Sequence[Tokens]) -> list[list[int]]:
    """The completion of every prompt, with the end token where the teacher ended.

    Raises:
        CompletionsError: they have not been written, or the file is damaged.
    """
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    except FileNotFoundError as error:
        raise CompletionsError(
            f"the parent's completions are missing ({file}): write them first, with the engine's Python and the same "
            "recipe, parent and text: python -m compression.distill.teacher_completions --recipe RECIPE --parent PARENT"
        ) from error
    except ValueError as error:
        raise CompletionsError(f"the completions in {file} are damaged: remove that file") from error
    if len(rows) != len(prompts):
        raise CompletionsError(f"{file} has {len(rows)} completions, not {len(prompts)}: remove that file")
    return rows


def write_completions(file: Path, prompts: Sequence[Tokens], complete: Complete, report: Report) -> None:
    """Let `complete` write into `file`, a batch at a time; what an interrupted run wrote is reused."""
    scratch = file.with_suffix(".part")
    finished_lines = _finished_lines(scratch)
    with scratch.open("r+" if scratch.exists() else "w") as stream:
        stream.truncate(sum(map(len, finished_lines)))
        stream.seek(0, os.SEEK_END)
        for start in range(len(finished_lines), len(prompts), BATCH):
            report("completions", start, len(prompts), "prompts")
            for tokens in complete(prompts[start : start + BATCH], start):
                stream.write(json.dumps(tokens) + "\n")
            stream.flush()
    scratch.replace(file)
    report("completions", len(prompts), len(prompts), "prompts")


def pack_sequences(prompts: Sequence[Tokens], completions: Sequence[Tokens], length: int) -> list[list[int]]:
    """Training sequences of `length` tokens: prompts with their completions.

    One that fills a sequence is one; those that ended earlier are joined and cut. All tokens are learnt, the prompt's too.
    """
    full_length, remainder = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = [*prompt, *completion]
        if len(tokens) >= length:
            full_length.append(tokens[:length])
        else:
            remainder += tokens
    return full_length + [remainder[i : i + length] for i in range(0, len(remainder) - length + 1, length)]


def mix_sequences(text: Sequence[Tokens], written: Sequence[Tokens], share: float) -> list[Tokens]:
    """`text` and what the teacher has `written`, which makes up `share` of the result.

    Each sequence of the two is there at least once; those of the shorter side come again as often as that takes.
    """
    if share == 1:
        return list(written)
    of_text = max(len(text), math.ceil(len(written) * (1 - share) / share))
    of_written = round(of_text * share / (1 - share))
    return [text[i % len(text)] for i in range(of_text)] + [written[i % len(written)] for i in range(of_written)]


def _finished_lines(file: Path) -> list[str]:
    """Lines that were written to their end."""
    return [line for line in file.read_text().splitlines(True) if line.endswith("\n")] if file.exists() else []


def _vllm_completer(parent: Path, engine_args: dict[str, object], length: int, seed: int) -> Complete:
    """Sampling at temperature 1 by vLLM. A prompt's completion follows its own seed, whatever it is batched with."""
    from vllm import LLM, SamplingParams, TokensPrompt

    try:
        llm = LLM(model=str(parent), **{"max_model_len": length, **engine_args})
    except Exception as error:  # vLLM raises many kinds; the log above has the trace of its processes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompletionsError(f"the engine does not start with {parent.name}: {reason}") from error
    if (max_model_len := llm.llm_engine.vllm_config.model_config.max_model_len) < length:
        raise CompletionsError(
            f"the engine's max_model_len ({max_model_len}) is below the {length} tokens of a sequence"
        )

    def complete(prompts: Sequence[Tokens], first: int) -> list[list[int]]:
        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        params = [
            SamplingParams(temperature=1.0, max_tokens=length - len(prompt), seed=seed + i, detokenize=False)
            for i, prompt in enumerate(prompts, first)
        ]
        return [list(answer.outputs[0].token_ids) for answer in llm.generate(inputs, params, use_tqdm=False)]

    return complete


def _prompts(step: Distill, seed: int, text: Path | None, tokenizer: "PreTrainedTokenizerBase") -> list[Tokens]:
    def encode(words: str) -> list[int]:
        ids: list[int] = tokenizer(words, add_special_tokens=False, verbose=False).input_ids
        return ids

    end = tokenizer.eos_token_id or 0
    return evenly_spaced(training_sequences(load_corpus(text), encode, step.prompt_tokens, end, seed), step.completions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m compression.distill.teacher_completions", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--recipe", type=Path, required=True, help="its distill steps with `data: teacher` say how many"
    )
    parser.add_argument("--parent", type=Path, required=True, help="folder of the variant that writes")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="vLLM engine arguments, JSON")
    parser.add_argument("--text", type=Path, help="text file to take prompts from instead of Python's documentation")
    options = parser.parse_args(arguments)
    report = progress_on_stdout()

    def action() -> None:
        recipe = load_recipe(options.recipe)
        if not recipe.completions:
            raise CompletionsError(f"the recipe '{recipe.name}' has no distill step with `data: teacher`")
        from transformers import AutoTokenizer

        load_card(options.parent)
        tokenizer = AutoTokenizer.from_pretrained(options.parent)
        for step in recipe.completions:
            prompts = _prompts(step, recipe.seed, options.text, tokenizer)
            file = completions_file(options.parent, prompts, step.sequence_length, recipe.seed)
            if not file.exists():
                complete = _vllm_completer(options.parent, options.engine_args, step.sequence_length, recipe.seed)
                write_completions(file, prompts, complete, report)

    return run_command(action)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the engine's threads may abort an orderly exit, after everything has been written
