"""The comparison of losses on a tiny model: what it measures, and that a finished run is not repeated."""

import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.compression import distillation  # noqa: E402
from benchmarks.compression.distillation import Bench, evaluate, measure  # noqa: E402
from benchmarks.lib.sample_catalog import make_card  # noqa: E402
from benchmarks.reporting import plots, tables  # noqa: E402
from compression.text import Corpus, Document  # noqa: E402
from tests.unit.compression.test_compression_distill import SEQUENCES, tiny  # noqa: E402

BUDGET = {"tokens": 4 * 16 * 3, "minutes": None}


class Words:
    """A tokenizer of numbers."""

    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> "Words":
        self.input_ids = [int(word) for word in text.split()]
        return self


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    make_card().save(tmp_path)
    text = " ".join(str(token) for row in SEQUENCES for token in row)
    corpus = Corpus("numbers", (Document("one", text),), ())
    return Bench(tmp_path, tiny(2), tiny(1), Words(), corpus, SEQUENCES[:3], 16)


def test_the_teacher_agrees_with_itself_and_by_hand() -> None:
    teacher = tiny(2).eval()
    same = evaluate(teacher, teacher, SEQUENCES[:3])
    assert same["kl_to_full"] == pytest.approx(0, abs=1e-6)
    assert same["top1_agreement"] == 1
    batch = torch.tensor(SEQUENCES[:3])
    loss = teacher(batch, labels=batch).loss
    assert same["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-4)

    student = tiny(1).eval()
    p, q = (model(batch).logits[:, :-1].log_softmax(-1) for model in (teacher, student))
    other = evaluate(teacher, student, SEQUENCES[:3])
    assert other["kl_to_full"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert other["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())


def test_every_run_is_a_line_and_is_made_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, names = tmp_path / "results" / "runs.jsonl", ["hard", "tau-1", "hidden", "top-64"]
    result = measure(bench, names, [0, 1], BUDGET, runs, tmp_path / "work")
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [(row["setting"], row["seed"]) for row in rows] == [("before", 0), *((n, s) for s in (0, 1) for n in names)]
    assert {row["trained_tokens"] for row in rows[1:]} == {BUDGET["tokens"]}
    assert list(tmp_path.glob("work/*/*.pt")) == []

    over = result["settings"]["tau-1"]["over_hard"]["kl_to_full"]
    kl = {(row["setting"], row["seed"]): row["kl_to_full"] for row in rows}
    pairs = sorted(kl["tau-1", seed] - kl["hard", seed] for seed in (0, 1))
    assert (over["min"], over["max"]) == (pytest.approx(pairs[0], abs=1e-4), pytest.approx(pairs[1], abs=1e-4))
    assert result["settings"]["hard"]["over_hard"]["kl_to_full"]["max"] == 0

    runs.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]) + json.dumps(rows[-1])[:50])
    made: list[str] = []
    run = distillation._run
    monkeypatch.setattr(distillation, "_run", lambda bench, name, *rest: made.append(name) or run(bench, name, *rest))
    again = measure(bench, names, [0, 1], BUDGET, runs, tmp_path / "work")
    assert made == ["top-64"]
    assert runs.read_text().endswith("}\n")
    assert len(distillation._known(runs)) == 9
    assert again["settings"]["hidden"] == result["settings"]["hidden"]
    assert "[2/9] done before: hard, seed 0" in capsys.readouterr().out

    made.clear()
    measure(bench, ["hard"], [0], {"tokens": 4 * 16 * 4, "minutes": None}, runs, tmp_path / "work")
    assert made == ["hard"]


def test_its_table_and_plot(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    result = measure(bench, ["hard", "tau-2"], [0, 1], BUDGET, tmp_path / "runs.jsonl", tmp_path / "work")
    machine = {"measured": "2026-01-01T00:00", "cpu": "a processor", "cores": 2, "memory_gb": 24.0}
    table = tables.distillation({"machine": machine, **result})
    assert table.splitlines()[0].startswith("| | KL to full |") or table.splitlines()[0].startswith("|  | KL to full |")
    assert sum(line.startswith(("| teacher, τ = 2 |", "| hard labels only |")) for line in table.splitlines()) == 2
    assert "not the serving engine" in table
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    assert plots.distillation(result).stat().st_size > 5000


def test_a_missing_teacher_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> None:
        raise distillation.NoWeights("variant 'full' is not built")

    monkeypatch.setattr(distillation, "full_weights", missing)
    monkeypatch.setattr(sys, "argv", ["distillation"])
    with pytest.raises(SystemExit) as ended:
        distillation.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: variant 'full' is not built\n"
