"""Texts as vectors: a sentence-embedding model in ONNX, on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from tokenizers import Tokenizer

BATCH = 32  # texts in one pass, of about the same length

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Embedder:
    """A model folder as `compression.embedder` makes it: `model.onnx`, `tokenizer.json`, `pooling.json`.

    Args:
        folder: of the model.
        threads: that one pass uses.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # engines want the cores
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name for one in self._session.get_inputs()}
        pooling = orjson.loads((folder / "pooling.json").read_bytes())
        self._pooling: str = pooling["pooling"]  # "mean" or "cls"
        self.dimension: int = pooling["dimension"]
        self.max_tokens: int = pooling["max_tokens"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.no_padding()

    @staticmethod
    def dimension_of(folder: Path) -> int:
        """Of the vectors that the model in `folder` makes."""
        return int(orjson.loads((folder / "pooling.json").read_bytes())["dimension"])

    def tokens(self, text: str) -> int:
        """Tokens of `text` that the model reads, at most `max_tokens`."""
        return len(self._tokenizer.encode(text).ids)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`, (texts, dimension) in float32; what is longer than `max_tokens` is cut off."""
        found = np.empty((len(texts), self.dimension), np.float32)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            found[batch] = self._pass([ids[i] for i in batch])
        return found

    def _pass(self, ids: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, ids))
        tokens = np.zeros((len(ids), longest), np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for i, row in enumerate(ids):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        states = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        if self._pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = mask[..., None].astype(np.float32)
            vectors = (states * weights).sum(1) / weights.sum(1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit
