"""How varied a run's data is: `sao stats RUN`, or two runs side by side. A run folder in, a dict of figures and a table out.

Repetition is the share of texts that repeat an earlier one: exactly (equal but for case, punctuation and spaces), or nearly (a
Jaccard similarity of word pairs of at least NEAR; the exact ones are among them). It is measured on all prompts as the model wrote
them, held-out ones included, before any filter, and once more after the filters. The exact rate is what is set beside the paper's
"prompt repetition" of 0.73 % with personas and 45.65 % without (arXiv 2510.06652, 10,000 pairs; how it was counted is not said
there). It rises with the number of texts, so it is also given for as many as two runs have in common (`repetition_among`).

Distinct-n, compression and the Vendi score hang on the size of what they are taken on. They are taken on samples of fixed size,
drawn by the hash of a record's id, and the size is shown wherever there were fewer texts than that.
"""

from __future__ import annotations

import heapq
import math
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sao.config import Config
from sao.errors import StoreError
from sao.evaluation.statistics import wilson
from sao.folder import RunFolder
from sao.prompts import drawn_template
from sao.similarity import Repeats, find_duplicates, words
from sao.store import Stage, read_manifest
from sao.types import Persona, Prompt, Response, make_id

if TYPE_CHECKING:
    import numpy as np

NEAR = 0.7
"""Jaccard similarity of word pairs from which on a text is called a near repetition."""
AMONG = (1_000, 10_000)
"""Numbers of texts for which the exact repetition is given too; 10,000 is the paper's."""
SAMPLE, LONGEST = 5_000, 10_000
"""Texts of the sample that topics, and the start of which all other sampled figures, are taken on; characters kept of each."""
DISTINCT_WORDS, COMPRESSED_BYTES, VENDI_TEXTS = 20_000, 100_000, 1_000
TOPICS, TOPIC_WORDS = 8, 6
Texts = Callable[[], Iterator[tuple[str, str]]]
"""(id, text), in the order of the rows; called a few times."""


def stats(run: RunFolder, seed: int = 0) -> dict[str, Any]:
    """The figures of a run, ready for JSON: of its prompts, and of personas and answers where there are any.

    Args:
        run: A run whose prompts are written. One that trains on given pairs has none of its own; what there is is shown.
        seed: Another one draws other samples.

    Returns:
        `personas`, `prompts` (as written), `kept_prompts` (where filters dropped any) and `answers` as `describe` gives them,
        each only where it is there; `sources`, `licences`, `funnel` and `templates` (of prompts.mix).

    Raises:
        StoreError: The run's prompts are not written yet.

    """
    given = run.config.pairs.source
    if given is None and not run.prompts_stage.finished:
        raise StoreError(
            f"{run.root}: its prompts are not all written yet. Go on with: sao prompts RECIPE --out {run.root}"
        )
    found: dict[str, Any] = {
        "sources": _sources(run.config),
        "licences": read_manifest(run.root).get("licences", {}),
        "funnel": run.funnel(),
        "templates": _templates(run),
    }
    for name, stage, kind in _kinds(run):

        def texts(stage: Stage = stage, kind: Any = kind) -> Iterator[tuple[str, str]]:
            return ((record.id, _text(record)) for record in stage.records(kind))

        # Answers are long and many: looking for near repetitions among them would take hours where prompts take minutes.
        found[name] = describe(texts, seed, topics=name == "prompts", near=name != "answers")
    return found


def _kinds(run: RunFolder) -> Iterator[tuple[str, Stage, Any]]:
    """What a run holds that can be described: name, stage, kind of record."""
    c, kept = run.config, run.kept_prompts_stage
    if c.personas.source != "none" and c.prompts.source is None and run.personas_stage.finished:
        yield "personas", run.personas_stage, Persona
    if run.prompts_stage.finished:
        yield "prompts", run.prompts_stage, Prompt
    if kept.path != run.prompts_stage.path and kept.finished and kept.counts["dropped"]:
        yield "kept_prompts", kept, Prompt
    if c.pairs.source is None and run.kept_responses_stage.finished:
        yield "answers", run.kept_responses_stage, Response


def _text(record: Persona | Prompt | Response) -> str:
    return record.conversation if isinstance(record, Prompt) else record.text


def _sources(config: Config) -> dict[str, str]:
    """Where model, personas, prompts and pairs come from, as far as the recipe says."""
    c = config
    if c.pairs.imported is not None:
        return {"pairs": "imported"}
    asked = ("prompts", c.prompts) if c.prompts.source is not None else ("personas", c.personas)
    found = {"model": c.model if c.revision is None else f"{c.model}@{c.revision}"}
    for name, part in (asked, ("pairs", c.pairs)):
        if part.source is not None:
            found[name] = part.source if part.revision is None else f"{part.source}@{part.revision}"
    return found


