"""The loader of users' YAML: ambiguous YAML is rejected, and errors name file, line, column and key."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from serve.config.yaml_file import YamlError, parse_yaml, read_yaml


def refused(text: str) -> str:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text, "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4:3: b.c: the key is there twice, first in line 3"),
        ('a: 1\n"a": 2\n', "f.yaml:2:1: a: the key is there twice"),
        ("on: 1\non: 2\n", "f.yaml:2:1: on: the key is there twice"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "f.yaml:2:1: <<: the key is there twice"),
        ("a: 010", "f.yaml:1:4: a: 010 is one number"),
        ("a: [1, 08]", "f.yaml:1:8: a.1: 08 is one number"),
        ("a: -0o17", "f.yaml:1:4: a: -0o17 is one number"),
        ("a: 22:22", "f.yaml:1:4: a: 22:22 is one number"),
        ("a: 1:30:00.5", "f.yaml:1:4: a: 1:30:00.5 is one number"),
        ("010: a", "f.yaml:1:1: 010: 010 is one number"),
        ("a: .inf", "f.yaml:1:4: a: .inf is not a finite number"),
        ("a: {b: -.INF}", "f.yaml:1:8: a.b: -.INF is not a finite number"),
        ("a: .NaN", "f.yaml:1:4: a: .NaN is not a finite number"),
        ("a: 1e400", "f.yaml:1:4: a: 1e400 is not a finite number"),
        ("a:\n\tb: 1", "f.yaml:2:1: not valid YAML: "),
        ("a: 1\n---\na: 2\n", "f.yaml:2:1: not valid YAML: expected a single document"),
        ("a: *b", "f.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: &a [*a]", "f.yaml:1:4: a.0: it contains itself by an alias"),
        ("a: &a\n  b: *a", "f.yaml:1:4: a.b: it contains itself by an alias"),
        ("? [a, b]\n: c", "f.yaml:1:3: a key must be a single value"),
        ("a: !!python/object/apply:os.system [x]", "f.yaml:1:4: not valid YAML: could not determine a constructor"),
        ("a: 1\nb: !!int x", "f.yaml:2:4: this can't be read as int"),
        ("a: " + "9" * 5000, "f.yaml:1:4: this can't be read as int"),
        ("a: 1\nb: \x07", "f.yaml:2:4: not valid YAML: the character #x0007"),
        ("[" * 3000, "f.yaml:1:1: not valid YAML: it is nested too deeply"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_its_place(text: str, starts: str) -> None:
    assert refused(text).startswith(starts)


def test_the_hint_about_tabs_is_there() -> None:
    assert refused("a:\n\tb: 1").endswith("lines are indented with spaces")


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "aliases repeat more than" in refused("\n".join(laughs))
    merges = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 30))]
    assert "aliases repeat more than" in refused("\n".join(merges))


def test_an_anchor_and_a_merge_are_what_they_say() -> None:
    text = "base: &base {cpus: 2, gpus: 0}\nall: [*base, {<<: *base, gpus: 1}]\n"
    assert parse_yaml(text, "f").data["all"] == [{"cpus": 2, "gpus": 0}, {"cpus": 2, "gpus": 1}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("On", "On"),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("0x1F", 31),
        ("1_000", 1000),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("5E4", 50000.0),
        ("2026-11-29", "2026-11-29"),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("::1", "::1"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("'010'", "010"),
        ("!!str 010", "010"),
    ],
)
def test_plain_words_are_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", "f").data["a"]
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    "data",
    [
        b"a: 1\nb: 2\n",
        b"a: 1\r\nb: 2\r\n",
        b"\xef\xbb\xbfa: 1\nb: 2",
        "a: 1\nb: 2".encode("utf-16"),
        b"%YAML 1.1\n---\na: 1\nb: 2\n...\n",
    ],
)
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f.yaml").write_bytes(data)
    assert read_yaml(tmp_path / "f.yaml").data == {"a": 1, "b": 2}


def test_text_in_another_encoding_names_its_place(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes("a: 1\nb: Grüße".encode("latin-1"))
    with pytest.raises(YamlError, match=rf"{file}:2:6: not valid YAML: it is not UTF-8"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_document_is_none(text: str) -> None:
    assert parse_yaml(text, "f").data is None


def test_what_others_wrote_is_read_by_yaml_1_2() -> None:
    text = "on: no\nzip: 01234\ntime: 10:30\nday: 2026-11-29\n200: ok\nfine: 1.5\n"
    data = parse_yaml(text, "f", lenient=True).data
    assert data == {"on": "no", "zip": "01234", "time": "10:30", "day": "2026-11-29", 200: "ok", "fine": 1.5}
    assert type(data["on"]) is str


class _Inner(BaseModel, extra="forbid"):
    size: int
    flag: bool = False
    name: str = ""


class _Outer(BaseModel):
    items: list[_Inner]


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("items:\n- size: 1\n- {size: many}\n", "f.yaml:3:4: items.1.size: "),
        ("items:\n- size: 1\n  colour: red\n", "f.yaml:3:3: items.0.colour: Extra inputs"),
        ("items:\n- size: 1\n- name: x\n", "f.yaml:3:3: items.1.size: Field required"),
        ("a: &a {size: x}\nitems:\n- <<: *a\n  name: b\n", "f.yaml:1:8: items.0.size: "),
        ("a: &a {size: 1}\nitems:\n- <<: *a\n  size: x\n", "f.yaml:4:3: items.0.size: "),
        (
            "items:\n- {size: 1, name: 5}\n",
            "f.yaml:2:13: items.0.name: Input should be a valid string; text that looks",
        ),
        ("other: 1\n", "f.yaml:1:1: items: Field required"),
    ],
)
def test_a_model_that_refuses_the_data_names_the_place(text: str, starts: str) -> None:
    file = parse_yaml(text, "f.yaml")
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate(file.data)
    assert file.problem(caught.value).startswith(starts)


def test_yes_and_no_are_what_the_place_wants() -> None:
    file = parse_yaml("items:\n- {size: 1, flag: yes, name: no}\n", "f.yaml")
    item = _Outer.model_validate(file.data).items[0]
    assert (item.flag, item.name) == (True, "no")
