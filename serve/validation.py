"""Validation errors in one line: the first problem, where it is and why."""

from pydantic import ValidationError


def problem_path(error: ValidationError) -> tuple[str | int, ...]:
    """The path of a validation error's first problem. A validator of nested values adds the inner part of the path as `path`
    in its error's context."""
    detail = error.errors(include_url=False)[0]
    return (*detail["loc"], *detail.get("ctx", {}).get("path", ()))


def first_problem(error: Exception) -> str:
    """A validation error's first problem, as `field: reason` on one line."""
    if isinstance(error, ValidationError):
        where = ".".join(map(str, problem_path(error))) or "document"
        return f"{where}: {first_reason(error)}"
    return str(error).splitlines()[0]


def first_reason(error: ValidationError) -> str:
    """A validation error's first problem, without its field."""
    return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
