"""The text of converted documents, as one string."""

from serve.retrieval.ingest.convert import Text, convert


def whole(text: Text) -> str:
    return "\n".join(f"{section.heading}\n{section.text}" for section in text.sections)


def text_of(data: bytes | str, name: str, kind: str | None = None) -> str:
    return whole(convert(data.encode() if isinstance(data, str) else data, name, kind))
