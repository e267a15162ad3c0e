"""Teacher completions: cached by content, written once, resumed after an interruption, mixed at a ratio."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.lib.sample_catalog import make_card
from compression.distill.teacher_completions import (
    BATCH,
    CompletionsError,
    completions_file,
    evenly_spaced,
    mix_sequences,
    pack_sequences,
    read_completions,
    write_completions,
)

ROOT = Path(__file__).parents[3]
PROMPTS = [[i, i + 1] for i in range(2 * BATCH + 5)]


def quiet(*_: object) -> None:
    pass


def echo(prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
    return [[*prompt, first + i] for i, prompt in enumerate(prompts)]


def variant(folder: Path, digit: str = "0") -> Path:
    folder.mkdir(exist_ok=True)
    make_card(digest="sha256:" + 64 * digit).save(folder)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    write_completions(file, PROMPTS, echo, quiet)
    assert read_completions(file, PROMPTS) == echo(PROMPTS, 0)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("cut", [0, 3])
def test_an_interrupted_run_goes_on_after_the_last_line_it_finished(tmp_path: Path, cut: int) -> None:
    file, starts = tmp_path / "completions.jsonl", []

    def once_then_killed(prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        if first:
            raise KeyboardInterrupt
        return echo(prompts, first)

    with pytest.raises(KeyboardInterrupt):
        write_completions(file, PROMPTS, once_then_killed, quiet)
    assert not file.exists()
    part = tmp_path / "completions.part"
    part.write_text(part.read_text()[: -cut or None])  # killed in the middle of a line

    def remember(prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        starts.append(first)
        return echo(prompts, first)

    write_completions(file, PROMPTS, remember, quiet)
    assert starts[0] == (BATCH - 1 if cut else BATCH)
    assert read_completions(file, PROMPTS) == echo(PROMPTS, 0)


def test_the_file_is_named_by_all_that_changes_it(tmp_path: Path) -> None:
    one, other = variant(tmp_path / "one"), variant(tmp_path / "other", "1")
    arguments = [(one, PROMPTS, 64, 0), (other, PROMPTS, 64, 0), (one, PROMPTS[1:], 64, 0), (one, PROMPTS, 65, 0)]
    names = {completions_file(*each).name for each in [*arguments, (one, PROMPTS, 64, 1)]}
    assert len(names) == 5
    assert completions_file(*arguments[0]) == completions_file(*arguments[0])


def test_missing_and_damaged_completions_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    with pytest.raises(CompletionsError, match=r"python -m compression\.distill\.teacher_completions --recipe"):
        read_completions(file, PROMPTS)
    file.write_text("[1, 2]\n[3")
    with pytest.raises(CompletionsError, match="are damaged: remove that file"):
        read_completions(file, PROMPTS)
    file.write_text("[1, 2]\n")
    with pytest.raises(CompletionsError, match="has 1 completions, not 133"):
        read_completions(file, PROMPTS)


def test_full_completions_are_sequences_and_short_ones_are_joined() -> None:
    prompts = [[1, 2], [3, 4], [5, 6], [7, 8]]
    completions = [[9, 9, 9], [0], [9, 9, 9], [9, 0]]
    assert pack_sequences(prompts, completions, 5) == [[1, 2, 9, 9, 9], [5, 6, 9, 9, 9], [3, 4, 0, 7, 8]]


@pytest.mark.parametrize(("text", "written", "share"), [(30, 10, 0.5), (4, 40, 0.5), (30, 10, 0.1), (10, 10, 0.9)])
def test_the_mix_has_its_share_and_leaves_nothing_out(text: int, written: int, share: float) -> None:
    texts, writings = [[0, i] for i in range(text)], [[1, i] for i in range(written)]
    result = mix_sequences(texts, writings, share)
    assert sum(row[0] for row in result) / len(result) == pytest.approx(share, abs=0.02)
    assert {tuple(row) for row in result} == {tuple(row) for row in texts + writings}


def test_a_share_of_one_is_the_teachers_alone() -> None:
    assert mix_sequences([[0]], [[1], [2]], 1) == [[1], [2]]


def test_prompts_come_from_all_over_the_text() -> None:
    assert evenly_spaced([[i] for i in range(100)], 4) == [[0], [25], [50], [75]]
    assert len(evenly_spaced([[i] for i in range(7)], 4)) == 4
    assert len(evenly_spaced([[i] for i in range(3)], 4)) == 3


def test_a_recipe_that_wants_none_is_refused_with_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "a", "parent": "full", "steps": [{"technique": "distill", "tokens": 9}]}))
    given = ["--recipe", str(recipe), "--parent", str(tmp_path)]
    command = [sys.executable, "-m", "compression.distill.teacher_completions", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: the recipe 'a' has no distill step with `data: teacher`"


def test_the_build_learns_from_them(tmp_path: Path) -> None:
    """Only from them, with a share of 1: the sequences the build trains on are the packed completions."""
    pytest.importorskip("torch")
    from compression.build.variant import BuildState, _training_data
    from compression.recipe.schema import Distill, Recipe
    from compression.text import Corpus, Document

    step = {"technique": "distill", "tokens": 9, "data": "teacher", "teacher_share": 1, "sequence_length": 8}
    step |= {"completions": 3, "prompt_tokens": 4}
    recipe = Recipe.model_validate({"name": "a", "parent": "full", "steps": [step]})
    words = " ".join(str(random.Random(0).randrange(9)) for _ in range(200))
    corpus = Corpus("words", (Document("one", words),), ())

    class Tokenizer:
        eos_token_id = 0

        def __call__(self, text: str, **_: object) -> "Tokenizer":
            self.input_ids = [int(word) for word in text.split()]
            return self

    parent = variant(tmp_path / "full")
    work = BuildState(recipe, tmp_path, quiet, lambda: corpus, None, parent, tokenizer=Tokenizer())
    given = recipe.steps[0]
    assert isinstance(given, Distill)
    with pytest.raises(CompletionsError, match="are missing"):
        _training_data(work, given)
    prompts = evenly_spaced(work.sequences(4), 3)
    write_completions(completions_file(parent, prompts, 8, 0), prompts, lambda p, _: [[7] * 4 for _ in p], quiet)
    assert _training_data(work, given) == [[*prompt, 7, 7, 7, 7] for prompt in prompts]
