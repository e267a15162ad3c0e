"""Plain text, with terminal control sequences removed."""

import re

from serve.retrieval.ingest.formats.document import Section, Text, tidy
from serve.retrieval.ingest.formats.encoding import decode

_TERMINAL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[^\n\x08]\x08"
)  # colours, window titles, overprinting


def read(data: bytes, charset: str | None = None) -> Text:
    """Read plain text."""
    text, notes = decode(data, charset)
    return Text("", (Section(tidy(_TERMINAL.sub("", text))),), notes)
