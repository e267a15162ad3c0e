"""Chat completion bodies that the engine accepts and rejects: `tests/integration/test_chat_fields_engine.py` sends them."""

from typing import Any

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "look_up"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def said(*earlier: Any) -> dict[str, Any]:
    """A conversation with these first messages that ends with a question."""
    return {"messages": [*earlier, {"role": "user", "content": "What is 2 + 2?"}]}


TAKEN: list[dict[str, Any]] = [
    {},
    {"n": None, "stop": None, "temperature": None, "tools": None, "tool_choice": None, "response_format": None, "seed": None,
     "logprobs": None, "top_logprobs": None, "logit_bias": None, "stream_options": None, "user": None, "max_tokens": None},
    {"n": 3}, {"n": "3"}, {"n": 2.0}, {"n": 128},
    {"stop": []}, {"stop": ["a", "b", "c", "d"]}, {"stop": "\n"},
    {"temperature": "0.5"}, {"temperature": 2}, {"top_p": 1}, {"top_k": -1}, {"min_p": 0}, {"seed": -1},
    {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.1},
    {"response_format": {"type": "text"}}, {"response_format": {"type": "json_object"}}, {"response_format": SCHEMA},
    {"structured_outputs": {"choice": ["4", "5"]}}, {"structured_outputs": {"json": {"type": "object"}}},
    {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": NAMED},
    {"tools": [TOOL], "tool_choice": "none"}, {"tool_choice": "none"},
    {"logprobs": True, "top_logprobs": 5}, {"top_logprobs": 0}, {"logit_bias": {"50": 1.5}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}, {"stream_options": {}},
    {"min_tokens": 2, "max_tokens": 2}, {"max_completion_tokens": 5}, {"ignore_eos": True}, {"echo": True},
    {"priority": 3, "request_id": "a", "documents": [{"text": "a"}], "skip_special_tokens": False, "truncate_prompt_tokens": 9,
     "thinking_token_budget": 5, "allowed_token_ids": [1], "bad_words": ["a"], "mm_processor_kwargs": {}, "vllm_xargs": {"a": 1}},
    {"truncate_prompt_tokens": None, "documents": None, "thinking_token_budget": None, "allowed_token_ids": None},
    {"n": 2, "temperature": 0.5},
    {"metadata": {"a": "b"}, "store": True, "modalities": ["text"], "user": "u", "anything": 5}, {"reasoning_effort": "low"},
    said({"role": "system", "content": "Be brief."}, {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}),
    said({"role": "user", "content": [IMAGE, {"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "hello"}),
    said({"role": "user", "content": "hi", "name": "ann"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
         {"role": "tool", "tool_call_id": "c1", "content": "found"}),
    said({"role": "assistant", "content": None}), said({"role": "user", "content": ""}),
]  # fmt: skip

#: Rejected bodies, with the `param` of the error.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"), ({"n": -1}, "n"), ({"n": 1.5}, "n"), ({"n": "many"}, "n"), ({"n": []}, "n"),
    ({"stop": 5}, "stop"), ({"stop": ""}, "stop"), ({"stop": [1]}, "stop[0]"), ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 5}, "stop"), ({"include_stop_str_in_output": "x"}, "include_stop_str_in_output"),
    ({"temperature": "hot"}, "temperature"), ({"temperature": 2.5}, "temperature"), ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"top_k": -2}, "top_k"), ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": "x"}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"seed": "x"}, "seed"), ({"seed": 2**63}, "seed"),
    ({"response_format": {"type": "bogus"}}, "response_format.type"), ({"response_format": {}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"), ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"structured_outputs": {}}, "structured_outputs"), ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
    ({"tools": []}, "tools"), ({"tools": "x"}, "tools"), ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
    ({"tool_choice": "auto"}, "tool_choice"), ({"tools": [TOOL], "tool_choice": "bogus"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"parallel_tool_calls": "x"}, "parallel_tool_calls"), ({"logprobs": 3}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -2}, "top_logprobs"), ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"50": "x"}}, "logit_bias.50"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "maybe"}}, "stream_options.include_usage"),
    ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"), ({"min_tokens": -1}, "min_tokens"), ({"user": 5}, "user"),
    ({"documents": "x"}, "documents"), ({"thinking_token_budget": "x"}, "thinking_token_budget"),
    ({"skip_special_tokens": "q"}, "skip_special_tokens"), ({"kv_transfer_params": 5}, "kv_transfer_params"),
    ({"vllm_xargs": 5}, "vllm_xargs"), ({"request_id": 5}, "request_id"), ({"mm_processor_kwargs": 5}, "mm_processor_kwargs"),
    ({"bad_words": 5}, "bad_words"), ({"bad_words": [""]}, "bad_words[0]"), ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"stop": ["a"] * 5, "stream": True}, "stop"), ({"n": 2, "temperature": 0}, "n"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"), ({"echo": "x"}, "echo"), ({"ignore_eos": "x"}, "ignore_eos"),
    (said({"content": "x"}), "messages[0].role"), (said({"role": 5, "content": "x"}), "messages[0].role"),
    (said({"role": "user", "content": 5}), "messages[0].content"), (said({"role": "user", "content": None}), "messages[0].content"),
    (said({"role": "user", "content": "x", "name": 5}), "messages[0].name"),
    (said({"role": "assistant", "tool_calls": [{"id": "c1"}]}), "messages[0].tool_calls[0].function"),
]  # fmt: skip

#: Bodies that OpenAI's API rejects, but this engine accepts, or rejects only when it renders the prompt.
REFUSED_ELSEWHERE: list[tuple[dict[str, Any], str]] = [
    ({"n": 129}, "n"),
    ({"logit_bias": {"50": 101}}, "logit_bias.50"),
    ({"logit_bias": {"+5": 1}}, "logit_bias.+5"),
    ({"logit_bias": {"50": -101}}, "logit_bias.50"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"chat_template": "{{"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "*a"}}, "structured_outputs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    (said({"role": "system", "content": {"a": 1}}), "messages[0].content"),
    (said({"role": "robot", "content": "x"}), "messages[0].role"),
    (said({"role": "user"}), "messages[0].content"),
    (said({"role": "user", "content": [{"type": "bogus"}]}), "messages[0].content[0].type"),
    (said({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
    (said({"role": "user", "content": [{"type": "text", "text": 5}]}), "messages[0].content[0].text"),
]
