"""`gearbox evaluate`, `profile` and `report`: what they run, with which engine, and their output. The measurement is a fake."""

import json
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
import typer
from click.testing import Result
from filelock import FileLock
from typer.testing import CliRunner

from benchmarks.lib.sample_catalog import make_card, settings, write_variant
from compression.cli.measure import Serving, add_commands
from deployments.cli import _serving
from serve.card import load_card

STAND_IN = """
    import json, os, pathlib, sys
    from serve.card import load_card
    here = pathlib.Path(__file__).parent
    (here / "call.json").write_text(json.dumps({"argv": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}))
    stages = ("start", "profile") if "profile" in sys.argv else ("start", "drift", "quality", "answers", "tasks")
    for stage in stages:
        print(json.dumps({"stage": stage, "done": 1, "total": 1, "unit": "parts"}), flush=True)
    if (here / "refuse").exists():
        sys.exit("error: the engine's log-probabilities are 3 nats away")
    folder = pathlib.Path(sys.argv[sys.argv.index("--variant") + 1])
    load_card(folder).model_copy(update={"seed": 7}).save(folder)
"""
SERVING = Serving({"max_num_seqs": 4}, {"OMP_NUM_THREADS": "3"}, 0.25)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder with a stand-in for Python, a full and an int8."""
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/stand_in.py "$@"\n')
    python.chmod(0o755)
    for name in ("full", "int8"):
        write_variant(tmp_path / "cache" / name, make_card(name))
    return tmp_path


def gearbox(bench: Path, *arguments: object) -> Result:
    app = typer.Typer()
    add_commands(app, lambda config, name: SERVING, Path("local.yaml"), bench / "python")
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"a traceback instead of a message: {result.exception!r}") from result.exception
    return result


def call(bench: Path) -> dict:
    return json.loads((bench / "call.json").read_text())


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_evaluate_measures_quality_with_the_serving_engine_and_shows_the_card(bench: Path) -> None:
    int8, full = bench / "cache" / "int8", bench / "cache" / "full"
    (bench / "mine.jsonl").write_text("")
    result = gearbox(
        bench, "evaluate", int8, "--full", full, "--tasks", bench / "mine.jsonl", "--quality-from", "agreement",
        "--max-drift", "0.3", "--allow-code",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    argv = call(bench)["argv"]
    assert argv[:2] == ["-m", "compression.measure.variant"]
    assert (after(argv, "--variant"), after(argv, "--full"), after(argv, "--only")) == (str(int8), str(full), "quality")
    assert json.loads(after(argv, "--engine-args")) == SERVING.engine_args
    assert (after(argv, "--tasks"), after(argv, "--quality-from")) == (str(bench / "mine.jsonl"), "agreement")
    assert after(argv, "--max-drift") == "0.3" and "--allow-code" in argv
    assert call(bench)["threads"] == "3"
    assert load_card(int8).seed == 7
    assert "perplexity" in result.stdout and "drift from float32" in result.stdout
    assert re.search(r"quality, roughly \d+ s left", result.stderr), "progress where there is no terminal"


def test_model_written_code_is_not_run_unless_enabled(bench: Path) -> None:
    gearbox(bench, "evaluate", bench / "cache" / "int8", "--full", bench / "cache" / "full")
    assert "--allow-code" not in call(bench)["argv"]


@pytest.mark.parametrize(("given", "price"), [((), "0.25"), (("--price-usd-per-hour", "2"), "2.0")])
def test_profile_takes_the_configurations_price_unless_one_is_given(bench: Path, given: tuple, price: str) -> None:
    result = gearbox(bench, "profile", bench / "cache" / "int8", *given)
    assert result.exit_code == 0, result.output
    argv = call(bench)["argv"]
    assert (after(argv, "--only"), after(argv, "--price-usd-per-hour")) == ("profile", price)
    assert "TTFT, 100 tokens, 1 at once" in result.stdout


def test_profile_keeps_the_cards_price_where_the_configuration_does_not_name_the_variant(bench: Path) -> None:
    app = typer.Typer()
    add_commands(app, lambda config, name: Serving({}, {}, None), Path("local.yaml"), bench / "python")
    result = CliRunner().invoke(app, ["profile", str(bench / "cache" / "int8")])
    assert result.exit_code == 0, result.output
    assert after(call(bench)["argv"], "--price-usd-per-hour") == "0.036"


def test_a_refusal_is_one_line_and_leaves_the_card(bench: Path) -> None:
    (bench / "refuse").touch()
    int8 = bench / "cache" / "int8"
    before = (int8 / "card.json").read_bytes()
    result = gearbox(bench, "evaluate", int8, "--full", bench / "cache" / "full")
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"gearbox: the engine's log-probabilities are 3 nats away (log: {int8}.log)"
    assert (int8 / "card.json").read_bytes() == before


def test_a_folder_without_a_card_is_refused_before_anything_runs(bench: Path) -> None:
    for arguments in (("profile", bench), ("evaluate", bench / "cache" / "int8", "--full", bench)):
        result = gearbox(bench, *arguments)
        assert (result.exit_code, result.stderr) == (2, f"gearbox: no card.json in {bench}\n")
    assert not (bench / "call.json").exists()


def test_two_measurements_of_one_folder_do_not_meet(bench: Path) -> None:
    int8 = bench / "cache" / "int8"
    with FileLock(f"{int8}.lock"):
        result = gearbox(bench, "profile", int8)
    assert result.exit_code == 2
    assert "another process is building or measuring" in result.stderr


def test_report_writes_page_and_table_and_says_where(bench: Path) -> None:
    (bench / "cache" / "broken").mkdir()
    (bench / "cache" / "broken" / "card.json").write_text("{")
    result = gearbox(bench, "report", bench / "cache", "--out", bench / "out", "--no-plots")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(bench / "out" / name) for name in ("report.html", "report.md")]
    assert "left out: " in result.stderr and "broken" in result.stderr
    assert "int8" in (bench / "out" / "report.html").read_text()


def test_report_without_cards_is_one_line(bench: Path) -> None:
    result = gearbox(bench, "report", bench / "none", "--out", bench / "out")
    assert (result.exit_code, result.stderr) == (2, f"gearbox: no card.json in {bench / 'none'} or below it\n")


def test_the_plots_say_what_to_install(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = gearbox(bench, "report", bench / "cache", "--out", bench / "out")
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.stderr and "--no-plots" in result.stderr


def test_the_configuration_says_how_a_variant_is_served(tmp_path: Path) -> None:
    own = {
        "name": "int8",
        "recipe": "int8",
        "engine": {"max_num_seqs": 8},
        "env": {"A": "own"},
        "price_usd_per_hour": 2,
    }
    content = settings(engine={"max_model_len": 512, "max_num_seqs": 4}, env={"A": "all", "B": "all"}, variants=[own])
    file = tmp_path / "platform.yaml"
    file.write_text(json.dumps(content))
    assert _serving(file, "int8") == Serving({"max_model_len": 512, "max_num_seqs": 8}, {"A": "own", "B": "all"}, 2)
    assert _serving(file, "new") == Serving({"max_model_len": 512, "max_num_seqs": 4}, {"A": "all", "B": "all"}, None)
    with pytest.raises(typer.Exit) as left:
        _serving(tmp_path / "none.yaml", "int8")
    assert left.value.exit_code == 2
    assert os.environ.get("A") is None
