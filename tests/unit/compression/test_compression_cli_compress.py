"""`gearbox compress`: what it rejects before anything starts, and a real build of a tiny model."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.lib.sample_catalog import make_card, write_variant
from compression.build.subprocesses import SubprocessFailed
from compression.cli import compress as compress_command
from deployments.cli import app
from serve.card import Step, load_card

RECIPES = Path(__file__).parents[3] / "compression" / "recipes"


@pytest.fixture(autouse=True)
def _this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARBOX_COMPRESSION_PYTHON", sys.executable)


def compress(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"a traceback instead of a message: {result.exception!r}") from result.exception
    return result


def refused(*arguments: object) -> str:
    result = compress(*arguments)
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"gearbox: .+\n", result.stderr), result.stderr
    return result.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    return folder


def test_an_unknown_recipe_names_those_there_are(tmp_path: Path, source: Path) -> None:
    assert "there is no recipe 'int3': name a YAML file or one of distilled, " in refused(
        "int3", "--model", source, "--out", tmp_path / "out"
    )


def test_a_wrong_recipe_is_refused_by_file_and_field(tmp_path: Path, source: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nparent: full\nsteps: [{technique: prune, layers: one}]")
    message = refused(file, "--model", source, "--out", tmp_path / "out")
    assert "mine.yaml" in message
    assert "layers" in message


def test_a_wrong_source_is_refused(tmp_path: Path) -> None:
    assert "'nowhere' is no model source" in refused("full", "--model", "nowhere", "--out", tmp_path / "out")


def test_nothing_to_start_from_is_refused(tmp_path: Path) -> None:
    assert "give --model" in refused("int8", "--out", tmp_path / "out")


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, source: Path) -> None:
    assert "exists already" in refused("full", "--model", source, "--out", tmp_path)


def test_a_text_that_is_not_there_is_refused(tmp_path: Path, source: Path) -> None:
    message = refused("full", "--model", source, "--out", tmp_path / "out", "--text", tmp_path / "none.txt")
    assert "no text file" in message


def test_a_parent_without_a_card_is_refused(tmp_path: Path, source: Path) -> None:
    assert "no card.json" in refused("int8", "--parent", source, "--out", tmp_path / "out")


def test_a_folder_beside_that_is_another_variant_is_not_taken_for_the_parent(tmp_path: Path, source: Path) -> None:
    write_variant(tmp_path / "full", make_card("other"))
    message = refused("int8", "--model", source, "--out", tmp_path / "int8")
    assert "holds the variant 'other', not the parent 'full'" in message


def test_a_parent_of_another_source_is_not_taken(tmp_path: Path, source: Path) -> None:
    step = Step(technique="load", parameters={"source": "pypi:a==1"}, tool="t")
    write_variant(tmp_path / "full", make_card("full", steps=(step,)))
    assert "was made from pypi:a==1" in refused("int8", "--model", source, "--out", tmp_path / "int8")


def test_a_missing_environment_says_how_to_make_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARBOX_COMPRESSION_PYTHON", "/nowhere/python")
    message = refused("full", "--model", source, "--out", tmp_path / "out")
    assert "no compression environment at /nowhere/python: run 'make install'" in message


@pytest.mark.parametrize("sparse_exists", [False, True])
def test_steps_that_would_fill_the_zeros_of_an_ancestor_are_refused(
    tmp_path: Path, source: Path, sparse_exists: bool
) -> None:
    for name, parent, step in (
        ("sparse", "full", "{technique: sparsify}"),
        ("half", "sparse", "{technique: cast, dtype: float16}"),
        ("trained", "half", "{technique: distill, tokens: 9}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nparent: {parent}\nsteps: [{step}]")
    if sparse_exists:
        sparse = write_variant(tmp_path / "sparse", make_card("sparse", steps=(Step(technique="sparsify", tool="t"),)))
        (sparse / "config.json").write_text("{}")
    message = refused(tmp_path / "trained.yaml", "--model", source, "--out", tmp_path / "trained")
    assert "'trained' cannot start from 'half': 'distill' would fill the zeros" in message


@pytest.mark.parametrize(("known", "code"), [(True, 2), (False, 1)])
def test_a_failed_build_is_its_own_line_and_names_the_log(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, known: bool, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SubprocessFailed("the disk is full", known_cause=known)

    monkeypatch.setattr("compression.cli.compress.run_subprocess", fail)
    result = compress("full", "--model", source, "--out", tmp_path / "out")
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == f"gearbox: out: the disk is full (log: {tmp_path / 'out.log'})"


def test_the_parent_writes_before_a_build_that_learns_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = write_variant(tmp_path / "full", make_card("full"))
    (parent / "config.json").write_text("{}")
    recipe = tmp_path / "taught.yaml"
    recipe.write_text("name: taught\nparent: full\nsteps: [{technique: distill, data: teacher, tokens: 9}]")
    ran: list[list[str]] = []

    def run(command: list[str], *_: object) -> None:
        ran.append([command[2], *command[command.index("--parent") :][:2]])
        if command[2] == "compression.build.variant":
            write_variant(tmp_path / "out", make_card("taught"))

    monkeypatch.setattr("compression.cli.compress.run_subprocess", run)
    result = compress(recipe, "--parent", parent, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert ran == [
        [module, "--parent", str(parent)]
        for module in ("compression.distill.teacher_completions", "compression.build.variant")
    ]


def test_two_builds_at_once_that_lack_the_same_parent_build_it_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_planned, built = Barrier(2, timeout=30), []

    def model_name(_: object) -> str:  # requested after planning
        both_planned.wait()
        return "tiny"

    def run(command: list[str], *_: object) -> None:
        out = Path(command[command.index("--out") + 1])
        built.append(out.name)
        time.sleep(0.1)
        write_variant(out, make_card(out.name))

    monkeypatch.setattr(compress_command, "_model_name", model_name)
    monkeypatch.setattr(compress_command, "run_subprocess", run)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: compress_command.compress(name, tmp_path / name, str(source)), ("int8", "fp8")))
    assert sorted(built) == ["fp8", "full", "int8"]


@pytest.mark.slow
def test_a_missing_parent_is_built_first_and_both_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.support.tiny_model import write_model, write_text

    text, source = write_text(tmp_path / "words.txt"), write_model(tmp_path / "tiny-model")
    recipe = tmp_path / "shallow.yaml"
    recipe.write_text(
        "name: shallow\nparent: full\nsteps: [{technique: prune, layers: 3, samples: 4, sequence_length: 32}]"
    )
    from compression.build.variant import build
    from compression.recipe.schema import load_recipe

    real, started = compress_command.run_subprocess, []

    def build_here(command: list[str], *_: object) -> None:
        options = dict(zip(command[3::2], command[4::2], strict=True))
        recipe, parent = load_recipe(Path(options["--recipe"])), options.get("--parent")
        build(
            recipe, recipe.name, options["--model"], options.get("--source"), parent and Path(parent),
            Path(options["--out"]), Path(options["--text"]), "", lambda *_: None,
        )  # fmt: skip

    def run(command: list[str], *rest: object) -> None:  # each process imports torch: one shows that they run
        started.append(command)
        (real if "shallow" in command[command.index("--out") + 1] else build_here)(command, *rest)

    monkeypatch.setattr(compress_command, "run_subprocess", run)
    out = tmp_path / "made" / "shallow"
    result = compress(recipe, "--model", source, "--out", out, "--text", text)
    assert result.exit_code == 0, result.output
    card, full = load_card(out), load_card(tmp_path / "made" / "full")
    assert (card.model, card.parent, full.model, full.steps[0].technique) == (
        "tiny-model",
        "full",
        "tiny-model",
        "load",
    )
    assert card.parameters < full.parameters
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["full", "shallow"]
    assert "prune → save" in result.stderr
    assert len(started) == 2

    again = compress(recipe, "--model", source, "--out", tmp_path / "made" / "second", "--text", text)
    assert [line.split(":")[0] for line in again.stdout.splitlines()] == ["shallow"], "full is taken as it is"
    assert len(started) == 3
    assert load_card(tmp_path / "made" / "second").weights_digest == card.weights_digest
