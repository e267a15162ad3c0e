"""Grounding a chat request, the gateway's side: what is asked for, what the budget carries, what is said of the answer.

Searching itself happens in the retrieval deployment, behind `Retrieval`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.budget import Budget
from serve.card import first_problem
from serve.config import Name, RetrievalConfig
from serve.detection import detect
from serve.errors import RequestError
from serve.http import Headers
from serve.metrics import Metrics
from serve.protocol import Call

HEADER = "x-gearbox-retrieval"
_PASSAGE_CHARS = 1_000  # of a source in the prompt, until some were seen
_FRAME_CHARS = 120  # of what is said around the sources
_AGENT_MS = 120_000.0  # for all steps of an agent, where the budget sets no limit
_EXPECTED_S = 0.1  # of a search, until some were seen
_SEEN_S = 60.0  # for how long a search tells of the next

Outcome = Literal["used", "shrunk", "skipped", "abstained", "unsupported", "computed", "agent", "off"]
Fits = Callable[[int, float], bool]


class Retrieval(Protocol):
    """The retrieval deployment."""

    async def call(self, method: str, **arguments: Any) -> Any:
        """One of `serve.retrieval.service.Service`'s calls. Raises `RequestError`."""


class Wanted(BaseModel):
    """How one request is to be grounded: its `retrieval` field on top of the deployment's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    collection: Name | None
    mode: Name
    top_k: Annotated[int, Field(ge=1, le=20, strict=True)]
    filters: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    on_budget: Literal["shrink", "skip", "refuse"]
    on_unsupported: Literal["abstain", "answer"]
    unverified: Literal["quote", "mark"]
    tools: tuple[Literal["calculator", "clock"], ...]
    agent: bool = False  # the model calls the tools itself, and searches with one


@dataclass(slots=True)
class Grounding:
    """What was done for one request, and what came of it."""

    wanted: Wanted
    question: str = ""
    quotable: bool = False  # whether text may be added to the answer
    outcome: Outcome = "off"
    why: str | None = None
    support: float | None = None
    passages: Sequence[Mapping[str, Any]] = ()
    began: float = 0.0  # of searching, perf_counter seconds
    ms: float = 0.0  # of searching
    check_ms: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # by the pipeline's components
    starts_ms: Mapping[str, float] = field(default_factory=dict)  # when they began, after the search did
    tools: list[dict[str, Any]] = field(default_factory=list)
    answer: str | None = None  # the answer itself, where it is known before a variant is asked
    usage: Mapping[str, int] = field(default_factory=dict)  # tokens that an agent took for it
    sentences: list[dict[str, Any]] | None = None  # None: not checked
    quoted: int | None = None  # number of the source that was quoted after an answer that no source supports

    @property
    def reason(self) -> str:
        """Why the answer was known before a variant was asked."""
        return self.outcome

    def public(self) -> dict[str, object]:
        """What the answer's `gearbox` object says of it."""
        return {
            "grounded": self._grounded(),
            "citations": self._citations(),
            "sentences": self.sentences,
            "quoted": self.quoted,
            "tools": self.tools,
            "retrieval": {
                "outcome": self.outcome, "why": self.why, "collection": self.wanted.collection, "mode": self.wanted.mode,
                "support": self.support, "passages": len(self.passages), "ms": self.ms, "check_ms": self.check_ms,
                "timings_ms": self.timings_ms,
            },
        }  # fmt: skip

    def _grounded(self) -> bool | None:
        """Whether sources support every claim of the answer; None where that was not checked."""
        if self.outcome == "computed":
            return True
        if self.outcome == "agent":
            return None
        if not self.passages:
            return False
        if self.sentences is None:
            return None
        claims = [one["supported"] for one in self.sentences if one["supported"] is not None]
        return bool(claims) and all(claims)

    def _citations(self) -> list[dict[str, Any]]:
        """The sources that the answer's sentences rest on."""
        cited = {one["source"] for one in self.sentences or () if one["supported"]} | {self.quoted}
        return [
            {name: passage[name] for name in ("n", "source", "title", "heading", "page", "score", "quote")}
            for passage in self.passages
            if passage["n"] in cited
        ]


