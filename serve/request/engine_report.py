"""Parse engine responses: token usage, timings, and the text and finish reason of each choice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class EngineReport:
    """Token usage of a response, and the engine's own timings where it reports them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float | None = None
    decode_s: float | None = None  # first to last token

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of(cls, document: object) -> "EngineReport":
        """Read `usage` and `metrics` from a decoded response or from a stream's last chunk."""
        if not isinstance(document, dict):
            return cls()
        usage = document.get("usage") or {}
        timing = document.get("metrics") or {}
        queue_ms, decode_ms = timing.get("queue_time_ms"), timing.get("generation_time_ms")
        return cls(
            usage.get("prompt_tokens") or 0,
            usage.get("completion_tokens") or 0,
            None if queue_ms is None else queue_ms / 1000,
            None if decode_ms is None else decode_ms / 1000,
        )


def count_no_output(document: dict[str, Any]) -> None:
    """Set the output tokens in `usage` of a response or chunk to 0: it echoes the prompt alone, without what was generated."""
    if usage := document.get("usage"):
        document["usage"] = usage | {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}


@dataclass(slots=True)
class Choice:
    """One choice of a response: its text and its finish reason."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop sequence or token that ended the choice

    def add(self, part: Mapping[str, Any]) -> None:
        """Append an item of `choices` of a response or of a chunk."""
        message = part.get("message") or part.get("delta")
        self.text += (part.get("text") if message is None else message.get("content")) or ""
        self.finish_reason = part.get("finish_reason") or self.finish_reason
        self.stop_reason = part.get("stop_reason") or self.stop_reason

    @classmethod
    def all_of(cls, document: Mapping[str, Any]) -> "list[Choice]":
        """All choices of a complete response."""
        choices = []
        for part in document["choices"]:
            choices.append(cls())
            choices[-1].add(part)
        return choices
