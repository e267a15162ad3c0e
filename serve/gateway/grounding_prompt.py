"""Extract a chat's question and insert a grounding prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.request.call import Call

_TEXT_PARTS = ("text", "input_text")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def question_of(call: Call) -> str | None:
    """The text of the last message, if it is a user's, has nothing but text and is to be answered."""
    messages = call.messages
    last = messages[-1]
    continued = call.body.get("continue_final_message") or call.body.get("add_generation_prompt") is False
    if last.get("role") != "user" or continued:
        return None
    content = last.get("content")
    if isinstance(content, list):
        texts = [_text(part) for part in content]
        if None in texts:
            return None  # the question may be about a picture, and what the engine refuses it is to see
        content = "\n".join(filter(None, texts))
    return content.strip() or None if isinstance(content, str) else None


def _text(part: object) -> str | None:
    """The text of a part of a message; None for another kind."""
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


def with_prompt(call: Call, prompt: Sequence[Mapping[str, str]]) -> list[Any]:
    """The conversation with its last message replaced by `prompt`; a system message of the client's takes precedence."""
    messages = call.messages
    has_system = any(message.get("role") in ("system", "developer") for message in messages)
    system = [message for message in prompt if message["role"] == "system" and not has_system]
    return [*system, *messages[:-1], *(message for message in prompt if message["role"] != "system")]


def set_greedy_sampling(call: Call) -> None:
    """Generate at temperature 0 where the client sets no sampling parameters: grounded answers should be deterministic.

    Several choices are left to the engine's default: at 0 they would be the same, and the engine refuses that.
    """
    if call.body.get("n") in (None, 1) and all(call.body.get(name) is None for name in _SAMPLING):
        call.body["temperature"] = 0
