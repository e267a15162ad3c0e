"""Exact conversion between units of measurement: CLDR's names (`length-mile`), pint's definitions."""

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import pint
from babel.numbers import format_decimal
from babel.units import UnknownUnitError, format_unit

from serve.tools.calculator import DIGITS, Result

#: CLDR's kinds of units that are converted.
_KINDS = frozenset(
    {"angle", "area", "digital", "duration", "energy", "force", "frequency", "length", "mass", "power", "pressure",
     "speed", "temperature", "volume"}
)  # fmt: skip
_CALENDAR = frozenset(
    {"duration-month", "duration-year", "duration-decade", "duration-century"}
)  # no fixed number of days
_LEFT_OUT = ("duration-quarter", "volume-pinch")
_FORMAT = "#,##0.##############"
PREFIXES = ("nano", "micro", "milli", "centi", "deci", "hecto", "kilo", "mega", "giga", "tera")
#: Units that are used with prefixes; CLDR names few of the combinations.
PREFIXED = ("digital-byte", "energy-joule", "force-newton", "frequency-hertz", "length-meter", "mass-gram", "power-watt",
            "pressure-pascal", "volume-liter")  # fmt: skip


@lru_cache(1)
def _registry() -> pint.UnitRegistry[Fraction]:
    return pint.UnitRegistry(non_int_type=Fraction)


@lru_cache(512)
def _unit(key: str) -> pint.Unit | None:
    """pint's unit for CLDR's key; None for what pint does not know or is not converted."""
    kind, _, name = key.partition("-")
    if kind not in _KINDS or key in _LEFT_OUT:
        return None
    name = name.replace("-", "_")
    for prefix, power in (("square_", "**2"), ("cubic_", "**3")):
        if name.startswith(prefix):
            name = name.removeprefix(prefix) + power
    if name.endswith("_imperial"):
        name = "imperial_" + name.removesuffix("_imperial")
    try:
        return _registry().parse_units(name)
    except (pint.UndefinedUnitError, ValueError):
        return None


def is_unit(key: str) -> bool:
    """Whether values in CLDR's unit `key` can be converted."""
    return _unit(key) is not None


def convert(value: Fraction, source: str, target: str) -> Fraction | None:
    """`value` in `source` as a value in `target`; None if they measure different things, or for a temperature below absolute zero."""
    from_unit, to_unit = (_unit(_of_volume(one, other)) for one, other in ((source, target), (target, source)))
    if from_unit is None or to_unit is None or not from_unit.is_compatible_with(to_unit):
        return None
    quantity = _registry().Quantity(value, from_unit)
    if (source in _CALENDAR) != (target in _CALENDAR) or (
        _is_temperature(source) and quantity.to("kelvin").magnitude < 0
    ):
        return None
    return Fraction(quantity.to(to_unit).magnitude)


def _is_temperature(key: str) -> bool:
    return key.startswith("temperature-")


def converted(value: Fraction, source: str, target: str, language: str) -> tuple[dict[str, str], str, str] | None:
    """The conversion as an expression, its result and the whole answer, the latter two in `language`; None if there is none."""
    if (result := convert(value, source, target)) is None:
        return None
    texts = [Result("", number, True).text for number in (value, result)]
    if any("E" in text for text in texts):
        return None  # too many digits for the language's format
    expression = f"{texts[0]} {source.partition('-')[2]} in {target.partition('-')[2]}"
    given, output = (_written(text, key, language) for text, key in zip(texts, (source, target), strict=True))
    return {"expression": expression}, output, f"{given} = {output}"


def _of_volume(key: str, other: str) -> str:
    """CLDR's key, where an ounce beside a volume is a fluid ounce."""
    return "volume-fluid-ounce" if key == "mass-ounce" and other.startswith("volume-") else key


def _written(value: str, key: str, language: str) -> str:
    """A value with its unit in `language`: `1,609.344 meters`."""
    with localcontext(prec=2 * DIGITS):
        try:
            return str(format_unit(Decimal(value), key, locale=language, format=_FORMAT))
        except UnknownUnitError:
            return f"{format_decimal(Decimal(value), _FORMAT, locale=language)} {key.partition('-')[2]}"
