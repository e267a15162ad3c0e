"""The clock: dates, times and numbers of days, in the language that is asked for."""

from datetime import UTC, date, datetime

import pytest

from serve.tools.clock import ClockError, ClockQuestion, answer, parse_day

NOW = datetime(2026, 11, 25, 3, 40, tzinfo=UTC)
TODAY = NOW.date()


def test_a_named_place_has_its_own_time_and_daylight_saving():
    berlin = ClockQuestion("time", TODAY, zone="Europe/Berlin")
    assert answer(berlin, NOW, UTC, "de") == "Mittwoch, 25. November 2026, 04:40:00 Mitteleuropäische Normalzeit"
    assert "05:40:00 Mitteleuropäische Sommerzeit" in answer(berlin, NOW.replace(month=7), UTC, "de")
    with pytest.raises(ClockError, match="no time zone 'Mars'"):
        answer(ClockQuestion("time", TODAY, zone="Mars"), NOW, UTC)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-12-25", date(2026, 12, 25)), ("25 December 2026", date(2026, 12, 25)), ("July 4, 1976", date(1976, 7, 4)),
        ("feb 2", date(2026, 2, 2)), ("14 de julio de 1789", date(1789, 7, 14)), ("24. Dezember", date(2026, 12, 24)),
        ("tomorrow", date(2026, 11, 26)), ("in 3 weeks", date(2026, 12, 16)), ("vor 3 Tagen", date(2026, 11, 22)),
    ],
)  # fmt: skip
def test_a_day_is_read_in_any_language(written, expected):
    assert parse_day(written, TODAY) == expected


@pytest.mark.parametrize(
    "written",
    ["soon", "2026-02-31", "3/4/2025", "1.5 May 2026", "today tomorrow", "in 99999 weeks " * 3, "today" + " " * 200],
)
def test_what_is_no_day_is_refused(written):
    with pytest.raises(ClockError, match="is no date"):
        parse_day(written, TODAY)
