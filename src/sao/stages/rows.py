"""Row numbers: the place of each record in its step's order. All arithmetic on them is here.

Personas and prompts: training persona i has row 2·i, held-out persona j has row 2·j + 1. So either kind can
grow, and no row moves. Answers, verdicts and pairs are made from training prompts only (or from held-out ones
only) and are numbered by the prompt's index i (or j): answer k of n has row i·n + k, and so on.
"""

from __future__ import annotations

from sao.records import Prompt


def persona_row(index: int, held_out: bool) -> int:
    """The row of a persona, and of its prompt."""
    return 2 * index + held_out


def is_held_out(row: int) -> bool:
    """Whether a persona (or prompt) of this row is kept from training."""
    return row % 2 == 1


def index_of(row: int) -> int:
    """Its number among the training ones, or among the held-out ones."""
    return row // 2


def within(size: tuple[int, int], row: int) -> bool:
    """Whether a persona of this row is one of a run with `size` personas for training and held out."""
    return index_of(row) < size[is_held_out(row)]


def first_free_row(n: int, held_out: int) -> int:
    """The first row behind all personas."""
    return 2 * max(n, held_out)


def index_of_answer(row: int, n: int) -> int:
    """The number of the prompt whose answer, one of `n`, has this row."""
    return row // n


def answer_row(prompt: Prompt, n: int, number: int) -> int:
    """The row of answer `number` of the `n` to a prompt."""
    return index_of(prompt.row) * n + number


def newer_answers(n: int) -> int:
    """How many of a prompt's `n` answers the newer of two models writes; the older one writes the rest."""
    return (n + 1) // 2


def pairs_each(n: int) -> int:
    """Pairs of `n` answers."""
    return n * (n - 1) // 2


def pair_row(index: int, n: int, number: int) -> int:
    """The row of pair `number` of the answers to prompt `index`."""
    return index * pairs_each(n) + number


def pair_number(first: int, second: int, n: int) -> int:
    """The number of the pair of answers `first` < `second`, in the order (0, 1), (0, 2), …, (1, 2), …"""
    return sum(n - 1 - i for i in range(first)) + second - first - 1


def verdict_row(index: int, n: int, number: int, orders: int, order: int) -> int:
    """The row of a verdict on pair `number` in one of the `orders`."""
    return pair_row(index, n, number) * orders + order
