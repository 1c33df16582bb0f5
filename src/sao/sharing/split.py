"""Which prompts of an export are training data and which are test data.

No persona and no question is in both: a hash of the question decides, and prompts that share a persona or a
user's turn stay together. So a pair keeps its side when a run is extended.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sao.data.similarity import normalise
from sao.records import Prompt, make_id

LARGE_SHARE, LARGE = 0.1, 8
"""A group of prompts is never test data where it has more than LARGE prompts and would be more than
LARGE_SHARE of the test data."""


def split_of(prompts: Iterable[Prompt], share: float) -> bytes:
    """Which prompts are test data, by row: 1 for a test prompt, else 0.

    Prompts that share a persona or a user's turn form a group, which goes to one side: to test where a hash
    of the smallest hash of their questions is below `share`, unless the group is too large (`LARGE`). Takes
    about 60 bytes a prompt.
    """
    rows, labels, keys, owners = array("q"), array("Q"), array("Q"), array("q")
    for number, prompt in enumerate(prompts):
        questions = {_hash("asked", normalise(text)) for text in (*prompt.earlier[::2], prompt.text)}
        personas = {_hash("persona", prompt.persona_id)} if prompt.persona_id else set()
        prompt_keys = questions | personas
        rows.append(prompt.row)
        labels.append(min(questions))
        keys.extend(prompt_keys)
        owners.extend([number] * len(prompt_keys))
    groups = _groups(np.array(labels, np.uint64), np.array(keys, np.uint64), np.array(owners, np.int64))
    _, group_numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    largest = max(LARGE, LARGE_SHARE * share * len(rows))
    is_test = bytearray(max(rows, default=-1) + 1)
    for row, label, size in zip(rows, groups.tolist(), sizes[group_numbers].tolist(), strict=True):
        is_test[row] = size <= largest and _hash("test", label) < share * 2**64
    return bytes(is_test)


def _hash(*parts: object) -> int:
    return int(make_id(*parts), 16)


def _groups(
    labels: NDArray[np.uint64], keys: NDArray[np.uint64], owners: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """The smallest label of each prompt's group [prompts].

    Prompt owners[i] has keys[i]; prompts with a key in common belong together. Labels spread along shared
    keys until nothing changes.
    """
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    repeats_last = np.r_[False, keys[1:] == keys[:-1]] if len(keys) else np.zeros(0, bool)
    is_shared = repeats_last | np.r_[repeats_last[1:], False]  # most keys belong to one prompt only
    keys, owners = keys[is_shared], owners[is_shared]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(keys)])
    smallest = labels.copy()
    while len(keys):
        smallest_of_key = np.repeat(np.minimum.reduceat(smallest[owners], starts), lengths)
        before = smallest.copy()
        np.minimum.at(smallest, owners, smallest_of_key)
        if np.array_equal(before, smallest):
            break
    return smallest
