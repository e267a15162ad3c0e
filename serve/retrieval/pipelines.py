"""Haystack pipelines from YAML, each of a folder's files one way to search. Loaded from allowed modules only."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from haystack import Document, Pipeline
from haystack.dataclasses import ChatMessage
from haystack.tracing.tracer import Span, Tracer, enable_tracing

ALLOWED = ("serve.retrieval",)  # besides Haystack's own default
_INPUTS = ("question", "tenant", "collection", "filters", "top_k", "min_score")
_timings: ContextVar["_Timings | None"] = ContextVar("timings", default=None)


class PipelineError(ValueError):
    """A pipeline that can't be used; the message says which file and why."""


@dataclass(slots=True, frozen=True)
class Found:
    """What a pipeline found for a question."""

    prompt: tuple[ChatMessage, ...]  # the question with its sources, as the pipeline words it
    documents: tuple[Document, ...]  # the numbered sources, in their order; score is support, 0 to 1
    passages: tuple[Document, ...]  # all that the guard let through: a focus may leave some out of the prompt
    support: float
    supported: bool  # whether a passage supports an answer
    timings_ms: Mapping[str, float]  # by component
    starts_ms: Mapping[str, float]  # when each began, after the search did


class RetrievalPipeline:
    """One pipeline: `question`, `tenant`, `collection` and more in; out come a `guard`'s documents, shortened by a `focus` if there
    is one, and a `prompt`.

    Raises:
        PipelineError: not YAML, not a pipeline, from a module that is not allowed, without those two components, or with
            one that can't load what it needs.
    """

    def __init__(self, file: Path, allowed: Sequence[str] = ()) -> None:
        try:
            self._pipeline = Pipeline.loads(file.read_text(), allowed_modules=[*ALLOWED, *allowed])
            self._pipeline.warm_up()  # models are loaded, or missing, at start and not at the first question
            outputs = self._pipeline.outputs(include_components_with_connected_outputs=True)
        except Exception as error:  # Haystack raises many kinds
            raise PipelineError(f"{file.name}: {' '.join(str(error).split())}") from error
        for name, output in (("guard", "documents"), ("guard", "support"), ("prompt", "prompt")):
            if output not in outputs.get(name, {}):
                raise PipelineError(f"{file.name}: a component '{name}' with the output '{output}' is needed")
        self._wanted = {"guard", "prompt", "focus"} & outputs.keys()
        self._inputs = {
            name: [
                key for key in wanted if key in _INPUTS and (key != "top_k" or name == "guard")
            ]  # after all candidates
            for name, wanted in self._pipeline.inputs().items()
        }

    async def run(self, **given: Any) -> Found:
        """Search. What of `given` is None is left to the pipeline's own defaults."""
        given = {name: value for name, value in given.items() if value is not None}
        data = {name: {key: given[key] for key in wanted if key in given} for name, wanted in self._inputs.items()}
        timings = _Timings(perf_counter())
        token = _timings.set(timings)
        try:
            made = await self._pipeline.run_async(data, include_outputs_from=self._wanted)
        finally:
            _timings.reset(token)
        guard, focus = made["guard"], made.get("focus", made["guard"])
        return Found(
            tuple(made["prompt"]["prompt"]),
            tuple(focus["documents"]),
            tuple(focus.get("passages", guard["documents"])),
            guard["support"],
            guard.get("supported", bool(guard["documents"])),  # an operator's own guard need not say it
            timings.took_ms,
            timings.starts_ms,
        )


def load_pipelines(folders: Sequence[Path], allowed: Sequence[str] = ()) -> dict[str, RetrievalPipeline]:
    """Every `*.yaml` by its name; of two with one name, the later folder's. Raises `PipelineError`."""
    enable_tracing(_Spans())
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if not files:
        raise PipelineError(f"no pipelines in {', '.join(map(str, folders))}")
    return {name: RetrievalPipeline(file, allowed) for name, file in files.items()}


@dataclass(slots=True, frozen=True)
class _Timings:
    """When each component of one search began, and how long it took."""

    began: float  # perf_counter seconds
    starts_ms: dict[str, float] = field(default_factory=dict)
    took_ms: dict[str, float] = field(default_factory=dict)


class _Span(Span):
    """What Haystack tells of a component. Nothing is kept of it: questions and documents stay out of traces."""

    def set_tag(self, key: str, value: Any) -> None:
        """Nothing."""


class _Spans(Tracer):
    """Times each component of a search. The gateway makes the spans of a trace from that, beside its own."""

    @contextmanager
    def trace(
        self, operation_name: str, tags: dict[str, Any] | None = None, parent_span: Span | None = None
    ) -> Iterator[Span]:
        """Time one operation."""
        name = (tags or {}).get("haystack.component.name")
        began = perf_counter()
        try:
            yield _Span()
        finally:
            if name and (timings := _timings.get()) is not None:
                timings.starts_ms[name] = round((began - timings.began) * 1000, 2)
                timings.took_ms[name] = round((perf_counter() - began) * 1000, 2)

    def current_span(self) -> Span | None:
        """None: spans are not nested here."""
        return None
