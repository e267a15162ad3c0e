"""Client commands: chat, route, and API keys. `deployments.cli` adds the other commands."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from serve.cli.top import top
from serve.gateway.auth import new_key

app = typer.Typer(
    help="Gearbox: one LLM as several gears, shifted per request.", no_args_is_help=True, pretty_exceptions_enable=False
)
keys = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.command()(top)

Url = Annotated[str, typer.Option(envvar="GEARBOX_URL", help="Base URL of the platform.")]
Key = Annotated[
    str, typer.Option(envvar="GEARBOX_API_KEY", help="API key; not needed where anonymous access is allowed.")
]
LOCAL = "http://127.0.0.1:8000"
RETRY_S = 60.0  # for how long a request is retried: time for a database or gateway to restart
RETRY_STATUSES = (429, 502, 503, 504)


@app.command()
def chat(
    model: Annotated[
        str, typer.Option(help="MODEL, MODEL@PROFILE or MODEL:VARIANT; default: the platform's model.")
    ] = "",
    url: Url = LOCAL,
    api_key: Key = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
) -> None:
    """Chat in the terminal. Shows the variant and the timings of each answer.

    `/model NAME` changes the model, `/reset` forgets the conversation, Ctrl-D ends it; Ctrl-C stops an answer.
    """
    console = Console()
    with platform_client(url, api_key) as client:
        model = model or model_name(client)
        console.print(f"[bold]{model}[/] at {url}   [dim]/model NAME · /reset · Ctrl-D to leave[/]")
        history: list[dict[str, str]] = []
        while True:
            try:
                text = console.input("[bold cyan]you>[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if text.startswith("/model "):
                model = text.removeprefix("/model ").strip()
            elif text == "/reset":
                history.clear()
            elif text:
                _turn(console, client, model, history, text, max_tokens)


def _turn(
    console: Console, client: httpx.Client, model: str, history: list[dict[str, str]], text: str, max_tokens: int
) -> None:
    """Send one message and print its streamed answer; a failed or stopped turn is not added to the conversation."""
    messages = [*history, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}
    answer, facts = "", None
    try:
        for chunk in _stream(client, body):
            if "error" in chunk:
                console.print("\n" + chunk["error"]["message"], style="red", markup=False, highlight=False)
                return
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            answer += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
            facts = chunk.get("gearbox", facts)
    except KeyboardInterrupt:
        console.print("\n[yellow]stopped[/]")
        return
    except httpx.HTTPError as error:
        text = f"no answer from {client.base_url}: {error or type(error).__name__}"
        console.print(text, style="red", markup=False, highlight=False)
        return
    history[:] = [*messages, {"role": "assistant", "content": answer}]
    if facts:
        console.print(f"\n[dim]{_summary(facts)}[/]", highlight=False)
        for source in facts.get("citations", ()):
            console.print(f"  source {source['n']}: {source['title'] or source['source']}", style="dim", markup=False)


def _summary(facts: dict[str, Any]) -> str:
    """Summary line of an answer, from its `gearbox` object."""
    took = f"first token {facts['ttft_ms']:.0f} ms" if facts["ttft_ms"] is not None else ""
    if facts["variant"] is None:
        return f"no variant ({facts['reason']}) · {took}"
    tpot = f" · {1000 / facts['tpot_ms']:.0f} tok/s" if facts["tpot_ms"] else ""
    grounded = f" · {'grounded' if facts['grounded'] else 'not grounded'}" if facts.get("grounded") is not None else ""
    return (
        f"{facts['variant']} ({facts['reason']}) · {took}{tpot} · {facts['e2e_ms'] / 1000:.2f} s · "
        f"quality {facts['quality']:.3f} · {facts['cost_usd'] * 1e6:.2f} µ${grounded}"
    )


def _stream(client: httpx.Client, body: dict[str, object]) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            yield {"error": {"message": _error_message(response)}}
            return
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line[6:])


@app.command()
def route(
    prompt: Annotated[str, typer.Argument(help="The user's message.")],
    model: Annotated[str, typer.Option(help="MODEL or MODEL@PROFILE; default: the platform's model.")] = "",
    url: Url = LOCAL,
    api_key: Key = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    ttft_ms: Annotated[float | None, typer.Option(help="Limit on the time to first token.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Limit on the time per output token after the first.")] = None,
    e2e_ms: Annotated[float | None, typer.Option(help="Limit on the end-to-end time.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Limit on the cost, in USD.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Quality floor, 0 to 1, relative to full.")] = None,
    objective: Annotated[str | None, typer.Option(help="quality, cost or latency.")] = None,
) -> None:
    """Show the routing decision for a message, without generating an answer."""
    limits = {
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "e2e_ms": e2e_ms,
        "max_cost": max_cost,
        "min_quality": min_quality,
    }
    budget = {name: value for name, value in {**limits, "objective": objective}.items() if value is not None}
    with platform_client(url, api_key) as client:
        body = {
            "model": model or model_name(client), "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens, "budget": budget,
        }  # fmt: skip
        decision = checked(client.post("/v1/route", json=body))
    if decision["variant"] is None:
        return typer.echo(f"answered without a variant: {decision['reason']}")
    table = Table("variant", "quality", "TTFT ms", "TPOT ms", "E2E ms", "cost µ$", "verdict")
    for candidate in decision["candidates"]:
        chosen = candidate["variant"] == decision["variant"]
        verdict = f"chosen: {decision['reason']}" if chosen else candidate["why"] or "fits"
        table.add_row(
            candidate["variant"], f"{candidate['quality']:.3f}", f"{candidate['predicted_ttft_ms']:.0f}",
            f"{candidate['predicted_tpot_ms']:.1f}", f"{candidate['predicted_e2e_ms']:.0f}",
            f"{candidate['cost_usd'] * 1e6:.2f}", verdict, style="bold green" if chosen else "",
        )  # fmt: skip
    Console().print(table)


@keys.command("new")
def keys_new(
    tenant: Annotated[str, typer.Argument(help="Owner of the key.")],
    budget: Annotated[str, typer.Option(help="Its default budget profile.")] = "balanced",
) -> None:
    """Create an API key. The key is shown once; the configuration gets its hash."""
    key, digest = new_key()
    typer.echo(f"key (keep it secret, it is not stored): {key}\n")
    typer.echo(
        f"under access.keys in the configuration:\n  - {{sha256: {digest}, tenant: {json.dumps(tenant)}, budget: {json.dumps(budget)}}}"
    )


@contextmanager
def platform_client(url: str, api_key: str) -> Iterator[httpx.Client]:
    """An HTTP client for the platform; its errors end the command with a one-line message."""
    with httpx.Client(**connection(url, api_key), timeout=httpx.Timeout(600, connect=5)) as client:
        try:
            yield client
        except httpx.HTTPError as error:
            raise fail(f"no answer from {url}: {error or type(error).__name__}") from error


def connection(url: str, api_key: str) -> dict[str, Any]:
    """The arguments of an HTTP client for the platform: base URL and headers. What is no URL or no key ends the command."""
    key = api_key.strip()  # a file's last line has an end
    if not (key.isascii() and key.isprintable()):
        raise fail("the API key has characters that no key has", 2)
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise fail(f"{url} is not a URL: {error}", 2) from error
    return {"base_url": base, "headers": {"authorization": f"Bearer {key}"} if key else {}}


def model_name(client: httpx.Client) -> str:
    """The name of the platform's model."""
    return str(checked(client.get("/v1/models"))["data"][0]["id"])


def checked(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a response; an error response ends the command with its message."""
    if response.status_code != 200:
        raise fail(_error_message(response))
    try:
        document: dict[str, Any] = response.json()
    except ValueError as error:
        raise fail(not_gearbox(response)) from error
    return document


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return not_gearbox(response)


def not_gearbox(response: httpx.Response) -> str:
    """The message about a response that no platform sends."""
    return f"{response.url} is not a Gearbox platform: its response ({response.status_code}) is not of the API"


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print one line on stderr; raise the returned exception to exit with `code`."""
    typer.echo(f"gearbox: {message}", err=True)
    return typer.Exit(code)
