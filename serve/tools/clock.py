"""Date and time for models that have no clock and cannot count days: answers, and detection of date and time questions.

Dates are proleptic Gregorian. The current time is a parameter; time zones come from the system's database.
"""

import functools
import re
import zoneinfo
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Literal

MAX_CHARS = 160  # limit on a question or a date
QuestionKind = Literal["time", "date", "weekday", "month", "year", "days"]


class ClockError(ValueError):
    """A date or time zone that does not exist; the message is for users."""


@dataclass(slots=True, frozen=True)
class Day:
    """A day as named in a question: a date with or without a year, or an offset from today."""

    month: int = 0
    day: int = 0
    year: int | None = None
    offset: int | None = None  # days from today, instead of a date

    def on(self, today: date, *, next_one: bool | None = None) -> date:
        """The date; without a year, that of this year, or the next or the last such date. Raises `ClockError`."""
        try:
            if self.offset is not None:
                return today + timedelta(self.offset)
            if self.year is not None:
                return date(self.year, self.month, self.day)
            step = {True: 1, False: -1, None: 0}[next_one]
            for year in range(today.year, today.year + 9 * (step or 1), step or 1):  # 29 February: up to 8 years off
                if not _exists(year, self.month, self.day):
                    continue
                day = date(year, self.month, self.day)
                if step == 0 or (day >= today if step > 0 else day <= today):
                    return day
            raise ValueError
        except (ValueError, OverflowError) as error:
            written = f"{self.day} {_MONTHS[self.month - 1].capitalize()}{f' {self.year}' if self.year else ''}"
            raise ClockError(f"there is no {written if self.offset is None else 'such day'}") from error


TODAY = Day(offset=0)


@dataclass(slots=True, frozen=True)
class ClockQuestion:
    """A question about date or time."""

    kind: QuestionKind
    day: Day = TODAY  # the day in question; for "days" the first day
    until: Day | None = None  # for "days"; None with `day` in the past counts from it to today
    zone: str | None = None  # name in the time zone database, when a place is named

    @property
    def arguments(self) -> dict[str, str]:
        """The clock tool's arguments for this question."""
        arguments = {"what": self.kind, "date": _iso(self.day), "until": _iso(self.until), "timezone": self.zone or ""}
        return {name: value for name, value in arguments.items() if value and (name, value) != ("date", "today")}


def answer(question: ClockQuestion, now: datetime, zone: tzinfo) -> str:
    """Answer in one sentence. `now` is timezone-aware; `zone` determines "today", unless the question names a place.

    For a date or zone that does not exist, the sentence says so; no exception is raised.
    """
    try:
        here = now.astimezone(time_zone(question.zone) if question.zone else zone)
        today = here.date()
        match question.kind:
            case "time":
                where = f" in {_place(question.zone)}" if question.zone else ""
                return f"It is {here:%H:%M}{where} ({here:%Z}) on {_long(today)}."
            case "month":
                return f"It is {here:%B} {here.year}."
            case "year":
                return f"It is {here.year}."
            case "days":
                return _days(question, today)
        day = question.day.on(today)
        names = {Day(offset=-1): "Yesterday was", TODAY: "Today is", Day(offset=1): "Tomorrow is"}
        if question.day in names:
            return f"{names[question.day]} {_long(day)}."
        if question.kind == "date":
            return f"That is {_long(day)}." if day >= today else f"That was {_long(day)}."
        return f"{_short(day)} {'was' if day < today else 'is'} a {day:%A}."
    except ClockError as fault:
        return f"{str(fault)[0].upper()}{str(fault)[1:]}."


