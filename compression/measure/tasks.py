"""Tasks with known answers: arithmetic, definitions from Python's documentation, and the user's own as JSON lines.

Every task is a function of its seed, its text or its file alone, so that variants are compared on the same items; the
digest of the items is on the card. Free of torch and of the engine.
"""

import ast
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from compression.errors import UserError
from compression.text import is_held_out, module_document, normalized_words, standard_library, topic_document
from serve.validation import first_problem

ARITHMETIC_ITEMS = 100
DEFINITION_ITEMS = 60
CHOICES = 4
EXACT_MATCH = "greedy answer equal to the expected one, but for case, spacing and a final full stop"
MULTIPLE_CHOICE = "expected choice has the highest log-probability per byte"
BUILT_IN = ("arithmetic", "definitions", "human-eval")
_EXAMPLES = "7 + 5 = 12\n9 - 4 = 5\n3 * 6 = 18\n"

Text = Annotated[str, StringConstraints(min_length=1)]


class TaskError(UserError):
    """A task that cannot be run; says which item of which file and what would be right."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question. With `choices`, `answer` is one of them; without, it has to be generated."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Items that are scored in one way."""

    name: str
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """sha256 over the items, in order."""
        rows = json.dumps([asdict(item) for item in self.items], ensure_ascii=False, sort_keys=True)
        return f"sha256:{hashlib.sha256(rows.encode()).hexdigest()}"

    @property
    def is_multiple_choice(self) -> bool:
        """Whether answers are chosen, not generated; the same for all items."""
        return bool(self.items[0].choices)

    def texts(self) -> Iterable[str]:
        """All text of the items, to search for in the training text."""
        return (f"{item.prompt} {item.answer} {' '.join(item.choices)}" for item in self.items)


def arithmetic(count: int = ARITHMETIC_ITEMS, seed: int = 0) -> Task:
    """Sums, differences and products of small numbers, after three examples (which are not among the items)."""
    rng = random.Random(seed)
    items: dict[str, Item] = {}
    while len(items) < count:
        sign = rng.choice("+-*")
        a, b = (rng.randint(2, 10) if sign == "*" else rng.randint(1, 50) for _ in range(2))
        if sign == "-" and a < b:
            a, b = b, a
        question = f"{a} {sign} {b} ="
        if question not in _EXAMPLES:
            result = {"+": a + b, "-": a - b, "*": a * b}[sign]
            items[question] = Item(_EXAMPLES + question, str(result))
    return Task("arithmetic", tuple(items.values()))


def definitions(training: Iterable[str], count: int = DEFINITION_ITEMS, seed: int = 0) -> Task:
    """Which of four summaries belongs to this name: topics, functions and classes of Python's own documentation.

    Only of documents that are held out; a summary that occurs in the `training` text all the same is left out.

    Raises:
        TaskError: too few are left to choose from.
    """
    training_words = " ".join(word for text in training for word in ("|", *normalized_words(text)))
    names = {
        summary: name
        for name, summary in _summaries()
        if f" {' '.join(normalized_words(summary))} " not in f"{training_words} "
    }
    if len(names) < CHOICES:
        raise TaskError(f"only {len(names)} definitions do not occur in the training text; {CHOICES} are needed")
    rng = random.Random(seed)
    summaries = sorted(names)
    items = []
    for summary in rng.sample(summaries, min(count, len(summaries))):
        choices = [summary, *rng.sample([other for other in summaries if other != summary], CHOICES - 1)]
        rng.shuffle(choices)
        items.append(Item(f"In Python, {names[summary]} is documented as:", summary, tuple(choices)))
    return Task("definitions", tuple(items))


def load_task(file: Path) -> Task:
    """A user's task: one JSON object a line, {"prompt", "answer"} or {"prompt", "answer", "choices"}; named by the file.

    Raises:
        TaskError: the file cannot be read, a line is no such object, or some lines have choices and others none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # JSON may hold what `splitlines` takes for a line's end
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the task {file}: {getattr(error, 'strerror', None) or error}") from error
    if file.stem in BUILT_IN:
        raise TaskError(f"the task {file} has the name of a built-in task: rename the file")
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = _Row.model_validate_json(line)
            except ValidationError as error:
                raise TaskError(f"line {number} of the task {file} is wrong: {first_problem(error)}") from error
            items.append(Item(row.prompt, row.answer, row.choices))
    if not items:
        raise TaskError(f'the task {file} has no items: one {{"prompt", "answer"}} a line is expected')
    if len({bool(item.choices) for item in items}) > 1:
        raise TaskError(f"the task {file} has lines with choices and lines without: make two files of them")
    return Task(file.stem, tuple(items))


def is_match(generated: str, expected: str) -> bool:
    """Whether a generated answer is the expected one, see `EXACT_MATCH`."""
    return _plain(generated) == _plain(expected)


def best_choice(logprobs: Sequence[float], choices: Sequence[str]) -> int:
    """Index of the choice with the highest log-probability per UTF-8 byte.

    Per byte, so that neither short choices nor a tokenizer's habits win (`acc_norm` of EleutherAI's evaluation harness).
    """
    scores = [logprob / len(choice.encode()) for logprob, choice in zip(logprobs, choices, strict=True)]
    return scores.index(max(scores))


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text
    answer: Text
    choices: Annotated[tuple[Text, ...], Field(min_length=2)] | tuple[()] = ()

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> Self:
        if self.choices and self.choices.count(self.answer) != 1:
            raise ValueError("the answer must be exactly one of the choices")
        return self


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()


def _summaries() -> Iterable[tuple[str, str]]:
    """Names and one-sentence summaries of what held-out documents document."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        if is_held_out(topic_document(name)):
            title, _, body = text.strip().partition("\n")
            prose = (part for part in body.split("\n\n") if part.strip(" *\n") and "::=" not in part)
            if summary := _summary(next(prose, "").lstrip("*\n")):
                yield title[0].lower() + title[1:].replace('"', "`"), summary
    for path, tree in standard_library(lambda path: is_held_out(module_document(path))):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                summary = _summary((ast.get_docstring(node) or "").split("\n\n")[0])
                if summary is not None:
                    yield f"`{module}.{node.name}`", summary


def _summary(text: str) -> str | None:
    """The first sentence, if it has the length of one."""
    sentence = " ".join(text.split()).split(". ")[0].rstrip(".:")
    return sentence if 20 <= len(sentence) <= 120 else None
