"""Grounding a chat request, the gateway's side: what is asked for, what the budget carries, what is said of the answer.

Searching itself happens in the retrieval deployment, behind `Retrieval`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from time import perf_counter
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from serve.budget import Budget
from serve.card import first_problem
from serve.config.platform import RetrievalConfig
from serve.errors import RequestError
from serve.gateway.http import Headers
from serve.gateway.rewording import question_of, without_chance, worded
from serve.request.call import Call
from serve.request.chat_fields import read_fields
from serve.request.direct_answer import DirectAnswer, calls_function, may_grow, model_only, most_tokens, takes_text
from serve.request.engine_report import Choice
from serve.request.grounding import Grounding, Wanted
from serve.telemetry.metrics import Metrics
from serve.tools.intent import detect

HEADER = "x-gearbox-retrieval"
_PASSAGE_CHARS = 1_000  # of a source in the prompt, until some were seen
_FRAME_CHARS = 120  # of what is said around the sources
_AGENT_MS = 120_000.0  # for all steps of an agent, where the budget sets no limit
_EXPECTED_S = 0.1  # of a search, until some were seen
#: Fields of a request that are not passed on with an agent's steps: each step has its own, or gives one whole answer.
_NOT_AN_AGENTS = (
    "messages", "model", "stream", "stream_options", "cache_salt", "n", "logprobs", "top_logprobs", "prompt_logprobs",
    "logprob_token_ids", "return_token_ids",
)  # fmt: skip
_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
_SEEN_S = 60.0  # for how long a search tells of the next

Fits = Callable[[int, float], bool]


class Retrieval(Protocol):
    """The retrieval deployment."""

    async def call(self, method: str, **arguments: Any) -> Any:
        """One of `serve.retrieval.service.Service`'s calls. Raises `RequestError`."""