class Grounder:
    """Grounds requests. Learns how long a search takes and how long a source is."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval, metrics: Metrics, url: str) -> None:
        self._config = config
        self._url = url  # of this gateway, for agents
        self._retrieval = retrieval
        self._metrics = metrics
        self._searches: deque[tuple[float, float]] = deque(maxlen=64)  # when (perf_counter) and how long, seconds
        self._chars: deque[float] = deque([_PASSAGE_CHARS], maxlen=64)  # of a source in a prompt

    def wanted(self, call: Call, headers: Headers) -> Wanted | None:
        """How `call` is to be grounded; None: not at all. Raises `RequestError` 400 for what can't be."""
        asked, header = call.retrieval, headers.get(HEADER)
        if header is not None and header not in ("on", "off"):
            raise RequestError(400, f"{HEADER} is 'on' or 'off'", param=HEADER, code="invalid_retrieval")
        if asked is not None and not isinstance(asked, bool | dict):
            raise _invalid("'retrieval' must be an object, true or false", "retrieval")
        said = header == "on" or bool(call.ref.collection) or (asked is not None and asked is not False)
        if header == "off" or (asked is False and header is None):
            return None
        if not said and (self._config is None or not self._config.always or call.endpoint != "chat"):
            return None
        if self._config is None:
            raise _invalid("this deployment has no retrieval", "retrieval")
        if call.endpoint != "chat":
            raise _invalid("only chat completions can be grounded", "retrieval")
        defaults = {
            name: getattr(self._config, name)
            for name in ("collection", "mode", "top_k", "on_budget", "on_unsupported", "unverified", "tools")
        }
        named = {"collection": call.ref.collection} if call.ref.collection else {}
        try:
            return Wanted.model_validate({**defaults, **named, **(asked if isinstance(asked, dict) else {})})
        except ValidationError as error:
            param = ".".join(["retrieval", *map(str, error.errors()[0]["loc"][:1])])
            raise _invalid(f"{param}: {first_problem(error)}", param) from error

    def plan(self, wanted: Wanted, fits: Fits) -> tuple[int, int]:
        """How many sources the budget carries, and their characters; `fits(characters, seconds)` says whether it can."""
        since = perf_counter() - _SEEN_S  # after a slow time, searching must be tried again
        seen = sorted(took for when, took in self._searches if when > since) or [_EXPECTED_S]
        expected = seen[int(0.9 * (len(seen) - 1))]
        chars = sum(self._chars) / len(self._chars)
        for top_k in range(wanted.top_k, 0, -1):
            more = _FRAME_CHARS + round(top_k * chars)
            if fits(more, expected):
                return top_k, more
        return 0, 0

    async def ground(
        self, call: Call, wanted: Wanted, tenant: str, key: str, budget: Budget, arrived: float, fits: Fits
    ) -> Grounding:
        """Search, and word the question of `call` with what was found.

        Args:
            key: of the client, for the requests that an agent makes for it.
            budget: what the request may spend in all, from `arrived` (perf_counter seconds) on.
            fits: see `plan`.

        Raises:
            RequestError: 422 where the budget can't carry it and the request said `refuse`; 503 when retrieval is down.
        """
        grounding = Grounding(wanted)
        question = _question(call)
        if question is None:
            grounding.why = "the last message is not a user's text"
            return self._counted(grounding)
        grounding.question = question
        plain = call.body.get("response_format") is None and call.body.get("n") in (None, 1)
        grounding.quotable = wanted.unverified == "quote" and plain
        if wanted.agent:
            await self._ask_agent(grounding, call, tenant, key, budget, arrived)
            return self._counted(grounding)
        if self._compute(grounding, question, call) or wanted.collection is None:
            return self._counted(grounding)
        top_k, _ = self.plan(wanted, fits)
        if top_k == 0:
            return self._counted(self._without(grounding, "the budget carries no sources"))
        if top_k < wanted.top_k:
            if wanted.on_budget != "shrink":
                return self._counted(self._without(grounding, f"the budget carries {top_k} of {wanted.top_k} sources"))
            grounding.why = f"the budget carries {top_k} of {wanted.top_k} sources"
        if (found := await self._search(grounding, question, tenant, top_k, budget, arrived)) is None:
            return self._counted(grounding)
        grounding.support, grounding.passages = found["support"], found["passages"]
        grounding.timings_ms, grounding.starts_ms = found["timings_ms"], found["starts_ms"]
        self._metrics.passages.observe(len(grounding.passages))
        for stage, took_ms in grounding.timings_ms.items():
            self._metrics.stage.labels(stage).observe(took_ms / 1000)
        if not grounding.passages:
            grounding.why = "no document supports an answer"
            grounding.outcome = "unsupported"
            if wanted.on_unsupported == "abstain":
                if self._config is None:
                    raise RuntimeError("grounding without a retrieval configuration")
                grounding.outcome, grounding.answer = "abstained", self._config.abstention
            return self._counted(grounding)
        grounding.outcome = "used" if top_k == wanted.top_k else "shrunk"
        before = call.prompt_chars
        call.reword(_worded(call, found["prompt"]))
        if call.body.get("temperature") is None:
            call.body["temperature"] = 0  # who asks for what the sources say wants that, not the model's fancy
        self._chars.append(max(0, call.prompt_chars - before - _FRAME_CHARS) / len(grounding.passages))
        return self._counted(grounding)

    async def check(self, grounding: Grounding, answer: str, budget: Budget, arrived: float) -> str:
        """Hold the answer's sentences against its sources, as far as the budget's time goes.

        Returns what is to be added to the answer: where not all of it is supported, what the best source says.
        """
        await self._check(grounding, answer, budget, arrived)
        claims = [one["supported"] for one in grounding.sentences or () if one["supported"] is not None]
        if not grounding.quotable or grounding.sentences is None or all(claims or [False]):
            return ""
        best = grounding.passages[0]
        grounding.quoted = best["n"]
        return f"\n\nSource {best['n']} says: “{best['quote']}”"

    async def _check(self, grounding: Grounding, answer: str, budget: Budget, arrived: float) -> None:
        if self._config is None:
            raise RuntimeError("grounding without a retrieval configuration")
        if not grounding.passages or not answer.strip():
            return
        left = self._config.check_s
        if budget.e2e_ms is not None:
            left = min(left, budget.e2e_ms / 1000 - (perf_counter() - arrived))
        if left <= 0:
            grounding.why = "no time was left to check the answer"
            return
        began = perf_counter()
        try:
            async with asyncio.timeout(left):
                passages = [passage["content"] for passage in grounding.passages]
                grounding.sentences = await self._retrieval.call(
                    "check", answer=answer, passages=passages, question=grounding.question
                )
        except TimeoutError:
            grounding.why = f"the answer could not be checked within {left * 1000:.0f} ms"
        except RequestError as error:
            grounding.why = f"the answer could not be checked: {error.message}"
        grounding.check_ms = _since(began)
        self._metrics.check.observe(perf_counter() - began)
        for one in grounding.sentences or ():
            if one["supported"] is not None:
                self._metrics.sentences.labels("yes" if one["supported"] else "no").inc()

    def _compute(self, grounding: Grounding, question: str, call: Call) -> bool:
        """Answer by computing where the question is a computation; whether that was all that was asked."""
        config = self._config
        if config is None:
            raise RuntimeError("grounding without a retrieval configuration")
        zone = ZoneInfo(config.timezone)
        used = detect(question, grounding.wanted.tools, datetime.now(zone), zone)
        if used is None:
            return False
        grounding.tools.append({"name": used.name, "input": used.input, "output": used.output})
        if config.computed == "answer":
            grounding.outcome, grounding.answer = "computed", used.answer
            return True
        call.reword(_worded(call, [{"role": "user", "content": f"{question}\n\nComputed exactly: {used.answer}"}]))
        return True

    async def _ask_agent(
        self, grounding: Grounding, call: Call, tenant: str, key: str, budget: Budget, arrived: float
    ) -> None:
        """Let the model answer with the tools; each of its steps is a request of the client's own, routed by its budget."""
        wanted, ref = grounding.wanted, call.ref
        model = (
            f"{ref.model}:{ref.variant}" if ref.variant else f"{ref.model}@{ref.profile}" if ref.profile else ref.model
        )
        taken = ("messages", "model", "stream", "stream_options", "cache_salt", "tools")
        more = {name: value for name, value in call.body.items() if name not in taken}
        left = (budget.e2e_ms or _AGENT_MS) / 1000 - (perf_counter() - arrived)
        began = perf_counter()
        made = await self._retrieval.call(
            "agent", tenant=tenant, collection=wanted.collection, messages=call.body["messages"], tools=wanted.tools,
            top_k=wanted.top_k, mode=wanted.mode, url=self._url, key=key, model=model,
            more={**more, "budget": budget.model_dump(exclude_none=True)}, timeout_s=max(left, 0.001),
        )  # fmt: skip
        grounding.outcome, grounding.answer, grounding.ms = "agent", made["text"], _since(began)
        grounding.tools, grounding.usage = made["tools"], made["usage"]

    async def _search(
        self, grounding: Grounding, question: str, tenant: str, top_k: int, budget: Budget, arrived: float
    ) -> dict[str, Any] | None:
        """What was found; None where the budget's time ended before, and the request is to go on without."""
        if self._config is None:
            raise RuntimeError("grounding without a retrieval configuration")
        wanted = grounding.wanted
        limits = [limit for limit in (budget.ttft_ms, budget.e2e_ms) if limit is not None]
        left = min(limits, default=float("inf")) / 1000 - (perf_counter() - arrived)
        grounding.began = began = perf_counter()
        try:
            async with asyncio.timeout(max(0.0, min(left, self._config.timeout_s))):
                found: dict[str, Any] = await self._retrieval.call(
                    "ground", tenant=tenant, collection=wanted.collection, question=question, top_k=top_k,
                    mode=wanted.mode, filters=wanted.filters, min_score=wanted.min_score,
                )  # fmt: skip
        except TimeoutError as error:
            self._took(began)
            grounding.ms = _since(began)
            if left > self._config.timeout_s:
                message = f"retrieval took longer than {self._config.timeout_s:g} s"
                raise RequestError(504, message, code="retrieval_timeout", headers={"retry-after": "2"}) from error
            self._without(grounding, "retrieval took longer than the budget")
            return None
        self._metrics.retrieval.observe(self._took(began))
        grounding.ms = _since(began)
        return found

    def _took(self, began: float) -> float:
        now = perf_counter()
        self._searches.append((now, now - began))
        return now - began

    def _without(self, grounding: Grounding, why: str) -> Grounding:
        if grounding.wanted.on_budget == "refuse":
            self._metrics.grounded.labels("refused").inc()
            raise RequestError(422, why, param="retrieval.on_budget", code="impossible_budget")
        grounding.outcome, grounding.why = "skipped", why
        return grounding

    def _counted(self, grounding: Grounding) -> Grounding:
        self._metrics.grounded.labels(grounding.outcome).inc()
        return grounding


