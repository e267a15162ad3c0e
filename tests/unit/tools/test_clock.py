"""The clock answers pure questions of dates, times and numbers of days, and intent detection names the tool used."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.tools.clock import ClockError, ClockQuestion, Day, answer, find_question, parse_day, time_zone
from serve.tools.intent import DETECTED, detect
from tests.unit.tools.questions_arithmetic import COMPUTATIONS
from tests.unit.tools.questions_clock import CLOCK, FRESH_CLOCK, FRESH_NOT_CLOCK, NOT_CLOCK
from tests.unit.tools.questions_not_arithmetic import NOT_COMPUTATIONS

NOW = datetime(2026, 11, 25, 3, 40, tzinfo=UTC)
DATES = st.dates(date(1, 1, 1), date(9999, 12, 31))


def test_there_are_enough_questions_to_tell():
    assert len(CLOCK) >= 60
    assert len({*NOT_CLOCK}) >= 120


def test_a_look_at_the_clock_is_answered(subtests: pytest.Subtests):
    for question, expected in CLOCK.items():
        with subtests.test(question):
            found = find_question(question)
            assert found is not None
            assert answer(found, NOW, UTC) == expected


def test_anything_else_is_left_to_the_model(subtests: pytest.Subtests):
    for question in [*NOT_CLOCK, *NOT_COMPUTATIONS, *COMPUTATIONS]:
        with subtests.test(question):
            assert find_question(question) is None


def test_questions_the_rules_never_saw_are_told_apart():
    assert len(list(filter(find_question, FRESH_CLOCK))) >= 19
    assert list(filter(find_question, FRESH_NOT_CLOCK)) == []


def test_today_is_where_the_caller_is():
    found = find_question("What is today's date?")
    assert found is not None
    assert answer(found, NOW, ZoneInfo("America/New_York")) == "Today is Tuesday, 24 November 2026."
    assert answer(found, NOW.replace(hour=20), ZoneInfo("Asia/Tokyo")) == "Today is Thursday, 26 November 2026."


def test_a_named_place_has_its_own_time_and_daylight_saving():
    found = find_question("What time is it in Berlin?")
    assert found is not None
    assert "04:40 in Berlin (CET)" in answer(found, NOW, UTC)
    assert "05:40 in Berlin (CEST)" in answer(found, NOW.replace(month=7), UTC)


@given(DATES)
def test_weekdays_agree_with_the_calendar(when):
    text = answer(ClockQuestion("weekday", Day(when.month, when.day, when.year)), NOW, UTC)
    assert text.endswith(f"a {when:%A}.")


@given(DATES, DATES)
def test_days_between_agree_with_the_calendar(first, last):
    text = answer(ClockQuestion("days", parse_day(first.isoformat()), parse_day(last.isoformat())), NOW, UTC)
    count = (last - first).days
    assert f"it is {abs(count)} day" in text
    assert ("back" in text) == (count < 0)


@given(st.datetimes(datetime(2, 1, 1), datetime(9990, 1, 1)), st.integers(-300, 300))
def test_days_away_are_counted_over_months_and_years(now, days):
    text = answer(ClockQuestion("date", Day(offset=days)), now.replace(tzinfo=UTC), UTC)
    assert str((now + timedelta(days)).year) in text


@given(DATES)
def test_a_date_without_a_year_is_the_next_one(today):
    if today.year < 9990:
        found = Day(2, 29).on(today, next_one=True)
        assert found >= today
        assert (found.month, found.day) == (2, 29)


@pytest.mark.parametrize("written", ["31 February 2026", "2026-13-01", "2026-02-30", "soon", "", "25", "0 May 2026"])
def test_a_date_that_does_not_exist_is_said(written):
    with pytest.raises(ClockError):
        parse_day(written).on(NOW.date())


def test_counts_beyond_the_calendar_are_said_not_raised():
    assert answer(ClockQuestion("date", Day(offset=99999999)), NOW, UTC) == "There is no such day."


@pytest.mark.parametrize("name", ["Mars/Base", "../../etc/passwd", "/etc/passwd", "", "Europe", "\0"])
def test_a_zone_that_does_not_exist_is_said(name):
    with pytest.raises(ClockError):
        time_zone(name)


@given(st.text(max_size=200))
def test_no_text_breaks_the_detection(text):
    find_question(text)


def test_detected_questions_can_be_written_as_the_tools_arguments(subtests: pytest.Subtests):
    for question in CLOCK:
        with subtests.test(question):
            found = find_question(question)
            assert found is not None
            given = found.arguments
            again = ClockQuestion(
                given["what"],
                parse_day(given.get("date", "today")),
                parse_day(given["until"]) if "until" in given else None,
                given.get("timezone"),
            )
            assert again == found


def test_detection_uses_only_what_is_enabled():
    assert DETECTED == ("calculator", "clock")
    computed = detect("What is 40366 / 439?", DETECTED, NOW, UTC)
    assert computed is not None
    assert (computed.name, computed.input) == ("calculator", {"expression": "40366 / 439"})
    assert (computed.output, computed.answer) == ("91.949886104784", "40366 / 439 ≈ 91.949886104784")
    text = detect("What year is it?", DETECTED, NOW, UTC)
    assert text is not None
    assert (text.name, text.input, text.output) == ("clock", {"what": "year"}, "It is 2026.")
    assert detect("What is 40366 / 439?", ["clock"], NOW, UTC) is None
    assert detect("What year is it?", ["calculator"], NOW, UTC) is None
    assert detect("What year is it?", [], NOW, UTC) is None
    assert detect("Who is it?", DETECTED, NOW, UTC) is None


def test_what_has_no_result_is_answered_with_why():
    found = detect("What is 1 / 0 = ?", DETECTED, NOW, UTC)
    assert found is not None
    assert found.output == "a division by zero has no result"
    assert found.answer == "1 / 0: a division by zero has no result"
