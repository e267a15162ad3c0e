"""A model that always writes the same answer, token by token as vLLM's front end streams it: ids, held characters, stop sequences.

Its tokenizer is byte-level: tokens of one byte or a few, so that characters are cut into several tokens.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HEAD = {"created": 1790000000, "model": "smollm2-135m"}


@cache
def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE with a few merges, some of which cross characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the gear 漢字漢字 größe", "the 😀😀 gears of the box"] * 4, trainer)
    return tokenizer


@dataclass
class TokenEngine:
    """Answers bodies of chat completions and completions with events. `burst` tokens come in one event."""

    answer: str
    burst: int = 1
    requests: list[dict[str, Any]] = field(default_factory=list)

    def detokenize(self, tokens: list[int]) -> str:
        return byte_tokenizer().decode(tokens)

    def events(self, body: dict[str, Any]) -> Iterator[bytes]:
        """The events of one stream."""
        self.requests.append(body)
        chat = "messages" in body
        ids = byte_tokenizer().encode(self.answer).ids
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        written: list[int] = []
        if isinstance(prompt, list):
            start = byte_tokenizer().encode("the prompt").ids
            written = prompt[len(start) :]
            assert prompt[: len(start)] == start, "it is the prompt of the first engine"
            assert written == ids[: len(written)], "no token is lost, and none is another one"
            text_so_far = byte_tokenizer().decode(prompt)
            assert not text_so_far.endswith("\ufffd"), "vLLM repeats the prompt where it ends in half a character"
            prompt = start
        else:
            prompt = byte_tokenizer().encode(prompt).ids
        head = {
            "id": "chatcmpl-1" if chat else "cmpl-7",
            "object": "chat.completion.chunk" if chat else "text_completion",
            **HEAD,
        }
        shows = body.get("return_token_ids") is True
        if chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            yield _event({**head, "choices": [first], "prompt_token_ids": prompt if shows else None})
        new = 0
        for text, tokens, finish, stop_reason in self._steps(body, len(written), ids):
            new += len(tokens)
            choice: dict[str, Any] = {"index": 0}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            choice |= {"logprobs": None, "finish_reason": finish}
            if finish or not chat:
                choice["stop_reason"] = stop_reason
            if not chat:
                choice["prompt_token_ids"] = [*prompt, *written] if shows and new == len(tokens) else None
            choice["token_ids"] = tokens if shows else None
            yield _event({**head, "choices": [choice]})
        read = len(prompt) + len(written)
        yield _event(
            {
                **head,
                "choices": [],
                "usage": {"prompt_tokens": read, "total_tokens": read + new, "completion_tokens": new},
            }
        )
        yield b"data: [DONE]\n\n"

    def _steps(
        self, body: dict[str, Any], at: int, ids: list[int]
    ) -> Iterator[tuple[str, list[int], str | None, str | None]]:
        """Text, tokens, finish reason and stop reason of each event, as `vllm.v1.engine.detokenizer` has them."""
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        include = body.get("include_stop_str_in_output", False)
        buffer = 0 if include or not stops else max(map(len, stops)) - 1
        limit = body.get("max_tokens") or len(ids)
        generated: list[int] = []
        pending: list[int] = []
        sent, text = 0, ""
        for n, token in enumerate(ids[at : at + limit]):
            generated.append(token)
            pending.append(token)
            decoded = byte_tokenizer().decode(generated)
            text = text if decoded.endswith("\ufffd") else decoded
            finish, stop_reason = None, None
            found = [(text.find(stop), stop) for stop in stops if stop in text]
            if found:
                where, stop_reason = min(found, key=lambda one: one[0] + len(one[1]))
                text, finish = text[: where + len(stop_reason) if include else where], "stop"
            elif at + n + 1 == len(ids):
                finish = "stop"
            elif n + 1 == limit:
                finish = "length"
            if finish or len(pending) == self.burst:
                end = len(text) if finish else max(sent, len(text) - buffer)
                yield text[sent:end], pending, finish, stop_reason
                sent, pending = max(sent, end), []
            if finish:
                return


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
