"""Texts that repeat an earlier one. Texts in the order of their rows in; for each, the earlier one that it
repeats.

Exact: equal but for case, punctuation and spaces. Near: MinHash signatures (rensa) name candidates, and the
Jaccard similarity of their word pairs decides. By meaning: the cosine of embeddings. The first of a group
always stays, and a text is compared with those that stayed, so the outcome depends on the order of the rows
and on nothing else.

Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3. What is found, and how fast: python benchmarks/filters.py --rows 60000
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
"""Texts whose signatures or embeddings are made at a time; what is found does not depend on it."""
GROUP, VERIFIED = 48, 32
"""So many of the texts before it in each bucket are looked at, and so many of those, the ones met most often,
are compared. Templated texts ("Explain … in … words." a million times) fill buckets with thousands that are
no duplicates; without bounds all would be compared. What it costs: a duplicate stays where in each bucket
GROUP others or more came between it and its original."""
_SIGNS = (
    r"(?=[-+<=>^$#*/%])(?:[+<=>^$]|(?<=[^\W_])#(?![^\W_])|(?<=[^\W_])[*/](?=[^\W_])"
    r"|(?:(?<=\d)|(?<=\d\s))(?:%|[-*/](?=\s?\d))|(?<![^\W_])-(?=\d))"
)
"""Signs that make another question of a text, and so are words: C++, C#, 3 - 4, -5, x/y, 5 %."""
_ASCII_WORD = re.compile(f"[a-z0-9]+|{_SIGNS}", re.ASCII)
_NO_SPACES = (
    "\u0e01-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17e0-\u17e9"
    "\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
"""Scripts in which each character is a word here: Thai, Lao, Burmese, Khmer, kana, Chinese, hangul."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """For each text [n] the place of the earlier one that it repeats (-1: none), and how similar the two are
    (1: equal). An equal one is always the first of its kind, though that one itself may repeat another
    nearly; a near one is one that stayed."""

    earlier: array[int]
    similarity: array[float]


def words(text: str) -> list[str]:
    """The words of a text, compatibility forms and case made one (NFKC, casefold). Emoji and some signs are
    words too."""
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
    starts = [c for before, c in zip(" " + chars, chars, strict=False) if ord(c) != ord(before) + 1]
    ends = [c for c, after in zip(chars, chars[1:] + " ", strict=False) if ord(after) != ord(c) + 1]
    return "".join(f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _said(text: str) -> list[str]:
    """The words of a text; of one without any, its characters between spaces, in ASCII."""
    return words(text) or [part.encode("unicode_escape").decode() for part in text.split()]


def normalise(text: str) -> str:
    """What two texts that count as equal have in common: their words; of a text without any, its
    characters."""
    return " ".join(_said(text))


def shingles(text: str) -> set[str]:
    """The pairs of neighbouring words; of a text of one word, that word."""
    return _pairs(_said(text))


def _pairs(said: list[str]) -> set[str]:
    return {f"{a} {b}" for a, b in pairwise(said)} or set(said)


def jaccard(a: set[Any], b: set[Any]) -> float:
    """Shared elements over all elements; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band) of a signature: as many rows as still make RECALL of the pairs at the threshold
    candidates."""
    rows = next(
        r for r in range(10, 0, -1) if r == 1 or 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL
    )
    return PERMUTATIONS // rows, rows


def find_duplicates(texts: Texts, threshold: float | None) -> Repeats:
    """What each text repeats, exactly or, where there is a `threshold` below 1, with a Jaccard similarity of
    at least that.

    Memory: 24 bytes a text; while near ones are looked for 4 more for each band (25 at 0.7), and 4 for each
    word of the texts that share a bucket with another. The texts themselves pass through.
    """
    import numpy as np

    near = threshold is not None and threshold < 1
    keys, bands = _hashed(texts, bands_for(threshold) if near and threshold is not None else (0, 0))
    _, first, where = np.unique(np.frombuffer(keys, np.uint64), return_index=True, return_inverse=True)
    places = first[where.reshape(-1)].astype(np.int64)
    repeated = places != np.arange(len(keys))
    del first, where
    found = Repeats(
        array("q", np.where(repeated, places, -1).tobytes()),
        array("f", repeated.astype(np.float32).tobytes()),
    )
    del places, repeated
    if near and threshold is not None and len(keys):
        _find_near(texts, threshold, bands, found)
    return found


def _hashed(texts: Texts, shape: tuple[int, int]) -> tuple[array[int], list[array[int]]]:
    """Of each text a hash of its words [n], and of each band of its signature one [bands][n]."""
    import numpy as np
    import rensa

    bands, rows = shape
    keys, found = array("Q"), [array("I") for _ in range(bands)]
    waiting = map(_said, texts())
    while batch := list(islice(waiting, BATCH)):
        keys.extend(_key(" ".join(said)) for said in batch)
        if bands:
            digests = rensa.RMinHash.digests_from_token_sets(
                [list(_pairs(said)) for said in batch], bands * rows, SEED
            )
            mixed = _mixed(np.array(digests, dtype=np.uint64).reshape(len(batch), bands, rows))
            for band, column in zip(found, mixed.T, strict=True):
                band.frombytes(column.tobytes())
    return keys, found


def _mixed(signatures: np.ndarray) -> np.ndarray:
    """The rows of each band as one number of 32 bits: [n, bands, rows] → [n, bands]. What falls together by
    accident is told apart when it is verified."""
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


def _find_near(texts: Texts, threshold: float, bands: list[array[int]], found: Repeats) -> None:
    """Write near-duplicates into `found`, which holds the exact ones."""
    import numpy as np

    new = np.flatnonzero(np.frombuffer(found.earlier, np.int64) < 0)
    shared = np.zeros(len(found.earlier), dtype=bool)
    chains = [_chain(np.frombuffer(band, np.uint32), new, shared) for band in bands]
    is_shared = shared.tobytes()
    hashes, begins = array("I"), array("Q", bytes(8 * len(found.earlier)))
    for row, text in enumerate(texts()):
        if not is_shared[row]:
            continue
        own = {crc32(shingle.encode()) for shingle in shingles(text)}
        best, of = 0.0, -1
        for other in _candidates(chains, row, found.earlier):
            begin = begins[other]
            size = hashes[begin]
            if min(size, len(own)) < threshold * max(size, len(own)):
                continue
            both = len(own.intersection(hashes[begin + 1 : begin + 1 + size]))
            value = both / (len(own) + size - both)
            if value > best or (value == best and other < of):
                best, of = value, other
        if best >= threshold:
            found.earlier[row], found.similarity[row] = of, min(best, 0.999)
        else:
            begins[row] = len(hashes)
            hashes.append(len(own))
            hashes.extend(own)


def _chain(keys: np.ndarray, new: np.ndarray, shared: np.ndarray) -> memoryview:
    """Of each text [n] the one before it in its bucket of this band (-1: none), written over `keys` [n];
    marks in `shared` [n] those that are not alone in their bucket. Only the `new` texts are in buckets."""
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
    """The texts that stayed, before `row` in its buckets, those met most often first; what did not stay leads
    to its original."""
    meets: dict[int, int] = {}
    for chain in chains:
        other = chain[row]
        for _ in range(GROUP):
            if other < 0:
                break
            original = earlier[other]
            stayed = other if original < 0 else original
            meets[stayed] = meets.get(stayed, 0) + 1
            other = chain[other]
    return sorted(meets, key=lambda other: (-meets[other], other))[:VERIFIED]


def find_by_embedding(texts: Texts, model: str, threshold: float, encode: Encode | None = None) -> Repeats:
    """What each text repeats by meaning: the first earlier one whose embedding has the largest cosine, at
    least `threshold`.

    Args:
        texts: The texts.
        model: A sentence-transformers model, a folder or a hub id.
        threshold: Least cosine.
        encode: Takes the model's place.

    Compares with all that stayed: n² products, minutes for 60,000 texts, hours for a million. Memory: 2 bytes
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
            "filters.embeddings needs the package sentence-transformers: pip install sentence-transformers"
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"filters.embeddings {model!r}: no sentence-transformers model ({error})"
        ) from error
    return lambda batch: encoder.encode(batch, show_progress_bar=False, convert_to_numpy=True)
