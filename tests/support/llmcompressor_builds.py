"""Build variants of a tiny model in FOLDER, with the compression environment's interpreter; print facts as JSON lines.

python -m tests.support.llmcompressor_builds FOLDER
"""

import importlib.util
import json
import sys
from pathlib import Path

from compression.build.variant import build
from compression.errors import error_line
from compression.recipe.schema import Recipe
from tests.support.tiny_model import build_full, write_model, write_text

SHORT = {"samples": 4, "sequence_length": 32}
PRUNE = {"technique": "prune", "layers": 3, **SHORT}


def quantize(**settings: object) -> dict[str, object]:
    return {"technique": "quantize", **SHORT, **settings}


def sparsify(**settings: object) -> dict[str, object]:
    return {"technique": "sparsify", **SHORT, **settings}


VARIANTS: dict[str, list[dict[str, object]]] = {
    "int8": [quantize()],
    "int8-rtn": [quantize(method="rtn", smoothquant=None)],
    "int8-static": [quantize(scheme="W8A8-static")],
    "w8a16": [quantize(scheme="W8A16", method="rtn")],
    "int4-gptq": [quantize(scheme="W4A16", group_size=32)],
    "int4-awq": [quantize(scheme="W4A16", group_size=32, method="awq", samples=1, sequence_length=16)],
    "fp8": [quantize(scheme="FP8")],
    "fp8-cache": [quantize(scheme="FP8", kv_cache="fp8")],
    "int8-cache": [quantize(method="rtn", smoothquant=None, kv_cache="int8")],
    "wanda": [sparsify(method="wanda", sparsity=0.6)],
    "two-four": [sparsify(pattern="2:4")],
    "two-four-int8": [sparsify(pattern="2:4"), quantize(method="rtn")],
    "pruned-half-int8": [PRUNE, {"technique": "cast", "dtype": "float16"}, quantize(method="rtn")],
}
LORA = [PRUNE, {"technique": "lora", "rank": 4, "tokens": 4 * 32 * 30, "batch": 4, "sequence_length": 32}]


def main() -> None:
    folder = Path(sys.argv[1])
    text = write_text(folder / "words.txt")
    source = write_model(folder / "source")
    full = build_full(source, folder / "full", text)
    wanted = dict(VARIANTS)
    if importlib.util.find_spec("peft"):
        wanted["lora"] = LORA
    for name, steps in wanted.items():
        recipe = Recipe.model_validate({"name": name, "parent": "full", "steps": steps})
        tell(name, recipe, None, full, folder, text)
    steps = [{"technique": "load"}, quantize(method="rtn")]
    tell("from-source", Recipe.model_validate({"name": "x", "steps": steps}), source, None, folder, text)


def tell(name: str, recipe: Recipe, source: Path | None, parent: Path | None, folder: Path, text: Path) -> None:
    stages: list[str] = []
    try:
        build(
            recipe, name, "tiny", str(source) if source else None, parent, folder / name, text, "",
            lambda stage, *_: stages.append(stage),
        )  # fmt: skip
    except Exception as error:
        if (line := error_line(error)) is None:
            raise
        sys.stdout.write(json.dumps({"name": name, "error": line}) + "\n")
    else:
        sys.stdout.write(json.dumps({"name": name, "stages": list(dict.fromkeys(stages))}) + "\n")


if __name__ == "__main__":
    main()