class Grounder:
    """Grounds requests. Learns how long a search takes and how long a source is."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval, metrics: Metrics, url: str) -> None:
        self._config = config
        self._url = url  # of this gateway, for agents
        self._retrieval = retrieval
        self._metrics = metrics
        self._searches: deque[tuple[float, float]] = deque(maxlen=64)  # when (perf_counter) and how long, seconds
        self._chars: deque[float] = deque([_PASSAGE_CHARS], maxlen=64)  # of a source in a prompt

    @property
    def _settings(self) -> RetrievalConfig:
        """The configuration of a deployment that has retrieval; without it nothing is grounded."""
        if self._config is None:
            raise RuntimeError("this deployment has no retrieval")
        return self._config

    def wanted(self, call: Call, headers: Headers) -> Wanted | None:
        """How `call` is to be grounded; None: not at all. Raises `RequestError` 400 for what can't be."""
        asked, header = call.retrieval, headers.get(HEADER)
        if call.ref.collection == "":
            raise _invalid("'model' ends in '+' without a collection's name", "model")
        if header is not None and header not in ("on", "off"):
            raise RequestError(400, f"{HEADER} is 'on' or 'off'", param=HEADER, code="invalid_retrieval")
        if asked is not None and not isinstance(asked, bool | dict):
            raise _invalid("'retrieval' must be an object, true or false", "retrieval")
        said = header == "on" or bool(call.ref.collection) or (asked is not None and asked is not False)
        off = header == "off" or (asked is False and header is None)
        if off and asked in (None, False) and not call.ref.collection:
            return None
        if not said and (self._config is None or not self._config.always or call.endpoint != "chat"):
            return None
        if self._config is None:
            if off:
                return None
            raise _invalid("this deployment has no retrieval", "retrieval")
        if call.endpoint != "chat":
            raise _invalid("only chat completions can be grounded", "retrieval")
        defaults = {
            name: getattr(self._config, name)
            for name in ("collection", "mode", "top_k", "on_budget", "on_unsupported", "unverified", "tools")
        }
        fields = asked if isinstance(asked, dict) else {}
        named = {"collection": call.ref.collection} if call.ref.collection else {}
        try:
            wanted = Wanted.model_validate({**defaults, **named, **fields})
        except ValidationError as error:
            param = ".".join(["retrieval", *map(str, error.errors()[0]["loc"][:1])])
            if param == "retrieval.collection" and "collection" not in fields:
                raise _invalid(f"'model' names no collection after '+': {first_problem(error)}", "model") from error
            raise _invalid(f"{param}: {first_problem(error)}", param) from error
        if "collection" in fields:
            wanted._asked_by = "retrieval.collection"
        elif named:
            wanted._asked_by = "model"
        elif header == "on":
            wanted._asked_by = HEADER
        elif said:
            wanted._asked_by = "retrieval"
        return None if off else wanted  # what the header switches off must be right all the same

    def computed(self, call: Call, headers: Headers) -> Grounding | None:
        """What computing makes of `call` before documents are searched: the answer, or another prompt. Raises `RequestError`."""
        wanted = self.wanted(call, headers)
        question = question_of(call) if wanted is not None else None
        if wanted is None or question is None or (wanted.agent and not calls_function(call.body)):
            return None
        grounding = Grounding(wanted)
        return grounding if self._compute(grounding, question, call) else None

    async def collection_exists(self, call: Call, tenant: str, headers: Headers) -> bool:
        """Whether there are documents to ground `call` with. Raises `RequestError` as `ground` does where there are none."""
        wanted = self.wanted(call, headers)
        if wanted is None or wanted.collection is None or await self._exists(wanted, tenant):
            return True
        if wanted.asked_by is None:
            return False
        raise _no_collection(wanted)

    async def _exists(self, wanted: Wanted, tenant: str) -> bool:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return bool(await self._retrieval.call("exists", tenant=tenant, collection=wanted.collection))
        except TimeoutError as error:
            raise self._too_slow() from error

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
            RequestError: 404 for a collection that does not exist; 422 where the budget can't carry it and the request said
                `refuse`; 503 when retrieval is down.
        """
        grounding = Grounding(wanted)
        question = question_of(call)
        if question is None:
            grounding.why = "the last message is no question: not a user's, not text alone, or to be continued"
            return self._counted(grounding)
        grounding.question = question
        plain = model_only(call.body) is None and call.body.get("n") in (None, 1)
        grounding.quotable = wanted.unverified == "quote" and plain
        if wanted.agent and not calls_function(call.body):
            if wanted.names_collection and wanted.collection is not None and not await self._exists(wanted, tenant):
                raise _no_collection(wanted)
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
            if wanted.on_unsupported == "abstain" and not calls_function(call.body):
                fields, refusal = read_fields(call.body), not takes_text(call.body)
                grounding.direct = DirectAnswer.within(fields, self._settings.abstention, refusal=refusal)
                grounding.outcome = "abstained"
            return self._counted(grounding)
        grounding.outcome = "used" if top_k == wanted.top_k else "shrunk"
        self._put_in(grounding, call, found["prompt"])
        return grounding

    async def shorten(self, grounding: Grounding, call: Call, tenant: str, budget: Budget, arrived: float) -> bool:
        """Take sources out of a prompt that is too long for the engine: half of them or all, as `on_budget` says.

        Returns:
            Whether there were any; then `call` has the new prompt.

        Raises:
            RequestError: 422 where the request said `refuse`; what `ground` raises where sources are searched again.
        """
        if not (count := len(grounding.passages)):
            return False
        call.body.pop("temperature", None)
        call.body.update(grounding.bare)
        call.reword(grounding.bare["messages"])
        grounding.passages, grounding.support = (), None
        searched_ms, began, found = grounding.ms, grounding.began, None
        if grounding.wanted.on_budget == "shrink" and count > 1:
            found = await self._search(grounding, grounding.question, tenant, count // 2, budget, arrived)
            grounding.ms, grounding.began = grounding.ms + searched_ms, began
            if found is None:  # no time was left, or the documents are gone
                self._counted(grounding)
                return True
        what = "the source" if count == 1 else f"{count} sources"
        if found is None or not found["passages"]:
            self._counted(self._without(grounding, f"the context has no room for {what}"))
            return True
        grounding.support, grounding.passages = found["support"], found["passages"]
        grounding.timings_ms, grounding.starts_ms = found["timings_ms"], found["starts_ms"]
        grounding.outcome = "shrunk"
        grounding.why = f"the context has room for {len(grounding.passages)} of {grounding.wanted.top_k} sources"
        self._put_in(grounding, call, found["prompt"])
        return True

    def _put_in(self, grounding: Grounding, call: Call, prompt: Sequence[Mapping[str, str]]) -> None:
        """Have `call` ask with its sources."""
        grounding.bare = {name: call.body[name] for name in ("messages", "temperature") if name in call.body}
        before = call.prompt_chars
        call.reword(worded(call, prompt))
        without_chance(call)
        self._chars.append(max(0, call.prompt_chars - before - _FRAME_CHARS) / len(grounding.passages))

    def count_sources(self, grounding: Grounding | None) -> None:
        """Count a request that kept sources, when it is over: until then they may be taken out."""
        if grounding is not None and grounding.passages:
            self._counted(grounding)

    async def check(
        self, grounding: Grounding, call: Call, choices: Sequence[Choice], tokens: int, budget: Budget, arrived: float
    ) -> str:
        """Hold the sentences of all `choices` against their sources, as far as the budget's time goes.

        Returns what is to be added to the answer: where not all of it is supported, what the best source says. That obeys
        the request too: nothing is added to what a stop or the token limit ended, nor over it (`tokens` were written).
        """
        await self._check(grounding, choices, budget, arrived)
        claims = [one["supported"] for one in grounding.sentences or () if one["supported"] is not None]
        if not grounding.quotable or grounding.sentences is None or all(claims or [False]):
            return ""
        best = grounding.passages[0]
        more = f"\n\nSource {best['n']} says: “{best['quote']}”"
        if not may_grow(call.body, choices[0], tokens, more):
            return ""
        grounding.quoted = best["n"]
        return more

    async def _check(self, grounding: Grounding, choices: Sequence[Choice], budget: Budget, arrived: float) -> None:
        if not grounding.passages:
            return
        if not choices or not all(choice.text.strip() for choice in choices):
            grounding.why = "an answer without text was not checked"
            return
        left = self._settings.check_s
        if budget.e2e_ms is not None:
            left = min(left, budget.e2e_ms / 1000 - (perf_counter() - arrived))
        if left <= 0:
            grounding.why = "no time was left to check the answer"
            return
        began = perf_counter()
        try:
            async with asyncio.timeout(left):
                passages = [passage["content"] for passage in grounding.passages]
                sentences: list[dict[str, Any]] = []
                for number, choice in enumerate(choices):
                    found = await self._retrieval.call(
                        "check", answer=choice.text, passages=passages, question=grounding.question
                    )
                    sentences += [{**one, "choice": number} for one in found]
                grounding.sentences = sentences
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
        config = self._settings
        zone = ZoneInfo(config.timezone)
        used = detect(question, grounding.wanted.tools, datetime.now(zone), zone)
        if used is None:
            return False
        grounding.tools.append({"name": used.name, "input": used.input, "output": used.output})
        if config.computed == "answer":
            fields = read_fields(call.body)
            reason = model_only(call.body)
            if reason is None and fields.token_limit is not None and most_tokens(used.answer) > fields.token_limit:
                reason = "fewer tokens than the result may have"
            if reason is None:
                grounding.outcome, grounding.direct = "computed", DirectAnswer.within(fields, used.answer)
                return True
            grounding.why = f"computed, and told to the model: the request asks for {reason}"
        call.reword(worded(call, [{"role": "user", "content": f"{question}\n\nComputed exactly: {used.answer}"}]))
        without_chance(call)
        return True

    async def _ask_agent(
        self, grounding: Grounding, call: Call, tenant: str, key: str, budget: Budget, arrived: float
    ) -> None:
        """Let the model answer with the tools; each of its steps is a request of the client's own, routed by its budget."""
        wanted, ref = grounding.wanted, call.ref
        model = (
            f"{ref.model}:{ref.variant}" if ref.variant else f"{ref.model}@{ref.profile}" if ref.profile else ref.model
        )
        own = call.body.get("tools") is not None  # and what is said of their use
        fields = read_fields(call.body if own else {**call.body, "tool_choice": None})  # else it is about the agent's
        taken = {*_NOT_AN_AGENTS, *(_OF_TOOLS if own else ())}
        more = {name: value for name, value in call.body.items() if name not in taken}
        left = (budget.e2e_ms or _AGENT_MS) / 1000 - (perf_counter() - arrived)
        began = perf_counter()
        made = await self._retrieval.call(
            "agent", tenant=tenant, collection=wanted.collection, messages=call.body["messages"], tools=wanted.tools,
            top_k=wanted.top_k, mode=wanted.mode, url=self._url, key=key, model=model,
            more={**more, "budget": budget.model_dump(exclude_none=True)}, timeout_s=max(left, 0.001),
        )  # fmt: skip
        grounding.outcome, grounding.tools, grounding.ms = "agent", made["tools"], _since(began)
        # stops, token limit and form were kept by the model that wrote it
        grounding.direct = DirectAnswer(
            made["text"],
            finish_reason=made.get("finish_reason", "stop"),
            choices=fields.choices,
            usage=made["usage"],
            cost_usd=made.get("cost_usd", 0.0),
            attempts=made.get("attempts", 0),
        )

    async def _search(
        self, grounding: Grounding, question: str, tenant: str, top_k: int, budget: Budget, arrived: float
    ) -> dict[str, Any] | None:
        """What was found; None where the request is to go on without.

        That is where the budget's time ended before, or where only `always` asked for a collection that has no documents.
        """
        wanted = grounding.wanted
        limits = [limit for limit in (budget.ttft_ms, budget.e2e_ms) if limit is not None]
        left = min(limits, default=float("inf")) / 1000 - (perf_counter() - arrived)
        grounding.began = began = perf_counter()
        try:
            async with asyncio.timeout(max(0.0, min(left, self._settings.timeout_s))):
                found: dict[str, Any] = await self._retrieval.call(
                    "ground", tenant=tenant, collection=wanted.collection, question=question, top_k=top_k,
                    mode=wanted.mode, filters=wanted.filters, min_score=wanted.min_score,
                )  # fmt: skip
        except TimeoutError as error:
            self._took(began)
            grounding.ms = _since(began)
            if left > self._settings.timeout_s:
                raise self._too_slow() from error
            self._without(grounding, "retrieval took longer than the budget")
            return None
        except RequestError as error:
            if error.code != "collection_not_found":
                raise
            if wanted.asked_by is not None:
                raise _no_collection(wanted) from error
            grounding.ms = _since(began)
            grounding.outcome, grounding.why = "skipped", f"the collection '{wanted.collection}' has no documents"
            return None
        self._metrics.retrieval.observe(self._took(began))
        grounding.ms = _since(began)
        return found

    def _too_slow(self) -> RequestError:
        message = f"retrieval took longer than {self._settings.timeout_s:g} s"
        return RequestError(504, message, code="retrieval_timeout", headers={"retry-after": "2"})

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


def _no_collection(wanted: Wanted) -> RequestError:
    message = f"collection '{wanted.collection}' does not exist"
    return RequestError(404, message, param=wanted.asked_by, code="collection_not_found")


def _invalid(message: str, param: str) -> RequestError:
    return RequestError(400, message, param=param, code="invalid_retrieval")


def _since(began: float) -> float:
    return round((perf_counter() - began) * 1000, 2)
