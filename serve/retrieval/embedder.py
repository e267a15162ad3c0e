"""Text embeddings: a sentence-embedding model in ONNX, on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import orjson
from tokenizers import Tokenizer

from serve.errors import RequestError

Side = Literal["left", "right"]
BATCH = 32  # texts in one pass, sorted by length

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class EmbeddingTokenizer:
    """Tokenizer of an embedding model: texts to token IDs with the model's special tokens.

    Args:
        folder: the model's folder, with `tokenizer.json` and `pooling.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.max_tokens: int = orjson.loads((folder / "pooling.json").read_bytes())["max_tokens"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = self._tokenizer.num_special_tokens_to_add(False)

    def ids(self, texts: Sequence[str], most: int | None = None, side: Side = "right") -> list[list[int]]:
        """Token IDs of each text, truncated at `side` to `most` tokens, special tokens included."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        if most is not None:
            for encoding in encodings:
                encoding.truncate(most - self._special, direction=side)
        return [self._tokenizer.post_process(encoding).ids for encoding in encodings]

    def request_ids(self, texts: Sequence[str], truncate: int | None = None, side: Side = "right") -> list[list[int]]:
        """Token IDs for an embeddings request, truncated only if the request asks for it.

        Args:
            truncate: maximum tokens of each text, special tokens included; -1: the model's maximum.
            side: the side at which texts are truncated.

        Raises:
            RequestError: 400 for a text that is too long, or for a `truncate` outside the model's range.
        """
        if truncate is not None and truncate != -1 and not self._special < truncate <= self.max_tokens:
            raise RequestError(
                400,
                f"'truncate_prompt_tokens' is -1, or from {self._special + 1} to the model's {self.max_tokens} tokens",
                param="truncate_prompt_tokens",
                code="invalid_field",
            )
        all_ids = self.ids(texts, self.max_tokens if truncate == -1 else truncate, side)
        for i, ids in enumerate(all_ids):
            place = f"input[{i}]" if len(texts) > 1 else "the input"
            if not ids:
                raise RequestError(400, f"{place} has no text", param="input", code="invalid_input")
            if len(ids) > self.max_tokens:
                raise RequestError(
                    400,
                    f"This model's maximum context length is {self.max_tokens} tokens. However, you requested {len(ids)} "
                    f"tokens in {place} for embedding generation. Please reduce the length of the input, or have it cut "
                    "with 'truncate_prompt_tokens': -1.",
                    param="input",
                    code="context_length_exceeded",
                )
        return all_ids


class Embedder:
    """A model folder as `compression.build.embedder` makes it: `model.onnx`, `tokenizer.json`, `pooling.json`.

    Args:
        folder: the model's folder.
        threads: threads of one pass.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the engines
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._inputs = {model_input.name for model_input in self._session.get_inputs()}
        pooling = orjson.loads((folder / "pooling.json").read_bytes())
        self._pooling: str = pooling["pooling"]  # "mean" or "cls"
        self.dimension: int = pooling["dimension"]
        self._tokenizer = EmbeddingTokenizer(folder)

    @staticmethod
    def dimension_of(folder: Path) -> int:
        """Embedding dimension of the model in `folder`."""
        return int(orjson.loads((folder / "pooling.json").read_bytes())["dimension"])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`, (texts, dimension) in float32; texts beyond the model's maximum length are truncated."""
        return self.embed_ids(self._tokenizer.ids(texts, self._tokenizer.max_tokens))

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors of tokenized texts, (texts, dimension) in float32."""
        vectors = np.empty((len(ids), self.dimension), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            vectors[batch] = self._pass([ids[i] for i in batch])
        return vectors

    def _pass(self, ids: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, ids))
        tokens = np.zeros((len(ids), longest), np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for i, row in enumerate(ids):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        states = self._session.run(None, {name: inputs[name] for name in self._inputs})[0]
        if self._pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = mask[..., None].astype(np.float32)
            vectors = (states * weights).sum(1) / weights.sum(1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit
