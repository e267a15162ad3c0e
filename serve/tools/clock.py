"""Date and time for models that have no clock and cannot count days: answers in the question's language, and detection of questions.

Dates are proleptic Gregorian. The current time is a parameter; names of days and months are those of CLDR, from dateparser and Babel.
"""

import re
import zoneinfo
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal

from babel import Locale
from babel.core import get_global
from babel.dates import format_date, format_datetime
from babel.units import format_unit

from serve.tools.vocabulary import Language, languages, split_words

QuestionKind = Literal["time", "date", "days"]
_ISO = re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)")
_DAY_MONTH = re.compile(
    r"(?P<day>\d{1,2})[^\W\d]{0,2}[.º]? (?:[^\W\d]{1,3} )?m(?P<month>\d{1,2})(?: (?:[^\W\d]{1,3} )?(?P<year>\d{4}))?"
)
_MONTH_DAY = re.compile(r"m(?P<month>\d{1,2}) (?P<day>\d{1,2})[^\W\d]{0,2}(?: (?P<year>\d{4}))?")
_DATE_WORDS = 6  # most words of a date
_DIGIT = re.compile(r"\d")
_PLACE_WORDS = 4
MAX_CHARS = 100  # limit on a date


class ClockError(ValueError):
    """A date or time zone that does not exist; the message is for users."""


@dataclass(slots=True, frozen=True)
class ClockQuestion:
    """A question about date or time."""

    kind: QuestionKind
    day: date
    until: date | None = None  # for "days", which counts from `day`
    zone: str | None = None  # name in the time zone database, when a place is named

    @property
    def arguments(self) -> dict[str, str]:
        """The clock tool's arguments for this question."""
        until = self.until.isoformat() if self.until else ""
        arguments = {"what": self.kind, "date": self.day.isoformat(), "until": until, "timezone": self.zone or ""}
        return {name: value for name, value in arguments.items() if value and (name, self.kind) != ("date", "time")}


def answer(question: ClockQuestion, now: datetime, zone: tzinfo, language: str = "en") -> str:
    """The answer in `language` (ISO 639-1), as a date, a time or a number of days. `now` is timezone-aware.

    Raises:
        ClockError: the question's time zone does not exist.
    """
    if question.kind == "time":
        here = now.astimezone(time_zone(question.zone) if question.zone else zone)
        return str(format_datetime(here, "full", locale=language))
    if question.kind == "date" or question.until is None:
        return str(format_date(question.day, "full", locale=language))
    days = format_unit(abs((question.until - question.day).days), "duration-day", locale=language)
    first, last = (format_date(day, "long", locale=language) for day in sorted((question.day, question.until)))
    return f"{days} ({first} – {last})"


