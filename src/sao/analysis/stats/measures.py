"""Figures of texts, each by a small function: texts in, numbers out. What they are taken on: see
`sao.analysis.stats`."""

from __future__ import annotations

import heapq
import math
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sao.data.similarity import Repeats, words
from sao.records import make_id
from sao.results.base import Rate
from sao.results.statistics import Compression, Spread, Topic, Topics
from sao.statistics import wilson

if TYPE_CHECKING:
    import numpy as np

NEAR = 0.7
"""Jaccard similarity of word pairs from which on a text is called a near repetition."""
AMONG = (1_000, 10_000)
"""Numbers of texts for which the exact repetition is given too; the paper's is of about 10,000."""
SAMPLE, LONGEST = 5_000, 4_000
"""Texts in the sample, and characters that are kept of each. Topics are taken on all of it, the rest on its
start:"""
DISTINCT_WORDS, COMPRESSED_BYTES, VENDI_TEXTS = 20_000, 100_000, 1_000
TOPICS, TOPIC_WORDS = 8, 6


def rate(hits: int, n: int) -> Rate:
    """A share with Wilson's 95 % interval.

    Repetitions are no independent trials, but the interval holds the rate that is to be expected of as many
    texts about as often as it should, or more often (a test draws texts from flat, Zipf's and mixed
    distributions).
    """
    low, high = wilson(hits, n)
    return Rate(rate=hits / n if n else None, ci95=(max(0.0, low), min(1.0, high)), n=n)


