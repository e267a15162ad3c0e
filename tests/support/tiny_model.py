"""A random Llama of a few thousand parameters with a tokenizer and text, for tests that build variants."""

import random
from pathlib import Path

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def write_text(file: Path) -> Path:
    """Documents of 200 words from a vocabulary of 100, low numbers far more frequent."""
    generator = random.Random(0)
    words = [f"w{i}" for i in range(100)]
    weights = [1 / (i + 1) for i in range(100)]
    file.write_text("\n\n".join(" ".join(generator.choices(words, weights, k=200)) for _ in range(200)))
    return file


def write_model(folder: Path, layers: int = 4, **sizes: int) -> Path:
    """Write a model source: one token per word, `layers` layers."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<end>": 1} | {f"w{i}": i + 2 for i in range(100)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=102, num_hidden_layers=layers, initializer_range=0.2, eos_token_id=1, **{**SIZES, **sizes}
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_full(source: Path, out: Path, text: Path) -> Path:
    """Build the variant `full` of the model source."""
    from compression.build.variant import build
    from compression.recipe.schema import Recipe

    recipe = Recipe.model_validate({"name": "full", "steps": [{"technique": "load"}]})
    build(recipe, "full", "tiny", str(source), None, out, text, "command", lambda *_: None)
    return out
