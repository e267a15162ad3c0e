"""Vocabulary pruning: keep the tokens that the text uses; any other text is still written, with more and shorter tokens.

Pays where embeddings are a large share of a small model. Token ids change, token strings do not.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.steps.model_parts import PruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokens_to_keep(tokenizer: Mapping[str, object], counts: Mapping[int, int], size: int) -> list[int]:
    """Ids of the `size` tokens that stay, ascending.

    Special tokens and those that no merge makes (bytes, characters) always stay; then the most frequent ones, each with
    the tokens it is merged from, without which byte-pair encoding could not arrive at it.

    Args:
        tokenizer: the content of a `tokenizer.json`.
        counts: how often the text uses each token id.

    Raises:
        PruneError: the vocabulary is of another kind, or `size` is too small for the tokens that must stay.
    """
    model = tokenizer["model"]
    vocabulary: dict[str, int] = model["vocab"]
    if model["type"] not in ("BPE", "WordLevel"):
        raise PruneError(f"cannot prune a vocabulary of kind {model['type']}: it must be BPE or WordLevel")
    sources: dict[int, tuple[int, int]] = {}
    for left, right in _merges(model):
        merged = vocabulary.get(left + right)
        if merged is not None and merged not in sources:
            sources[merged] = (vocabulary[left], vocabulary[right])
    specials = {token["id"] for token in tokenizer["added_tokens"]}
    if (unknown := model.get("unk_token")) in vocabulary:
        specials.add(vocabulary[unknown])
    bytes_and_characters = set(vocabulary.values()) - sources.keys() if model["type"] == "BPE" else set()
    kept = specials | bytes_and_characters
    if len(kept) > size:
        raise PruneError(f"cannot prune to {size} tokens: {len(kept)} are special tokens or characters; keep more")
    for token in sorted(vocabulary.values(), key=lambda token: (-counts.get(token, 0), token)):
        needed = _with_merge_sources(token, sources) - kept
        if len(kept) + len(needed) <= size:
            kept |= needed
    return sorted(kept)


def prune_vocabulary(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sequences: Iterable[Sequence[int]],
    size: int,
    scratch: Path,
) -> "PreTrainedTokenizerBase":
    """Cut `model` in place to the `size` tokens that `sequences` use most; returns the tokenizer for it.

    Args:
        scratch: folder to write the tokenizer to; it is loaded again from there.

    Raises:
        PruneError: see `tokens_to_keep`.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(scratch)
    file = scratch / "tokenizer.json"
    if not file.exists():
        raise PruneError("cannot prune the vocabulary: the tokenizer has no tokenizer.json")
    content = json.loads(file.read_text())
    kept = tokens_to_keep(content, Counter(token for sequence in sequences for token in sequence), size)
    file.write_text(json.dumps(_reduced_tokenizer(content, kept), ensure_ascii=False))
    config = scratch / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    if "added_tokens_decoder" in settings:  # written by older versions of transformers
        new = {str(old): str(index) for index, old in enumerate(kept)}
        settings["added_tokens_decoder"] = {new[old]: token for old, token in settings["added_tokens_decoder"].items()}
        config.write_text(json.dumps(settings))
    for outdated in ("vocab.json", "merges.txt"):  # the same vocabulary in another format, now outdated
        (scratch / outdated).unlink(missing_ok=True)
    keep_tokens(model, kept)
    return AutoTokenizer.from_pretrained(scratch)


@torch.no_grad()
def keep_tokens(model: "PreTrainedModel", kept: Sequence[int]) -> None:
    """Leave only the embeddings and output rows of the token ids `kept`; they become 0, 1, 2, …"""
    rows = torch.tensor(kept)
    old = model.get_input_embeddings()
    embeddings = nn.Embedding(len(kept), old.embedding_dim, dtype=old.weight.dtype)
    embeddings.weight.copy_(old.weight[rows])
    head = model.get_output_embeddings()
    tied = head.weight is old.weight
    model.set_input_embeddings(embeddings)
    head.weight = embeddings.weight if tied else nn.Parameter(head.weight[rows].clone())
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[rows].clone())
    head.out_features = len(kept)
    model.config.vocab_size = model.vocab_size = len(kept)
    new_ids = {token: index for index, token in enumerate(kept)}
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            if isinstance(value, list):
                setattr(config, name, [new_ids[token] for token in value if token in new_ids])
            elif value is not None:
                setattr(config, name, new_ids.get(value))


def _reduced_tokenizer(content: dict[str, object], kept: Sequence[int]) -> dict[str, object]:
    """The `tokenizer.json` with the tokens `kept` alone, numbered anew."""
    new_ids = {token: index for index, token in enumerate(kept)}
    model = content["model"]
    vocabulary = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    model = {**model, "vocab": vocabulary}
    if "merges" in model:
        is_complete = [{*pair, "".join(pair)} <= vocabulary.keys() for pair in _merges(model)]
        model["merges"] = [merge for merge, stays in zip(model["merges"], is_complete, strict=True) if stays]
    added = [{**token, "id": new_ids[token["id"]]} for token in content["added_tokens"]]
    return {
        **content,
        "model": model,
        "added_tokens": added,
        "post_processor": _renumbered_post_processor(content, new_ids),
    }


def _renumbered_post_processor(content: dict[str, object], new_ids: Mapping[int, int]) -> object:
    """The post-processor (what adds begin and end tokens) with its token ids numbered anew."""

    def renumber(processor: dict[str, object] | None) -> dict[str, object] | None:
        match processor:
            case None | {"type": "ByteLevel"}:
                return processor
            case {"type": "Sequence", "processors": list(inner)}:
                return {**processor, "processors": [renumber(nested) for nested in inner]}
            case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
                new = {name: {**token, "ids": [new_ids[old] for old in token["ids"]]} for name, token in tokens.items()}
                return {**processor, "special_tokens": new}
        raise PruneError(f"cannot prune the vocabulary: its post-processor is a {processor['type']}")

    return renumber(content.get("post_processor"))


def _merges(model: Mapping[str, object]) -> list[tuple[str, str]]:
    """The merges of a byte-pair vocabulary as pairs, in both spellings of the format."""
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges", [])]


def _with_merge_sources(token: int, sources: Mapping[int, tuple[int, int]]) -> set[int]:
    closure, pending = set(), [token]
    while pending:
        token = pending.pop()
        if token not in closure:
            closure.add(token)
            pending += sources.get(token, ())
    return closure