def _templates(run: RunFolder) -> dict[str, dict[str, int]]:
    """Of each template of prompts.mix how many prompts were asked for, written, and kept by the filters; {} without a mix."""
    c, kept = run.config, run.kept_prompts_stage
    mixed = c.prompts.mix and c.prompts.source is None and c.personas.source != "none" and c.pairs.imported is None
    if not mixed or not run.prompts_stage.finished:
        return {}
    found = {name: {"asked": 0, "written": 0} for name in c.prompts.mix}
    for prompt in run.prompts_stage.records(Prompt):
        counts = found[drawn_template(c.prompts, prompt.id)]
        counts["asked"] += 1
        counts["written"] += 1
    for drop in run.prompts_stage.drops():
        found[drawn_template(c.prompts, drop.record_id)]["asked"] += 1
    if kept.finished:
        left = Counter(drawn_template(c.prompts, prompt.id) for prompt in kept.records(Prompt))
        found = {name: {**counts, "kept": left[name]} for name, counts in found.items()}
    return found


def describe(texts: Texts, seed: int = 0, topics: bool = True, near: bool = True) -> dict[str, Any]:
    """The figures of some texts; `topics` and `near` leave out what takes longest.

    One pass for lengths and sample, one for exact repetition, two more for near. Memory: 16 bytes a text, the sample, and what
    `sao.similarity.find_duplicates` takes.
    """
    said, characters = array("q"), array("q")

    def measured() -> Iterator[tuple[str, str]]:
        for record_id, text in texts():
            said.append(len(words(text)))
            characters.append(len(text))
            yield record_id, text[:LONGEST]

    sampled = [text for _, text in smallest(measured(), SAMPLE, seed)]
    repeats = find_duplicates(lambda: (text for _, text in texts()), NEAR if near else None)
    n, groups = len(repeats.earlier), group_sizes(repeats)
    start = first_words(sampled)
    found: dict[str, Any] = {
        "n": n,
        "words": spread(said),
        "characters": spread(characters),
        "exact_repetition": _rate(sum(value >= 1 for value in repeats.similarity), n)
        | {"among": {str(m): repetition_among(groups, m) for m in AMONG}},
        "near_repetition": _rate(sum(place >= 0 for place in repeats.earlier), n) | {"jaccard": NEAR} if near else None,
        "distinct": {str(k): distinct_n(start, k) for k in (1, 2, 3)} | {"words": sum(map(len, start))},
        "compression": compression(sampled),
        "vendi": {"score": vendi(sampled[:VENDI_TEXTS]), "texts": len(sampled[:VENDI_TEXTS])},
    }
    return found | ({"topics": topics_of(sampled, seed)} if topics else {})


def _rate(hits: int, n: int) -> dict[str, Any]:
    """A share with Wilson's interval. Repetitions are no independent trials, but in draws from flat, Zipf's and mixed
    distributions it held the expected rate at this n in 93 to 100 % of the cases."""
    return {"rate": hits / n if n else None, "ci95": list(wilson(hits, n))}


