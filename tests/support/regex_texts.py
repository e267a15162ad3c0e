"""Texts on which a regular expression repeats work when it backtracks, built from the pattern itself."""

import random
import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

STRINGS = 80  # maximum number of strings for one pattern


class _Pumps:
    """Pieces of texts: prefixes of whole matches, and what the pattern itself repeats."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._random = random.Random(repr(pattern))
        self._letters = "a1 -,.'\"`(/\n:[é!\t_A$=?*#<&{"
        self.repeated: dict[tuple[str, str], None] = {}  # (what may precede the piece, the piece)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parser.parse(pattern, flags)
        end = "\n" if tree.state.flags & re.MULTILINE else ""
        first, *others = self.samples(tree)
        cuts = [first[: at + 1] for at in range(0, len(first), 1 + len(first) // 30)]
        more = [sample[:at] for sample in others for at in range(1, len(sample) + 1)]
        more = self._random.sample(more, min(len(more), 30))
        self.begun = list(dict.fromkeys(f"{piece}{end}" for piece in [*cuts, first, *others[:10], *more] if piece))
        self._walk(tree, [""])
        for letter in dict.fromkeys(letter for _, pump in self.repeated.copy() for letter in pump[:8]):
            self._add("", letter)

    def _add(self, before: str, pump: str) -> None:
        if pump:
            self.repeated[before, pump] = None

    def _walk(self, tree: Iterable[Any], before: list[str]) -> None:
        """Add the pieces of each repeat; `before` is a text that the pattern may have matched before it."""
        for op, argument in tree:
            if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
                _, max_repeats, body = argument
                if max_repeats > 20:
                    pieces = self.samples(body)
                    for piece in pieces:
                        for start in dict.fromkeys([before[0], before[-1], ""]):
                            self._add(start, piece)
                        self._add(before[0], f"{piece} ")
                    for one, two in pairwise(pieces[:12]):
                        self._add(before[0], one + two)
                    self._add(before[0], "".join(self._random.choices(pieces, k=40)))
                self._walk(body, before)
            elif op is ops.BRANCH:
                for branch in argument[1]:
                    self._walk(branch, before)
            elif op is ops.SUBPATTERN:
                self._walk(argument[3], before)
            elif op is ops.ATOMIC_GROUP:
                self._walk(argument, before)
            elif op in (ops.ASSERT, ops.ASSERT_NOT):
                self._walk(argument[1], before)
            after = self._atom(op, argument)
            before = [before[0] + after[0], self._random.choice(before) + self._random.choice(after)]

    def samples(self, tree: Iterable[Any], most: int = 24) -> list[str]:
        """Texts that `tree` matches, apart from its assertions: the plainest first."""
        parts = [self._atom(op, argument) for op, argument in tree]
        found = {"".join(part[0] for part in parts): None}
        for at, part in enumerate(parts):
            for other in part[1:]:
                found["".join(p[0] for p in parts[:at]) + other + "".join(p[0] for p in parts[at + 1 :])] = None
        for _ in range(most):
            found["".join(self._random.choice(part) for part in parts)] = None
        if len(found) > most:
            rest = list(found)[1:]
            self._random.shuffle(rest)
            return [next(iter(found)), *rest[: most - 1]]
        return list(found)

    def _atom(self, op: Any, argument: Any) -> list[str]:
        if op is ops.LITERAL:
            return [chr(argument)]
        if op is ops.NOT_LITERAL:
            return [letter for letter in self._letters if letter != chr(argument)][:4]
        if op is ops.ANY:
            return ["a", " ", "1", "."]
        if op is ops.IN:
            return self._of_class(argument)
        if op is ops.BRANCH:
            found = [sample for branch in argument[1] for sample in self.samples(branch, 3)]
            return list(dict.fromkeys(found))
        if op is ops.SUBPATTERN:
            return self.samples(argument[3])
        if op is ops.ATOMIC_GROUP:
            return self.samples(argument)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
            min_repeats, max_repeats, body = argument
            once = self.samples(body, 12)
            found = [piece * min_repeats for piece in once[:1]] if min_repeats != 1 else once
            if max_repeats > min_repeats:
                found = [*found, *(piece * (min_repeats + 1) for piece in once)]
            return list(dict.fromkeys(found))
        return [""]  # an assertion, or a group that was matched before

    def _of_class(self, items: Sequence[Any]) -> list[str]:
        listed = [chr(one) for op, one in items if op is ops.LITERAL]
        listed += [chr(end) for op, one in items if op is ops.RANGE for end in one]
        matches = {category: re.compile(escape) for category, escape in _ESCAPES.items()}
        negated = any(op is ops.NEGATE for op, _ in items)

        def within(letter: str) -> bool:
            inside = any(
                (op is ops.LITERAL and one == ord(letter))
                or (op is ops.RANGE and one[0] <= ord(letter) <= one[1])
                or (op is ops.CATEGORY and matches[one].match(letter) is not None)
                for op, one in items
            )
            return inside != negated

        found = [letter for letter in [*([] if negated else listed), *self._letters] if within(letter)]
        return list(dict.fromkeys(found))[:6] or listed[:1] or ["a"]


_ESCAPES = {
    ops.CATEGORY_DIGIT: r"\d", ops.CATEGORY_NOT_DIGIT: r"\D", ops.CATEGORY_SPACE: r"\s", ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w", ops.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


# Characters that most classes lack, also after a line's end, and endings that may match.
_ENDS = ("\x00", "\n\x00~x", "", "\n")


def strings(pattern: str, flags: int) -> list[tuple[str, str, str]]:
    """Prefixes, pieces to repeat, and endings that are likely to fail; at most `STRINGS`, and restarted pieces."""
    pumps = _Pumps(pattern, flags)
    candidates = [(before, pump, after) for before, pump in pumps.repeated for after in _ENDS]
    if len(candidates) > STRINGS:
        random.Random(repr(pattern)).shuffle(candidates)
        candidates.sort(key=lambda one: _ENDS.index(one[2]) // 2)  # endings that are likely to fail come first
        candidates = candidates[: STRINGS // 2] + random.Random(repr(pattern)).sample(
            candidates[STRINGS // 2 :], STRINGS // 2
        )
    return [("", piece, _ENDS[1]) for piece in pumps.begun] + candidates
