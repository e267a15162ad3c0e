"""Teacher targets of a batch: logits, cached top-k distributions, hidden states."""

import hashlib
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compression.distill.losses import TopK, soften, top_k
from compression.errors import UserError
from compression.recipe.schema import Distill

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CacheError(UserError):
    """A file of the cache that cannot be used."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a student learns from in (sequences, length) token ids.

    `soft` has a row for every position with a next token, sequence by sequence: logits (tokens, vocabulary) or their top
    k, already softened; None when nothing is learnt from them. `hidden` has the states (sequences, length, width) after
    each requested layer.
    """

    soft: Tensor | TopK | None
    hidden: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class TopKCache:
    """Softened top-k distributions of one teacher on disk, a file for every sequence, found by its content.

    A token takes 8 (k + 1) bytes: 64 most probable tokens of 100,000 tokens of text take 52 MB. Float32, because the file is to
    give the very weights that the teacher itself would have given.

    Args:
        folder: beside the teacher's weights.
        teacher: identity of its weights.
    """

    folder: Path
    teacher: str

    def file(self, sequence: Sequence[int], k: int, tau: float, dtype: torch.dtype) -> Path:
        """Where the distributions for `sequence` are: everything that changes them is in the name."""
        content = f"{self.teacher} {k} {tau!r} {dtype} {' '.join(map(str, sequence))}"
        name = hashlib.sha256(content.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    def load(self, file: Path, device: torch.device) -> TopK | None:
        """The distributions in `file`; None if they were never computed. Raises `CacheError` if they cannot be read."""
        try:
            with np.load(file) as content:
                ids, log_probs = (torch.from_numpy(content[name]).to(device) for name in ("ids", "log_probs"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CacheError(f"the cached teacher in {file} is damaged: remove that file") from error
        return TopK(ids.long(), log_probs)

    def save(self, file: Path, top: TopK) -> None:
        """Write `file` whole or not at all; processes that write the same one do not disturb each other."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        with temporary.open("wb") as stream:
            np.savez(stream, ids=top.ids.int().cpu().numpy(), log_probs=top.log_probs.cpu().numpy())
        temporary.replace(file)


class Teacher:
    """A frozen teacher model that computes the targets that `settings` need.

    Args:
        layers: layers whose hidden states are needed.
        cache: needed for `settings.teacher_top_k`.
    """

    def __init__(
        self, model: "PreTrainedModel", settings: Distill, layers: Collection[int], cache: TopKCache | None
    ) -> None:
        if settings.teacher_top_k and cache is None:
            raise ValueError("teacher_top_k needs a cache")
        self._model = model.eval().requires_grad_(False)
        self._settings = settings
        self._layers = layers
        self._cache = cache

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self._model.config.hidden_size)

    def __call__(self, batch: Tensor) -> Targets:
        """Targets for token ids (sequences, length). Raises `CacheError`."""
        if self._settings.teacher_top_k and self._cache is not None:
            return Targets(self._top_k(batch, self._settings.teacher_top_k, self._cache), {})
        if not (self._settings.beta or self._layers):
            return Targets(None, {})
        with torch.inference_mode():
            output = self._model(batch, use_cache=False, output_hidden_states=bool(self._layers))
        soft = output.logits[:, :-1].flatten(0, 1) if self._settings.beta else None
        return Targets(soft, {layer: output.hidden_states[layer + 1] for layer in self._layers})

    def _top_k(self, batch: Tensor, k: int, cache: TopKCache) -> TopK:
        dtype = self._model.dtype
        files = [cache.file(row, k, self._settings.tau, dtype) for row in batch.tolist()]
        distributions = {i: top for i, file in enumerate(files) if (top := cache.load(file, batch.device))}
        if uncached := [i for i in range(len(files)) if i not in distributions]:
            with torch.inference_mode():
                logits = self._model(batch[uncached], use_cache=False).logits[:, :-1]
            for i, row in zip(uncached, logits, strict=True):
                distributions[i] = top_k(soften(row.float(), self._settings.tau), k)
                cache.save(files[i], distributions[i])
        rows = [distributions[i] for i in range(len(files))]
        return TopK(torch.cat([row.ids for row in rows]), torch.cat([row.log_probs for row in rows]))
