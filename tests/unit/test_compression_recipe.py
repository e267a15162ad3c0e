"""Recipes are refused with one clear line, and their key follows everything that makes other weights."""

from pathlib import Path

import pytest

from compression.recipe import Recipe, RecipeError, load_recipe, recipe_key

RECIPES = Path(__file__).parents[2] / "compression" / "recipes"
KEY = {"source": "pypi:a==1", "parent_key": "p", "text": "t"}


def recipe(**changes: object) -> Recipe:
    step = {"technique": "quantize", "samples": 32}
    return Recipe.model_validate({"name": "int8", "parent": "full", "steps": [step], **changes})


@pytest.mark.parametrize("name", ["full", "int8", "distilled"])
def test_the_shipped_recipes_are_valid(name: str) -> None:
    assert load_recipe(RECIPES / f"{name}.yaml").name == name


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
        ("{", "is not YAML"),
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
