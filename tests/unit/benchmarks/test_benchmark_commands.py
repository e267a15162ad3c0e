"""Exit codes of benchmark commands on errors and interruption, and resumption of a benchmark."""

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.compression import large_model
from benchmarks.lib.processes import command
from tests.support.tiny_model import SIZES, write_model


@pytest.fixture(autouse=True)
def _signals():
    """As in a terminal: a shell has its background jobs ignore Ctrl-C, and the tests may be one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_known_error_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as ended, command((KeyError, OSError), "start again"):
        raise OSError("no such weights")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such weights\n"


def test_an_unknown_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), command((OSError,), "start again"):
        raise ZeroDivisionError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_passes_through_every_with_and_says_what_to_do(number, capsys):
    left = []

    class Started:
        def __enter__(self):
            pass

        def __exit__(self, *_):
            left.append("stopped")

    with pytest.raises(SystemExit) as ended, command((), "start again"), Started():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert (ended.value.code, left) == (130, ["stopped"])
    assert capsys.readouterr().err == "interrupted: start again\n"


def test_another_shape_or_recipe_has_another_place_in_the_cache(monkeypatch):
    places = {large_model._digest()}
    monkeypatch.setitem(large_model.SHAPE, "num_hidden_layers", 8)
    places.add(large_model._digest())
    monkeypatch.setitem(large_model.VARIANTS, "pruned", large_model.VARIANTS["int8"])
    places.add(large_model._digest())
    assert len(places) == 3


def test_the_random_model_has_the_shape_and_another_models_tokenizer(tmp_path: Path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(large_model, "SHAPE", {**SIZES, "num_hidden_layers": 3})
    tokenizer_of = write_model(tmp_path / "other", layers=1)
    (tmp_path / "source.part").mkdir()  # an interrupted run left it
    large_model.random_model(tmp_path / "source", tokenizer_of)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    assert (len(model.model.layers), model.config.hidden_size) == (3, SIZES["hidden_size"])
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tokenizer_of, tmp_path / "source")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert model.get_input_embeddings().num_embeddings == len(tokenizers[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "source"]
