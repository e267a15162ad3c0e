"""Training in two processes gives the same result as in one, and the same one-line error."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from compression.distill.multi_gpu import distill_multi_gpu  # noqa: E402
from compression.distill.teacher import TopKCache  # noqa: E402
from compression.distill.trainer import DistillError, distill  # noqa: E402
from tests.unit.compression.test_compression_distill import SEQUENCES, quiet, settings, tiny  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    tiny(2).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_two_processes_give_the_weights_of_one(tmp_path: Path, teacher: Path) -> None:
    """But for the order of sums. Batches of five cannot be halved; hidden states have a projection to average."""
    given = settings(batch=5, tokens=5 * 16 * 8, hidden=0.3)
    alone, together = tiny(1, width=16), tiny(1, width=16)
    one = distill(alone, tiny(2), SEQUENCES, given, 0, tmp_path / "alone", quiet)
    seen: list[int] = []
    report = lambda _, done, *__: seen.append(done)  # noqa: E731
    two = distill_multi_gpu(together, teacher, SEQUENCES, given, 0, tmp_path / "two", report, None, 2)
    assert seen == list(range(1, 9))
    assert (two.steps, two.tokens) == (one.steps, one.tokens)
    assert two.last_loss == pytest.approx(one.last_loss, rel=1e-4)
    for single, shared in zip(alone.parameters(), together.parameters(), strict=True):
        assert torch.allclose(single, shared, atol=1e-4 if single.dtype == torch.float32 else 2e-2)
    assert not (tmp_path / "two" / "job").exists()
    assert [file.suffix for file in (tmp_path / "two").iterdir()] == [".pt"]


def test_their_error_is_one_line(tmp_path: Path, teacher: Path) -> None:
    cache = TopKCache(tmp_path / "cache", "teacher")
    with pytest.raises(DistillError, match=r"^2 processes cannot share a batch of 1: raise batch$"):
        given = settings(batch=1, teacher_top_k=4)
        distill_multi_gpu(tiny(1), teacher, SEQUENCES, given, 0, tmp_path / "two", quiet, cache, 2)
