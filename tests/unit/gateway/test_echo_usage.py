"""A completion that only echoes its prompt counts no output tokens."""

import json

from benchmarks.lib.sample_catalog import MODEL
from tests.support.gateway_server import Started

ECHO = {"model": MODEL, "prompt": "a b c", "echo": True, "max_tokens": 0}


def test_of_a_whole_response(gateway: Started):
    answer = gateway.post("/v1/completions", ECHO).json()
    usage = answer["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (0, usage["prompt_tokens"])
    assert usage["prompt_tokens"] > 0
    longer = gateway.post("/v1/completions", {**ECHO, "max_tokens": 1}).json()
    assert longer["usage"]["completion_tokens"] > 0
    assert longer["gearbox"]["cost_usd"] > answer["gearbox"]["cost_usd"] > 0


def test_of_every_chunk_of_a_stream(gateway: Started):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = gateway.post("/v1/completions", {**ECHO, "stream": True, "stream_options": options})
    chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert len(chunks) > 2
    for chunk in chunks:
        assert (chunk["usage"]["completion_tokens"], chunk["usage"]["total_tokens"]) == (
            0,
            chunk["usage"]["prompt_tokens"],
        )
    assert chunks[-1]["gearbox"]["cost_usd"] > 0
