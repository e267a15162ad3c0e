"""Tasks are the same items every time, have one right answer each, and errors in a user's file are reported by line."""

from pathlib import Path

import pytest

from compression.measure import tasks
from compression.measure.tasks import (
    CHOICES,
    Item,
    Task,
    TaskError,
    arithmetic,
    best_choice,
    definitions,
    is_match,
    load_task,
)


@pytest.fixture(scope="module")
def summaries() -> list[tuple[str, str]]:
    return list(tasks._summaries())


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch, summaries: list[tuple[str, str]]) -> None:
    """The standard library takes a second to read."""
    monkeypatch.setattr(tasks, "_summaries", lambda: summaries)


def test_arithmetic_follows_its_seed_and_its_answers_are_right() -> None:
    task = arithmetic(200, seed=3)
    assert task.digest == arithmetic(200, seed=3).digest != arithmetic(200, seed=4).digest
    questions = [item.prompt.splitlines()[-1].removesuffix(" =") for item in task.items]
    assert len(set(questions)) == 200
    for question, item in zip(questions, task.items, strict=True):
        a, sign, b = question.split()
        assert int(item.answer) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] >= 0
        assert f"{question} = " not in item.prompt, "the examples give no answer away"


def test_definitions_have_one_right_choice_each_and_follow_the_seed() -> None:
    task = definitions([], count=40)
    assert (len(task.items), task.is_multiple_choice) == (40, True)
    assert task.digest == definitions([], count=40).digest != definitions([], count=40, seed=1).digest
    assert all(item.choices.count(item.answer) == 1 and len(set(item.choices)) == CHOICES for item in task.items)
    places = [item.choices.index(item.answer) for item in task.items]
    assert all(places.count(place) > 2 for place in range(CHOICES)), "the right one is not always at the same place"


def test_a_definition_that_the_training_text_has_is_left_out() -> None:
    leaked = definitions([], count=10).items[0].answer
    clean = definitions([f"Some text. {leaked.upper()}! And more."], count=10_000)
    everything = definitions([], count=10_000)
    assert leaked in {item.answer for item in everything.items}
    assert leaked not in {choice for item in clean.items for choice in item.choices}
    assert len(clean.items) == len(everything.items) - 1


def test_training_text_with_every_definition_leaves_nothing_to_ask() -> None:
    with pytest.raises(TaskError, match="only 0 definitions"):
        definitions([item.answer for item in definitions([], count=10_000).items])


@pytest.mark.parametrize(
    ("generated", "expected", "equal"),
    [
        (" 12", "12", True),
        ("  Paris.\n", "paris", True),
        ("New   York", "New York", True),
        ("12 apples", "12", False),
        ("112", "12", False),
        ("", "12", False),
        ("1.5", "15", False),
    ],
)
def test_an_answer_matches_but_for_case_spacing_and_a_full_stop(generated: str, expected: str, equal: bool) -> None:
    assert is_match(generated, expected) is equal


def test_the_best_choice_is_the_one_most_likely_per_byte() -> None:
    assert best_choice([-4.0, -6.0], ["ab", "abcd"]) == 1
    assert best_choice([-4.0, -9.0], ["ab", "abcd"]) == 0
    assert best_choice([-4.0, -6.0], ["ä", "abcd"]) == 1, "two bytes, one character"


def write(folder: Path, *lines: str) -> Path:
    file = folder / "capitals.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_a_users_task_is_read_and_named_by_its_file(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, '{"prompt": "Q", "answer": "b", "choices": ["a", "b"]}', "", ""))
    assert task == Task("capitals", (Item("Q", "b", ("a", "b")),))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items"),
        (['{"prompt": "Q", "answer": "A"}', "{"], "line 2 of the task .* is wrong"),
        (['{"prompt": "Q"}'], "line 1 of the task .* answer: Field required"),
        (['{"prompt": "", "answer": "A"}'], "prompt: .* at least 1 character"),
        (['{"prompt": "Q", "answer": "A", "colour": 1}'], "colour: Extra inputs"),
        (['{"prompt": "Q", "answer": "A", "choices": ["B", "C"]}'], "answer must be exactly one of the choices"),
        (['{"prompt": "Q", "answer": "A", "choices": ["A", "A"]}'], "answer must be exactly one of the choices"),
        (['{"prompt": "Q", "answer": "A", "choices": ["A"]}'], "at least 2 items"),
        (['{"prompt": "Q", "answer": "A"}', '{"prompt": "Q", "answer": "A", "choices": ["A", "B"]}'], "two files"),
    ],
)
def test_a_wrong_task_is_one_line_that_says_where(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(TaskError, match=message) as refused:
        load_task(write(tmp_path, *lines))
    assert "\n" not in str(refused.value)
    assert "capitals.jsonl" in str(refused.value)


def test_a_missing_file_and_a_taken_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        load_task(tmp_path / "none.jsonl")
    (tmp_path / "arithmetic.jsonl").write_text('{"prompt": "Q", "answer": "A"}')
    with pytest.raises(TaskError, match="rename the file"):
        load_task(tmp_path / "arithmetic.jsonl")
