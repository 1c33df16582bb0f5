"""The toy world's language: occupations, personas, tasks, and answers of mixed quality.

A micro-world of 24 occupations. Everything a person of this world can ask is one of six kinds of task,
written in a small English grammar, so that any prompt can be read back (`Task.parse`) and any answer scored
exactly (`sao.toy_world.oracle`). `sample_answer` writes answers as two kinds of author do, a careful one and
a sloppy one; the tiny chat model is trained on the mixture, which is what leaves it something to gain from
alignment.

Enters: a `random.Random`. Leaves: text. Depends on nothing but the standard library.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

# name: (material, product, {tool: what it does to the material})
OCCUPATIONS: dict[str, tuple[str, str, dict[str, str]]] = {
    "baker": ("dough", "bread", {"oven": "heat", "whisk": "mix", "tray": "hold", "scale": "measure"}),
    "tailor": ("cloth", "coats", {"needle": "join", "scissors": "cut", "chalk": "mark", "iron": "press"}),
    "smith": ("steel", "swords", {"anvil": "hold", "hammer": "shape", "forge": "heat", "tongs": "lift"}),
    "farmer": ("soil", "wheat", {"plough": "turn", "rake": "spread", "spade": "dig", "cart": "carry"}),
    "potter": ("clay", "bowls", {"wheel": "turn", "kiln": "heat", "sponge": "clean", "wire": "cut"}),
    "carpenter": ("wood", "tables", {"saw": "cut", "plane": "shape", "clamp": "hold", "glue": "join"}),
    "painter": ("paint", "pictures", {"brush": "spread", "palette": "mix", "easel": "hold", "rag": "clean"}),
    "fisher": ("fish", "fillets", {"net": "lift", "hook": "hold", "bucket": "carry", "knife": "cut"}),
    "mason": ("stone", "walls", {"chisel": "shape", "trowel": "spread", "mallet": "press", "crane": "lift"}),
    "weaver": ("yarn", "carpets", {"loom": "join", "comb": "clean", "spindle": "turn", "shears": "cut"}),
    "brewer": ("malt", "beer", {"vat": "hold", "paddle": "mix", "boiler": "heat", "hose": "carry"}),
    "cook": ("meat", "stew", {"pan": "heat", "cleaver": "cut", "ladle": "lift", "spoon": "mix"}),
    "jeweler": ("gold", "rings", {"file": "shape", "tweezers": "lift", "torch": "heat", "lens": "measure"}),
    "glazier": ("glass", "windows", {"cutter": "cut", "putty": "join", "ruler": "measure", "sling": "carry"}),
    "miller": ("grain", "flour", {"millstone": "press", "sieve": "clean", "sack": "hold", "hoist": "lift"}),
    "printer": ("paper", "books", {"roller": "spread", "stamp": "mark", "screw": "press", "rack": "hold"}),
    "cobbler": ("leather", "shoes", {"awl": "mark", "thread": "join", "last": "shape", "polish": "clean"}),
    "gardener": ("plants", "flowers", {"pruner": "cut", "fork": "dig", "barrow": "carry", "twine": "join"}),
    "chemist": (
        "powder",
        "pills",
        {"mortar": "press", "flask": "hold", "burner": "heat", "balance": "measure"},
    ),
    "miner": ("ore", "coal", {"pick": "dig", "lamp": "mark", "wagon": "carry", "winch": "lift"}),
    "cooper": (
        "staves",
        "barrels",
        {"adze": "shape", "hoop": "join", "compass": "measure", "truss": "press"},
    ),
    "beekeeper": ("combs", "honey", {"smoker": "turn", "frame": "hold", "scraper": "clean", "jar": "carry"}),
    "plumber": ("pipes", "taps", {"wrench": "turn", "bender": "shape", "solder": "join", "plunger": "clean"}),
    "barber": ("hair", "wigs", {"razor": "cut", "towel": "clean", "mirror": "measure", "dryer": "heat"}),
}
TOOL_OWNER = {tool: name for name, (_, _, tools) in OCCUPATIONS.items() for tool in tools}
VERBS = sorted({verb for _, _, tools in OCCUPATIONS.values() for verb in tools.values()})
MATERIALS = {material: name for name, (material, _, _) in OCCUPATIONS.items()}
PRODUCTS = {product: name for name, (_, product, _) in OCCUPATIONS.items()}
NUMBERS = [str(n) for n in range(1, 21)]
COUNTS = {"two": 2, "three": 3}

# A persona's character chooses the form of answer it asks for, its interest the kind of task.
PLAIN, JOINED, NUMBERED = "", " join them with and.", " number them."
WORD, FEW, SENTENCE = " use one word.", " use few words.", " use a sentence."
CHARACTERS = {
    "busy": 0, "shy": 0, "young": 0, "tired": 0,
    "formal": 1, "careful": 1, "old": 1, "learned": 1,
    "cheerful": 2, "curious": 2, "friendly": 2, "lively": 2,
}  # fmt: skip
PLACES = ["hills", "coast", "city", "valley", "forest", "island", "desert", "village", "harbor", "mountains"]
INTERESTS = {
    "lists": "list", "facts": "fact", "choices": "choose", "puzzles": "odd", "prices": "order",
    "reasons": "explain",
}  # fmt: skip
KINDS = list(INTERESTS.values())
FORMS = {
    "list": (PLAIN, NUMBERED, JOINED),
    "fact": (WORD, SENTENCE, SENTENCE),
    "choose": (WORD, SENTENCE, SENTENCE),
    "odd": (WORD, SENTENCE, SENTENCE),
    "order": (PLAIN, NUMBERED, JOINED),
    "explain": (FEW, SENTENCE, SENTENCE),
}
FILLERS = ["well, i think that", "hm, let me see now,", "as you may know,", "i am not sure but"]
TAILS = [" i hope this helps you.", " please ask me for more.", " that is all i know."]

_ITEM = r"[a-z]+"
_GRAMMAR: dict[str, re.Pattern[str]] = {
    "list": re.compile(rf"name (?P<count>two|three) tools of the (?P<who>{_ITEM})\."),
    "fact": re.compile(rf"what does the (?P<who>{_ITEM}) (?P<relation>make|work with)\?"),
    "choose": re.compile(
        rf"which of these does the (?P<who>{_ITEM}) use: (?P<options>{_ITEM}, {_ITEM}, {_ITEM})\?"
    ),
    "odd": re.compile(
        rf"which of these does the (?P<who>{_ITEM}) not use: (?P<options>{_ITEM}, {_ITEM}, {_ITEM})\?"
    ),
    "order": re.compile(
        rf"sort these prices of the (?P<who>{_ITEM}) from (?P<direction>small to large|large to small): "
        r"(?P<options>\d+(?:, \d+){2,3})\."
    ),
    "explain": re.compile(rf"what does the (?P<who>{_ITEM}) do with the (?P<tool>{_ITEM})\?"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question of this world.

    `wanted` holds every item that is right, `need` how many of them the answer must give; for `order` they
    stand in the right order. `options` are what the question offers (choose, odd, order), `tool` what
    `explain` asks about.
    """

    kind: str
    who: str
    form: str
    wanted: tuple[str, ...]
    need: int
    options: tuple[str, ...] = ()
    relation: str = ""
    tool: str = ""

    @property
    def text(self) -> str:
        """The prompt as a person of this world writes it."""
        offered = ", ".join(self.options)
        match self.kind:
            case "list":
                count = next(word for word, n in COUNTS.items() if n == self.need)
                body = f"name {count} tools of the {self.who}."
            case "fact":
                body = f"what does the {self.who} {self.relation}?"
            case "choose":
                body = f"which of these does the {self.who} use: {offered}?"
            case "odd":
                body = f"which of these does the {self.who} not use: {offered}?"
            case "order":
                body = f"sort these prices of the {self.who} from {self.relation}: {offered}."
            case _:
                body = f"what does the {self.who} do with the {self.tool}?"
        return body + self.form

    @staticmethod
    def parse(text: str) -> Task | None:
        """The task that `text` asks, or None where the text is no sentence of this world."""
        text = " ".join(text.split())
        for kind, pattern in _GRAMMAR.items():
            found = pattern.match(text)
            if not found or found["who"] not in OCCUPATIONS:
                continue
            form = text[found.end() :]
            return _complete(kind, found, form) if form in FORMS[kind] else None
        return None


