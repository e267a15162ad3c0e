"""Scoring of tasks: what counts as a correct answer, and out of how many. The engine is a fake: `ServedModel` itself is covered by measuring."""

import re

import pytest

from compression.measure.intervals import wilson_ci95
from compression.measure.scoring import score_task
from compression.measure.tasks import EXACT_MATCH, MULTIPLE_CHOICE, Item, Task, TaskError, arithmetic
from tests.support.fake_served import FakeServed


def solve(prompt: str) -> str:
    a, sign, b = re.search(r"(\d+) (.) (\d+) =$", prompt).groups()
    return f" {eval(a + sign + b)}\n1 + 1 = 2"


def test_generated_answers_are_cut_at_the_line_and_counted() -> None:
    task = arithmetic(50)
    progress: list[int] = []
    score = score_task(FakeServed(solve), task, 3, progress.append)
    assert (score.score, score.items, score.scoring, score.shared_ngrams) == (1.0, 50, EXACT_MATCH, 3)
    assert (score.ci95, score.set_digest, progress) == (wilson_ci95(50, 50), task.digest, [50])
    half = score_task(FakeServed(lambda p: solve(p) if "+" in p.splitlines()[-1] else " none"), task, 0, lambda _: None)
    sums = sum("+" in item.prompt.splitlines()[-1] for item in task.items)
    assert half.score == sums / 50


def test_answers_of_several_lines_are_not_cut() -> None:
    task = Task("poem", (Item("Write", "one\ntwo"),))
    assert score_task(FakeServed(lambda _: "one\ntwo"), task, 0, lambda _: None).score == 1


def test_the_choice_with_the_highest_log_probability_per_byte_is_taken() -> None:
    task = Task("letters", (Item("Pick:", "aaaa", ("aaaa", "b")), Item("Pick:", "b", ("b", "aaaa"))))
    served = FakeServed(likelihood={"a": -1.0, "b": -1.5, " ": -0.0})
    score = score_task(served, task, 0, lambda _: None)
    assert (score.score, score.scoring) == (0.5, MULTIPLE_CHOICE)
    assert served.prompts == ["Pick: aaaa", "Pick: b", "Pick: b", "Pick: aaaa"]


def test_only_the_choice_counts_not_the_prompt() -> None:
    """The prompt's characters would dwarf every choice's."""
    task = Task("letters", (Item("zzzz ", "b", ("b", "a")),))
    served = FakeServed(likelihood={"z": -100.0, "a": -2.0, "b": -1.0})
    assert score_task(served, task, 0, lambda _: None).score == 1
    assert served.prompts == ["zzzz b", "zzzz a"], "no second space after one"


class Joining(FakeServed):
    """A tokenizer that joins ':' and what follows into one token."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        tokens = super().encode(text)
        return [*tokens[:-2], 1000 + tokens[-1]] if text[-2] == ":" else tokens


def test_a_choice_that_is_joined_with_the_prompts_last_token_is_scored_from_there() -> None:
    task = Task("letters", (Item("Pick:\n", "b", ("b", "a")),))
    task = Task("joined", (Item("x", "\nb", ("\nb", "\na")), *task.items))
    assert score_task(FakeServed(likelihood={"b": -1.0}), task, 0, lambda _: None).score == 1
    served = Joining(likelihood={chr(1000 + ord("b")): -1.0})
    assert score_task(served, Task("j", (Item("Pick :", "\tb", ("\tb", "\ta")),)), 0, lambda _: None).items == 1


def test_an_item_that_is_too_long_for_the_engine_is_refused_with_its_length() -> None:
    task = Task("long", (Item("short", "a"), Item("x" * 95, "a")))
    with pytest.raises(TaskError, match=r"task 'long' is 104 tokens long .* \(the 2\. prompt or choice\).* takes 100"):
        score_task(FakeServed(max_model_len=100), task, 0, lambda _: None)
    assert score_task(FakeServed(max_model_len=104), task, 0, lambda _: None).score == 0
    choices = Task("long", (Item("x" * 95, "a", ("a", "b" * 10)),))
    with pytest.raises(TaskError, match="task 'long' is 107 tokens"):
        score_task(FakeServed(max_model_len=100), choices, 0, lambda _: None)
