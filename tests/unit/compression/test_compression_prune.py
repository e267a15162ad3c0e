"""Depth pruning: block influence identifies layers that have no effect."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.steps.model_parts import PruneError  # noqa: E402
from compression.steps.prune import block_influence, keep_layers, layers_to_keep  # noqa: E402


def tiny(layers: int = 5) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, num_hidden_layers=layers, initializer_range=0.2, **sizes)
    )


def make_identity(layer: torch.nn.Module) -> None:
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def test_a_layer_that_is_the_identity_has_no_influence_and_goes_first() -> None:
    model = tiny()
    make_identity(model.model.layers[2])
    found = block_influence(model, torch.randint(64, (3, 16)).tolist(), lambda *_: None)
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert min(found[:2] + found[3:]) > 1e-3
    assert layers_to_keep(found, 4) == [0, 1, 3, 4]


def test_influence_is_one_minus_the_cosine_of_the_hidden_states() -> None:
    model, tokens = tiny().eval(), torch.randint(64, (1, 16))
    states = model(tokens, output_hidden_states=True).hidden_states[:-1]  # the last one is normalized
    expected = [1 - torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairwise(states)]
    assert block_influence(model, tokens.tolist(), lambda *_: None)[:-1] == pytest.approx(expected, abs=1e-5)


def test_dropping_identity_layers_changes_nothing_even_while_generating() -> None:
    model, prompt = tiny().eval(), torch.randint(64, (1, 8))
    for index in (1, 3):
        make_identity(model.model.layers[index])
    before = model.generate(prompt, max_new_tokens=8, do_sample=False)
    keep_layers(model, [0, 2, 4])
    assert model.config.num_hidden_layers == 3
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), before)


def test_the_first_and_the_last_layer_always_stay() -> None:
    assert layers_to_keep([0.0, 0.5, 0.9, 0.1, 0.0], 3) == [0, 2, 4]


def test_keeping_as_many_layers_as_there_are_is_refused() -> None:
    with pytest.raises(PruneError, match="cannot prune to 5 layers: the model has 5"):
        layers_to_keep([0.1] * 5, 5)
