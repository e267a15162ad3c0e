"""Atomic file writes."""

from pathlib import Path

import pytest

from compression.files import write_atomically


@pytest.mark.parametrize("content", ["größe", b"\xff"])
def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path, content: str | bytes):
    file = tmp_path / "state.json"
    file.write_text("before")
    write_atomically(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "state.json").mkdir()  # no file can take its place
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "state.json", "{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
