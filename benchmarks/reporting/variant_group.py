"""The cards of a result as what `gearbox report` draws."""

from compression.report.page import Group, Row
from serve.card import Card


def group(result: dict[str, object]) -> Group:
    """The result's cards as what `gearbox report` draws."""
    cards = [Card.model_validate(card) for card in result["variants"].values()]  # type: ignore[attr-defined]
    rows = [Row(card.name, card, card.quality, card.profile) for card in cards if card.quality and card.profile]
    return Group(str(result["model"]), rows[0].profile.hardware, sorted(rows, key=lambda row: -row.quality.quality))
