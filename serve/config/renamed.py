"""Renamed and removed configuration keys, renamed commands.

Using one is an error that names its replacement; see docs/operations/upgrading.md.
"""

from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]

_UPLOAD_BYTES = (
    "a gateway holds four bodies of the largest document (`max_document_bytes`), see docs/how-to/documents.md"
)

#: Configuration keys by path; `[]` is each entry of a list.
RENAMED: Mapping[str, str] = {
    "server.request_timeout_s": "server.stream_idle_timeout_s",
    "server.drain_s": "server.drain_timeout_s",
    "access.open": "access.allow_anonymous",
    "access.open_budget": "access.anonymous_profile",
    "access.limits_store": "access.rate_limit_store",
    "access.limits_store_timeout_s": "access.rate_limit_store_timeout_s",
    "access.on_store_failure": "access.on_rate_limit_store_failure",
    "retrieval.check_s": "retrieval.verification_timeout_s",
    "retrieval.max_uploads": "retrieval.max_concurrent_uploads",
    "retrieval.always": "retrieval.ground_by_default",
    "retrieval.abstention": "retrieval.abstention_message",
    "retrieval.agent_steps": "retrieval.max_agent_steps",
    "retrieval.http_tools[].description": "retrieval.http_tools[].openapi_spec",
    "observability.log_content": "observability.capture_content",
    "observability.trace_share": "observability.trace_sample_ratio",
    "observability.tenants": "observability.tenant_cardinality_limit",
}

#: Configuration keys without a successor, and what does their work.
REMOVED: Mapping[str, str] = {
    "retrieval.max_uploads_bytes": _UPLOAD_BYTES,
    "retrieval.max_concurrent_upload_bytes": _UPLOAD_BYTES,
    "router": "requests are always routed by their budgets, of which a profile may set the objective, see docs/how-to/budgets.md",
}

#: Commands of `gearbox`.
RENAMED_COMMANDS: Mapping[str, str] = {"forget": "documents delete"}


def find_renamed(config: object) -> Iterator[tuple[Path, str]]:
    """The path of each renamed or removed key in an unvalidated configuration, and what became of it."""
    for old, change in changes().items():
        *sections, key = old.split(".")
        for path, section in _sections(config, sections):
            if isinstance(section, Mapping) and key in section:
                yield (*path, key), change


def changes() -> dict[str, str]:
    """What became of each key, to be put after "was"."""
    renamed = {old: f"renamed to {new}" for old, new in RENAMED.items()}
    return {**renamed, **{old: f"removed: {instead}" for old, instead in REMOVED.items()}}


def _sections(part: object, names: list[str], path: Path = ()) -> Iterator[tuple[Path, object]]:
    if not names:
        yield path, part
        return
    name = names[0].removesuffix("[]")
    if not isinstance(part, Mapping) or name not in part:
        return
    if name == names[0]:
        yield from _sections(part[name], names[1:], (*path, name))
    elif isinstance(part[name], list | tuple):
        for index, entry in enumerate(part[name]):
            yield from _sections(entry, names[1:], (*path, name, index))
