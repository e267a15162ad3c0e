"""Scores of a served variant on tasks with known answers."""

from collections.abc import Sequence

from compression.measure.engine import OnDone, ServedModel
from compression.measure.intervals import wilson_ci95
from compression.measure.tasks import EXACT_MATCH, MULTIPLE_CHOICE, Item, Task, TaskError, best_choice, is_match
from serve.card import TaskScore

SPARE_TOKENS = 8  # an answer may be this much longer than the expected one before it is cut


def score_task(served: ServedModel, task: Task, shared_ngrams: int, done: OnDone) -> TaskScore:
    """Ask every item of `task` and count the right answers.

    Args:
        shared_ngrams: 13-word runs that the items share with the training text, for the card.

    Raises:
        TaskError: an item is longer than the engine takes.
    """
    correct = _score_choices(served, task, done) if task.is_multiple_choice else _score_generated(served, task, done)
    return TaskScore(
        score=sum(correct) / len(correct),
        ci95=wilson_ci95(sum(correct), len(correct)),
        items=len(correct),
        scoring=MULTIPLE_CHOICE if task.is_multiple_choice else EXACT_MATCH,
        set_digest=task.digest,
        shared_ngrams=shared_ngrams,
    )


def _score_generated(served: ServedModel, task: Task, done: OnDone) -> list[bool]:
    prompts = [served.encode(item.prompt, special=True) for item in task.items]
    tokens = max(len(served.encode(item.answer)) for item in task.items) + SPARE_TOKENS
    _check_length(served, task, [len(prompt) + tokens for prompt in prompts])
    one_line = not any("\n" in item.answer for item in task.items)
    answers = served.generate_greedy(prompts, tokens, done, stop=["\n"] if one_line else [])
    return [is_match(text, item.answer) for item, (_, text) in zip(task.items, answers, strict=True)]


def _score_choices(served: ServedModel, task: Task, done: OnDone) -> list[bool]:
    rows, starts = [], []
    for item in task.items:
        prompt = served.encode(item.prompt, special=True)
        for choice in item.choices:
            row = served.encode(_joined(item, choice), special=True)
            rows.append(row)
            # a tokenizer may join the prompt's last token with the choice's first: score from where they part
            starts.append(max(1, _common_prefix(prompt, row)))
    _check_length(served, task, [len(row) + 1 for row in rows])
    choices_per_item = [len(item.choices) for item in task.items]
    logprobs = served.target_logprobs(rows, lambda done_rows: done(done_rows * len(choices_per_item) // len(rows)))
    sums = iter([float(row_logprobs[start - 1 :].sum()) for row_logprobs, start in zip(logprobs, starts, strict=True)])
    return [
        item.choices[best_choice([next(sums) for _ in item.choices], item.choices)] == item.answer
        for item in task.items
    ]


def _common_prefix(prompt: Sequence[int], row: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(prompt, row, strict=False))
    return next((at for at, (first, second) in pairs if first != second), min(len(prompt), len(row)))


def _joined(item: Item, choice: str) -> str:
    spaced = item.prompt[-1].isspace() or choice[0].isspace()
    return item.prompt + ("" if spaced else " ") + choice


def _check_length(served: ServedModel, task: Task, lengths: Sequence[int]) -> None:
    if max(lengths) > served.max_model_len:
        number = lengths.index(max(lengths)) + 1
        raise TaskError(
            f"an item of the task '{task.name}' is {max(lengths)} tokens long with its answer (the {number}. prompt or "
            f"choice); the engine takes {served.max_model_len}"
        )
