"""A variant with fewer tokens, compared with full where both end a token at the same character."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compression.measure.divergence import TopK, coarse_kl, top1_agreement
from compression.measure.engine import ServedModel
from compression.measure.retokenization import Retokenized, common_token_ends
from compression.measure.variant import with_full_tokens


class Tokenizer:
    """Greedy: the longest known token first."""

    def __init__(self, tokens: str) -> None:
        self.names = tokens.split()

    def get_vocab(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}

    def convert_ids_to_tokens(self, ids) -> list[str]:
        return [self.names[at] for at in ids]

    def decode(self, ids) -> str:
        return "".join(self.convert_ids_to_tokens(ids))

    backend_tokenizer = model = property(lambda self: self)

    def tokenize(self, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=at) for at in self(name).input_ids]

    def __call__(self, text: str, **_: object) -> "Encoded":
        ids = []
        while text:
            name = max((name for name in self.names if text.startswith(name)), key=len)
            ids.append(self.names.index(name))
            text = text.removeprefix(name)
        return Encoded(ids)


class Encoded:
    def __init__(self, ids: list[int]) -> None:
        self.input_ids = ids


class Variant:
    """Says of every position that the likeliest token is the one that follows, with log-probability -(number of it)."""

    llm = None
    max_model_len = 100

    def __init__(self, tokens: str) -> None:
        self.tokenizer = Tokenizer(tokens)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text).input_ids

    def decode(self, ids) -> str:
        return self.tokenizer.decode(ids)

    def top_logprobs(self, sequences, top, done) -> TopK:
        following = [at for row in sequences for at in row[1:]]
        numbers = [-float(i) for row in sequences for i in range(1, len(row))]
        logprobs = np.array(numbers, np.float32)
        return TopK(np.array(following, np.int32)[:, None], logprobs[:, None], logprobs)


def without_engine(self: ServedModel, llm: None, tokenizer: Tokenizer) -> None:
    self.tokenizer = tokenizer


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Retokenized:
    monkeypatch.setattr("compression.measure.engine.ServedModel.__init__", without_engine)
    return Retokenized(Variant("c a b d bc"), Tokenizer("a b c d ab abc cd"))


@pytest.mark.parametrize(("size", "seen_through"), [(7, False), (5, True)])
def test_only_another_vocabulary_is_seen_through_fulls_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, seen_through: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    for name, vocabulary in (("full", 7), ("variant", size)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))
    monkeypatch.setattr("compression.measure.engine.ServedModel.__init__", without_engine)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: Tokenizer("a b c d ab abc cd"))
    variant = Variant("c a b d bc")
    found = with_full_tokens(variant, tmp_path / "variant", tmp_path / "full")
    assert (found is not variant) == seen_through
    if seen_through:
        assert found.encode("abd") == [4, 3], "full's ids"
        assert found.to_model_tokens([[4, 3]]) == [[1, 2, 3]], "the variant's for the same text"


def test_ends_are_common_up_to_where_the_texts_differ() -> None:
    assert common_token_ends(["ab", "c", "d"], ["a", "b", "cd"]) == [(0, 1), (2, 2)]
    assert common_token_ends(["ab", "x", "d"], ["ab", "y", "d"]) == [(0, 0)]
    assert common_token_ends(["é"], ["?"]) == []


def test_a_token_spelled_in_pieces_has_the_probability_of_its_pieces(seen: Retokenized) -> None:
    full = [3, 4, 3]  # d ab d, to the variant d a b d
    found = seen.top_logprobs([full], 1, lambda _: None)
    assert found.targets.tolist() == [-1 - 2, -3]
    assert found.ids[:, 0].tolist() == [0, 3], "in full's ids: the first piece, then d"
    assert found.logprobs[:, 0].tolist() == [-1, -3]


def test_a_token_that_spans_several_of_fulls_has_its_probability_once(seen: Retokenized) -> None:
    found = seen.top_logprobs([[3, 1, 2, 3]], 1, lambda _: None)  # d b c d, to the variant d bc d
    assert found.targets.tolist() == [-1, 0, -2]
    assert np.isnan(found.logprobs[:, 0]).tolist() == [False, True, False]


def test_a_token_that_the_variant_lacks_is_likely_as_its_first_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.measure.engine.ServedModel.__init__", without_engine)
    seen = Retokenized(Variant("run n i g a"), Tokenizer("running run n i g a"))
    full = TopK(
        np.array([[0, 5, 1]], np.int32), np.log([[0.5, 0.49, 0.01]]).astype(np.float32), np.zeros(1, np.float32)
    )
    variant = TopK(np.array([[1, 5]], np.int32), np.log([[0.51, 0.49]]).astype(np.float32), np.zeros(1, np.float32))
    merged = seen.merge_to_model_tokens(full)
    assert merged.ids.tolist() == [[1, 5, -2]]
    assert coarse_kl(merged, variant) == pytest.approx([0], abs=1e-6)
    assert (top1_agreement(merged, variant), top1_agreement(full, variant)) == (1, 0)
    assert coarse_kl(full, variant)[0] > 0.5, "token by token, the same text would differ"


class Writer(Variant):
    """Answers in its tokens a, b and the end: ab again and again, ab and the end, a again and again."""

    def generate_greedy(self, prompts, tokens, done, stop=()) -> list[tuple[list[int], str]]:
        answers = [[0, 1] * tokens, [0, 1, 2], [0] * tokens]
        return [(ids[:tokens], self.decode(ids[:tokens]).removesuffix("<end>")) for ids in answers]


def test_answers_have_as_many_tokens_of_fulls_as_requested_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.measure.engine.ServedModel.__init__", without_engine)
    seen = Retokenized(Writer("a b <end>"), Tokenizer("ab a b <end>"))
    answers = seen.generate_greedy([[0]] * 3, 3, lambda _: None)
    assert answers == [([0, 0, 0], "ababab"), ([0, 3], "ab"), ([1, 1, 1], "aaa")]


def test_where_only_full_ends_a_token_nothing_is_known(seen: Retokenized) -> None:
    found = seen.top_logprobs([[4, 2, 3], [3, 0, 3]], 1, lambda _: None)  # ab c d is a bc d; d a d is the same
    assert np.isnan(found.targets).tolist() == [True, False, False, False]
    assert found.targets[1:].tolist() == [-2, -1, -2], "and the next sequence is at its place"
