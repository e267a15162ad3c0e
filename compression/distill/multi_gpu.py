"""Distillation on several GPUs: the loop of `distill` in one process for each, which find each other through accelerate.

The build stays one process: it leaves the work in a folder, starts the processes, and takes what they made. They are started
with torchrun, as `accelerate launch` does, but without the user's accelerate configuration: a recipe is to run the same
everywhere.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from compression.distill.teacher import TopKCache
from compression.distill.trainer import DistillError, ProcessGroup, TrainingResult, distill
from compression.errors import run_command
from compression.files import write_atomically
from compression.progress import Report, progress_on_stdout, read_progress
from compression.recipe.schema import Distill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROOT = Path(__file__).resolve().parents[2]


class _Job(BaseModel):
    """Input of the training processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: Path
    settings: Distill
    seed: int
    checkpoints: Path
    cache: Path | None
    cache_teacher: str


def distill_multi_gpu(
    student: "PreTrainedModel",
    teacher: Path,
    sequences: Sequence[Sequence[int]],
    settings: Distill,
    seed: int,
    checkpoints: Path,
    report: Report,
    cache: TopKCache | None,
    processes: int,
) -> TrainingResult:
    """`distill.distill` shared by `processes` processes of this machine, a GPU for each; on the CPU where it has none.

    Args:
        teacher: folder of its weights.

    Raises:
        DistillError: with the first process's one line.
    """
    from transformers import AutoModelForCausalLM

    folder = checkpoints / "job"
    shutil.rmtree(folder, ignore_errors=True)
    student.save_pretrained(folder / "student")
    np.save(folder / "sequences.npy", np.array(sequences, dtype=np.int64))
    job = _Job(
        teacher=teacher.resolve(),
        settings=settings,
        seed=seed,
        checkpoints=checkpoints.resolve(),
        cache=cache.folder.resolve() if cache else None,
        cache_teacher=cache.teacher if cache else "",
    )
    (folder / "job.json").write_text(job.model_dump_json())
    _run(folder, processes, report)
    trained = AutoModelForCausalLM.from_pretrained(folder / "trained", dtype="auto", use_safetensors=True)
    student.to(trained.dtype).load_state_dict(trained.state_dict())
    student.eval()
    result = TrainingResult(**json.loads((folder / "trained.json").read_text()))
    shutil.rmtree(folder)
    return result


def _run(folder: Path, processes: int, report: Report) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
        *("-m", "compression.distill.multi_gpu", str(folder.resolve())),
    ]
    log = folder / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for progress in read_progress(process.stdout or ()):
                report(progress.stage, progress.done, progress.total, progress.unit)
        except BaseException:
            process.terminate()  # it ends the processes it started
            raise
        finally:
            code = process.wait()
    output = log.read_text(errors="replace")
    sys.stderr.write(output)
    if not (folder / "trained.json").exists():
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        error_lines = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise DistillError(
            error_lines[0] if error_lines else f"the training processes ended with exit code {code}: {lines[-1]}"
        )


def main(folder: Path) -> int:
    """One of the processes; returns its exit code."""
    group = ProcessGroup()
    first = group.index == 0
    report = progress_on_stdout() if first else lambda *_: None
    job = _Job.model_validate_json((folder / "job.json").read_text())

    def action() -> None:
        group.check_batch(job.settings.batch)  # before anything is loaded
        from transformers import AutoModelForCausalLM

        student, teacher = (
            AutoModelForCausalLM.from_pretrained(place, dtype="auto", use_safetensors=True)
            for place in (folder / "student", job.teacher)
        )
        cache = TopKCache(job.cache, job.cache_teacher) if job.cache else None
        sequences = np.load(folder / "sequences.npy").tolist()
        trained = distill(student, teacher, sequences, job.settings, job.seed, job.checkpoints, report, cache)
        if first:
            student.save_pretrained(folder / "trained")
            write_atomically(folder / "trained.json", json.dumps(asdict(trained)))

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
