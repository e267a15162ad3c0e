"""Words of a question for the keyword search, and the score of a chunk for them.

Any word matches, because a document rarely contains all words of a question. Words in more than a twentieth of all chunks are used
only for ranking, unless all words are that common. Words are weighted by rarity, which `ts_rank` lacks.
"""

import math
from collections.abc import Sequence
from typing import LiteralString

from psycopg import sql

_MAX_WORDS = 64  # of a question: the rarest
_RARE_SHARE = 0.001  # of the chunks, assumed for words that the statistics lack
_MAX_MATCHED_SHARE = 0.05  # of the chunks

# The share of all tenants' chunks that have a word is in the planner's statistics, in which rare words are missing.
LEXEMES: LiteralString = rf"""
    WITH common AS MATERIALIZED (
        SELECT lexeme, share FROM pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) AS of (lexeme, share)
        WHERE schemaname = 'gearbox' AND tablename = 'chunks' AND attname = 'words')
    SELECT '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''' AS word,
           coalesce(share, {_RARE_SHARE})::float8 AS share
    FROM unnest(to_tsvector(%(language)s::regconfig, %(query)s)) LEFT JOIN common USING (lexeme)
    ORDER BY share, word LIMIT {_MAX_WORDS}"""

# One term a word: summed over an array of words instead, the score of a chunk takes three times as long.
_WORD_SCORE: LiteralString = "{weight} * ts_rank(ARRAY[0.4, 0.4, 0.6, 1]::real[], c.words, {word}::tsquery)"


def weighted_rank(lexemes: Sequence[tuple[str, float]]) -> tuple[sql.Composable, dict[str, str | float]]:
    """The SQL expression of a chunk's score, and its parameters with `words`, the query that selects chunks.

    Args:
        lexemes: rows of `LEXEMES`, at least one: quoted words and their shares of the chunks, rarest first.
    """
    most = max(_MAX_MATCHED_SHARE, lexemes[0][1])
    params: dict[str, str | float] = {"words": " | ".join(word for word, share in lexemes if share <= most)}
    terms = []
    for i, (word, share) in enumerate(lexemes):
        params |= {f"word_{i}": word, f"weight_{i}": math.log1p(1 / share)}
        names = {"weight": sql.Placeholder(f"weight_{i}"), "word": sql.Placeholder(f"word_{i}")}
        terms.append(sql.SQL(_WORD_SCORE).format(**names))
    return sql.SQL(" + ").join(terms), params
