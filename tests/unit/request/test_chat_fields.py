"""Chat fields that the gateway rejects without an engine, and the error messages."""

import pytest

from serve.errors import RequestError
from serve.request.chat_fields import read_fields
from tests.support.chat_bodies import REFUSED, REFUSED_ELSEWHERE, TAKEN, said


def test_what_an_engine_takes_is_taken(subtests: pytest.Subtests):
    for body in TAKEN:
        with subtests.test(str(body)):
            read_fields({**said(), **body})


def test_what_an_engine_refuses_is_400_by_name(subtests: pytest.Subtests):
    for body, param in [*REFUSED, *REFUSED_ELSEWHERE]:
        with subtests.test(str(body)):
            with pytest.raises(RequestError) as caught:
                read_fields({**said(), **body})
            assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "invalid_request")
            assert caught.value.message.startswith(f"invalid '{param}': ")


def test_an_error_names_all_that_the_field_could_be_and_repeats_nothing_of_the_request():
    with pytest.raises(RequestError) as caught:
        read_fields({**said(), "stop": 31337})
    assert caught.value.message == "invalid 'stop': input should be a valid string, or input should be a valid list"


def test_fields_are_read_as_the_engine_reads_them():
    fields = read_fields({**said(), "n": "2", "stop": "x", "max_tokens": 9, "max_completion_tokens": 5})
    assert (fields.choices, fields.stops, fields.token_limit) == (2, ["x"], 5)
    fields = read_fields(said())
    assert (fields.choices, fields.stops, fields.token_limit) == (1, [], None)
