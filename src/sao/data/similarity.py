"""Dedup: texts in the order of their rows in; for each, the earlier text that it repeats out.

Exact: equal except for case, punctuation and spaces. Near: MinHash signatures (rensa) propose candidates, and
the Jaccard similarity of their word pairs decides. By meaning: the cosine of embeddings. The first of a group
is always kept, and a text is compared only with kept ones, so the result depends on the order of the rows and
on nothing else.

Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3. Recall and speed: python benchmarks/filters.py --rows 60000
"""

from __future__ import annotations

import re
import sys
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

from sao.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Texts = Callable[[], Iterator[str]]
"""Gives the texts in the order of their rows; called twice."""
Encode = Callable[[list[str]], Any]
"""Texts → their embeddings [n, d]."""
PERMUTATIONS, RECALL, SEED = 128, 0.98, 1
"""Length of a signature, the share of the pairs at the threshold that must become candidates, and the
signatures' seed."""
BATCH = 1024
"""Texts whose signatures or embeddings are made at a time; the result does not depend on it."""
GROUP, VERIFIED = 48, 32
"""In each bucket the GROUP texts before a text are candidates, and the VERIFIED candidates that share most
buckets with it are compared. Templated texts ("Explain … in … words." a million times) fill buckets with
thousands of texts that are no duplicates; without bounds all would be compared. The cost: a duplicate is
missed where in each bucket at least GROUP others are between it and its original."""
_SIGNS = (
    r"(?=[-+<=>^$#*/%])(?:[+<=>^$]|(?<=[^\W_])#(?![^\W_])|(?<=[^\W_])[*/](?=[^\W_])"
    r"|(?:(?<=\d)|(?<=\d\s))(?:%|[-*/](?=\s?\d))|(?<![^\W_])-(?=\d))"
)
"""Signs that change what a text asks, and so are words: C++, C#, 3 - 4, -5, x/y, 5 %."""
_ASCII_WORD = re.compile(f"[a-z0-9]+|{_SIGNS}", re.ASCII)
_NO_SPACES = (
    "\u0e01-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17e0-\u17e9"
    "\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
"""Scripts in which each character is a word here: Thai, Lao, Burmese, Khmer, kana, Chinese, hangul."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """For each text [n] the number of the earlier one that it repeats (-1: none), and how similar the two are
    (1: equal). Of equal texts it is always the first, even where that one nearly repeats another; a near one
    is a text that is kept."""

    earlier: array[int]
    similarity: array[float]


def words(text: str) -> list[str]:
    """The words of a text, without differences of compatibility form and case (NFKC, casefold). Emoji and
    some signs are words too."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _any_word().findall(unicodedata.normalize("NFKC", text).casefold())


@cache
def _any_word() -> re.Pattern[str]:
    """The pattern of a word in any script. Marks (vowel signs, accents) belong to the letter before them."""
    kinds = {"M": "", "S": ""}
    for code in range(0x80, 0x20000):
        kind = unicodedata.category(chr(code))
        if (kind[0] == "M" and not 0xFE00 <= code <= 0xFE0F) or kind in ("Sm", "Sc", "So"):
            kinds[kind[0]] += chr(code)
    marks, symbols = (_ranges(chars) for chars in kinds.values())
    other = r"[^\x00-\x7f]"
    letters = rf"(?:[a-z0-9]++|[^\x00-\x7f\W{_NO_SPACES}]++|[{marks}]++)++"
    # The first part, and looking ahead before the second, are for speed: most of most texts is ASCII.
    return re.compile(
        f"[a-z0-9]++(?!{other})|(?=[a-z0-9]|{other})(?:[{_NO_SPACES}][{marks}]*+|{letters}|[{symbols}])|{_SIGNS}"
    )


def _ranges(chars: str) -> str:
    """Characters in ascending order as the inside of a regular expression's brackets."""
    starts = [char for last, char in zip(" " + chars, chars, strict=False) if ord(char) != ord(last) + 1]
    ends = [char for char, after in zip(chars, chars[1:] + " ", strict=False) if ord(after) != ord(char) + 1]
    return "".join(f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _terms(text: str) -> list[str]:
    """The words of a text; of a text without words, its characters between spaces, in ASCII."""
    return words(text) or [part.encode("unicode_escape").decode() for part in text.split()]


def normalise(text: str) -> str:
    """The form in which texts that count as equal are equal: their words; of a text without words, its
    characters."""
    return " ".join(_terms(text))


def shingles(text: str) -> set[str]:
    """The pairs of neighbouring words; of a text of one word, that word."""
    return _pairs(_terms(text))


def _pairs(terms: list[str]) -> set[str]:
    return {f"{a} {b}" for a, b in pairwise(terms)} or set(terms)


def jaccard(a: set[Any], b: set[Any]) -> float:
    """Shared elements over all elements; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band) of a signature: as many rows as possible, so that at least RECALL of the pairs
    at the threshold become candidates."""

    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)

    rows = next((rows for rows in range(10, 1, -1) if recall(rows) >= RECALL), 1)
    return PERMUTATIONS // rows, rows


def find_duplicates(texts: Texts, threshold: float | None) -> Repeats:
    """What each text repeats, exactly or, where there is a `threshold` below 1, with a Jaccard similarity of
    at least that.

    Memory: 24 bytes a text; for near ones 4 more for each band (25 at 0.7), and 4 for each word of the texts
    that share a bucket with another. The texts themselves are streamed.
    """
    import numpy as np

    near = threshold if threshold is not None and threshold < 1 else None
    keys, bands = _hashed(texts, (0, 0) if near is None else bands_for(near))
    _, first, which = np.unique(np.frombuffer(keys, np.uint64), return_index=True, return_inverse=True)
    originals = first[which.reshape(-1)].astype(np.int64)
    repeated = originals != np.arange(len(keys))
    del first, which
    repeats = Repeats(
        array("q", np.where(repeated, originals, -1).tobytes()),
        array("f", repeated.astype(np.float32).tobytes()),
    )
    del originals, repeated
    if near is not None and len(keys):
        _find_near(texts, near, bands, repeats)
    return repeats


def _hashed(texts: Texts, shape: tuple[int, int]) -> tuple[array[int], list[array[int]]]:
    """A hash of each text's words [n], and one of each band of its signature [bands][n]."""
    import numpy as np
    import rensa

    bands, rows = shape
    keys, band_keys = array("Q"), [array("I") for _ in range(bands)]
    waiting = map(_terms, texts())
    while batch := list(islice(waiting, BATCH)):
        keys.extend(_key(" ".join(terms)) for terms in batch)
        if bands:
            digests = rensa.RMinHash.digests_from_token_sets(
                [list(_pairs(terms)) for terms in batch], bands * rows, SEED
            )
            mixed = _mixed(np.array(digests, dtype=np.uint64).reshape(len(batch), bands, rows))
            for band, column in zip(band_keys, mixed.T, strict=True):
                band.frombytes(column.tobytes())
    return keys, band_keys


def _mixed(signatures: np.ndarray) -> np.ndarray:
    """The rows of each band as one number of 32 bits: [n, bands, rows] → [n, bands]. Collisions do no harm:
    candidates are verified."""
    import numpy as np

    key = np.zeros(signatures.shape[:2], dtype=np.uint64)
    for row in range(signatures.shape[2]):
        key = (key ^ signatures[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return (key >> np.uint64(32)).astype(np.uint32)


def _key(text: str) -> int:
    return int.from_bytes(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), sys.byteorder
    )


def _find_near(texts: Texts, threshold: float, bands: list[array[int]], repeats: Repeats) -> None:
    """Write near-duplicates into `repeats`, which holds the exact ones."""
    import numpy as np

    new = np.flatnonzero(np.frombuffer(repeats.earlier, np.int64) < 0)
    shared = np.zeros(len(repeats.earlier), dtype=bool)
    chains = [_chain(np.frombuffer(band, np.uint32), new, shared) for band in bands]
    is_shared = shared.tobytes()
    kept = _ShingleHashes(len(repeats.earlier))
    for row, text in enumerate(texts()):
        if not is_shared[row]:
            continue
        hashes = {crc32(shingle.encode()) for shingle in shingles(text)}
        original, similarity = -1, 0.0
        for other in _candidates(chains, row, repeats.earlier):
            value = kept.similarity(other, hashes, threshold)
            if value > similarity or (value == similarity and other < original):
                original, similarity = other, value
        if similarity >= threshold:
            repeats.earlier[row], repeats.similarity[row] = original, min(similarity, 0.999)
        else:
            kept.add(row, hashes)


class _ShingleHashes:
    """The shingles of the texts that are kept, as hashes in one array; 4 bytes each, and 8 a text."""

    def __init__(self, n: int) -> None:
        self._hashes = array("I")
        self._starts = array("Q", bytes(8 * n))

    def add(self, row: int, hashes: set[int]) -> None:
        self._starts[row] = len(self._hashes)
        self._hashes.append(len(hashes))
        self._hashes.extend(hashes)

    def similarity(self, row: int, hashes: set[int], threshold: float) -> float:
        """The Jaccard similarity with a text that was added; 0 where the sizes alone keep it below the
        threshold."""
        start = self._starts[row]
        size = self._hashes[start]
        if min(size, len(hashes)) < threshold * max(size, len(hashes)):
            return 0.0
        both = len(hashes.intersection(self._hashes[start + 1 : start + 1 + size]))
        return both / (len(hashes) + size - both)


def _chain(keys: np.ndarray, new: np.ndarray, shared: np.ndarray) -> memoryview:
    """For each text [n] the one before it in its bucket of this band (-1: none), written over `keys` [n];
    marks in `shared` [n] the texts that are not alone in their bucket. Only the `new` texts are in
    buckets."""
    import numpy as np

    rows = new[np.argsort(keys[new], kind="stable")]
    same = keys[rows[1:]] == keys[rows[:-1]]
    before, after = rows[:-1][same], rows[1:][same]
    shared[before] = shared[after] = True
    chain = keys.view(np.int32)
    chain[:] = -1
    chain[after] = before
    return chain.data


def _candidates(chains: list[memoryview], row: int, earlier: array[int]) -> list[int]:
    """The kept texts before `row` in its buckets, those that share most buckets first; a text that is not
    kept counts as its original."""
    buckets: dict[int, int] = {}
    for chain in chains:
        other = chain[row]
        for _ in range(GROUP):
            if other < 0:
                break
            original = earlier[other]
            kept = other if original < 0 else original
            buckets[kept] = buckets.get(kept, 0) + 1
            other = chain[other]
    return sorted(buckets, key=lambda other: (-buckets[other], other))[:VERIFIED]


def find_by_embedding(texts: Texts, model: str, threshold: float, encode: Encode | None = None) -> Repeats:
    """What each text repeats by meaning: the first earlier one whose embedding has the largest cosine, at
    least `threshold`.

    Args:
        texts: The texts.
        model: A sentence-transformers model, a folder or a hub id.
        threshold: Least cosine.
        encode: Used in place of the model.

    Compares with all kept texts: n² products, minutes for 60,000 texts, hours for a million. Memory: 2 bytes
    a dimension and text. Raises ConfigError where the package or the model is missing.

    """
    import numpy as np

    encode = encode or _sentence_encoder(model)
    earlier, similarity = array("q"), array("f")
    kept: list[np.ndarray] = []
    places: list[np.ndarray] = []
    waiting = texts()
    while batch := list(islice(waiting, BATCH)):
        vectors = _unit(np.asarray(encode(batch), dtype=np.float32))
        best, of = np.full(len(batch), -2.0, np.float32), np.full(len(batch), -1, np.int64)
        for block, where in zip(kept, places, strict=True):
            cosines = vectors @ block.astype(np.float32).T
            top = cosines.argmax(1)
            value = cosines[np.arange(len(batch)), top]
            better = value > best
            best[better], of[better] = value[better], where[top[better]]
        start, stays, within = len(earlier), np.zeros(len(batch), bool), vectors @ vectors.T
        for i in range(len(batch)):
            if stays[:i].any():
                j = int(np.where(stays[:i], within[i, :i], -2).argmax())
                if within[i, j] > best[i]:
                    best[i], of[i] = within[i, j], start + j
            stays[i] = best[i] < threshold
            earlier.append(-1 if stays[i] else int(of[i]))
            similarity.append(0.0 if stays[i] else min(float(best[i]), 0.999))
        if stays.any():
            kept.append(vectors[stays].astype(np.float16))
            places.append(start + np.flatnonzero(stays))
    return Repeats(earlier, similarity)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] of length 1, rounded as they are held (float16), so that a cosine does not depend on
    where a batch ends."""
    import numpy as np

    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float16).astype(np.float32)


def _sentence_encoder(model: str) -> Encode:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            "filters.embeddings needs the package sentence-transformers: pip install sentence-transformers",
            key="sentence-transformers",
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy without socksio
        raise ConfigError(
            f"filters.embeddings {model!r}: no sentence-transformers model ({error})",
            key="filters.embeddings",
        ) from error
    return lambda batch: encoder.encode(batch, show_progress_bar=False, convert_to_numpy=True)
