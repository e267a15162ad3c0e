"""Tool-calling agent: Haystack's `Agent` against a gateway, with limits on steps, calls and time."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
from haystack.components.agents import Agent
from haystack.components.agents.state import State
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.hooks import hook
from haystack.tools.tool import Tool
from haystack.utils import Secret

MAX_CALLS = 16  # tool calls in one run


class AgentError(Exception):
    """The agent failed. `status` is the model's HTTP status for an error response, 504 for a timeout, else 502."""

    def __init__(self, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, frozen=True)
class ToolUse:
    """One call of a tool."""

    name: str
    input: Mapping[str, Any]
    output: str


@dataclass(slots=True, frozen=True)
class AgentAnswer:
    """An agent's answer, with its tool calls and token usage."""

    text: str
    used: tuple[ToolUse, ...]
    usage: Mapping[str, int]  # tokens of all steps together, as OpenAI names them
    steps: int
    finish_reason: str  # stop, length or content_filter
    cost_usd: float = 0.0  # sum over all steps, as reported by the gateway
    attempts: int = 0  # attempts at variants, sum over all steps


async def run_agent(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    base_url: str,
    api_key: str,
    model: str,
    max_steps: int = 4,
    extra_body: Mapping[str, Any] | None = None,
    timeout_s: float = 60.0,
) -> AgentAnswer:
    """Let `model` call `tools` until it answers `messages` (OpenAI's format), in at most `max_steps` steps.

    An empty `api_key` means that the client has none. `base_url` ends in `/v1`. `extra_body` is added to every request's body
    (sampling, budget); it must turn off grounding on a gateway that runs agents itself. `timeout_s` covers the whole run, tools
    included. Nothing is retried here: the gateway retries.

    Raises:
        AgentError: invalid messages, an error response or no connection, or no answer within the time, the steps or
            `MAX_CALLS` calls.
    """
    try:
        history = [ChatMessage.from_openai_dict_format(dict(message)) for message in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise AgentError(f"the messages cannot be read: {error}", 400) from error
    # OpenAI's client requires a key, but a platform that allows anonymous access and has keys rejects unknown keys
    keyless = {} if api_key else {"extra_headers": {"Authorization": "none"}}
    spent: list[tuple[float, int]] = []

    async def keep_cost(response: httpx.Response) -> None:
        await response.aread()
        spent.append(_spent(response))

    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(api_key or "none"),
        model=model,
        api_base_url=base_url,
        generation_kwargs={"extra_body": dict(extra_body or {}), **keyless},
        timeout=timeout_s,
        max_retries=0,
        http_client_kwargs={"event_hooks": {"response": [keep_cost]}},
    )
    agent = Agent(
        chat_generator=generator,
        tools=list(tools),
        max_agent_steps=max_steps,
        hooks={"before_tool": [_bound_calls]},
    )
    try:
        async with asyncio.timeout(timeout_s):
            result = await agent.run_async(history)
    except (TimeoutError, openai.APITimeoutError) as error:
        raise AgentError(f"no answer within {timeout_s:g} s", 504) from error
    except openai.APIStatusError as error:
        raise AgentError(f"the model answered {error.status_code}: {_message(error)}", error.status_code) from error
    except openai.APIConnectionError as error:
        raise AgentError("the model cannot be reached", 502) from error
    except AgentError:
        raise
    except Exception as error:  # not a chat completion; Haystack raises many types
        raise AgentError(f"the model's answer cannot be read ({type(error).__name__})") from error
    finally:
        await generator.close_async()
    return replace(
        _answer(result, history, max_steps),
        cost_usd=sum(cost_usd for cost_usd, _ in spent),
        attempts=sum(attempts for _, attempts in spent),
    )


def _spent(response: httpx.Response) -> tuple[float, int]:
    """Cost and attempts of one step, from the response's `gearbox` object; zeros without one."""
    try:
        gearbox = response.json()["gearbox"]
        return float(gearbox["cost_usd"]), int(gearbox["attempts"])
    except (ValueError, LookupError, TypeError):
        return 0.0, 0


@hook
def _bound_calls(state: State) -> None:
    messages: list[ChatMessage] = state.data["messages"]
    if sum(len(message.tool_calls) for message in messages) > MAX_CALLS:
        raise AgentError(f"more than {MAX_CALLS} calls of tools")


def _answer(result: Mapping[str, Any], history: Sequence[ChatMessage], max_steps: int) -> AgentAnswer:
    new: list[ChatMessage] = result["messages"][len(history) :]
    used = tuple(
        ToolUse(outcome.origin.tool_name, outcome.origin.arguments, str(outcome.result))
        for message in new
        for outcome in message.tool_call_results
    )
    if result["exit_reason"] == "max_agent_steps":
        raise AgentError(f"no answer within {max_steps} steps ({len(used)} calls of tools)")
    last: ChatMessage = result["last_message"]
    usage = {name: int(count) for name, count in (result.get("token_usage") or {}).items() if isinstance(count, int)}
    return AgentAnswer(last.text or "", used, usage, result["step_count"], last.meta.get("finish_reason") or "stop")


def _message(error: openai.APIStatusError) -> str:
    """The message of an error in OpenAI's format."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)[:300]
