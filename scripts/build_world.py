"""Build the toy world's chat model from a seed: `python scripts/build_world.py --out build/world-model`.

What enters: nothing but a seed (the corpus is written by `sao.toy_world.language`, marked by
`sao.toy_world.oracle`). What leaves: a Hugging Face model folder (Llama architecture, tokenizer, chat
template) and a log of one JSON line per evaluation.

The corpus has five tasks: write a question as a persona, answer a question (by careful and sloppy authors),
check an answer mark by mark, rank two answers, and, in the last phase, describe a person by traits or by
somebody who knows it. Ranking starts with pairs that are far apart and goes on to closer ones; the last part
ranks and checks answers that the model itself gave, since those are what it will have to judge.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sao.stages.personas import draw_traits, load_traits
from sao.templates import fill
from sao.toy_world.language import (
    CHARACTERS,
    OCCUPATIONS,
    RELATIONS,
    VERBS,
    Task,
    describe_person,
    sample_answer,
    sample_persona,
    sample_task,
)  # fmt: skip
from sao.toy_world.oracle import Score, _asserted, marks

TEMPLATES = Path(__file__).parents[1] / "src" / "sao" / "templates" / "world"
WRITE, WRITE_ANY, RANK = (
    (TEMPLATES / f"{name}.txt").read_text().strip() for name in ("prompt", "prompt_without_persona", "judge")
)
PERSON, RELATED = ((TEMPLATES / f"{name}.txt").read_text().strip() for name in ("persona", "persona_related"))
CHECK = "check this answer. question: {prompt} answer: {answer}"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
PAD, BOS, USER, ASSISTANT, END = 0, 1, 3, 4, 5
HEAD_SIZE = 32
VERDICT_WEIGHT, PROMPT_WEIGHT, MARK_WEIGHT = 8.0, 0.1, 3.0


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the world's words; any other text falls back to bytes, so that nothing is
    lost."""
    rng = random.Random(seed)
    words: set[str] = (
        {str(n) for n in range(21)}
        | set(VERBS)
        | set(re.findall(r"[a-z]+", WRITE_ANY + WRITE + RANK + CHECK))
    )
    for _ in range(30_000):
        persona = sample_persona(rng)
        task = sample_task(rng, persona)
        words.update(re.findall(r"[a-z]+", f"{persona} {task.text} {sample_answer(task, rng)}"))
    words |= {"prompt", "good", "bad", "whole", "form", "brief", "score"}
    pieces = [f"▁{word}" for word in sorted(words)] + ["▁>", "▁", ".", ",", ":", "?"]
    vocab = [(token, 0.0) for token in SPECIAL]
    vocab += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocab += [(piece, -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=PAD, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def check_text(task: Task, answer: str) -> str:
    """The marks of an answer in words: each claim good or bad, then the oracle's parts in fifths and its
    score in tenths."""
    score = marks(task, answer)
    claims = []
    for i, item in enumerate(_asserted(task, answer)[:6]):
        good = (
            item == task.wanted[i] if task.kind == "order" and i < len(task.wanted) else item in task.wanted
        )
        claims.append(f"{item} {'good' if good else 'bad'}")
    fifths = (
        f"whole {round(4 * score.completeness)} form {round(score.form)} brief {round(5 * score.brevity)}"
    )
    return " ".join([*claims, fifths, f"score {round(10 * score.total)}"])


@dataclass(frozen=True, slots=True)
class Example:
    """A chat of two turns; `judged` are the answers in it, in order, each with its oracle marks (at the
    user's text's or the reply's end, or before the words "answer 2")."""

    user: str
    reply: str
    verdict: bool = False
    judged: tuple[Score, ...] = ()


def write_example(rng: random.Random) -> Example:
    persona = sample_persona(rng) if rng.random() < 0.9 else None
    user = WRITE_ANY if persona is None else WRITE.format(persona=persona)
    return Example(user, f"prompt: {sample_task(rng, persona).text}")


def person_example(rng: random.Random) -> Example:
    """Describe a person by some traits, or by how it is related to another."""
    if rng.random() < 0.6:
        traits = draw_traits(load_traits("world"), rng, rng.choice([1, 2, 2, 3]))
        return Example(fill(PERSON, traits="; ".join(traits)), f"person: {describe_person(rng, traits)}")
    like, relation = sample_persona(rng), rng.choice(list(RELATIONS))
    reply = describe_person(rng, (), like, relation)
    return Example(fill(RELATED, relation=relation, persona=like), f"person: {reply}")


def random_task(rng: random.Random) -> Task:
    return sample_task(rng, sample_persona(rng))


def rank_example(rng: random.Random, gap: float, answers: tuple[Task, list[str]] | None) -> Example | None:
    """Rank two answers whose scores lie at least `gap` apart; None where these two do not."""
    task, pair = (
        answers if answers else (t := random_task(rng), [sample_answer(t, rng), sample_answer(t, rng)])
    )
    first, second = (marks(task, a) for a in pair)
    if abs(first.total - second.total) < gap:
        return None
    verdict = "1 > 2" if first.total > second.total else "2 > 1"
    return Example(
        RANK.format(prompt=task.text, first=pair[0], second=pair[1]), verdict, True, (first, second)
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training, with its own warm-up and decay: real tokens, the shares of the tasks write,
    answer, check and person (the rest ranks), the share of answers that go to the kinds in `hard`, and the
    gap in score between ranked answers at the start and how fast it closes. From `own_from` (a share of the
    phase) on, the model's own answers are ranked and checked too."""

    tokens: float
    write: float
    answer: float
    check: float
    hard: float
    gap: float
    closing: float
    own_from: float
    person: float = 0.0


# Picking out of what a question offers is learnt late; the second phase gives it the room. The third adds
# people.
HARD = ["choices", "puzzles", "prices"]
PHASES = [
    Phase(tokens=14e6, write=0.17, answer=0.25, check=0.13, hard=0.0, gap=0.5, closing=0.8, own_from=0.6),
    Phase(tokens=8e6, write=0.10, answer=0.45, check=0.10, hard=0.75, gap=0.05, closing=0.0, own_from=0.3),
    Phase(
        tokens=5e6,
        write=0.10,
        answer=0.38,
        check=0.10,
        hard=0.6,
        gap=0.05,
        closing=0.0,
        own_from=0.0,
        person=0.14,
    ),
]


def corpus(
    rng: random.Random, n: int, phase: Phase, progress: float, own: list[tuple[Task, list[str]]]
) -> Iterator[Example]:
    """`n` examples at this `progress` (0 to 1) of the phase; `own` holds answers that the model gave
    itself."""
    gap = max(0.05, phase.gap - phase.closing * progress)
    made = 0
    while made < n:
        kind = rng.random()
        mine = rng.choice(own) if own and rng.random() < 0.6 else None
        if kind < phase.write:
            example: Example | None = write_example(rng)
        elif kind < phase.write + phase.answer:
            task = random_task(rng)
            if phase.hard and rng.random() < phase.hard:
                words = sample_persona(rng).split()
                task = sample_task(rng, " ".join([*words[:-1], rng.choice(HARD)]))
            answer = sample_answer(task, rng)
            example = Example(task.text, answer, judged=(marks(task, answer),))
        elif kind < phase.write + phase.answer + phase.check:
            task, pair = mine or (t := random_task(rng), [sample_answer(t, rng)])
            answer = rng.choice(pair)
            example = Example(
                CHECK.format(prompt=task.text, answer=answer),
                check_text(task, answer),
                judged=(marks(task, answer),),
            )
        elif kind < phase.write + phase.answer + phase.check + phase.person:
            example = person_example(rng)
        else:
            example = rank_example(rng, gap, (mine[0], rng.sample(mine[1], 2)) if mine else None)
        if example:
            made += 1
            yield example


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, a loss weight for each, and the oracle's marks at the tokens that end an answer."""

    ids: list[int]
    weights: list[float]
    marks: list[tuple[int, Score]]


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[Row]:
    """The examples as chats of two turns."""
    users = tokenizer.backend_tokenizer.encode_batch([e.user for e in examples], add_special_tokens=False)
    replies = tokenizer.backend_tokenizer.encode_batch([e.reply for e in examples], add_special_tokens=False)
    answer, two = tokenizer.convert_tokens_to_ids(["▁answer", "▁2"])
    rows = []
    for user, reply, example in zip(users, replies, examples, strict=True):
        ids = [BOS, USER, *user.ids, END, ASSISTANT, *reply.ids, END]
        weights = [PROMPT_WEIGHT] * (len(user.ids) + 4) + [1.0] * (len(reply.ids) + 1)
        user_end = len(user.ids) + 2
        if example.verdict:
            weights[user_end + 2] = VERDICT_WEIGHT
            between = max(i for i in range(user_end) if ids[i] == answer and ids[i + 1] == two)
            places = [between, user_end]
        else:
            places = [user_end if example.user.startswith("check") else len(ids) - 1]
        rows.append(Row(ids, weights, list(zip(places, example.judged, strict=False))))
    return rows


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def batches(rows: list[Row], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Padded batches of about `tokens` tokens from rows of like length, in random order: ids [B, T], weights
    [B, T], places of marks [M, 2] (row, token), marks [M, 5]."""
    rows = sorted(rows, key=lambda row: len(row.ids))
    groups, start = [], 0
    while start < len(rows):
        width = len(rows[min(start + tokens // len(rows[start].ids), len(rows) - 1)].ids)
        size = max(1, tokens // width)
        groups.append(rows[start : start + size])
        start += size
    rng.shuffle(groups)
    for group in groups:
        width = max(len(row.ids) for row in group)
        ids = torch.tensor([row.ids + [PAD] * (width - len(row.ids)) for row in group])
        weights = torch.tensor([row.weights + [0.0] * (width - len(row.weights)) for row in group])
        places = [(i, place) for i, row in enumerate(group) for place, _ in row.marks]
        values = [
            (m.correctness, m.completeness, m.form, m.brevity, m.total) for row in group for _, m in row.marks
        ]
        yield ids, weights, torch.tensor(places).reshape(-1, 2), torch.tensor(values).reshape(-1, 5)


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD, do_sample=True
    )
    return model


class MarkHeads(torch.nn.Module):
    """Linear readings of an answer's marks from the middle layers, used in training only: they make the model
    note what an answer is worth where it ends, which a verdict can then look up."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        layers = model.config.num_hidden_layers
        self.layers = [layers - 2, layers - 1]
        self.heads = torch.nn.ModuleList(torch.nn.Linear(model.config.hidden_size, 5) for _ in self.layers)

    def forward(
        self, hidden: tuple[torch.Tensor, ...], places: torch.Tensor, marks: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of the marks [M, 5] read from hidden states [B, T, H] at places [M, 2]."""
        if not len(places):
            return torch.zeros(())
        losses = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            state = hidden[layer][places[:, 0], places[:, 1]]
            state = state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + 1e-6)
            losses.append((head(state) - marks).pow(2).mean())
        return torch.stack(losses).mean()


def optimizers(model: LlamaForCausalLM, heads: MarkHeads, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*rest, *heads.parameters()], lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, prefixes: list[list[int]], temperature: float, limit: int = 40
) -> list[list[int]]:
    """One completion to each prefix (all prefixes of one length go through together)."""
    out: list[list[int]] = [[] for _ in prefixes]
    by_length: dict[int, list[int]] = {}
    for i, prefix in enumerate(prefixes):
        by_length.setdefault(len(prefix), []).append(i)
    for rows in by_length.values():
        ids = torch.tensor([prefixes[i] for i in rows])
        cache, done = None, torch.zeros(len(rows), dtype=torch.bool)
        for _ in range(limit):
            result = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = result.past_key_values
            ids = torch.multinomial((result.logits[:, -1] / temperature).softmax(-1), 1)
            done |= ids[:, 0] == END
            for row, token, ended in zip(rows, ids[:, 0].tolist(), done.tolist(), strict=True):
                if not ended:
                    out[row].append(token)
            if bool(done.all()):
                break
    return out


def own_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    n: int,
    temperature: float,
) -> list[tuple[Task, list[str]]]:
    """`n` tasks with two answers each that the model itself gives."""
    tasks = [random_task(rng) for _ in range(n)]
    prompts = tokenizer.backend_tokenizer.encode_batch([t.text for t in tasks], add_special_tokens=False)
    prefixes = [[BOS, USER, *p.ids, END, ASSISTANT] for p in prompts for _ in range(2)]
    texts = tokenizer.batch_decode(sample(model, prefixes, temperature), skip_special_tokens=True)
    return [(task, [texts[2 * i], texts[2 * i + 1]]) for i, task in enumerate(tasks)]


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, n: int = 300
) -> dict[str, float]:
    """Mean oracle score of sampled answers, accuracy and first-slot rate of one-token verdicts on them,
    prompts that parse."""
    rng = random.Random(seed)
    pairs = own_answers(model, tokenizer, rng, n, 0.8)
    scores = [[marks(task, a).total for a in answers] for task, answers in pairs]
    one, two = tokenizer.convert_tokens_to_ids(["▁1", "▁2"])
    right = first = total = flips = 0
    for (task, (a, b)), (x, y) in zip(pairs, scores, strict=True):
        if abs(x - y) < 1e-9:
            continue
        verdicts = []
        for one_text, two_text in ((a, b), (b, a)):
            ids = tokenizer.backend_tokenizer.encode(
                RANK.format(prompt=task.text, first=one_text, second=two_text), add_special_tokens=False
            ).ids
            logits = model(
                input_ids=torch.tensor([[BOS, USER, *ids, END, ASSISTANT]]), logits_to_keep=1
            ).logits[0, -1]
            verdicts.append(bool(logits[one] > logits[two]))
        right += (verdicts[0] == (x > y)) + (verdicts[1] == (y > x))
        first += sum(verdicts)
        flips += verdicts[0] == verdicts[1]
        total += 1
    fits = 0
    personas = [sample_persona(rng) for _ in range(100)]
    texts = tokenizer.backend_tokenizer.encode_batch(
        [WRITE.format(persona=p) for p in personas], add_special_tokens=False
    )
    written = tokenizer.batch_decode(
        sample(model, [[BOS, USER, *t.ids, END, ASSISTANT] for t in texts], 0.8), skip_special_tokens=True
    )
    for persona, text in zip(personas, written, strict=True):
        task = Task.parse(text.removeprefix("prompt: "))
        fits += task is not None and task.who == persona.split()[2]
    people = [person_example(rng) for _ in range(100)]
    texts = tokenizer.backend_tokenizer.encode_batch([e.user for e in people], add_special_tokens=False)
    described = tokenizer.batch_decode(
        sample(model, [[BOS, USER, *t.ids, END, ASSISTANT] for t in texts], 0.8), skip_special_tokens=True
    )
    known = sum(fits_person(e.user, text) for e, text in zip(people, described, strict=True))
    flat = [s for pair in scores for s in pair]
    n_pairs = max(1, total)
    return {
        "oracle": sum(flat) / len(flat),
        "judge": right / (2 * n_pairs),
        "first": first / (2 * n_pairs),
        "flips": flips / n_pairs,
        "differ": total / n,
        "prompts": fits / 100,
        "people": known / 100,
    }


def fits_person(user: str, reply: str) -> bool:
    """Whether the reply describes a person of this world with every trait that was asked for."""
    words = reply.removeprefix("person: ").split()
    if len(words) != 9 or words[1] not in CHARACTERS or words[2] not in OCCUPATIONS:
        return False
    has = {words[1], OCCUPATIONS[words[2]][0], words[5], words[-1]}
    if user.startswith("name a person: "):
        return all(t.split()[-1] in has for t in user.removeprefix("name a person: ").split("; "))
    place = {"mate": 2, "neighbor": 5, "friend": -1}[user.split()[2]]
    return words[place] == user.partition(": ")[2].split()[place]


def widen_heads(model: LlamaForCausalLM, size: int) -> LlamaForCausalLM:
    """The same function with attention heads of `size` dimensions, those added being zero: vLLM has no
    kernels for 24.

    Rotation turns dimension i with i + size/2 by base^(-2i/size) a position: the base grows with the size, so
    that the first halves' angles stay what they were. Scores are divided by √size, so queries grow by √(size
    / old size).
    """
    old = model.config.head_dim
    half, heads = old // 2, model.config.num_attention_heads
    # old dimensions' places within a head
    kept = torch.cat([torch.arange(half), size // 2 + torch.arange(half)])
    places = (torch.arange(heads)[:, None] * size + kept).reshape(-1)
    config = LlamaConfig(**{**model.config.to_dict(), "head_dim": size})
    config.rope_parameters = {
        "rope_type": "default",
        "rope_theta": model.config.rope_parameters["rope_theta"] ** (size / old),
    }
    wide = LlamaForCausalLM(config)
    wide.generation_config = model.generation_config
    weights = model.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                weight.zero_()[places] = weights[name] * (math.sqrt(size / old) if "q_proj" in name else 1.0)
            elif name.endswith("o_proj.weight"):
                weight.zero_()[:, places] = weights[name]
            else:
                weight.copy_(weights[name])
    return wide


def narrow_heads(wide: LlamaForCausalLM, hidden: int) -> LlamaForCausalLM:
    """What `widen_heads` was given, back from what it made."""
    config = LlamaConfig(**wide.config.to_dict())
    size, heads = config.head_dim, config.num_attention_heads
    config.head_dim = old = hidden // heads
    config.rope_parameters = {
        "rope_type": "default",
        "rope_theta": wide.config.rope_parameters["rope_theta"] ** (old / size),
    }
    kept = torch.cat([torch.arange(old // 2), size // 2 + torch.arange(old // 2)])
    places = (torch.arange(heads)[:, None] * size + kept).reshape(-1)
    model = LlamaForCausalLM(config)
    model.generation_config = wide.generation_config
    weights = wide.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                weight.copy_(weights[name][places] / (math.sqrt(size / old) if "q_proj" in name else 1.0))
            elif name.endswith("o_proj.weight"):
                weight.copy_(weights[name][:, places])
            else:
                weight.copy_(weights[name])
    return model


def train_phase(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    phase: Phase,
    number: int,
    args: argparse.Namespace,
) -> None:
    """One phase, with optimisers and random numbers of its own."""
    if number:  # the first phase goes on with the numbers that made the model
        torch.manual_seed(args.seed + number)
    rng = random.Random(args.seed + number)
    heads = MarkHeads(model)
    opts = optimizers(model, heads, args.lr)
    seen, step, next_eval, start = 0.0, 0, 1e6, time.monotonic()
    own: list[tuple[Task, list[str]]] = []
    losses: list[float] = []
    mark_errors: list[float] = []
    while seen < phase.tokens:
        if seen / phase.tokens > phase.own_from:
            own = own[-6000:] + own_answers(model, tokenizer, rng, 400, 1.0)
        rows = encode(tokenizer, list(corpus(rng, 4000, phase, seen / phase.tokens, own)))
        for ids, weights, places, values in batches(rows, args.batch, rng):
            progress = min(1.0, seen / phase.tokens)
            for opt in opts:
                opt.param_groups[0]["lr"] = (
                    args.lr * min(1.0, (step + 1) / 100) * max(0.02, min(1.0, (1 - progress) / 0.4))
                )
                opt.zero_grad(set_to_none=True)
            result = model(input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
            surprise = torch.nn.functional.cross_entropy(
                result.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
            )
            noticed = heads(result.hidden_states, places, values)
            loss = (surprise * weights[:, 1:]).sum() / weights[:, 1:].sum() + MARK_WEIGHT * noticed
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
            seen += float((ids != PAD).sum())
            step += 1
            losses.append(loss.item())
            mark_errors.append(noticed.item())
        if seen >= next_eval or seen >= phase.tokens:
            next_eval += 1e6
            line = {"phase": number, "tokens": round(seen), "step": step, "loss": sum(losses[-50:]) / 50}
            line |= {"mark_error": sum(mark_errors[-50:]) / 50, **evaluate(model, tokenizer, 10_000)}
            print(json.dumps({**line, "seconds": round(time.monotonic() - start)}), flush=True)
            model.save_pretrained(args.out)
    if not math.isfinite(losses[-1]):
        raise SystemExit("the loss is not finite: lower --lr")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--continue-from", type=Path, help="a finished model, to which further phases are added"
    )
    parser.add_argument("--done", type=int, default=0, help="how many phases it has behind it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.seed)
    model = build_model(tokenizer, args.hidden, args.layers)
    if args.continue_from:
        model = narrow_heads(
            LlamaForCausalLM.from_pretrained(args.continue_from, dtype="float32"), args.hidden
        )
    print(
        json.dumps(
            {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "torch": torch.__version__}
        )
    )
    for number, phase in enumerate(PHASES):
        if number >= args.done:
            train_phase(model, tokenizer, phase, number, args)
    widen_heads(model, HEAD_SIZE).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
