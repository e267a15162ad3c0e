"""Vocabulary pruning: the same text is encoded and decoded, and the kept tokens have the same logits."""

import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.measure.retokenization import first_pieces  # noqa: E402
from compression.steps.model_parts import PruneError  # noqa: E402
from compression.steps.vocabulary import prune_vocabulary, tokens_to_keep  # noqa: E402

TEXT = "the lower newer wider lowest of the new widest slow slower the slowest, the lower the slower " * 30
OTHER = "towers zig-zag über the lowest würfel 123\n"


@pytest.fixture
def tokenizer() -> "transformers.PreTrainedTokenizerFast":
    """Byte-pair encoding trained on the text, with a begin token that a template adds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    inner.train_from_iterator([TEXT], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def tiny(vocabulary: int, tied: bool) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_kept_tokens_have_the_same_logits_and_any_text_can_still_be_written(tokenizer, tmp_path: Path, tied) -> None:
    model = tiny(len(tokenizer) + 5, tied)  # padded rows, as many checkpoints have
    rows = [tokenizer("the slower the new slowest").input_ids]  # what the text uses fits into 275 tokens
    before = model(torch.tensor(rows)).logits
    new = prune_vocabulary(model, tokenizer, rows, 275, tmp_path)
    assert len(new) == model.config.vocab_size == model.get_input_embeddings().num_embeddings == 275
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in tiny(len(tokenizer), tied).parameters())
    ids = new.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(rows[0]))
    after = model(torch.tensor([ids])).logits
    kept = tokenizer.convert_tokens_to_ids(new.convert_ids_to_tokens(list(range(275))))
    assert torch.allclose(after, before[..., kept], atol=1e-5)
    for text in (TEXT, OTHER):
        assert new.decode(new(text).input_ids, skip_special_tokens=True) == text
    assert new("the").input_ids[0] == new.bos_token_id == model.config.bos_token_id


def test_each_token_that_is_gone_is_spelled_with_pieces_that_stay(tokenizer, tmp_path: Path) -> None:
    new = prune_vocabulary(tiny(len(tokenizer), True), tokenizer, [tokenizer("the slower").input_ids], 275, tmp_path)
    names, kept = tokenizer.get_vocab(), new.get_vocab()
    pieces = tokenizer.convert_ids_to_tokens(first_pieces(names, new).tolist())
    assert len(pieces) == len(names) > len(kept)
    for name, at in names.items():
        assert pieces[at] in kept
        assert pieces[at] == name if name in kept else name.startswith(pieces[at])


def test_frequent_tokens_stay_with_what_they_are_merged_from(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    merged = [token for token in content["model"]["vocab"] if len(token) > 3]
    longest = content["model"]["vocab"][max(merged, key=len)]
    kept = tokens_to_keep(content, Counter({longest: 1000}), 275)
    assert longest in kept
    names = {content["model"]["vocab"][name]: name for name in content["model"]["vocab"]}
    halves = [tuple(m) for m in content["model"]["merges"] if "".join(m) == names[longest]]
    assert any(
        {content["model"]["vocab"][left], content["model"]["vocab"][right]} <= set(kept) for left, right in halves
    )


def test_too_few_tokens_are_refused(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"cannot prune to 100 tokens: \d+ are special tokens or characters"):
        prune_vocabulary(tiny(len(tokenizer), True), tokenizer, [[0]], 100, tmp_path)


def test_another_kind_of_vocabulary_is_refused() -> None:
    with pytest.raises(PruneError, match="of kind Unigram"):
        tokens_to_keep({"model": {"type": "Unigram", "vocab": {}}, "added_tokens": []}, {}, 10)