def time_zone(name: str) -> tzinfo:
    """The time zone named `name`. Raises `ClockError`."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ClockError(f"there is no time zone '{name[:40]}'") from error


def parse_day(written: str, today: date) -> date:
    """A day in any language, such as `2026-12-25`, `25 December 2026`, `tomorrow`, `vor 3 Tagen`. Raises `ClockError`."""
    for language in languages() if len(written) <= MAX_CHARS else ():
        dates, rest = _dates(written.lower().strip(), language, today, 0)
        if len(dates) == 1 and not rest.strip():
            return dates[0]
    raise ClockError(f"'{written[:40]}' is no date; write it like 2026-12-25")


def find_question(text: str, language: Language, today: date) -> ClockQuestion | None:
    """The date or time question that `text`, in lower case, is in `language`; None for any other text."""
    text = text.replace("'", " ").replace("’", " ")
    words = split_words(text)
    every = frozenset(words)
    if not any(character.isdigit() for character in text):
        if any(key <= every for key in language.time.keys):
            for rest_words, zone in _without_places(words, language):
                if language.time.is_asked(frozenset(rest_words)):
                    return ClockQuestion("time", today, zone=zone)
        of_questions = language.date.own | language.time.own | language.periods | language.words_of("week")
        of_period = every <= of_questions and len(every) > 2 and not language.periods.isdisjoint(every)
        if of_period or language.date.is_asked(every):
            return ClockQuestion("date", today)
    until, since, week = map(language.words_of, ("until", "since", "week"))
    if language.date_nouns.isdisjoint(every):
        return None
    step = (not until.isdisjoint(every)) - (not since.isdisjoint(every))
    dates, rest = _dates(language.with_digits(text, ones=False), language, today, step)
    left = frozenset(split_words(rest))
    allowed = language.date.words.union(until, since, week, language.days)
    if not dates or _DIGIT.search(rest) or not left <= allowed or language.date_nouns.isdisjoint(left):
        return None
    if not any(language.days.get(word) for word in left):
        dates = [day for day in dates if day != today] or dates[:1]  # "in 5 days from today"
        return ClockQuestion("date", dates[0]) if len(dates) == 1 else None
    if len(dates) == 2:
        return ClockQuestion("days", *_in_order(dates, language.with_digits(text, ones=False), language, today))
    return ClockQuestion("days", today, dates[0]) if len(dates) == 1 and (step or str(dates[0].year) in text) else None


def load(language: Language) -> None:
    """Load what questions of `language` are read with."""
    _places(language.code)
    _day(["1"], language, date.min, 0)


def _in_order(dates: Sequence[date], text: str, language: Language, today: date) -> tuple[date, date]:
    """The two dates in `text`: without a year, the first is of this year, and the second the next one from then on.

    Args:
        dates: each of them for itself; they are taken where this year lacks one (29 February).
    """
    of_year, _ = _dates(text, language, today, 0)
    first, second = of_year if len(of_year) == len(dates) else dates
    *_, later = _dates(text, language, first, 1)[0]
    is_day = (later.month, later.day) == (second.month, second.day)  # not "tomorrow", which would follow the first
    return first, later if is_day else second


def _dates(text: str, language: Language, today: date, step: int) -> tuple[list[date], str]:
    """The dates in `text`, and its other words. A date without a year is the next for `step` 1, the last for -1, or of this year."""
    words = [word.strip(",;?!") for word in text.split()]
    dates, rest, at = [], [], 0
    while at < len(words):
        for size in range(min(_DATE_WORDS, len(words) - at), 0, -1):
            if (day := _day(words[at : at + size], language, today, step)) is not None:
                dates.append(day)
                at += size
                break
        else:
            rest.append(words[at])
            at += 1
    return dates, " ".join(rest)


def _day(words: Sequence[str], language: Language, today: date, step: int) -> date | None:
    counts = [word for word in words if word.isdecimal()]
    meant = language.day_phrases.get(" ".join("#" if word.isdecimal() else word for word in words))
    with suppress(ValueError, OverflowError):
        if isinstance(meant, int):
            return today + timedelta(meant * int(counts[0] if counts else 1))
        if meant is not None:
            return _near(today, step, *meant, None)
        months = language.months
        written = " ".join(f"m{months[word]}" if (word := one.rstrip(".")) in months else one for one in words)
        if match := _DAY_MONTH.fullmatch(written) or _MONTH_DAY.fullmatch(written) or _ISO.fullmatch(written):
            return _near(today, step, int(match["month"]), int(match["day"]), match["year"])
    return None


def _near(today: date, step: int, month: int, day: int, year: str | None) -> date:
    """The date; without a year, as in `_dates`. Raises `ValueError`."""
    if year or not step:
        return date(int(year or today.year), month, day)
    for other in range(today.year, today.year + 9 * step, step):  # 29 February: up to 8 years off
        with suppress(ValueError):
            if (date(other, month, day) - today).days * step >= 0:
                return date(other, month, day)
    raise ValueError


def _without_places(words: list[str], language: Language) -> Iterator[tuple[list[str], str | None]]:
    """The words as they are; without the name of a place that has one time zone; and without that of its country."""
    yield words, None
    for rest, zone in _without_place(words, language):
        if zone:
            yield rest, zone
            yield from ((other, zone) for other, _ in _without_place(rest, language))


def _without_place(words: list[str], language: Language) -> Iterator[tuple[list[str], str]]:
    places = _places(language.code)
    for start in range(len(words)):
        for end in range(start + 1, min(start + _PLACE_WORDS, len(words)) + 1):
            if (zone := places.get(" ".join(words[start:end]))) is not None:
                yield words[:start] + words[end:], zone


@lru_cache
def _places(language: str) -> Mapping[str, str]:
    """Time zones by names of cities, countries ("" for one with several zones) and zones ("pacific time"), in English and in `language`."""
    areas = ("Africa/", "America/", "Asia/", "Atlantic/", "Australia/", "Europe/", "Indian/", "Pacific/")
    zones = sorted(name for name in zoneinfo.available_timezones() if name.startswith(areas))
    by_territory = defaultdict(list)
    for zone, territory in get_global("zone_territories").items():
        by_territory[territory].append(zone)
    locale, english = Locale(language), Locale("en")
    places = {
        name: found[0] if len(found) == 1 else ""
        for code, name in locale.territories.items()
        if (found := by_territory[code])
    }
    places |= {zone.rpartition("/")[2].replace("_", " "): zone for zone in zones}
    places |= {names["city"]: zone for zone, names in locale.time_zones.items() if "city" in names}
    for key, names in locale.meta_zones.items():
        standard = english.meta_zones[key].get("long", {}).get("standard") if key in english.meta_zones else None
        if standard and (mapped := get_global("windows_zone_mapping").get(standard)):
            places |= dict.fromkeys((name for width in names.values() for name in width.values()), mapped)
    return {" ".join(split_words(name)): zone for name, zone in places.items()}
