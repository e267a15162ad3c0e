"""Variant cards: round trip to disk, validation errors, and the digest that ties a card to its weights."""

import json

import pytest
from pydantic import ValidationError

from benchmarks.lib.sample_catalog import make_card, make_live_variant, make_profile, write_variant
from serve.card import CARD_FILE, CardError, check_card, load_card, weight_files, weights_digest
from serve.config.platform import ConfigError
from serve.config.sections import VariantConfig
from serve.routing.catalog import make_variant


def test_a_card_survives_the_disk(tmp_path):
    card = make_card("int8", quality=0.95)
    card.save(tmp_path)
    assert load_card(tmp_path) == card
    assert [file.name for file in tmp_path.iterdir()] == [CARD_FILE]


def test_saving_replaces_an_older_card(tmp_path):
    make_card("int8").save(tmp_path)
    make_card("int8", seed=7).save(tmp_path)
    assert load_card(tmp_path).seed == 7


def test_a_missing_card_is_named_with_its_folder(tmp_path):
    with pytest.raises(CardError, match=f"no card.json in {tmp_path}"):
        load_card(tmp_path)
    with pytest.raises(CardError, match=r"no card\.json in"):
        load_card(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_a_card_error(tmp_path):
    """`weights: model.safetensors` in a configuration, say."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CardError, match=r"model\.safetensors"):
        load_card(tmp_path / "model.safetensors")


def broken(tmp_path, change) -> str:
    document = json.loads(make_card("int8").model_dump_json())
    change(document)
    (tmp_path / CARD_FILE).write_text(json.dumps(document))
    with pytest.raises(CardError) as caught:
        load_card(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / CARD_FILE} is not a valid card: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda card: card.pop("weights_digest"), "weights_digest"),
        (lambda card: card.update(weights_digest="sha256:short"), "weights_digest"),
        (lambda card: card.update(colour="red"), "colour"),
        (lambda card: card.update(schema_version=2), "schema_version"),
        (lambda card: card.update(steps=[]), "steps"),
        (lambda card: card["quality"].update(quality=1.5), "quality.quality"),
        (lambda card: card["quality"].update(perplexity=None), "quality.perplexity"),
        (lambda card: card["profile"].update(ttft=[]), "profile.ttft"),
        (lambda card: card["profile"]["tpot"][0].update(p50_ms=0), "profile.tpot.0.p50_ms"),
        (lambda card: card["profile"].update(prefill_tokens_per_s=0), "profile.prefill_tokens_per_s"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, place):
    assert f": {place}: " in broken(tmp_path, change)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_card_that_is_no_json_object_is_a_card_error(tmp_path, content):
    (tmp_path / CARD_FILE).write_bytes(content)
    with pytest.raises(CardError, match="is not a valid card"):
        load_card(tmp_path)


def test_a_card_belongs_to_its_weights(tmp_path):
    write_variant(tmp_path)
    check_card(load_card(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weightz"),
        lambda folder: (folder / "model-2.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
    ],
    ids=["changed", "one more", "renamed"],
)
def test_other_weights_beside_a_card_are_noticed(tmp_path, change):
    write_variant(tmp_path)
    change(tmp_path)
    with pytest.raises(CardError, match=r"does not match the weights in .*rebuild or remove"):
        check_card(load_card(tmp_path), tmp_path)


def test_two_swapped_shards_are_noticed(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    before = weights_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"2")
    (tmp_path / "b.safetensors").write_bytes(b"1")
    assert weights_digest(tmp_path) != before


def test_only_safetensors_count_as_weights(tmp_path):
    write_variant(tmp_path)
    before = weights_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(tmp_path) == before
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_a_folder_without_weights_is_a_card_error(tmp_path):
    with pytest.raises(CardError, match=r"no weights \(\*\.safetensors\) in"):
        check_card(make_card(), tmp_path)


def test_a_card_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        make_card().seed = 3


def test_cost_is_the_share_of_a_fully_used_machine():
    profile = make_profile(prefill_tokens_per_s=1000, decode_tokens_per_s=100, price_usd_per_hour=3.6)
    assert profile.cost_usd(1000, 100) == pytest.approx(2 * 0.001)
    assert profile.cost_usd(1000, 100, price_usd_per_hour=36) == pytest.approx(2 * 0.01)
    assert profile.cost_usd(1000, 100, price_usd_per_hour=0) == 0


CONFIG = VariantConfig(name="int8", recipe="int8")


def test_an_unmeasured_card_is_no_variant():
    with pytest.raises(ConfigError, match="variant 'int8'"):
        make_variant(CONFIG, make_card("int8", quality=None), {}, 4)


def test_the_configured_price_and_context_win_over_the_cards():
    card = make_card("int8", max_model_len=8192, profile=make_profile(price_usd_per_hour=1))
    plain = make_variant(CONFIG, card, {}, 4)
    assert (plain.price_usd_per_hour, plain.max_model_len) == (1, 8192)
    priced = CONFIG.model_copy(update={"price_usd_per_hour": 2.0})
    configured = make_variant(priced, card, {"max_model_len": 1024, "max_num_seqs": 3}, 4)
    assert (configured.price_usd_per_hour, configured.max_model_len, configured.max_running) == (2, 1024, 3)
    assert configured.cost_usd(0, 3600) == pytest.approx(2 * 36 / 3600)


def test_a_variant_scales_to_zero_where_its_bounds_say_so():
    assert not make_variant(CONFIG, make_card("int8"), {}, 4).scales_to_zero
    asleep = CONFIG.model_copy(update={"replicas": CONFIG.replicas.model_copy(update={"min": 0})})
    assert make_variant(asleep, make_card("int8"), {}, 4).scales_to_zero


def test_a_price_of_nothing_is_none_at_all():
    card = make_card("int8", profile=make_profile(price_usd_per_hour=1))
    free = make_variant(CONFIG.model_copy(update={"price_usd_per_hour": 0.0}), card, {}, 4)
    assert (free.price_usd_per_hour, free.cost_usd(1000, 1000)) == (0, 0)
    unset = make_variant(VariantConfig(name="int8", recipe="int8"), card, {}, 4)
    assert unset.price_usd_per_hour == 1


@pytest.mark.parametrize("length", [None, -1, 0])
def test_a_context_that_vllm_is_to_find_is_taken_to_be_the_cards(length):
    assert (
        make_variant(CONFIG, make_card("int8", max_model_len=8192), {"max_model_len": length}, 4).max_model_len == 8192
    )


def test_the_summary_prices_a_million_tokens():
    summary = make_live_variant("int8", quality=0.95, tpot_ms=20, price=0.36).summary()
    assert summary["usd_per_million_input_tokens"] == pytest.approx(0.1)
    assert summary["usd_per_million_output_tokens"] == pytest.approx(1.0)
    assert summary["decode_tokens_per_s"] == 50
    assert summary["quality"] == 0.95
    assert json.dumps(summary)
