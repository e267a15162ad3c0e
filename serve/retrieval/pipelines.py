"""Haystack retrieval pipelines from YAML files, one retrieval mode a file. Components load from allowed modules only."""

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
_RENAMED = {
    "serve.retrieval.components.Guard": "serve.retrieval.components.SupportFilter",
    "serve.retrieval.focus.Focus": "serve.retrieval.verify.sentence_selector.SentenceSelector",
    "serve.retrieval.verify.sentence_selector.Focus": "serve.retrieval.verify.sentence_selector.SentenceSelector",
}
_INPUTS = ("question", "tenant", "collection", "filters", "top_k", "min_score")
_timings: ContextVar["_Timings | None"] = ContextVar("timings", default=None)


class PipelineError(ValueError):
    """A pipeline that can't be used; the message says which file and why."""


@dataclass(slots=True, frozen=True)
class RetrievalResult:
    """Result of a retrieval pipeline for a question."""

    prompt: tuple[ChatMessage, ...]  # the question with its sources, as the pipeline builds it
    documents: tuple[Document, ...]  # the numbered sources, in their order; score is support, 0 to 1
    passages: tuple[
        Document, ...
    ]  # all passages that passed the guard; a sentence selector may omit some from the prompt
    support: float
    supported: bool  # whether a passage supports an answer
    timings_ms: Mapping[str, float]  # by component
    starts_ms: Mapping[str, float]  # start of each component, from the start of the search


class RetrievalPipeline:
    """A retrieval pipeline. Inputs: `question`, `tenant`, `collection` and the optional ones; outputs: the documents of `guard`,
    shortened by `focus` where there is one, and of `prompt` the messages.

    Raises:
        PipelineError: not YAML, not a pipeline, from a module that is not allowed, without those two components, or with
            one that can't load what it needs.
    """

    def __init__(self, file: Path, allowed: Sequence[str] = ()) -> None:
        try:
            self._pipeline = Pipeline.loads(file.read_text(), allowed_modules=[*ALLOWED, *allowed])
            self._pipeline.warm_up()  # load models at start, not at the first question
            outputs = self._pipeline.outputs(include_components_with_connected_outputs=True)
        except Exception as error:  # Haystack raises many types
            raise _load_error(file, error) from error
        for name, output in (("guard", "documents"), ("guard", "support"), ("prompt", "prompt")):
            if output not in outputs.get(name, {}):
                raise PipelineError(f"{file.name}: a component '{name}' with the output '{output}' is needed")
        self._output_components = {"guard", "prompt", "focus"} & outputs.keys()
        self._inputs = {
            name: [
                key for key in names if key in _INPUTS and (key != "top_k" or name == "guard")
            ]  # after all candidates
            for name, names in self._pipeline.inputs().items()
        }

    async def run(self, **inputs: Any) -> RetrievalResult:
        """Search. An input that is None is left to the pipeline's own defaults."""
        inputs = {name: value for name, value in inputs.items() if value is not None}
        data = {name: {key: inputs[key] for key in keys if key in inputs} for name, keys in self._inputs.items()}
        timings = _Timings(perf_counter())
        token = _timings.set(timings)
        try:
            outputs = await self._pipeline.run_async(data, include_outputs_from=self._output_components)
        finally:
            _timings.reset(token)
        guard, focus = outputs["guard"], outputs.get("focus", outputs["guard"])
        return RetrievalResult(
            tuple(outputs["prompt"]["prompt"]),
            tuple(focus["documents"]),
            tuple(focus.get("passages", guard["documents"])),
            guard["support"],
            guard.get("supported", bool(guard["documents"])),  # an operator's guard component may not return it
            timings.took_ms,
            timings.starts_ms,
        )


def _load_error(file: Path, error: Exception) -> PipelineError:
    message = " ".join(str(error).split())
    for old, new in _RENAMED.items():
        if old in message:
            return PipelineError(f"{file.name}: the component type '{old}' was renamed: write '{new}'")
    return PipelineError(f"{file.name}: {message}")


def load_pipelines(folders: Sequence[Path], allowed: Sequence[str] = ()) -> dict[str, RetrievalPipeline]:
    """Load every `*.yaml`, by its name; later folders override earlier ones. Raises `PipelineError`."""
    enable_tracing(_TimingTracer())
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if not files:
        raise PipelineError(f"no pipelines in {', '.join(map(str, folders))}")
    return {name: RetrievalPipeline(file, allowed) for name, file in files.items()}


@dataclass(slots=True, frozen=True)
class _Timings:
    """Start and duration of each component in one search."""

    started_at: float  # perf_counter seconds
    starts_ms: dict[str, float] = field(default_factory=dict)
    took_ms: dict[str, float] = field(default_factory=dict)


class _Span(Span):
    """A span that drops its tags: questions and documents stay out of traces."""

    def set_tag(self, key: str, value: Any) -> None:
        """Drop the tag."""


class _TimingTracer(Tracer):
    """Haystack tracer that measures each component; the gateway creates the trace's spans from these times."""

    @contextmanager
    def trace(
        self, operation_name: str, tags: dict[str, Any] | None = None, parent_span: Span | None = None
    ) -> Iterator[Span]:
        """Time one operation."""
        name = (tags or {}).get("haystack.component.name")
        started_at = perf_counter()
        try:
            yield _Span()
        finally:
            if name and (timings := _timings.get()) is not None:
                timings.starts_ms[name] = round((started_at - timings.started_at) * 1000, 2)
                timings.took_ms[name] = round((perf_counter() - started_at) * 1000, 2)

    def current_span(self) -> Span | None:
        """None: spans are not nested here."""
        return None
