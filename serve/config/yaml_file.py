"""Load users' YAML files: syntax that YAML 1.1 and 1.2 read differently is rejected, and errors name file and line.

`true` and `false` are booleans, as in YAML 1.2; `yes`, `no`, `on` and `off` are text or a boolean, as the field's type
requires (`Word`); dates are text; numbers that 1.1 and 1.2 read differently (`010`, `1:30`) are errors, as are duplicate keys
and numbers that are not finite.
"""

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from serve.validation import first_problem, problem_path

_REPEATED = 10_000  # limit of values repeated by aliases: a few lines can expand to billions
_STANDARD = "tag:yaml.org,2002:"
_STR, _FLOAT = f"{_STANDARD}str", f"{_STANDARD}float"
_WORD, _AMBIGUOUS = "tag:gearbox:word", "tag:gearbox:number"  # tags of plain scalars, see above
_BOM16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class YamlError(ValueError):
    """Invalid YAML. The message is one line, `FILE:LINE:COLUMN: reason`."""


class Word(str):
    """`yes`, `no`, `on` or `off` without quotes: a boolean in YAML 1.1, text in YAML 1.2."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - without those of YAML 1.1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct the value of `node`; a value that does not match its explicit tag (`!!int x`) is an error with its location."""
        try:
            return super().construct_object(node, deep)
        except YamlError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            tag = node.tag.removeprefix(_STANDARD)
            raise YamlError(f"{_place(self.name, node.start_mark)}: this can't be read as {tag}") from error


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(tag, re.compile(f"\\A(?:{pattern})\\Z"), list(first) or [""])


_resolve(f"{_STANDARD}bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve(_WORD, "yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", "yYnNoO")
_resolve(f"{_STANDARD}null", "~|null|Null|NULL", "~nN")
_resolve(f"{_STANDARD}null", "", "")
_resolve(f"{_STANDARD}merge", "<<", "<")
_resolve(
    _AMBIGUOUS,
    r"[-+]?0[0-9_]+|[-+]?0o[0-7_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?",
    "-+0123456789",
)
_resolve(f"{_STANDARD}int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", "-+0123456789")
_resolve(
    _FLOAT,
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)
_Loader.add_constructor(_WORD, lambda loader, node: Word(node.value))


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A YAML document, and the location of each value in its file."""

    name: str
    data: Any
    _root: yaml.Node | None

    def place(self, path: Sequence[str | int] = ()) -> str:
        """`FILE:LINE:COLUMN` of the key or item at `path`, or of its nearest existing parent."""
        node, mark = self._root, self._root.start_mark if self._root else None
        for part in path:
            if isinstance(node, yaml.MappingNode):
                matches = [(key, value) for key, value in node.value if key.value == str(part)]
                if matches:  # otherwise pydantic's name of a union member, which is not in the file
                    mark, node = matches[-1][0].start_mark, matches[-1][1]  # the last: merged keys come first
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = node.start_mark
        return _place(self.name, mark)

    def problem(self, error: ValidationError) -> str:
        """The first problem of a validation error: `FILE:LINE:COLUMN: key: reason`."""
        detail = error.errors(include_url=False)[0]
        hint = ""
        if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
            hint = "; text that looks like a number or like true is put in quotes"
        return f"{self.place(problem_path(error))}: {first_problem(error)}{hint}"


def located_error(message: str, *path: str | int) -> PydanticCustomError:
    """A validation error located at `path` below the validated value; raise it in a validator. See `YamlFile.problem`."""
    return PydanticCustomError("located", "{message}", {"message": message, "path": path})


def read_yaml(file: Path, lenient: bool = False) -> YamlFile:
    """Read `file`: UTF-8, or UTF-16 with a byte order mark. Raises `YamlError`. See `parse_yaml`."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise YamlError(f"{file}: {error.strerror or error}") from error
    try:
        text = data.decode("utf-16" if data.startswith(_BOM16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise YamlError(f"{file}:{line}:{column}: not valid YAML: it is not UTF-8 text") from error
    return parse_yaml(text, str(file), lenient)


def parse_yaml(text: str, name: str, lenient: bool = False) -> YamlFile:
    """Parse a document; an empty document is None.

    Args:
        name: of the document, for errors.
        lenient: read ambiguous values as text, for files of other projects, which follow YAML 1.2.

    Raises:
        YamlError: invalid YAML, several documents, duplicate keys, numbers that are ambiguous or not finite, aliases that
            expand too far or are recursive.
    """
    try:
        loader = _Loader(text)
        try:
            loader.name = name
            root = loader.get_single_node()
            if root is None:
                return YamlFile(name, None, None)
            _Check(name, lenient).walk(root)
            return YamlFile(name, loader.construct_document(root), root)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = f"{name}:{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        raise YamlError(f"{place}: not valid YAML: the character #x{error.character:04x} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        why = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        hint = "; lines are indented with spaces" if "'\\t'" in why else ""
        raise YamlError(
            f"{_place(name, error.problem_mark or error.context_mark)}: not valid YAML: {why}{hint}"
        ) from error
    except RecursionError as error:
        raise YamlError(f"{name}:1:1: not valid YAML: it is nested too deeply") from error


def _place(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else f"{name}:1:1"


class _Check:
    """Rejects valid YAML with duplicate keys, ambiguous numbers or excessive aliases, before values are constructed."""

    def __init__(self, name: str, lenient: bool) -> None:
        self._name, self._lenient = name, lenient
        self._sizes: dict[int, int] = {}  # expanded number of values by node; 0: not yet counted

    def walk(self, node: yaml.Node, path: tuple[str, ...] = ()) -> int:
        """The number of values in `node`, with aliases expanded."""
        if (known := self._sizes.get(id(node))) is not None:
            if known == 0:
                raise self._error(node, path, "it contains itself by an alias")
            return known
        self._sizes[id(node)] = 0
        size = 1
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                self._key(key, path, lines)
                size += self.walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            size += sum(self.walk(item, (*path, str(index))) for index, item in enumerate(node.value))
        else:
            self._scalar(node, path)
        if size > len(self._sizes) + _REPEATED:
            raise self._error(node, path, f"aliases repeat more than {_REPEATED} values")
        self._sizes[id(node)] = size
        return size

    def _key(self, key: yaml.Node, path: tuple[str, ...], lines: dict[str, int]) -> None:
        if not isinstance(key, yaml.ScalarNode):
            raise self._error(key, path, "a key must be a single value")
        if (line := lines.get(key.value)) is not None:
            raise self._error(key, (*path, key.value), f"the key is there twice, first in line {line}")
        lines[key.value] = key.start_mark.line + 1
        self._scalar(key, (*path, key.value))
        if key.tag == _WORD:
            key.tag = _STR

    def _scalar(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        if self._lenient and node.tag in (_WORD, _AMBIGUOUS):
            node.tag = _STR
        elif node.tag == _AMBIGUOUS:
            why = f"{node.value} is one number in YAML 1.1 and another, or text, in YAML 1.2"
            raise self._error(node, path, f"{why}: write a decimal number, or text in quotes: '{node.value}'")
        elif node.tag == _FLOAT and not _is_finite(node.value):
            raise self._error(node, path, f"{node.value} is not a finite number")

    def _error(self, node: yaml.Node, path: tuple[str, ...], why: str) -> YamlError:
        where = f"{'.'.join(path)}: " if path else ""
        return YamlError(f"{_place(self._name, node.start_mark)}: {where}{why}")


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")))
    except ValueError:  # only its tag makes it a number; constructing the value reports the error
        return True
