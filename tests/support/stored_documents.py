"""Documents of the document store's tests: two owners, vectors made from a text, and short calls."""

from typing import Any

import numpy as np

from serve.retrieval.store.postgres import Chunk, Owner, Source, Store

DIMENSION = 8
ALICE, BOB = Owner("alice", "docs"), Owner("bob", "docs")


def unit(seed: int) -> np.ndarray[Any, Any]:
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def source(name: str, version: int = 0, **meta: object) -> Source:
    return Source(name, bytes([version]) * 32, f"settings-{version}", f"Title of {name}", 100, meta)


async def put(store: Store, owner: Owner, name: str, texts: list[str], version: int = 0, **meta: object) -> str:
    chunks = [Chunk(text, f"heading {i}", i + 1) for i, text in enumerate(texts)]
    vectors = np.stack([unit(hash_of(text)) for text in texts]) if texts else np.empty((0, DIMENSION), np.float32)
    return await store.upsert(owner, source(name, version, **meta), chunks, vectors)


def hash_of(text: str) -> int:
    return sum(ord(char) * 31**i for i, char in enumerate(text)) % 2**32


async def found(store: Store, owner: Owner, text: str, top_k: int = 5, filters: dict | None = None) -> list[str]:
    return [hit.content for hit in await store.vector_search(owner, unit(hash_of(text)), top_k, filters)]
