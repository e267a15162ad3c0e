"""The cache of variants: planning, what is rebuilt and what is reused, errors, and subprocesses that end with their parent.

The subprocesses are fakes that print progress and write a card; the real ones are tested by building.
"""

import importlib.metadata
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from compression.build.family import BuildError, Family, VariantSpec
from compression.progress import Progress
from compression.recipe.schema import RecipeError
from serve.card import load_card

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "compression" / "recipes"

STAND_IN = """
    import json, pathlib, sys, time
    from serve.card import Card, Profile, Step, TpotPoint, TtftPoint, load_card
    COMMANDS = {"compression.build.variant": "build", "compression.measure.variant": "measure", "compression.distill.teacher_completions": "completions"}
    given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    here = pathlib.Path(__file__).parent
    with (here / "calls").open("a") as calls:
        calls.write(COMMANDS[sys.argv[2]] + " " + pathlib.Path(given.get("--out") or given.get("--variant") or given["--parent"]).name + "\\n")
    print("noise of a library")
    print(json.dumps({"stage": "stage", "done": 1, "total": 2, "unit": "steps"}), flush=True)
    if (here / "refuse").exists():
        print("long log", file=sys.stderr)
        sys.exit("error: the disk is full\\nafterthought")
    if (here / "hang").exists():
        time.sleep(60)
    if sys.argv[2] == "compression.build.variant":
        out = pathlib.Path(given["--out"])
        out.mkdir(parents=True)
        Card(name=given["--name"], model=given["--model"], parent=None, steps=(Step(technique="load", tool="t"),), parameters=1,
             weights_digest="sha256:" + 64 * "0", bytes_on_disk=1, max_model_len=1, chars_per_token=4, reproduce="").save(out)
    elif sys.argv[2] == "compression.measure.variant":
        assert "--no-built-in-tasks" in sys.argv, "they take a first start too long"
        out = pathlib.Path(given["--variant"])
        profile = Profile(hardware="h", engine="e", ttft=(TtftPoint(prompt_tokens=1, concurrency=1, p50_ms=1, p95_ms=1),),
            tpot=(TpotPoint(concurrency=1, p50_ms=1, p95_ms=1),), prefill_tokens_per_s=1, decode_tokens_per_s=1, startup_s=1,
            resident_bytes=1, price_usd_per_hour=float(given.get("--price-usd-per-hour", 0.5)))
        load_card(out).model_copy(update={"profile": profile}).save(out)
        (out / "measured.json").write_text(json.dumps({"key": given["--key"]}))
"""


class Bench:
    """A family whose interpreter is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/stand_in.py "$@"\n')
        python.chmod(0o755)
        self.python = python

    def family(self, source: str = "pypi:a==1", **options: object) -> Family:
        return Family(source, "m", self.folder / "cache", self.python, self.python, **options)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return [line.rsplit("-", 1)[0] for line in file.read_text().splitlines()] if file.exists() else []

    def make(self, *specs: VariantSpec, **options: object) -> list[Progress]:
        seen: list[Progress] = []
        family = self.family(**options)
        for planned in family.plan(specs):
            family.make(planned, seen.append)
        return seen


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def spec(name: str, **fields: object) -> VariantSpec:
    return VariantSpec(name=name, recipe=RECIPES / f"{name}.yaml", **fields)


def test_a_variant_is_built_then_measured_with_its_parent_first_and_then_cached(bench: Bench) -> None:
    plan = bench.family().plan([spec("int8"), spec("full")])
    assert [(p.name, p.state, p.requested) for p in plan] == [("full", "to build", True), ("int8", "to build", True)]
    assert plan[1].parent == plan[1].full == plan[0].folder
    assert all(seconds > 0 for p in plan for seconds in p.seconds.values())

    seen = bench.make(spec("int8"), spec("full"))
    assert seen[0] == Progress(stage="stage", done=1, total=2, unit="steps")
    assert bench.calls() == ["build full", "measure full", "build int8", "measure int8"]
    assert {(p.state, sum(p.seconds.values())) for p in bench.family().plan([spec("int8")])} == {("ready", 0)}
    bench.make(spec("int8"), spec("full"))
    assert len(bench.calls()) == 4


def test_the_engine_writes_completions_before_a_build_that_learns_from_them(bench: Bench, tmp_path: Path) -> None:
    for name in ("full", "distilled"):
        recipe = (RECIPES / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(
            recipe.replace("technique: distill", "technique: distill\n    data: teacher")
        )
    wanted = VariantSpec(name="distilled", recipe=tmp_path / "distilled.yaml")
    assert bench.family().plan([wanted])[1].seconds["completions"] > 25
    bench.make(wanted)
    assert bench.calls()[2:] == ["completions full", "build distilled", "measure distilled"]


def test_a_parent_that_was_not_requested_is_added(bench: Bench) -> None:
    assert [(p.name, p.requested) for p in bench.family().plan([spec("int8")])] == [("full", False), ("int8", True)]


@pytest.mark.parametrize("changed", [{"engine_args": {"max_num_seqs": 8}}, {"env": {"OMP_NUM_THREADS": "1"}}])
def test_other_engine_arguments_are_measured_again_but_not_built_again(
    bench: Bench, changed: dict[str, object]
) -> None:
    bench.make(spec("full"))
    assert [p.state for p in bench.family().plan([spec("full", **changed)])] == ["to measure"]
    bench.make(spec("full", **changed))
    assert bench.calls() == ["build full", "measure full", "measure full"]


@pytest.mark.parametrize("package", ["gearbox", "vllm"])
def test_another_version_of_gearbox_or_the_engine_measures_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    bench.make(spec("full"))
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == package else installed(name))
    assert [p.state for p in bench.family().plan([spec("full")])] == ["to measure"]


def test_variants_are_measured_again_after_the_full_model_that_they_are_compared_with(bench: Bench) -> None:
    bench.make(spec("full"), spec("int8"))
    changed = spec("full", engine_args={"max_num_seqs": 8})
    assert [p.state for p in bench.family().plan([changed, spec("int8")])] == ["to measure", "to measure"]
    bench.make(changed, spec("int8"))
    assert bench.calls()[4:] == ["measure full", "measure int8"]


def test_another_price_is_written_without_measuring(bench: Bench) -> None:
    bench.make(spec("full", price_usd_per_hour=1.0))
    bench.make(spec("full", price_usd_per_hour=2.0))
    assert bench.calls() == ["build full", "measure full"]
    assert load_card(bench.family().plan([spec("full")])[0].folder).profile.price_usd_per_hour == 2.0


def test_a_price_of_nothing_is_written_and_one_that_is_not_given_leaves_the_cards(bench: Bench) -> None:
    def price() -> float:
        return load_card(bench.family().plan([spec("full")])[0].folder).profile.price_usd_per_hour

    bench.make(spec("full"))
    assert price() == 0.5, "as it was measured"
    bench.make(spec("full", price_usd_per_hour=0.0))
    assert price() == 0
    bench.make(spec("full", price_usd_per_hour=2.0))
    bench.make(spec("full"))
    assert price() == 2


def test_another_source_or_text_is_built_beside(bench: Bench, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("words")
    plans = [
        family.plan([spec("int8")])[-1].folder
        for family in (bench.family(), bench.family("pypi:a==2"), bench.family(text=text))
    ]
    assert len(set(plans)) == 3


def test_another_python_version_builds_again_what_its_documentation_calibrates(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is other text, on which the old variant would not be measured."""
    before = bench.family().plan([spec("int8")])
    monkeypatch.setattr("compression.text.platform.python_version", lambda: "3.11.99")
    after = bench.family().plan([spec("int8")])
    assert [old.folder == new.folder for old, new in zip(before, after, strict=True)] == [True, False], "full, int8"


def test_a_failure_is_the_subprocess_s_own_line_and_names_the_log(bench: Bench) -> None:
    (bench.folder / "refuse").touch()
    with pytest.raises(BuildError, match=r"variant 'full': the disk is full \(log: .*full-.*\.log\)") as failed:
        bench.make(spec("full"))
    assert "\n" not in str(failed.value)
    log = bench.family().plan([spec("full")])[0].log
    assert "long log" in log.read_text()
    assert bench.family().plan([spec("full")])[0].state == "to build"


def test_children_end_when_the_caller_is_interrupted(bench: Bench) -> None:
    (bench.folder / "hang").touch()

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    family = bench.family()
    with pytest.raises(KeyboardInterrupt):
        family.make(family.plan([spec("full")])[0], interrupt)
    running = [p for p in psutil.process_iter(["cmdline"]) if str(bench.folder) in " ".join(p.info["cmdline"] or [])]
    assert not running


def test_two_makers_of_one_variant_do_not_build_it_twice(bench: Bench) -> None:
    code = f"""
        from pathlib import Path
        from compression.build.family import Family, VariantSpec
        python = Path({str(bench.python)!r})
        family = Family("pypi:a==1", "m", Path({str(bench.folder / "cache")!r}), python, python)
        for planned in family.plan([VariantSpec(name="full", recipe=Path({str(RECIPES / "full.yaml")!r}))]):
            family.make(planned, lambda progress: None)
    """
    makers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT) for _ in range(2)]
    assert [maker.wait(60) for maker in makers] == [0, 0]
    assert bench.calls() == ["build full", "measure full"]


def test_background_work_runs_at_a_lower_priority(bench: Bench) -> None:
    (bench.folder / "hang").touch()
    family = bench.family(background=True)
    nice: list[int] = []
    autogroups: set[str] = set()
    before = set(psutil.Process().children(recursive=True))  # of other tests, such as a browser

    def look(_: Progress) -> None:
        time.sleep(0.1)
        children = set(psutil.Process().children(recursive=True)) - before
        nice.extend(child.nice() for child in children)
        autogroups.update(
            file.read_text() for child in children if (file := Path(f"/proc/{child.pid}/autogroup")).exists()
        )
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        family.make(family.plan([spec("full")])[0], look)
    assert nice
    assert min(nice) == 19
    assert all(autogroup.strip().endswith("nice 10") for autogroup in autogroups if autogroup), (
        "of a session of its own"
    )


def test_recipes_that_start_from_each_other_are_refused(bench: Bench, tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nparent: {parent}\nsteps: [{{technique: quantize}}]")
    with pytest.raises(BuildError, match="form a cycle: a -> b -> a"):
        bench.family().plan([VariantSpec(name="a", recipe=tmp_path / "a.yaml")])


def test_a_recipe_that_changes_the_source_needs_a_parent_to_be_compared_with(bench: Bench, tmp_path: Path) -> None:
    alone = VariantSpec(name="alone", recipe=tmp_path / "alone.yaml")
    alone.recipe.write_text("name: alone\nsteps: [{technique: load}, {technique: quantize}]")
    with pytest.raises(RecipeError, match=r"'quantize' but no parent, .* compared with itself: name a parent"):
        bench.family().plan([alone])
    alone.recipe.write_text("name: alone\nsteps: [{technique: load}, {technique: cast, dtype: float16}]")
    assert [planned.name for planned in bench.family().plan([alone])] == ["alone"]


def test_the_zeros_of_an_ancestor_are_kept(bench: Bench, tmp_path: Path) -> None:
    for name, parent, step in (
        ("full", "null", "{technique: load}"),
        ("sparse", "full", "{technique: sparsify}"),
        ("half", "sparse", "{technique: cast, dtype: float16}"),
        ("trained", "half", "{technique: distill, tokens: 9}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nparent: {parent}\nsteps: [{step}]")
    with pytest.raises(RecipeError, match="'trained' cannot start from 'half': 'distill' would fill the zeros"):
        bench.family().plan([VariantSpec(name="trained", recipe=tmp_path / "trained.yaml")])


def test_importing_it_needs_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, compression.build.family; assert not {'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