def smallest(texts: Iterable[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """A sample of n texts, or all, in an order that hangs on the ids alone: those with the smallest hashes."""
    return heapq.nsmallest(n, texts, key=lambda row: make_id("stats", seed, row[0]))


def spread(values: Iterable[int]) -> dict[str, float] | None:
    """Mean, median and the 5 % and 95 % quantiles; None of nothing."""
    import numpy as np

    held = np.array(array("q", values))
    if not len(held):
        return None
    low, middle, high = np.quantile(held, [0.05, 0.5, 0.95])
    return {"mean": float(held.mean()), "median": float(middle), "p5": float(low), "p95": float(high)}


def group_sizes(repeats: Repeats) -> Counter[int]:
    """How many groups of 1, 2, 3 … equal texts there are."""
    import numpy as np

    firsts = np.array(repeats.earlier)[np.array(repeats.similarity) >= 1]
    sizes = Counter((np.unique(firsts, return_counts=True)[1] + 1).tolist())
    return sizes + Counter({1: len(repeats.earlier) - sum(size * times for size, times in sizes.items())})


def repetition_among(groups: Counter[int], m: int) -> float | None:
    """The exact repetition to be expected among m of the texts, drawn without putting back; None where there are fewer.

    A group of s of the n equal texts is missed with probability C(n − s, m) / C(n, m), and 1 − Σ (1 − that) / m repeats
    (rarefaction: Hurlbert, "The nonconcept of species diversity", Ecology 52, 1971).
    """
    n = sum(size * times for size, times in groups.items())
    if n < m:
        return None

    def missed(size: int) -> float:
        return math.exp(math.fsum(math.log1p(-m / (n - i)) for i in range(size))) if size <= n - m else 0.0

    different = math.fsum(times * (m / n if size == 1 else 1 - missed(size)) for size, times in groups.items())
    return max(0.0, 1 - different / m)


def first_words(texts: Iterable[str]) -> list[list[str]]:
    """The words of each text, until there are DISTINCT_WORDS."""
    found: list[list[str]] = []
    left = DISTINCT_WORDS
    for text in texts:
        if left <= 0:
            break
        found.append(words(text)[:left])
        left -= len(found[-1])
    return found


def distinct_n(texts: list[list[str]], n: int) -> float | None:
    """Different n-grams of words over all of them (Li et al., arXiv 1510.03055); None where there are none."""
    grams = [tuple(said[i : i + n]) for said in texts for i in range(len(said) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def compression(texts: list[str]) -> dict[str, Any]:
    """Bytes of the texts, one a line, over bytes of the same compressed (zlib, level 9), on the first COMPRESSED_BYTES of them.

    The larger, the more they repeat each other (Shaib et al., arXiv 2403.00553).
    """
    raw = "\n".join(texts).encode("utf-8", "replace")[:COMPRESSED_BYTES]
    return {"ratio": len(raw) / len(zlib.compress(raw, 9)) if raw else None, "bytes": len(raw)}


def vendi(texts: list[str]) -> float | None:
    """The Vendi score: how many quite different texts they are worth, from 1 to n (Friedman and Dieng, arXiv 2210.02410).

    e to the entropy of the eigenvalues of K/n (their definition 3.1), K [n, n] being the cosines of the texts' word counts
    weighted by rarity (TF-IDF). None of nothing.
    """
    import numpy as np

    if not texts:
        return None
    shares = np.linalg.eigvalsh(_cosines([Counter(words(text) or [text]) for text in texts]) / len(texts))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _cosines(counts: list[Counter[str]], block: int = 2000) -> np.ndarray:
    """The cosines [n, n] of word counts, each word weighted by 1 + ln((1 + n) / (1 + texts that hold it))."""
    import numpy as np

    n = len(counts)
    holders = Counter(word for count in counts for word in count)
    shared = {word: i for i, word in enumerate(word for word, times in holders.items() if times > 1)}
    at, place, value = array("q"), array("q"), array("d")
    for i, count in enumerate(counts):
        weights = {word: times * (1 + math.log((1 + n) / (1 + holders[word]))) for word, times in count.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        for word in weights.keys() & shared.keys():
            at.append(i)
            place.append(shared[word])
            value.append(weights[word] / norm)
    order = np.argsort(np.array(place), kind="stable")
    rows, columns, entries = (np.array(column)[order] for column in (at, place, value))
    kernel = np.zeros((n, n))
    for start in range(0, len(shared), block):  # the vectors are sparse: so many words of them at a time
        low, high = np.searchsorted(columns, [start, start + block])
        part = np.zeros((n, block))
        part[rows[low:high], columns[low:high] - start] = entries[low:high]
        kernel += part @ part.T
    np.fill_diagonal(kernel, 1.0)  # words of one text only stand nowhere else
    return kernel


def topics_of(texts: list[str], seed: int) -> dict[str, Any] | None:
    """Clusters of the texts (k-means on TF-IDF), the largest first, with their share and the words that tell them from the others.

    None without scikit-learn; no clusters where there are too few texts or words.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    found: dict[str, Any] = {"texts": len(texts), "clusters": []}
    vectorizer = TfidfVectorizer(
        tokenizer=_telling, token_pattern=None, lowercase=False, stop_words="english", max_df=0.3, max_features=20_000
    )
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no word is left: none at all, or each one in more than 30 % of the texts
        return found
    if len(texts) < TOPICS:
        return found
    labels = MiniBatchKMeans(TOPICS, random_state=seed, n_init=3, batch_size=1024).fit(vectors).labels_
    names, usual = vectorizer.get_feature_names_out(), vectors.mean(axis=0).A1
    for k in range(TOPICS):
        if not (labels == k).any():
            continue
        more = vectors[labels == k].mean(axis=0).A1 - usual
        best = [str(names[i])[:24] for i in (-more).argsort(kind="stable")[:TOPIC_WORDS] if more[i] > 0]
        found["clusters"].append(_rate(int((labels == k).sum()), len(texts)) | {"words": best})
    found["clusters"].sort(key=lambda cluster: -cluster["rate"])
    return found


def _telling(text: str) -> list[str]:
    """The words of a text, single letters left out."""
    return [word for word in words(text) if len(word) > 1 or not word.isascii()]


# The table.

TITLES = {
    "personas": "personas", "prompts": "prompts, as written", "kept_prompts": "prompts, after the filters",
    "answers": "answers",
}  # fmt: skip
SIZES = {
    "distinct": (DISTINCT_WORDS, "words"),
    "compression": (COMPRESSED_BYTES, "bytes"),
    "vendi": (VENDI_TEXTS, "texts"),
}
Cell = Callable[[dict[str, Any]], str]
ROWS: list[tuple[str, Cell]] = [
    ("texts", lambda s: f"{s['n']:,}"),
    ("words: mean, median (5 % – 95 %)", lambda s: _spread(s["words"])),
    ("characters", lambda s: _spread(s["characters"])),
    ("exact repetition", lambda s: _percent(s["exact_repetition"])),
    (f"  among {AMONG[0]:,} of them", lambda s: _percent({"rate": s["exact_repetition"]["among"][str(AMONG[0])]})),
    (f"  among {AMONG[1]:,} of them", lambda s: _percent({"rate": s["exact_repetition"]["among"][str(AMONG[1])]})),
    (f"near repetition (Jaccard ≥ {NEAR:g})", lambda s: _percent(s["near_repetition"])),
    ("distinct-1, -2, -3", lambda s: _sized(s, "distinct", "  ".join(_number(s["distinct"][k], 3) for k in "123"))),
    ("compression ratio", lambda s: _sized(s, "compression", _number(s["compression"]["ratio"], 2))),
    ("Vendi score", lambda s: _sized(s, "vendi", _number(s["vendi"]["score"], 1))),
]


def show_stats(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """One or two runs as a table, a column each; below it sources, funnel, templates and topics of each."""
    lines = [" " * 36 + "".join(f"{name if len(name) < 38 else '…' + name[-36:]:>38}" for name, _ in runs)]
    for kind, title in TITLES.items():
        shown = [found[kind] if kind in found and found[kind]["n"] else None for _, found in runs]
        if any(shown):
            lines += ["", title]
        for name, cell in ROWS if any(shown) else ():
            cells = [cell(found) if found else "–" for found in shown]
            if set(cells) != {"–"}:
                lines.append(f"  {name:34}" + "".join(f"{text:>38}" for text in cells))
    sizes = [f"{key.replace('distinct', 'distinct-n')} on {size:,} {unit}" for key, (size, unit) in SIZES.items()]
    lines += ["", f"Samples: {', '.join(sizes)}; fewer where the table says so.", *_caution(runs)]
    for name, found in runs:
        lines += ["", name, *(f"  {line}" for line in _details(found))]
    return "\n".join(lines)


def _caution(runs: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What of two runs does not compare."""
    lines = []
    both = [(runs[0][1][kind], runs[-1][1][kind]) for kind in TITLES if all(kind in found for _, found in runs)]
    if any(a["n"] != b["n"] for a, b in both):
        lines.append("Repetition rises with the number of texts: where that differs, compare the rows “among”.")
    if any(a[key][unit] != b[key][unit] for a, b in both for key, (_, unit) in SIZES.items()):
        lines.append(
            "Where one of two samples is smaller, its figures do not compare: distinct-n falls and the others rise with size."
        )
    return lines


def _details(found: dict[str, Any]) -> Iterator[str]:
    for what in dict.fromkeys([*found["sources"], *found["licences"]]):
        licence = found["licences"].get(what)
        yield f"{what:12} " + ", ".join(
            filter(None, [found["sources"].get(what), f"licence: {licence}" if licence else None])
        )
    for row in found["funnel"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in row["reasons"].items())
        yield f"{row['stage']:12} {row['records']:,} kept, {row['dropped']:,} dropped" + (
            f" ({reasons})" if reasons else ""
        )
    for name, counts in found["templates"].items():
        yield f"template     {name}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items())
    if "prompts" not in found:
        yield "The pairs were given: nothing of them is measured here. `sao import` makes a run of them"
        return
    topics = found["prompts"]["topics"]
    if topics is None:
        yield "topics       need scikit-learn: pip install 'sao[data]'"
        return
    for cluster in topics["clusters"]:
        low, high = cluster["ci95"]
        yield f"topic        {100 * cluster['rate']:3.0f} % [{100 * low:.0f}, {100 * high:.0f}]  {', '.join(cluster['words'])}"


def _spread(found: dict[str, float] | None) -> str:
    return "–" if found is None else "{mean:,.1f}, {median:,.0f} ({p5:,.0f} – {p95:,.0f})".format(**found)


def _percent(found: dict[str, Any] | None) -> str:
    if found is None or found["rate"] is None:
        return "–"
    low, high = found.get("ci95", (None, None))
    return f"{100 * found['rate']:.2f} %" + ("" if low is None else f" [{100 * low:.2f}, {100 * high:.2f}]")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _sized(found: dict[str, Any], key: str, text: str) -> str:
    """A figure, and the size of its sample where that is smaller than it should be."""
    size, unit = SIZES[key]
    return text if found[key][unit] >= size else f"{text} on {found[key][unit]:,} {unit}"
