"""Grounding of chat requests: resolve options, plan sources within the budget, insert them, check the answer.

The search itself happens in the retrieval deployment, behind `Retrieval`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from serve.budget import Budget
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError
from serve.gateway.grounding_prompt import question_of, set_greedy_sampling, with_prompt
from serve.gateway.http import Headers
from serve.request.call import Call
from serve.request.chat_fields import read_fields
from serve.request.engine_report import Choice
from serve.request.grounding import Grounding, GroundingOptions
from serve.request.synthetic_completion import (
    SyntheticCompletion,
    calls_function,
    may_grow,
    model_only,
    most_tokens,
    takes_text,
)
from serve.telemetry.metrics import Metrics
from serve.validation import first_reason, problem_path

if TYPE_CHECKING:
    from serve.tools.intent import ToolResult

HEADER = "x-gearbox-retrieval"
_PASSAGE_CHARS = 1_000  # initial estimate of a source's length in the prompt
_FRAME_CHARS = 120  # length of the prompt's text around the sources
_AGENT_MS = 120_000.0  # time limit for all steps of an agent, where the budget sets none
_EXPECTED_S = 0.1  # initial estimate of a search's duration
#: Request fields that are not passed to an agent's steps: each step sets its own, or returns one unstreamed answer.
_NOT_AN_AGENTS = (
    "messages", "model", "stream", "stream_options", "cache_salt", "n", "logprobs", "top_logprobs", "prompt_logprobs",
    "logprob_token_ids", "return_token_ids",
)  # fmt: skip
_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
_SEEN_S = 60.0  # age up to which measured searches are used for estimates

BudgetCheck = Callable[[int, float], bool]


class Retrieval(Protocol):
    """The retrieval deployment."""

    async def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of `serve.retrieval.service.Service`. Raises `RequestError`."""


class Grounder:
    """Grounds chat requests. Learns search latency and source length, to plan within the budget."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval, metrics: Metrics, url: str) -> None:
        self._config = config
        self._url = url  # this gateway's base URL, for agents
        self._retrieval = retrieval
        self._metrics = metrics
        self._searches: deque[tuple[float, float]] = deque(maxlen=64)  # (end, perf_counter seconds; duration, seconds)
        self._chars: deque[float] = deque([_PASSAGE_CHARS], maxlen=64)  # observed lengths of a source in the prompt

    @property
    def _settings(self) -> RetrievalConfig:
        """Retrieval settings. Raises `RuntimeError` in a deployment without retrieval."""
        if self._config is None:
            raise RuntimeError("this deployment has no retrieval")
        return self._config

    def resolve_options(self, call: Call, headers: Headers) -> GroundingOptions | None:
        """Grounding options of `call`; None if it is not grounded. Raises `RequestError` 400 for invalid options."""
        requested, header = call.retrieval, headers.get(HEADER)
        if call.ref.collection == "":
            raise _invalid("'model' ends in '+' without a collection's name", "model")
        if header is not None and header not in ("on", "off"):
            raise RequestError(400, f"{HEADER} is 'on' or 'off'", param=HEADER, code="invalid_retrieval")
        if requested is not None and not isinstance(requested, bool | dict):
            raise _invalid("'retrieval' must be an object, true or false", "retrieval")
        explicit = header == "on" or bool(call.ref.collection) or (requested is not None and requested is not False)
        off = header == "off" or (requested is False and header is None)
        if off and requested in (None, False) and not call.ref.collection:
            return None
        if not explicit and (self._config is None or not self._config.ground_by_default or call.endpoint != "chat"):
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
        fields = requested if isinstance(requested, dict) else {}
        named = {"collection": call.ref.collection} if call.ref.collection else {}
        try:
            options = GroundingOptions.model_validate({**defaults, **named, **fields})
        except ValidationError as error:
            param = ".".join(["retrieval", *map(str, error.errors()[0]["loc"][:1])])
            if param == "retrieval.collection" and "collection" not in fields:
                raise _invalid(f"'model' names no collection after '+': {first_reason(error)}", "model") from error
            where = ".".join(["retrieval", *map(str, problem_path(error))])
            raise _invalid(f"{where}: {first_reason(error)}", param) from error
        if "collection" in fields:
            options._parameter = "retrieval.collection"
        elif named:
            options._parameter = "model"
        elif header == "on":
            options._parameter = HEADER
        elif explicit:
            options._parameter = "retrieval"
        return None if off else options  # options are validated even if the header turns grounding off

    def load_tools(self) -> None:
        """Load the vocabularies that `ground` detects computations with, which takes some seconds of CPU time."""
        if self._config is not None and self._config.tools:
            from serve.tools import intent  # a gateway without tools has no need of what it imports

            intent.load()

    async def computed(self, call: Call, headers: Headers) -> Grounding | None:
        """Compute the answer, or the prompt, of a question that a tool answers, without a search. Raises `RequestError`."""
        options = self.resolve_options(call, headers)
        question = question_of(call) if options is not None else None
        if options is None or question is None or (options.agent and not calls_function(call.body)):
            return None
        grounding = Grounding(options)
        return grounding if await self._compute(grounding, question, call) else None

    async def collection_exists(self, call: Call, tenant: str, headers: Headers) -> bool:
        """Whether the collection of `call` has documents. Raises the `RequestError` that `ground` would."""
        options = self.resolve_options(call, headers)
        if options is None or options.collection is None or await self._exists(options, tenant):
            return True
        if options.parameter is None:
            return False
        raise _no_collection(options)

    async def _exists(self, options: GroundingOptions, tenant: str) -> bool:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return bool(await self._retrieval.call("exists", tenant=tenant, collection=options.collection))
        except TimeoutError as error:
            raise self._too_slow() from error

    def plan(self, options: GroundingOptions, within_budget: BudgetCheck) -> tuple[int, int]:
        """Number of sources that fit the budget, and their characters, by the check `within_budget(characters, seconds)`."""
        oldest = perf_counter() - _SEEN_S  # older measurements expire, so that a slow period does not disable search
        seen = sorted(duration for when, duration in self._searches if when > oldest) or [_EXPECTED_S]
        expected = seen[int(0.9 * (len(seen) - 1))]
        chars = sum(self._chars) / len(self._chars)
        for top_k in range(options.top_k, 0, -1):
            chars_added = _FRAME_CHARS + round(top_k * chars)
            if within_budget(chars_added, expected):
                return top_k, chars_added
        return 0, 0

    async def ground(
        self,
        call: Call,
        options: GroundingOptions,
        tenant: str,
        key: str,
        budget: Budget,
        arrived: float,
        within_budget: BudgetCheck,
    ) -> Grounding:
        """Search, and insert the retrieved passages into the prompt of `call`.

        Args:
            key: the client's API key, for an agent's requests.
            budget: of the whole request, counted from `arrived` (perf_counter seconds).
            within_budget: see `plan`.

        Raises:
            RequestError: 404 for a collection that does not exist; 422 when sources do not fit the budget and `on_budget`
                is `refuse`; 503 when retrieval is down.
        """
        grounding = Grounding(options)
        question = question_of(call)
        if question is None:
            grounding.explanation = "the last message is no question: not a user's, not text alone, or to be continued"
            return self._counted(grounding)
        grounding.question = question
        plain = model_only(call.body) is None and call.body.get("n") in (None, 1)
        grounding.quotable = options.unverified == "quote" and plain
        if options.agent and not calls_function(call.body):
            if options.names_collection and options.collection is not None and not await self._exists(options, tenant):
                raise _no_collection(options)
            await self._ask_agent(grounding, call, tenant, key, budget, arrived)
            return self._counted(grounding)
        if await self._compute(grounding, question, call) or options.collection is None:
            return self._counted(grounding)
        top_k, _ = self.plan(options, within_budget)
        if top_k == 0:
            return self._counted(self._without(grounding, "the budget allows no sources"))
        if top_k < options.top_k:
            if options.on_budget != "shrink":
                return self._counted(self._without(grounding, f"the budget allows {top_k} of {options.top_k} sources"))
            grounding.explanation = f"the budget allows {top_k} of {options.top_k} sources"
        if (result := await self._search(grounding, question, tenant, top_k, budget, arrived)) is None:
            return self._counted(grounding)
        grounding.support, grounding.passages = result["support"], result["passages"]
        grounding.timings_ms, grounding.starts_ms = result["timings_ms"], result["starts_ms"]
        self._metrics.passages.observe(len(grounding.passages))
        for stage, took_ms in grounding.timings_ms.items():
            self._metrics.stage.labels(stage).observe(took_ms / 1000)
        if not grounding.passages:
            grounding.explanation = "no document supports an answer"
            grounding.outcome = "unsupported"
            if "calculator" in options.tools and await asyncio.to_thread(_may_compute, question):
                grounding.explanation = "no document supports an answer, but the question may ask for a computation"
            elif options.on_unsupported == "abstain" and not calls_function(call.body):
                fields, refusal = read_fields(call.body), not takes_text(call.body)
                grounding.direct = SyntheticCompletion.within(
                    fields, self._settings.abstention_message, refusal=refusal
                )
                grounding.outcome = "abstained"
            return self._counted(grounding)
        grounding.outcome = "used" if top_k == options.top_k else "shrunk"
        self._put_in(grounding, call, result["prompt"])
        return grounding

    async def shorten(self, grounding: Grounding, call: Call, tenant: str, budget: Budget, arrived: float) -> bool:
        """Remove half or all of the sources from a prompt that exceeds the context, according to `on_budget`.

        Returns:
            Whether the prompt had sources; then `call` has the new prompt.

        Raises:
            RequestError: 422 when `on_budget` is `refuse`; errors of `ground` when sources are searched again.
        """
        if not (count := len(grounding.passages)):
            return False
        call.body.pop("temperature", None)
        call.body.update(grounding.bare)
        call.replace_messages(grounding.bare["messages"])
        grounding.passages, grounding.support = (), None
        searched_ms, started, result = grounding.ms, grounding.started, None
        if grounding.options.on_budget == "shrink" and count > 1:
            result = await self._search(grounding, grounding.question, tenant, count // 2, budget, arrived)
            grounding.ms, grounding.started = grounding.ms + searched_ms, started
            if result is None:  # no time was left, or the documents were deleted
                self._counted(grounding)
                return True
        removed = "the source" if count == 1 else f"{count} sources"
        if result is None or not result["passages"]:
            self._counted(self._without(grounding, f"the context has no room for {removed}"))
            return True
        grounding.support, grounding.passages = result["support"], result["passages"]
        grounding.timings_ms, grounding.starts_ms = result["timings_ms"], result["starts_ms"]
        grounding.outcome = "shrunk"
        grounding.explanation = (
            f"the context has room for {len(grounding.passages)} of {grounding.options.top_k} sources"
        )
        self._put_in(grounding, call, result["prompt"])
        return True

    def _put_in(self, grounding: Grounding, call: Call, prompt: Sequence[Mapping[str, str]]) -> None:
        """Replace the prompt of `call` by the prompt with its sources."""
        grounding.bare = {name: call.body[name] for name in ("messages", "temperature") if name in call.body}
        before = call.prompt_chars
        call.replace_messages(with_prompt(call, prompt))
        set_greedy_sampling(call)
        self._chars.append(max(0, call.prompt_chars - before - _FRAME_CHARS) / len(grounding.passages))

    def count_sources(self, grounding: Grounding | None) -> None:
        """Count a request that used sources, at its end: until then `shorten` may remove them."""
        if grounding is not None and grounding.passages:
            self._counted(grounding)

    async def check(
        self, grounding: Grounding, call: Call, choices: Sequence[Choice], tokens: int, budget: Budget, arrived: float
    ) -> str:
        """Check the sentences of all `choices` against their sources, within the budget's remaining time.

        Returns the text to append to an answer that is not fully supported: a quote of the best source. Nothing is appended
        to an answer that ended at a stop sequence or the token limit, or that would exceed it (`tokens` were generated).
        """
        await self._check(grounding, choices, budget, arrived)
        claims = [sentence["supported"] for sentence in grounding.sentences or () if sentence["supported"] is not None]
        if not grounding.quotable or grounding.sentences is None or all(claims or [False]):
            return ""
        best = grounding.passages[0]
        quote = f"\n\nSource {best['n']} says: “{best['quote']}”"
        if not may_grow(call.body, choices[0], tokens, quote):
            return ""
        grounding.quoted = best["n"]
        return quote

    async def _check(self, grounding: Grounding, choices: Sequence[Choice], budget: Budget, arrived: float) -> None:
        if not grounding.passages:
            return
        if not choices or not all(choice.text.strip() for choice in choices):
            grounding.explanation = "an answer without text was not checked"
            return
        left = self._settings.verification_timeout_s
        if budget.e2e_ms is not None:
            left = min(left, budget.e2e_ms / 1000 - (perf_counter() - arrived))
        if left <= 0:
            grounding.explanation = "no time was left to check the answer"
            return
        started = perf_counter()
        try:
            async with asyncio.timeout(left):
                passages = [passage["content"] for passage in grounding.passages]
                heads = ["\n".join(filter(None, (one["title"], one["heading"]))) for one in grounding.passages]
                sentences: list[dict[str, Any]] = []
                for number, choice in enumerate(choices):
                    checked = await self._retrieval.call(
                        "check", answer=choice.text, passages=passages, heads=heads, question=grounding.question
                    )
                    sentences += [{**sentence, "choice": number} for sentence in checked]
                grounding.sentences = sentences
        except TimeoutError:
            grounding.explanation = f"the answer could not be checked within {left * 1000:.0f} ms"
        except RequestError as error:
            grounding.explanation = f"the answer could not be checked: {error.message}"
        grounding.check_ms = _since(started)
        self._metrics.check.observe(perf_counter() - started)
        for sentence in grounding.sentences or ():
            if sentence["supported"] is not None:
                self._metrics.sentences.labels("yes" if sentence["supported"] else "no").inc()

    async def _compute(self, grounding: Grounding, question: str, call: Call) -> bool:
        """Answer a computation, or add its result to the prompt; returns whether the question is a computation."""
        config = self._settings
        zone = ZoneInfo(config.timezone)
        # in a thread: detection takes milliseconds, which other streams must not wait for
        used = await asyncio.to_thread(_detect, question, grounding.options.tools, zone)
        if used is None:
            return False
        grounding.tools.append({"name": used.name, "input": used.input, "output": used.output})
        if config.computed == "answer":
            fields = read_fields(call.body)
            reason = model_only(call.body)
            if reason is None and fields.token_limit is not None and most_tokens(used.answer) > fields.token_limit:
                reason = "fewer tokens than the result may have"
            if reason is None:
                grounding.outcome, grounding.direct = "computed", SyntheticCompletion.within(fields, used.answer)
                return True
            grounding.explanation = f"computed, and passed to the model: the request asks for {reason}"
        call.replace_messages(
            with_prompt(call, [{"role": "user", "content": f"{question}\n\nComputed exactly: {used.answer}"}])
        )
        set_greedy_sampling(call)
        return True

    async def _ask_agent(
        self, grounding: Grounding, call: Call, tenant: str, key: str, budget: Budget, arrived: float
    ) -> None:
        """Run the agent. Each step is a request in the client's name, routed by the client's budget."""
        options, ref = grounding.options, call.ref
        model = (
            f"{ref.model}:{ref.variant}" if ref.variant else f"{ref.model}@{ref.profile}" if ref.profile else ref.model
        )
        own_tools = call.body.get("tools") is not None  # then fields about them are not passed to the agent
        # Without them, `tool_choice` is about the agent's tools.
        fields = read_fields(call.body if own_tools else {**call.body, "tool_choice": None})
        taken = {*_NOT_AN_AGENTS, *(_OF_TOOLS if own_tools else ())}
        fields_passed = {name: value for name, value in call.body.items() if name not in taken}
        left = (budget.e2e_ms or _AGENT_MS) / 1000 - (perf_counter() - arrived)
        started = perf_counter()
        result = await self._retrieval.call(
            "agent", tenant=tenant, collection=options.collection, messages=call.body["messages"], tools=options.tools,
            top_k=options.top_k, mode=options.mode, url=self._url, key=key, model=model,
            more={**fields_passed, "budget": budget.model_dump(exclude_none=True)}, timeout_s=max(left, 0.001),
        )  # fmt: skip
        grounding.outcome, grounding.tools, grounding.ms = "agent", result["tools"], _since(started)
        # stop sequences, token limit and format were applied by the model's steps
        grounding.direct = SyntheticCompletion(
            result["text"],
            finish_reason=result.get("finish_reason", "stop"),
            choices=fields.choices,
            usage=result["usage"],
            cost_usd=result.get("cost_usd", 0.0),
            attempts=result.get("attempts", 0),
        )

    async def _search(
        self, grounding: Grounding, question: str, tenant: str, top_k: int, budget: Budget, arrived: float
    ) -> dict[str, Any] | None:
        """Search sources; returns None when the request continues without sources.

        That is when the search exceeds the budget's time, or when a request grounded by default has an empty collection.
        """
        options = grounding.options
        limits = [limit for limit in (budget.ttft_ms, budget.e2e_ms) if limit is not None]
        left = min(limits, default=float("inf")) / 1000 - (perf_counter() - arrived)
        grounding.started = started = perf_counter()
        try:
            async with asyncio.timeout(max(0.0, min(left, self._settings.timeout_s))):
                result: dict[str, Any] = await self._retrieval.call(
                    "ground", tenant=tenant, collection=options.collection, question=question, top_k=top_k,
                    mode=options.mode, filters=options.filters, min_score=options.min_score,
                )  # fmt: skip
        except TimeoutError as error:
            self._took(started)
            grounding.ms = _since(started)
            if left > self._settings.timeout_s:
                raise self._too_slow() from error
            self._without(grounding, "retrieval took longer than the budget")
            return None
        except RequestError as error:
            if error.code != "collection_not_found":
                raise
            if options.parameter is not None:
                raise _no_collection(options) from error
            grounding.ms = _since(started)
            grounding.outcome, grounding.explanation = (
                "skipped",
                f"the collection '{options.collection}' has no documents",
            )
            return None
        self._metrics.retrieval.observe(self._took(started))
        grounding.ms = _since(started)
        return result

    def _too_slow(self) -> RequestError:
        message = f"retrieval took longer than {self._settings.timeout_s:g} s"
        return RequestError(504, message, code="retrieval_timeout", headers={"retry-after": "2"})

    def _took(self, started: float) -> float:
        now = perf_counter()
        self._searches.append((now, now - started))
        return now - started

    def _without(self, grounding: Grounding, why: str) -> Grounding:
        if grounding.options.on_budget == "refuse":
            self._metrics.grounded.labels("rejected").inc()
            raise RequestError(422, why, param="retrieval.on_budget", code="impossible_budget", kind="budget_error")
        grounding.outcome, grounding.explanation = "skipped", why
        return grounding

    def _counted(self, grounding: Grounding) -> Grounding:
        self._metrics.grounded.labels(grounding.outcome).inc()
        return grounding


def _detect(question: str, tools: Sequence[str], zone: tzinfo) -> "ToolResult | None":
    from serve.tools.intent import detect

    return detect(question, tools, datetime.now(zone), zone)


def _may_compute(question: str) -> bool:
    from serve.tools.intent import may_compute

    return may_compute(question)


def _no_collection(options: GroundingOptions) -> RequestError:
    message = f"collection '{options.collection}' does not exist"
    return RequestError(404, message, param=options.parameter, code="collection_not_found")


def _invalid(message: str, param: str) -> RequestError:
    return RequestError(400, message, param=param, code="invalid_retrieval")


def _since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