def direct_answer(
    call: Call, text: str, usage: Mapping[str, int], gearbox: Mapping[str, object], request_id: str
) -> list[dict[str, Any]]:
    """A chat completion that is known whole: the document, or a stream's chunks."""
    common = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": call.ref.model}
    usage = {name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    if not call.stream:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        return [{**common, "object": "chat.completion", "choices": [choice], "usage": usage, "gearbox": gearbox}]
    chunk = {**common, "object": "chat.completion.chunk"}
    chunks = [
        {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    if call.wants_usage:
        chunks.append({**chunk, "choices": [], "usage": usage})
    chunks[-1]["gearbox"] = gearbox
    return chunks


def _question(call: Call) -> str | None:
    """The text of the last message, if it is a user's."""
    messages = call.body["messages"]
    if not isinstance(messages, list):
        raise _invalid("'messages' must be a list", "messages")
    last = messages[-1]
    if last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, list):
        content = "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content.strip() or None if isinstance(content, str) else None


def _worded(call: Call, prompt: Sequence[Mapping[str, str]]) -> list[Any]:
    """The conversation with its last message replaced by `prompt`; a system message of the client's own stays the only one."""
    messages = call.body["messages"]
    if not isinstance(messages, list):
        raise _invalid("'messages' must be a list", "messages")
    has_system = any(message.get("role") in ("system", "developer") for message in messages)
    system = [message for message in prompt if message["role"] == "system" and not has_system]
    return [*system, *messages[:-1], *(message for message in prompt if message["role"] != "system")]


def _invalid(message: str, param: str) -> RequestError:
    return RequestError(400, message, param=param, code="invalid_retrieval")


def _since(began: float) -> float:
    return round((perf_counter() - began) * 1000, 2)
