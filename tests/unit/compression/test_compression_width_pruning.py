"""Width pruning: influence and fit against direct computation, and parts without effect are removed first."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.steps.model_parts import PruneError  # noqa: E402
from compression.steps.width_pruning import influence, keep_heads, keep_neurons, refit, second_moments  # noqa: E402

ROWS = torch.randint(64, (6, 16), generator=torch.Generator().manual_seed(1)).tolist()


def quiet() -> None:
    pass


def tiny(heads: int = 4, shared: int = 2) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=heads,
        num_key_value_heads=heads // shared,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def moments_of(x: "torch.Tensor") -> "torch.Tensor":
    return x.T @ x / len(x)


def test_influence_is_the_mean_energy_of_what_a_group_adds() -> None:
    weight, x = torch.randn(5, 6), torch.randn(40, 6)
    expected = [(x[:, g : g + 2] @ weight[:, g : g + 2].T).square().sum(1).mean().item() for g in (0, 2, 4)]
    assert influence(weight, moments_of(x), 2).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_fit_is_the_least_squares_solution() -> None:
    weight, x, kept = torch.randn(5, 6).double(), torch.randn(400, 6).double(), torch.tensor([0, 2, 3, 5])
    x[:, 1] = x[:, 0] - 2 * x[:, 2]  # what the dropped input 1 said can be read from the kept ones
    best = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    found = refit(weight, moments_of(x), kept)
    error, least = ((x @ weight.T - x[:, kept] @ v.T).square().mean() for v in (found, best))
    plain = (x @ weight.T - x[:, kept] @ weight[:, kept].T).square().mean()
    assert error < 1.02 * least
    assert error < 0.5 * plain


def test_second_moments_are_those_of_the_module_s_input() -> None:
    model, seen = tiny(), []
    linear = model.model.layers[1].mlp.down_proj
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2).detach()))
    found = second_moments(model, [linear], ROWS, quiet)[0]
    handle.remove()
    assert torch.allclose(found, moments_of(torch.cat(seen)), atol=1e-5)
    assert not linear._forward_pre_hooks


def test_neurons_that_do_nothing_go_first_and_nothing_changes() -> None:
    model = tiny()
    tokens = torch.tensor(ROWS)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 5::3] = 0
    before = model(tokens).logits
    shares = keep_neurons(model, ROWS, 48 - 15, quiet)
    assert shares == pytest.approx([1.0] * 3)
    assert model.model.layers[0].mlp.up_proj.weight.shape == (33, 32)
    assert model.config.intermediate_size == 33
    # the fit's ridge is all that moves
    assert (model(tokens).logits - before).abs().mean() < 0.1 * before.abs().mean()


def test_the_fit_makes_pruning_hurt_less(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.tensor(ROWS)
    before = tiny()(tokens).logits.log_softmax(-1)

    def damage() -> float:
        model = tiny()
        keep_neurons(model, ROWS, 32, quiet)
        return torch.nn.functional.kl_div(
            model(tokens).logits.log_softmax(-1), before, log_target=True, reduction="batchmean"
        ).item()

    fitted = damage()
    monkeypatch.setattr("compression.steps.width_pruning.refit", lambda weight, _, kept: weight[:, kept])
    assert fitted < damage()


@pytest.mark.parametrize("shared", [1, 2])
def test_a_group_of_heads_that_does_nothing_goes(shared: int) -> None:
    model = tiny(heads=4, shared=shared)
    tokens = torch.tensor(ROWS)
    size = 8 * shared
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, size : 2 * size] = 0
    before = model(tokens).logits
    kept = keep_heads(model, ROWS, 4 - shared, quiet)
    assert kept == [[i for i in range(4 // shared) if i != 1]] * 3
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4 - shared, 4 // shared - 1, 8)
    assert (model(tokens).logits - before).abs().mean() < 0.1 * before.abs().mean()
    assert model.generate(tokens[:1], max_new_tokens=4, do_sample=False).shape == (1, 20)


def test_pruned_heads_survive_saving(tmp_path) -> None:
    model = tiny()
    keep_heads(model, ROWS, 2, quiet)
    keep_neurons(model, ROWS, 32, quiet)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(torch.tensor(ROWS)).logits, model(torch.tensor(ROWS)).logits, atol=1e-5)


def test_activations_that_are_no_numbers_are_refused() -> None:
    model = tiny()
    torch.nn.init.constant_(model.model.layers[0].mlp.up_proj.weight, float("inf"))
    with pytest.raises(PruneError, match="not finite numbers"):
        keep_neurons(model, ROWS, 32, quiet)


def test_a_model_without_these_parts_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    with pytest.raises(PruneError, match="cannot prune a GPT2"):
        keep_neurons(transformers.GPT2LMHeadModel(config), ROWS, 32, quiet)