def smallest(texts: Iterable[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """A sample of n texts, or all, in an order that depends on the ids alone: those with the smallest
    hashes."""
    return heapq.nsmallest(n, texts, key=lambda row: make_id("stats", seed, row[0]))


def spread(values: array[int]) -> Spread | None:
    """Mean, median and the 5 % and 95 % quantiles; None of nothing."""
    import numpy as np

    lengths = np.array(values)
    if not len(lengths):
        return None
    p5, median, p95 = np.quantile(lengths, [0.05, 0.5, 0.95]).tolist()
    return Spread(mean=float(lengths.mean()), median=median, p5=p5, p95=p95)


def group_sizes(repeats: Repeats) -> Counter[int]:
    """How many groups of 1, 2, 3 … equal texts there are."""
    import numpy as np

    firsts = np.array(repeats.earlier)[np.array(repeats.similarity) >= 1]
    sizes = Counter((np.unique(firsts, return_counts=True)[1] + 1).tolist())
    return sizes + Counter({1: len(repeats.earlier) - sum(size * times for size, times in sizes.items())})


def repetition_among(groups: Counter[int], m: int) -> float | None:
    """The exact repetition that is to be expected among m of the texts, drawn without putting back; None
    where there are fewer.

    A group of s of the n texts is missed with probability C(n − s, m) / C(n, m); the others leave one text
    each that repeats none (rarefaction: Hurlbert, "The nonconcept of species diversity", Ecology 52, 1971,
    equation 17).
    """
    n = sum(size * times for size, times in groups.items())
    if n < m:
        return None

    def missed(size: int) -> float:
        return math.exp(math.fsum(math.log1p(-m / (n - i)) for i in range(size))) if size <= n - m else 0.0

    different = math.fsum(
        times * (m / n if size == 1 else 1 - missed(size)) for size, times in groups.items()
    )
    return max(0.0, 1 - different / m)


def first_words(texts: Iterable[str]) -> list[list[str]]:
    """The words of each text, until there are DISTINCT_WORDS."""
    taken: list[list[str]] = []
    left = DISTINCT_WORDS
    for text in texts:
        if left <= 0:
            break
        taken.append(words(text)[:left])
        left -= len(taken[-1])
    return taken


def distinct_n(texts: Iterable[list[str]], n: int) -> float | None:
    """Different n-grams of words over all n-grams (Li et al., arXiv 1510.03055); None where there are
    none."""
    grams = [tuple(said[i : i + n]) for said in texts for i in range(len(said) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def compression(texts: Iterable[str]) -> Compression:
    """Bytes of the texts, one a line, over bytes of the same compressed (zlib, level 9), on the first
    COMPRESSED_BYTES of them.

    The larger, the more they repeat each other (Shaib et al., arXiv 2403.00553).
    """
    raw = "\n".join(texts).encode("utf-8", "replace")[:COMPRESSED_BYTES]
    return Compression(ratio=len(raw) / len(zlib.compress(raw, 9)) if raw else None, bytes=len(raw))


def vendi(texts: list[str]) -> float | None:
    """The Vendi score: how many quite different texts they are worth, from 1 to n (Friedman and Dieng, arXiv
    2210.02410).

    e to the entropy of the eigenvalues of K/n (their definition 3.1), where K [n, n] holds the cosines of the
    texts' word counts, weighted by rarity (TF-IDF). None of nothing.
    """
    import numpy as np

    if not texts:
        return None
    shares = np.linalg.eigvalsh(cosines([Counter(words(text) or [text]) for text in texts]) / len(texts))
    shares = shares[shares > 1e-12]
    # further digits depend on the number of threads
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 6)


def cosines(counts: list[Counter[str]], block: int = 2000) -> np.ndarray:
    """The cosines [n, n] of word counts, each word weighted by 1 + ln((1 + n) / (1 + texts in which it
    stands))."""
    import numpy as np

    n = len(counts)
    holders = Counter(word for count in counts for word in count)
    shared = {word: i for i, word in enumerate(word for word, times in holders.items() if times > 1)}
    text_numbers, word_numbers, weighted = array("q"), array("q"), array("d")
    for i, count in enumerate(counts):
        weights = {
            word: times * (1 + math.log((1 + n) / (1 + holders[word]))) for word, times in count.items()
        }
        norm = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        for word, weight in weights.items():
            if word in shared:  # a word of one text only adds to no other cosine than 1
                text_numbers.append(i)
                word_numbers.append(shared[word])
                weighted.append(weight / norm)
    order = np.argsort(np.array(word_numbers), kind="stable")
    rows, columns, entries = (np.array(part)[order] for part in (text_numbers, word_numbers, weighted))
    kernel = np.zeros((n, n))
    for start in range(0, len(shared), block):  # the vectors are sparse: so many words of them at a time
        low, high = np.searchsorted(columns, [start, start + block])
        part = np.zeros((n, block))
        part[rows[low:high], columns[low:high] - start] = entries[low:high]
        kernel += part @ part.T
    np.fill_diagonal(kernel, 1.0)
    return kernel


def topics_of(texts: list[str], seed: int) -> Topics | None:
    """Clusters of the texts (k-means on TF-IDF), the largest first: share, and the words that tell them from
    the other texts.

    None without scikit-learn; no clusters where there are too few texts or words.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    vectorizer = TfidfVectorizer(
        tokenizer=_topic_words,
        token_pattern=None,
        lowercase=False,
        stop_words="english",
        max_df=0.3,
        max_features=20_000,
    )
    try:
        vectors = vectorizer.fit_transform(texts if len(texts) >= TOPICS else [])
    except ValueError:  # no word is left: each stands in more than 30 % of the texts
        return Topics(texts=len(texts), clusters=[])
    # Not KMeans: with several threads it sums in the order in which they finish, so its clusters may change.
    labels = (
        MiniBatchKMeans(TOPICS, random_state=seed % 2**32, n_init=3, batch_size=1024).fit(vectors).labels_
    )
    names, usual = vectorizer.get_feature_names_out(), vectors.mean(axis=0).A1
    clusters = []
    for k in sorted(set(labels.tolist())):
        more = vectors[labels == k].mean(axis=0).A1 - usual
        telling = [str(names[i])[:24] for i in (-more).argsort(kind="stable")[:TOPIC_WORDS] if more[i] > 0]
        size = int((labels == k).sum())
        clusters.append((size, Topic(**dict(rate(size, len(texts))), words=telling)))
    clusters.sort(key=lambda cluster: -cluster[0])
    return Topics(texts=len(texts), clusters=[topic for _, topic in clusters])


def _topic_words(text: str) -> list[str]:
    """The words of a text without single letters."""
    return [word for word in words(text) if len(word) > 1 or not word.isascii()]