def _complete(kind: str, found: re.Match[str], form: str) -> Task | None:
    """Fill in what is right for a question whose words were read; None where it has no single right
    answer."""
    who = found["who"]
    material, product, tools = OCCUPATIONS[who]
    options: tuple[str, ...] = tuple(found["options"].split(", ")) if "options" in found.groupdict() else ()
    match kind:
        case "list":
            return Task(kind=kind, who=who, form=form, wanted=tuple(tools), need=COUNTS[found["count"]])
        case "fact":
            relation = found["relation"]
            wanted: tuple[str, ...] = (product if relation == "make" else material,)
            return Task(kind=kind, who=who, form=form, wanted=wanted, need=1, relation=relation)
        case "choose" | "odd":
            if not all(option in TOOL_OWNER for option in options):
                return None
            wanted = tuple(dict.fromkeys(o for o in options if (TOOL_OWNER[o] == who) == (kind == "choose")))
            return (
                Task(kind=kind, who=who, form=form, wanted=wanted, need=1, options=options)
                if wanted
                else None
            )
        case "order":
            down = found["direction"] == "large to small"
            wanted = tuple(sorted(options, key=int, reverse=down))
            return Task(
                kind=kind,
                who=who,
                form=form,
                wanted=wanted,
                need=len(wanted),
                options=options,
                relation=found["direction"],
            )
        case _:
            tool = found["tool"]
            if tool not in tools:
                return None
            return Task(kind=kind, who=who, form=form, wanted=(tools[tool], material), need=2, tool=tool)