def time_zone(name: str) -> tzinfo:
    """The time zone named `name`. Raises `ClockError`."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ClockError(f"there is no time zone '{name[:40]}'") from error


def parse_day(written: str) -> Day:
    """Parse a day, such as `2026-12-25`, `25 December 2026`, `December 25`, `Christmas`, `today`. Raises `ClockError`."""
    day = _day(" ".join(written.lower().split())) if len(written) <= MAX_CHARS else None
    if day is None:
        raise ClockError(f"'{written[:40]}' is no date; write it like 2026-12-25")
    return day


def find_question(text: str) -> ClockQuestion | None:
    """Parse a date or time question; None for any other text.

    "What day is it?", "how many days until 25 December 2026", "what day of the week was 4 July 1976".
    """
    if not 4 <= len(text) <= MAX_CHARS:
        return None
    question = " ".join(text.lower().replace("’", "'").replace("what's", "what is").replace("whats", "what is").split())
    question = _END.sub("", _START.sub("", question))
    for pattern, kind, default_day in _FIXED_QUESTIONS:
        if match := pattern.fullmatch(question):
            place = match.groupdict().get("place")
            zone = _zone(place) if place else None
            return None if place and zone is None else ClockQuestion(kind, default_day, zone=zone)
    for pattern, kind in _DATED_QUESTIONS:
        if match := pattern.fullmatch(question):
            clock_question = _question_from(kind, {name: part for name, part in match.groupdict().items() if part})
            if clock_question is not None:
                return clock_question
    return None


def _question_from(kind: QuestionKind, parts: dict[str, str]) -> ClockQuestion | None:
    if count := parts.get("count"):
        days = int(count) * (7 if parts["unit"].startswith("week") else 1)
        return ClockQuestion(kind, Day(offset=-days if parts.get("ago") else days))
    if year := parts.get("year"):
        parts = {"day": parts["day"] + year}
    days_of = {name: _day(parts[name]) for name in ("day", "until") if name in parts}
    if any(day is None for day in days_of.values()):
        return None
    return ClockQuestion(kind, days_of.get("day") or TODAY, days_of.get("until"))


def _days(question: ClockQuestion, today: date) -> str:
    if question.until is None:  # since
        first, last = question.day.on(today, next_one=False), today
    elif question.day == TODAY:
        first, last = today, question.until.on(today, next_one=True)
    else:
        first, last = question.day.on(today), question.until.on(today)
    count = (last - first).days
    days = f"{abs(count)} day{'' if abs(count) == 1 else 's'}"
    if question.until is not None and question.day == TODAY:
        until = f"From today, {_short(today)}, until {_short(last)} it is {days}."
        return until if count >= 0 else f"{_short(last)} was {days} ago."
    if question.until is None:
        return f"Since {_short(first)} {days} have passed." if count >= 0 else f"{_short(first)} is {days} ahead."
    return f"From {_short(first)} to {_short(last)} it is {days}{' back' if count < 0 else ''}."


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _iso(day: Day | None) -> str:
    if day is None:
        return ""
    if day.offset is not None:
        return {0: "today", 1: "tomorrow", -1: "yesterday"}.get(day.offset, f"{day.offset:+d} days")
    return f"{f'{day.year:04d}' if day.year else '-'}-{day.month:02d}-{day.day:02d}"


def _long(day: date) -> str:
    return f"{day:%A}, {_short(day)}"


def _short(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def _place(zone: str) -> str:
    return zone.rpartition("/")[2].replace("_", " ")


@functools.cache
def _places() -> dict[str, str]:
    """Zone names by city, in lower case, from the time zone database."""
    areas = ("Africa/", "America/", "Asia/", "Atlantic/", "Australia/", "Europe/", "Indian/", "Pacific/")
    names = sorted(name for name in zoneinfo.available_timezones() if name.startswith(areas))
    return {_place(name).lower(): name for name in names} | {"utc": "UTC", "gmt": "UTC"}


def _zone(place: str) -> str | None:
    return _places().get(place)


_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_MONTH = rf"(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' if len(name) > 3 else name for name in _MONTHS)}|sept)\.?"
_MONTH_NUMBERS = {name[:3]: at for at, name in enumerate(_MONTHS, 1)}
_HOLIDAYS = {
    "christmas": (12, 25),
    "christmas day": (12, 25),
    "christmas eve": (12, 24),
    "new year": (1, 1),
    "new years": (1, 1),
    "new year's": (1, 1),
    "new year's day": (1, 1),
    "new year's eve": (12, 31),
    "halloween": (10, 31),
    "valentine's day": (2, 14),
    "valentines day": (2, 14),
}
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4}|-)-(?P<number>\d{2})-(?P<day>\d{2})",
        rf"(?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? (?:in )?(?P<year>\d{{4}}))?",
        rf"{_MONTH} (?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?:in )?(?P<year>\d{{4}}))?",
    )
]
_OFFSET = re.compile(r"([+-]\d{1,6}) days")
_WEEKDAY = re.compile(r"^(?:on )?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,? (?:the )?(?=.*\d))?")
_HOLIDAY = re.compile(r"(.+?)(?:,? (?:in )?(\d{4}))?")


def _day(text: str) -> Day | None:
    text = _WEEKDAY.sub("", text).strip()
    if text in ("today", "tomorrow", "yesterday", "now"):
        return Day(offset={"tomorrow": 1, "yesterday": -1}.get(text, 0))
    if match := _OFFSET.fullmatch(text):
        return Day(offset=int(match[1]))
    holiday = _HOLIDAY.fullmatch(text)
    if holiday and holiday[1] in _HOLIDAYS:
        return Day(*_HOLIDAYS[holiday[1]], int(holiday[2]) if holiday[2] else None)
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            named = parts.get("month")
            month = _MONTH_NUMBERS[named[:3]] if named else int(parts["number"])
            year = parts["year"]
            if not 1 <= month <= 12:
                return None
            return Day(month, int(parts["day"]), int(year) if year and year != "-" else None)
    return None


_START = re.compile(
    r"^(?:(?:hi|hello|hey|ok|okay|so|excuse me|sorry)(?: there)?[,!.]* )*(?:please[, ]+)?"
    r"(?:(?:can|could|would) you (?:please )?(?:tell|give) me |(?:please )?(?:tell|give) me "
    r"|do you (?:happen to )?know |i (?:want|need|would like) to know )?(?:please )?"
)
_END = re.compile(r"(?:,? (?:please|thanks|thank you)|(?<![ ?!.]))[ ?!.]*$")
_NOW = r"(?: (?:right )?now| currently| at the moment| today)?"
_IN = r"(?: in (?P<place>[a-z' .-]+?))?"
_FIXED_QUESTIONS: list[tuple[re.Pattern[str], QuestionKind, Day]] = [
    (
        re.compile(
            r"(?:what time is it|what time it is|what is the (?:current |exact )?time|the (?:current )?time|current time)"
            rf"{_NOW}{_IN}{_NOW}"
        ),
        "time",
        TODAY,
    ),
    (
        re.compile(
            r"what (?:date is (?:it|today)|date it is|is (?:the date(?: of)?(?: today)?|today's date|the current date))"
            rf"(?: today)?{_NOW}|today's date|(?:the )?current date|what is today|the date today|what is the day today"
        ),
        "date",
        TODAY,
    ),
    (
        re.compile(
            rf"(?:what|which) day(?: of the week)? (?:is (?:it|today)|it is){_NOW}|(?:what|which) weekday is (?:it|today)"
            rf"|what is the (?:current )?day(?: of the week)?{_NOW}"
        ),
        "weekday",
        TODAY,
    ),
    (re.compile(rf"(?:what|which) month is (?:it|this){_NOW}|(?:what is )?the current month"), "month", TODAY),
    (
        re.compile(
            rf"(?:what|which) year (?:is (?:it|this)|it is|are we in){_NOW}|what is the (?:current )?year{_NOW}"
            r"|the current year"
        ),
        "year",
        TODAY,
    ),
    (
        re.compile(
            r"what (?:is tomorrow's date|is the date tomorrow|date (?:will it be|is it|is) tomorrow)|tomorrow's date"
        ),
        "date",
        Day(offset=1),
    ),
    (
        re.compile(r"(?:what|which) day(?: of the week)? (?:is (?:it )?tomorrow|will it be tomorrow)"),
        "weekday",
        Day(offset=1),
    ),
    (
        re.compile(
            r"what (?:(?:was|is) yesterday's date|date was (?:it )?yesterday|was the date yesterday)|yesterday's date"
        ),
        "date",
        Day(offset=-1),
    ),
    (re.compile(r"(?:what|which) day(?: of the week)? was (?:it )?yesterday"), "weekday", Day(offset=-1)),
]
_PART, _REST = r"(?s:.+?)", r"(?s:.+)"  # a part of a question, and the remainder
_WEEK = r"(?:what|which) (?:day of the week|weekday|day)"
_DATED_QUESTIONS: list[tuple[re.Pattern[str], QuestionKind]] = [
    (
        re.compile(
            r"how (?:many days|long)(?: is it| are there| are left| do we have| left| remain| remaining)?"
            rf"(?: from (?:now|today))? (?:until|till|til|to|before) (?P<until>{_REST})"
        ),
        "days",
    ),
    (re.compile(rf"(?:the )?(?:number of )?days (?:left )?(?:until|till) (?P<until>{_REST})"), "days"),
    (re.compile(rf"how many days(?: has it been| have passed| have gone by| is it)? since (?P<day>{_REST})"), "days"),
    (re.compile(rf"how many days ago was (?P<until>{_REST})"), "days"),
    (
        re.compile(
            rf"how many days (?:are (?:there )?|is it |lie |were there )?(?:between|from) (?P<day>{_PART}) "
            rf"(?:and|to|until|till) (?P<until>{_REST})"
        ),
        "days",
    ),
    (re.compile(rf"(?:what is )?the number of days between (?P<day>{_PART}) and (?P<until>{_REST})"), "days"),
    (re.compile(rf"{_WEEK} (?:was|is|will) it (?:be )?(?:on )?(?P<day>{_REST})"), "weekday"),
    (
        re.compile(
            rf"{_WEEK} (?:is|was|will be|does|did|will) (?P<day>{_PART})(?: fall on| be| fall| on)?(?P<year> in \d\d\d\d)?"
        ),
        "weekday",
    ),
    (re.compile(rf"on {_WEEK} (?:does|did|will|is|was) (?P<day>{_PART}) (?:fall(?: on)?|be|land)"), "weekday"),
    (re.compile(rf"what (?:is|was) the (?:day of the week|weekday) (?:of|on|for) (?P<day>{_REST})"), "weekday"),
    (
        re.compile(
            r"(?:what|which) (?:date|day) (?:is it|will it be|is|was it|was) (?P<count>\d{1,5}) (?P<unit>days?|weeks?) "
            r"(?:from (?:now|today)|(?P<ago>ago))"
        ),
        "date",
    ),
    (
        re.compile(r"(?:what|which) (?:date|day) (?:is it|will it be|is) in (?P<count>\d{1,5}) (?P<unit>days?|weeks?)"),
        "date",
    ),
]
