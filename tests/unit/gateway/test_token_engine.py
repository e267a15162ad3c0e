"""The token engine of the continuation's tests writes what the installed vLLM writes, also after the tokens of another engine."""

from types import SimpleNamespace

import pytest

from tests.support.token_engine import TokenEngine, byte_tokenizer
from tests.unit.gateway.test_continuation import ANSWERS, STOPS


@pytest.mark.slow
@pytest.mark.parametrize("text", ANSWERS)
def test_it_streams_as_vllms_detokenizer(text):
    detokenizer = pytest.importorskip("vllm.v1.engine.detokenizer")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    ids = byte_tokenizer().encode(text).ids
    starts = [at for at in range(len(ids)) if not byte_tokenizer().decode(ids[:at]).endswith("\ufffd")]
    for more in STOPS:
        stop = more.get("stop") or []
        params = SimpleNamespace(
            stop=[stop] if isinstance(stop, str) else stop,
            include_stop_str_in_output=more.get("include_stop_str_in_output", False),
            min_tokens=0,
            skip_special_tokens=True,
            spaces_between_special_tokens=True,
        )
        for at in starts:
            prompt = byte_tokenizer().encode("the prompt").ids + ids[:at]
            request = SimpleNamespace(sampling_params=params, request_id="a", prompt_token_ids=prompt)
            engine = detokenizer.FastIncrementalDetokenizer(tokenizer, request)
            written = []
            for n, token in enumerate(ids[at:], 1):
                found = engine.update([token], False)
                finished = found is not None or n == len(ids) - at
                piece = engine.get_next_output_text(finished, True)
                written.append((piece, [token], "stop" if finished else None, found))
                if finished:
                    break
            assert list(TokenEngine(text)._steps({**more, "max_tokens": 1000}, at, ids)) == written, (more, at)