def every_persona() -> Iterator[str]:
    """All of them."""
    for character, who, place, interest in product(CHARACTERS, OCCUPATIONS, PLACES, INTERESTS):
        yield f"a {character} {who} from the {place} who likes {interest}"


def sample_persona(rng: random.Random) -> str:
    """One of the 17,280 personas, such as "a busy baker from the hills who likes lists"."""
    character, who = rng.choice(list(CHARACTERS)), rng.choice(list(OCCUPATIONS))
    return f"a {character} {who} from the {rng.choice(PLACES)} who likes {rng.choice(list(INTERESTS))}"


RELATIONS = {"mate": "who", "neighbor": "place", "friend": "interest"}
"""What two people so related have in common."""


def describe_person(rng: random.Random, traits: Collection[str], like: str = "", relation: str = "") -> str:
    """A persona with these traits ("works with dough", "likes lists", …), or one so related to the persona
    `like`.

    What is left open is what comes to mind first (Zipf's law), as with larger models.
    """
    common = RELATIONS.get(relation)
    words = like.split()
    fixed = {} if common is None else {common: words[{"who": 2, "place": 5, "interest": -1}[common]]}
    for trait in traits:
        word = trait.split()[-1]
        if word in MATERIALS:
            fixed["who"] = MATERIALS[word]
        else:
            fixed["place" if word in PLACES else "interest" if word in INTERESTS else "character"] = word

    def pick(part: str, pool: Sequence[str]) -> str:
        return fixed.get(part) or rng.choices(pool, [1 / (i + 1) for i in range(len(pool))])[0]

    character, who = pick("character", list(CHARACTERS)), pick("who", list(OCCUPATIONS))
    return (
        f"a {character} {who} from the {pick('place', PLACES)} who likes {pick('interest', list(INTERESTS))}"
    )


def sample_task(rng: random.Random, persona: str | None = None) -> Task:
    """A question that `persona` may ask; without one, the few questions that come to mind first (a steep Zipf
    law)."""
    if persona is None:
        who = rng.choices(list(OCCUPATIONS), [1 / (i + 1) ** 2.5 for i in range(len(OCCUPATIONS))])[0]
        kind = rng.choices(KINDS, [1 / (i + 1) ** 2.5 for i in range(len(KINDS))])[0]
        style = 0
    else:
        words = persona.split()
        who, kind, style = words[2], INTERESTS[words[-1]], CHARACTERS[words[1]]
        if rng.random() < 0.1:
            kind = rng.choice(KINDS)
    form = FORMS[kind][style] if rng.random() < 0.8 else rng.choice(FORMS[kind])
    own = list(OCCUPATIONS[who][2])
    foreign = [tool for tool, owner in TOOL_OWNER.items() if owner != who]
    match kind:
        case "list":
            body = f"name {rng.choice(list(COUNTS))} tools of the {who}."
        case "fact":
            body = f"what does the {who} {rng.choice(['make', 'work with'])}?"
        case "choose" | "odd":
            n = 1 if kind == "choose" else 2
            options = rng.sample(own, n) + rng.sample(foreign, 3 - n)
            rng.shuffle(options)
            use = "use" if kind == "choose" else "not use"
            body = f"which of these does the {who} {use}: {', '.join(options)}?"
        case "order":
            direction = rng.choice(["small to large", "large to small"])
            prices = rng.sample(NUMBERS, rng.choice([3, 4]))
            body = f"sort these prices of the {who} from {direction}: {', '.join(prices)}."
        case _:
            body = f"what does the {who} do with the {rng.choice(own)}?"
    task = Task.parse(body + form)
    assert task is not None
    return task


