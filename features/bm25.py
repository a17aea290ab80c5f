"""Words of labels and explanations, ranked with BM25: one query in SQL, without an extension.

Enters: words. Leaves: the texts that hold some of them, best first.

1. A text's words are its runs of letters and digits in lower case; a name with underscores is several words.
2. A word that n of the N texts hold weighs idf = ln(1 + (N − n + ½) / (n + ½)), never below 0.
3. A text of w words that holds it t times scores idf · t·(k1 + 1) / (t + k1·(1 − b + b·w / w̄)), summed over the words
   of the query; w̄ is the mean length of all texts.

Each label of a feature, earlier ones too, and each of its explanations is a text.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the idf is Lucene's.
"""

from __future__ import annotations

from typing import NamedTuple

from features.store import Store

K1 = 1.2
"""How much a word that stands more than once counts: 0 not at all, large in proportion."""
B = 0.75
"""How much long texts are held back: 0 not at all, 1 in full proportion."""
WORD = r"[\p{L}\p{M}\p{N}]+"


class WordHit(NamedTuple):
    """A text that holds words of a query."""

    feature: int
    text: str
    is_label: bool
    is_newest: bool
    """It is the label that is shown; earlier ones are found too."""
    method_score: float | None
    """The explanation's own score."""
    words: list[str]
    """The words of the query that it holds, rarest first."""
    has_all: bool
    """It holds every word of the query."""
    score: float
    """BM25."""


def ranked_texts(store: Store, query: str, limit: int) -> list[WordHit]:
    """Texts that hold words of the query, best first; none where the query has no word."""
    rows = store.query(
        f"""
        with texts as (
            select *, row_number() over () as id, regexp_extract_all(lower(text), '{WORD}') as words from (
                select feature, text, true as is_label, null::double as method_score,
                    row_number() over (partition by feature order by created desc, rowid desc) = 1 as is_newest
                from labels
                union all
                select feature, text, false, score, false from explanations
            )
        ),
        corpus as (select count(*) as n_texts, avg(len(words)) as mean_words from texts),
        terms as (select distinct unnest(regexp_extract_all(lower($query), '{WORD}')) as word),
        postings as (
            select id, word, count(*) as times
            from (select id, unnest(words) as word from texts) join terms using (word) group by id, word
        ),
        weights as (
            select word, ln(1 + (n_texts - count(*) + 0.5) / (count(*) + 0.5)) as idf
            from postings, corpus group by word, n_texts
        )
        select feature, text, is_label, is_newest, method_score,
            list(word order by idf desc, word) as words,
            count(*) = (select count(*) from terms) as has_all,
            sum(idf * times * ({K1} + 1) / (times + {K1} * (1 - {B} + {B} * len(texts.words) / mean_words))) as score
        from postings join weights using (word) join texts using (id), corpus
        group by id, feature, text, is_label, is_newest, method_score
        order by score desc, is_label desc, feature limit $limit
        """,
        {"query": query, "limit": limit},
    ).to_pylist()
    return [WordHit(**row) for row in rows]
