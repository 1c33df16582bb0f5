"""How the checkers read an answer: words, sentences, paragraphs, list items. Every function takes time that
grows in step with the text, whatever the text is."""

from __future__ import annotations

import random
import re
import unicodedata

_RUN = re.compile(r"[^\W_]+")
_ITEM = re.compile(r"[ \t]{0,8}[-*+•][ \t]+(\S.*)")
_NUMBERED = re.compile(r"[ \t]{0,8}(\d{1,9})[.)][ \t]+(\S.*)")
_MARKS_BEFORE = re.compile(r"[ \t]{0,8}(?:[-+*•>][ \t]+|#{1,6}[ \t]+|\d{1,9}[.)][ \t]+)")
_ENDS = ".!?…"
_CLOSERS = "\"'”’»)]}*_`>"
_OPENERS = "\"'“‘«([{*_`<"
_WIDE_ENDS = re.compile(r"(?<=[。！？])")
_SHORT = (
    "mr mrs ms dr prof st jr sr vs etc cf approx dept fig inc ltd co corp gen col sgt capt rev hon gov"
    " sen rep mt ave jan feb mar apr jun jul aug sep sept oct nov dec al eq est vol pp ed eds"
)
ABBREVIATIONS = frozenset(_SHORT.split())
_STOP = (
    "about above across actually after again against almost also although always among another answer"
    " anything around asked away back based because been before begin being below best better between"
    " both cannot come could dear describe does doing done down during each easily either else enough"
    " even ever every everything example explain find first following from general getting give given"
    " goes going good great have having hello help helpful helps here hers herself himself hope into"
    " itself just keep kind know later least less like likely list little long look looking made make"
    " making many maybe mean means might more most much must myself need never nice next none nothing"
    " often once only other others otherwise ought over part perhaps please provide rather really"
    " request right same section several shall should show simple simply since some someone something"
    " soon start still such suggest sure take tell than thank thanks that their them themselves then"
    " there therefore these they thing things think this those though through thus today together told"
    " toward under understand until upon using very want wants well were what when where whether which"
    " while whom whose will with within without words word would write writing wrote your yours yourself"
)
STOP_WORDS = frozenset(_STOP.split())
"""Words that a prompt is not about, and all that the kinds ask for without looking at the prompt."""
GENERAL_WORDS = (
    "people", "place", "money", "nature", "music", "water", "family", "garden", "history", "plan", "light",
    "summer", "market", "story", "island", "bridge",
)  # fmt: skip
"""What stands for the prompt's own words where it has too few."""


def normal(answer: str) -> str:
    """The answer as the checkers read it: composed Unicode (NFC), one kind of line break, no byte order
    mark or zero-width space, nothing blank around it."""
    text = unicodedata.normalize("NFC", answer)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    return text.replace("\ufeff", "").replace("\u200b", "").strip()


def count_words(text: str) -> int:
    """Parts between blanks and long dashes that have a letter or digit: "well-known" and "don't" are one, a
    dash none. A text without blanks, as in Japanese, is one."""
    return sum(_has_word(part) for part in text.replace("—", " ").split())


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, caseless: "The dog's" is the, dog, s."""
    return _RUN.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """A sentence ends at . ! ? or … before a blank, and at the end of a line. The dot of 3.5, e.g., Dr. or an
    initial ends none unless the line ends there, nor do three dots before a small letter. Marks of lists and
    headings are no part of it, and what has no letter or digit is none."""
    found: list[str] = []
    for line in text.split("\n"):
        parts = _WIDE_ENDS.sub(" ", without_mark(line)).split()
        begin = 0
        for k, part in enumerate(parts):
            following = parts[k + 1] if k + 1 < len(parts) else ""
            if not following or ends_sentence(part, following):
                found.append(" ".join(parts[begin : k + 1]))
                begin = k + 1
    return [sentence for sentence in found if _has_word(sentence)]


def ends_sentence(part: str, following: str) -> bool:
    """Whether a sentence ends with this part of a line, which another part follows."""
    bare = part.rstrip(_CLOSERS)
    if not bare or bare[-1] not in _ENDS + "。！？":
        return False
    if bare.endswith(("..", "…")):
        return not following[:1].islower()
    if bare[-1] != ".":
        return True
    word = bare[:-1].lstrip(_OPENERS).casefold()
    return word not in ABBREVIATIONS and not _is_initials(word)


def _is_initials(word: str) -> bool:
    """Single letters between dots: "e.g", "u.s", "j". "I" ends a sentence as other words do."""
    return word != "i" and all(len(letter) == 1 and letter.isalpha() for letter in word.split("."))


def paragraphs(text: str) -> list[str]:
    """Blocks of lines between blank lines; a block without a letter or digit, such as ---, is none."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for lines in blocks if _has_word(block := "\n".join(lines))]


def lines_of(text: str) -> list[str]:
    """Lines that have a letter or a digit."""
    return [line.strip() for line in text.split("\n") if _has_word(line)]


def without_fences(text: str) -> str:
    """The text without its code blocks, which stand between lines that begin with three backquotes."""
    kept: list[str] = []
    is_code = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            kept.append(line)
    return "\n".join(kept)


def unfenced(text: str) -> str:
    """What is in the code block, where the whole text is one; the text itself otherwise."""
    inner = text.strip()
    if len(inner) > 6 and inner.startswith("```") and inner.endswith("```") and "\n" in inner:
        return inner[:-3].partition("\n")[2].strip()
    return inner


def bullets(text: str) -> list[str]:
    """Items of lists: lines that begin with -, *, + or • and a blank, outside code
    blocks, nested ones too."""
    items = (_ITEM.fullmatch(line) for line in without_fences(text).split("\n"))
    return [item[1] for item in items if item and _has_word(item[1])]


def numbered(text: str) -> list[int]:
    """The numbers of the lines that begin with "1." or "1)" and have text behind it, outside code blocks."""
    items = (_NUMBERED.fullmatch(line) for line in without_fences(text).split("\n"))
    return [int(item[1]) for item in items if item and _has_word(item[2])]


def without_mark(line: str) -> str:
    """The line without the mark of a list, a quotation or a heading at its start."""
    mark = _MARKS_BEFORE.match(line)
    return line[mark.end() :] if mark else line


def content_words(text: str) -> list[str]:
    """Words of 4 to 14 plain letters that a prompt is about, in its order, each once."""
    runs = (word for word in words_of(text) if word.isascii() and word.isalpha())
    return list(dict.fromkeys(word for word in runs if 4 <= len(word) <= 14 and word not in STOP_WORDS))


def drawn_words(rng: random.Random, text: str, n: int) -> list[str]:
    """So many different words that fit the prompt: its own, and general ones where it has too few."""
    own = content_words(text)
    general = [word for word in GENERAL_WORDS if word not in own]
    found = rng.sample(own, min(n, len(own)))
    return found + rng.sample(general, n - len(found))


def _has_word(text: str) -> bool:
    return any(letter.isalnum() for letter in text)
