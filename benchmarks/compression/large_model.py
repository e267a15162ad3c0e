"""Measure the speed of each compression technique on a model of 0.8B parameters: `python -m benchmarks.compression.large_model`.

The weights are random, so quality is not measured: speed depends only on shapes and number formats. Built and profiled
variants stay: a run after an interruption resumes.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from benchmarks.compression.techniques import OWN_RECIPES, Stages
from benchmarks.lib.processes import RESUMES, command
from benchmarks.reporting.results import Progress, save
from benchmarks.systems.full_weights import CONFIG, NoWeights, full_weights
from compression.build.subprocesses import MALLOC_ENV, SubprocessFailed, compression_python, run_subprocess
from deployments.state import cache_folder
from deployments.weights import RECIPES
from serve.card import Card, load_card

# a Llama of 822 million parameters
SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
VARIANTS = {  # name: (recipe, seconds on two cores)
    "full": (RECIPES / "full.yaml", 400),
    "int8": (OWN_RECIPES / "int8-rtn.yaml", 500),
    "pruned": (OWN_RECIPES / "large-pruned.yaml", 400),
}


def random_model(folder: Path, tokenizer_of: Path) -> None:
    """Random weights of `SHAPE` in bf16 with another model's tokenizer, as a source for recipes."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    scratch = folder.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), dtype="bfloat16", **SHAPE)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    scratch.rename(folder)


def measure(names: list[str], work: Path) -> dict[str, object]:
    """Measure the variants `names`. Returns the result document without the machine.

    Raises:
        NoWeights, SubprocessFailed: with one clear line.
    """
    config, tokenizer_of = full_weights(CONFIG, None)
    work.mkdir(parents=True, exist_ok=True)
    source = work / "source"
    if not source.exists():
        print("writing random weights", flush=True)
        random_model(source, tokenizer_of)
    variant = config.variants[0]
    progress = Progress([(name, VARIANTS[name][1]) for name in names])
    cards: dict[str, Card] = {}
    for name in names:
        recipe, folder = VARIANTS[name][0], work / name
        log = folder.with_suffix(".log")
        if folder.exists() and load_card(folder).profile:
            progress.skip(name)
        else:
            progress.step(name)
        if not folder.exists():
            start = ["--source", str(source)] if name == "full" else ["--parent", str(work / "full")]
            build = [str(compression_python()), "-m", "compression.build.variant", "--recipe", str(recipe), *start]
            run_subprocess(
                [*build, "--model", "random-822m", "--name", name, "--out", str(folder)], MALLOC_ENV, log, Stages()
            )
        if load_card(folder).profile is None:
            profile = [
                sys.executable,
                "-m",
                "compression.measure.variant",
                "--variant",
                str(folder),
                "--only",
                "profile",
            ]
            engine = ["--engine-args", json.dumps(config.engine_args(variant))]
            run_subprocess([*profile, *engine], {**config.env, **variant.env}, log, Stages())
        cards[name] = load_card(folder)
    return {
        "shape": SHAPE,
        "variants": {
            name: {
                "bytes": card.bytes_on_disk,
                "parameters": card.parameters,
                "steps": [step.model_dump(mode="json") for step in card.steps if step.technique != "load"],
                "profile": card.profile.model_dump(mode="json") if card.profile else None,
            }
            for name, card in cards.items()
        },
    }


def _digest() -> str:
    """Digest of the variants' inputs: a changed shape or recipe gets another folder in the cache."""
    recipes = [path.read_text() for path, _ in VARIANTS.values()]
    return hashlib.sha256(json.dumps([SHAPE, recipes]).encode()).hexdigest()[:12]


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    args = parser.parse_args()
    with command((NoWeights, SubprocessFailed), RESUMES):
        result = measure(args.variants, cache_folder() / "benchmarks" / f"compression-large-{_digest()}")
    save("compression-large", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