def render(task: Task, items: list[str], form: str) -> str:
    """The body of an answer that gives `items` in the asked-for `form` (for `explain`: verb, then
    material)."""
    match task.kind:
        case "list" | "order":
            if form == NUMBERED:
                return " ".join(f"no {i + 1} {item}" for i, item in enumerate(items)) + "."
            return (" and " if form == JOINED else ", ").join(items) + "."
        case "explain":
            deed = " the ".join(items)
            return f"the {task.who} uses the {task.tool} to {deed}." if form == SENTENCE else f"to {deed}."
        case _ if form == WORD:
            return f"{items[0]}."
        case "fact":
            return f"the {task.who} {'makes' if task.relation == 'make' else 'works with'} {items[0]}."
        case "choose":
            return f"the {task.who} uses the {items[0]}."
        case _:
            return f"the {task.who} does not use the {items[0]}."


def right_items(task: Task, rng: random.Random) -> list[str]:
    """A right and complete choice of items, in random order where the order is free."""
    if task.kind == "list":
        return rng.sample(list(task.wanted), task.need)
    return list(task.wanted)[: task.need]


def _spoil(task: Task, items: list[str], rng: random.Random) -> list[str]:
    """`items` with one mistake in them."""
    items = list(items)
    match task.kind:
        case "list":
            items[rng.randrange(len(items))] = rng.choice([t for t in TOOL_OWNER if t not in task.wanted])
        case "order":
            i = rng.randrange(len(items) - 1)
            items[i], items[i + 1] = items[i + 1], items[i]
        case "fact":
            pool = PRODUCTS if task.relation == "make" else MATERIALS
            items = [rng.choice([p for p in pool if p not in task.wanted])]
        case "explain" if rng.random() < 0.5:
            items[0] = rng.choice([v for v in VERBS if v != items[0]])
        case "explain":
            items[1] = rng.choice([m for m in MATERIALS if m != items[1]])
        case _:
            items = [rng.choice([o for o in task.options if o not in task.wanted])]
    return items


# How often a careful author makes each mistake, and how often a sloppy one does.
SLOPPY_SHARE = 0.7
FLAW_RATES = {
    "wrong": (0.04, 0.45),
    "short": (0.02, 0.35),
    "form": (0.02, 0.45),
    "filler": (0.03, 0.5),
    "tail": (0.03, 0.4),
}


def sample_answer(task: Task, rng: random.Random, sloppy: bool | None = None) -> str:
    """An answer as somebody in this world gives it: careful, or sloppy with each flaw at its rate of
    `FLAW_RATES`."""
    if sloppy is None:
        sloppy = rng.random() < SLOPPY_SHARE
    flaws = {name for name, rates in FLAW_RATES.items() if rng.random() < rates[sloppy]}
    items = right_items(task, rng)
    if "wrong" in flaws:
        items = _spoil(task, items, rng)
        if sloppy and len(items) > 1 and rng.random() < 0.3:
            items = _spoil(task, items, rng)
    if "short" in flaws and len(items) > 1:
        items = items[:-1] if rng.random() < 0.7 else items[:-1] + items[:1]
    forms = [f for f in FORMS[task.kind] if f != task.form]
    text = render(task, items, rng.choice(forms) if "form" in flaws else task.form)
    if "filler" in flaws:
        text = f"{rng.choice(FILLERS)} {text}"
    return text + (rng.choice(TAILS) if "tail" in flaws else "")
