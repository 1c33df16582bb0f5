"""Recipes: YAML files and dotted overrides in, one validated, frozen `Config` out.

A recipe names only what differs from the defaults written here. `load_recipe("demo", {"train.beta": "2.0"})` reads
`sao/recipes/demo.yaml` or a file by path. Keys and tokens never stand in a recipe: they come from the environment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sao.errors import ConfigError


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class VllmConfig(Section):
    """What vLLM is told (engine.name vllm). Names are vLLM's own."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt plus answer, in tokens; null: the model's own. A smaller one needs less memory."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Most samples in one step."""
    quantization: str | None = None
    """vLLM's method (fp8, awq, bitsandbytes …); null: as the weights were saved."""
    lora: str | None = None
    """Folder of a LoRA adapter (peft) that is put on the model."""
    enforce_eager: bool = False
    """No CUDA graphs: starts quicker, decodes slower."""
    extra: dict[str, Any] = {}
    """Further arguments of vllm.LLM, such as {kv_cache_dtype: fp8}."""


class OpenAIConfig(Section):
    """A server that speaks /v1/chat/completions (engine.name openai): vLLM, SGLang, llama.cpp, Ollama, a hosted one."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where it listens, /v1 included."""
    model: str | None = None
    """The model's name there; null: the recipe's model, or the only one that is served."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; may be unset for servers that ask for none."""
    max_concurrency: int = Field(default=256, ge=1, le=4096)
    """Most requests in flight. Fewer are sent while the server answers 429 or 503 or too late."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests sent in a minute."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens, prompt and answer together, in a minute."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for one request from sending it to the last byte of the answer."""
    patience: float = Field(default=120.0, gt=0)
    """Seconds in which every request fails after which the run ends with an error."""
    retries: int = Field(default=20, ge=0)
    """Further tries of a request that fails while others succeed; then its item is dropped."""
    min_rows_per_minute: float = Field(default=0.0, ge=0)
    """Fewer answers than this in a minute, over two minutes, end the run; 0: a warning only, where the rate falls to a tenth."""
    price_prompt: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, in any currency; the summary shows the cost."""
    price_completion: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""
    extra_body: dict[str, Any] = {}
    """Further keys of each request, such as {chat_template_kwargs: {enable_thinking: false}}."""

    @model_validator(mode="after")
    def _check(self) -> OpenAIConfig:
        if not re.match(r"https?://[^/@\s]+(/\S*)?$", self.base_url):
            raise ValueError("base_url is a URL such as http://127.0.0.1:8000/v1, without a key or password in it")
        return self


class EngineConfig(Section):
    """What runs the model when it writes, answers and judges."""

    name: Literal["auto", "transformers", "vllm", "openai", "scripted"] = "auto"
    """auto (vllm where it is installed and suits model and device, else transformers; the run's first line says which),
    transformers (built in), vllm (in process; extra sao[vllm]), openai (a server), or scripted (a rule-following stand-in for
    tests)."""
    device: str = "auto"
    """Torch device, such as cpu or cuda:0; auto takes a GPU where there is one. (Not vllm's and openai's.)"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is float32 on a CPU and what the model was saved in on a GPU."""
    slots: int = Field(default=64, ge=1, le=4096)
    """Samples that the built-in engine generates at once (rows of its decoding batch)."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of torch; 0 leaves torch's own choice. Byte-for-byte reruns need the same number."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Off unless asked for."""
    vllm: VllmConfig = VllmConfig()
    """Settings of vLLM."""
    openai: OpenAIConfig = OpenAIConfig()
    """Settings of a server."""


class JudgeConfig(EngineConfig):
    """A judge that is not the model itself."""

    model: str | None = None
    """The judge: a folder, a hub id, or a name on a server; null: the recipe's model."""
    revision: str | None = None
    """Revision of the hub model."""


class WritingConfig(Section):
    """How the model writes the personas itself (personas.source self)."""

    traits: str = "general"
    """Grid of traits that seeds it: general or world (shipped, CC0), or a YAML file {axes: [[phrase, …], …], relations:
    [word, …]}."""
    traits_each: int = Field(default=3, ge=0)
    """Traits given for one persona, each of another axis; 0: none, so that the model writes what comes to mind."""
    related: float = Field(default=0.5, ge=0, le=1)
    """Share of the personas, once there are some, that are asked for as somebody whom an earlier one knows."""
    template: str = "persona"
    """Template with {traits}."""
    template_related: str = "persona_related"
    """Template with {persona} and {relation}."""
    marker: str = "Persona:"
    """What the model's text must begin with; stripped."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest persona, in tokens; a longer one is cut off and dropped."""
    max_similarity: float = Field(default=0.7, gt=0, le=1)
    """A persona this similar to an earlier one (Jaccard, word pairs) is dropped; 1: only equal texts are."""
    min_new: float = Field(default=0.1, ge=0, le=1)
    """Where a smaller share of a round's personas is new, the source has dried up and the run stops."""


class PersonasConfig(Section):
    """Who asks."""

    source: str = "builtin:general"
    """self (the model writes them), builtin:general, builtin:world, none, a .jsonl/.json/.parquet/.csv/.txt file (or .gz of one),
    or a hub data set id."""
    column: str = "persona"
    """The key or column that holds the persona in JSONL, Parquet, CSV and hub data sets."""
    sample: Literal["random", "first"] = "random"
    """random: drawn from the whole file or data set by the seed; first: the first ones of it."""
    writing: WritingConfig = WritingConfig()
    """How the model writes them (source self)."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    licence: str | None = None
    """Licence of the source, copied to the manifest and the model card; known for the built-in ones."""
    n: int = Field(default=1000, ge=0)
    """Personas to train on; each writes one prompt. Not used where pairs.source is given."""
    held_out: int = Field(default=200, ge=0)
    """Further personas, disjoint from those, whose prompts only the evaluation sees."""


class PromptsConfig(Section):
    """How a persona's prompt is written; or the data set of prompts that takes their place."""

    source: str | None = None
    """null: the model writes them. Else "real prompts" (a control): a file as for personas or a hub data set id; then there are
    no personas, and personas.n and personas.held_out count prompts."""
    column: str = "prompt"
    """The key or column that holds the prompt: text, or messages, of which the first user turn counts."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set."""
    licence: str | None = None
    """Licence of the data set, copied to the manifest and the cards."""
    method: Literal["instruct", "user_turn"] = "instruct"
    """instruct: the model is asked to write a prompt as this persona (the paper's way). user_turn: it is told with whom it speaks
    (`template_user_turn`, in the system turn), the user's turn is left open, and it writes what the user says (Magpie,
    arXiv 2406.08464): for models too small to follow the instruction."""
    prefill: bool = False
    """Whether the marker already stands at the start of the reply, for models that forget it (method instruct)."""
    template_user_turn: str = "user_turn"
    """System message with {persona} of method user_turn. Where personas.source is none there is no system message."""
    template: str = "prompt"
    """Template with {persona}: a name in sao/templates or a file."""
    mix: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Several templates with {persona} and their weights, such as {prompt: 2, prompt_code: 1}; drawn by seed for each persona.
    Empty: `template` alone."""
    template_without_persona: str = "prompt_without_persona"
    """Template used where personas.source is none."""
    marker: str = "Prompt:"
    """What the model's text must begin with; stripped. Text without it is dropped as unreadable."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper: 0.6)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt, in tokens; a longer one is cut off and dropped."""

    @model_validator(mode="after")
    def _check(self) -> PromptsConfig:
        if self.method == "user_turn" and (self.prefill or self.mix):
            key = "prefill" if self.prefill else "mix"
            raise ValueError(
                f"{key} belongs to method instruct: with user_turn nobody is asked for a prompt. Take it out"
            )
        return self


class FiltersConfig(Section):
    """Which prompts are not answered. Held-out prompts are filtered too, after the others: none repeats a training prompt."""

    duplicates: Literal["near", "exact", "none"] = "exact"
    """Prompts that repeat an earlier one: exact (but for case, spaces and punctuation), or near ones too (MinHash, verified; some
    200 bytes of memory a prompt)."""
    max_similarity: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word pairs from which on a prompt is a near-duplicate."""
    embeddings: str | None = None
    """A sentence-transformers model (folder or hub id) by which prompts of like meaning are found too; null: none."""
    max_cosine: float = Field(default=0.95, gt=0, le=1)
    """Cosine of two embeddings from which on a prompt is a duplicate."""
    against: list[str] = []
    """Evaluation sets that must not leak into prompts or answers: presets (alpaca_eval, mt_bench, arena_hard, gsm8k …), files, or
    hub ids as ID@REVISION; `PLACE#COLUMN` names the column."""
    max_overlap: float = Field(default=0.7, gt=0, le=1)
    """Share of an evaluation item's n-grams (n = 8, or its number of words where that is less) from which on it has leaked."""
    min_words: int = Field(default=0, ge=0)
    """Shortest prompt, in words."""
    max_words: int | None = Field(default=None, ge=1)
    """Longest prompt, in words; null: any."""
    languages: list[str] = []
    """Languages that are kept, as ISO 639-1 codes such as en; empty: any."""
    refusals: bool = True
    """Whether prompts in which the model refuses to write one are dropped."""
    persona_text: bool = True
    """Whether prompts that quote their persona's text at length, or hold a marker of the template, are dropped."""
    unfinished: bool = True
    """Whether prompts that break off (in a comma, an opened bracket at the end, a bare list number) are dropped."""
    reject: str | None = None
    """A function of yours, as "package.module:function": takes the text, returns why it is dropped, or None (toxicity, say)."""


class ResponsesConfig(Section):
    """How a prompt is answered."""

    n: int = Field(default=2, ge=2)
    """Answers to each prompt (paper: 2)."""
    system: str | None = None
    """System message; folded into the user's turn where the model knows no system role."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper: 0.6)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer, in tokens; a longer one is cut off and dropped."""


class JurorConfig(Section):
    """A further judge, who votes beside the first by the same method."""

    template: str | None = None
    """Its template; null: that of section judging."""
    engine: JudgeConfig | None = None
    """What runs it; null: what runs the first judge."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its vote; the first judge has 1."""


class JudgingConfig(Section):
    """How two answers are compared."""

    method: Literal["logprob", "text", "reward", "random", "longer", "shorter", "first", "oracle", "given"] = "logprob"
    """logprob: probabilities of the verdict token; text: a sampled ranking line (the paper's way); reward: scores of a reward
    model (judging.engine.model, a sequence classifier); the rest are controls: a coin, the longer or shorter answer, the one that
    stands first, the exact oracle (proving ground only); given: the labels that `sao import` read."""
    orders: Literal["both", "one"] = "both"
    """Whether each pair is also judged with its answers swapped (paper: one)."""
    opponents: int | None = Field(default=None, ge=2)
    """With how many others each answer to a prompt is compared; null: with all."""
    template: str = "judge"
    """Template with {prompt}, {first}, {second}."""
    reasoning: bool = False
    """Whether a text verdict may give reasons first; its last line must then be the ranking (template judge_reasoning)."""
    choices: tuple[str, str] = ("1", "2")
    """What a verdict begins with when the first or the second answer is better."""
    prefill: str = ""
    """The beginning of the judge's reply; what follows it is read. It gives the verdict's token its probability where a judge
    would rather begin with other words."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature of text verdicts."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest text verdict, in tokens."""
    min_mass: float = Field(default=0.05, ge=0, le=1)
    """Below this probability of the verdict tokens together a log-prob verdict is unreadable."""
    engine: JudgeConfig | None = None
    """null: the model judges its own answers. Else another judge (a control: with labels from elsewhere it is RLAIF)."""
    panel: list[JurorConfig] = []
    """Further judges who vote too, such as [{template: my-judge.txt}, {engine: {name: openai, model: other}}]."""

    @model_validator(mode="after")
    def _check(self) -> JudgingConfig:
        if self.reasoning and self.method != "text":
            raise ValueError("reasoning belongs to method text: a log-probability is asked for without reasons")
        if self.method == "reward" and (
            self.engine is None or self.engine.model is None or self.engine.name not in ("auto", "transformers")
        ):
            raise ValueError(
                "method reward needs the reward model: set engine.model (and leave engine.name auto or transformers)"
            )
        if self.panel and self.method not in ("logprob", "text"):
            raise ValueError(f"a panel votes by method logprob or text, not {self.method}")
        if self.reasoning and (self.template == "judge" or self.max_tokens < 64):
            raise ValueError(
                "reasoning needs a template that asks for it (judge_reasoning) and max_tokens of 64 or more"
            )
        if self.choices[0].strip() == self.choices[1].strip():
            raise ValueError(f"choices are both {self.choices[0]!r}")
        return self


class PairsConfig(Section):
    """Which judgments become training pairs; or the labelled set that takes their place."""

    source: str | None = None
    """null: the run's own answers and verdicts. Else a preference data set to train on (a labelled baseline, say): a .jsonl,
    .json or .parquet file, a folder of Parquet files, or a hub id; the forms are those of TRL and SimPO."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set, or of the folder."""
    licence: str | None = None
    """Licence of the data set, copied to the manifest and the model card."""
    imported: str | None = None
    """Written by `sao import`: what the data set is whose rows this run's prompts, answers and verdicts are."""
    imported_from: str | None = None
    """Written by `sao import`: the data set's name and revision."""
    rule: Literal["all", "first_last", "best_random", "mu_2sigma", "quality_aware", "adjacent"] = "all"
    """Which of a prompt's answers become pairs, by their ranks: every two; best and worst; best and a random one; best and the
    one nearest to μ−2σ (arXiv 2502.16825); best and the best one that is clearly worse (arXiv 2501.18578, 2504.03612);
    neighbours. With two answers all rules are the same."""
    keep: Literal["confident", "all"] = "confident"
    """confident: both orders agree and p is large enough; all: every readable verdict (the paper's way)."""
    min_p: float = Field(default=0.92, ge=0.5, lt=1)
    """Least probability, as calibrated over the run, that the chosen answer of a kept pair is the better one (verdicts without
    probabilities, judged in one order, have none and pass)."""
    calibrate: bool = True
    """Whether the judge's taste for a slot is subtracted and its confidence scaled to fit the agreement of its orders."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Longest over shortest of a pair's answers, in characters; null: any."""
    length_matched: bool = False
    """Whether pairs are dropped until the longer answer is chosen as often as the shorter one."""
    max_repetition: float = Field(default=0.5, ge=0, le=1)
    """Answers in which a larger share of the 4-grams of words repeats an earlier one make no pair."""


Loss = Literal["simpo", "dpo", "ipo", "dpo_norm", "orpo", "cpo", "kto"]
DEFAULT_BETA: dict[str, float] = {
    "simpo": 10.0, "dpo": 0.1, "ipo": 0.1, "dpo_norm": 5.0, "orpo": 0.1, "cpo": 0.1, "kto": 0.1,
}  # fmt: skip
"""What train.beta is where it is not given; the losses measure it in different units (see sao/training/losses.py)."""


NOT_LEARNT_FROM = ("micro_batch_size", "batches", "share_prompt", "gradient_checkpointing", "processes", "save_steps",
                   "save_minutes", "eval_steps", "samples", "on_alarm", "report_to", "push_to_hub")  # fmt: skip
"""Keys of the section `train` that change nothing in the trained weights but their rounding (and the noise of a dropout)."""


class LoraConfig(Section):
    """The adapter of `train.method: lora` and `qlora`."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Layers that get an adapter: all-linear (every linear layer but the head) or a list of names such as q_proj."""


class TrainConfig(Section):
    """Preference optimisation."""

    loss: Loss = "simpo"
    """simpo, dpo, ipo, dpo_norm (length-normalised DPO), orpo, cpo or kto; equations in sao/training/losses.py."""
    beta: float | None = Field(default=None, gt=0)
    """β of the loss (for ipo its τ, for orpo its λ). null takes the loss's usual one: simpo 10 (as the paper), dpo_norm 5,
    others 0.1."""
    gamma: float | None = Field(default=None, ge=0)
    """SimPO's target margin γ in units of reward (paper: 3). Give this or gamma_beta_ratio, not both."""
    gamma_beta_ratio: float | None = Field(default=None, ge=0)
    """Target margin as a share of β (the SimPO repository's way of writing it): γ = ratio · β."""
    margin_weight: float = Field(default=0.0, ge=0)
    """Further target margin of each pair, in units of reward: this times the judge's margin (nats) of the pair."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability with which a label is taken to be wrong."""
    soft_labels: bool = False
    """Whether a pair's label is the judge's probability of the chosen answer instead of 1."""
    nll_weight: float | None = Field(default=None, ge=0)
    """Weight of the chosen answer's negative log-likelihood, nats per token. null: 1 for orpo and cpo, else 0."""
    nll_average: Literal["pairs", "tokens"] = "pairs"
    """Whether each pair or each token of the batch weighs the same in that term (TRL: tokens)."""
    nll_on_prompt: bool = False
    """Whether that term also covers the prompt (TRL's ORPO does)."""
    method: Literal["full", "lora", "qlora"] = "full"
    """full: all weights; lora: an adapter; qlora: an adapter on weights held in 4 bits (bitsandbytes)."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Format of the weights while they are trained (bfloat16 with optimizer adamw only for adapters: small steps round away)."""
    optimizer: Literal["adamw", "adamw_8bit", "adamw_sr"] = "adamw"
    """adamw; adamw_8bit (bitsandbytes: states in 8 bits); adamw_sr (weights and states in bfloat16, rounded stochastically)."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate (paper: 1e-6)."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    seed: int | None = Field(default=None, ge=0)
    """Order of the pairs, the adapter's start and dropout: another one repeats a training on the same pairs. null: the run's."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs to one optimiser step, over all GPUs."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Pairs to one forward pass on one GPU; times the number of GPUs it must divide batch_size."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(default=2048, ge=8)
    """Longest prompt plus answer, in tokens."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a pair that is longer: dropped, or its answers cut at the end (too long a prompt is always dropped)."""
    batches: Literal["packed", "padded"] = "packed"
    """packed: the answers of a micro-batch in one row without padding; padded: one row each, the model's own attention."""
    share_prompt: bool = True
    """Whether a packed pair's prompt is computed once for both answers."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: less memory, a third more time."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together on this machine, one to a GPU (for several machines call `sao train` by torchrun)."""
    parallel: Literal["ddp", "fsdp2", "zero3"] = "ddp"
    """How several processes share the work: copies of the model, or its weights, gradients and states split."""
    held_out_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pairs kept from training and measured while it runs (metrics eval_*)."""
    eval_steps: int = Field(default=50, ge=1)
    """Optimiser steps between those measurements and between the alarms' samples."""
    samples: int = Field(default=0, ge=0, le=64)
    """Answers sampled every eval_steps (to held-out prompts where there are any), to watch their length and repetition."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """What an alarm does (falling chosen log-probability, exploding margin, growing or repetitive samples)."""
    save_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints."""
    save_minutes: float = Field(default=5.0, gt=0)
    """Minutes after which a checkpoint is also written, at the end of the step under way: no more work than that is lost."""
    report_to: list[Literal["wandb", "tensorboard"]] = []
    """Where metrics go besides metrics.jsonl."""
    push_to_hub: str | None = None
    """Hub id to which the finished model is uploaded with its card, as a private repository (HF_TOKEN in the environment)."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError(
                f"gamma ({self.gamma}) and gamma_beta_ratio ({self.gamma_beta_ratio}) are both given; keep one "
                "(gamma = gamma_beta_ratio * beta)"
            )
        if self.loss != "simpo" and (self.gamma or self.gamma_beta_ratio):
            raise ValueError(f"gamma and gamma_beta_ratio belong to simpo, not to {self.loss}; take them out")
        if self.batch_size % (self.micro_batch_size * self.processes):
            each = f" times processes {self.processes}" if self.processes > 1 else ""
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size}{each} does not divide batch_size {self.batch_size}"
            )
        if self.method == "full" and self.weights == "bfloat16" and self.optimizer != "adamw_sr":
            raise ValueError(
                f"weights bfloat16 with optimizer {self.optimizer}: steps of lr {self.lr:g} are mostly rounded away (they are "
                "smaller than the weights' last digit). Take weights float32, optimizer adamw_sr, or method lora"
            )
        if self.optimizer == "adamw_sr" and self.weights != "bfloat16":
            raise ValueError("optimizer adamw_sr rounds bfloat16 weights stochastically: set weights bfloat16 with it")
        return self

    def learnt_from(self) -> dict[str, Any]:
        """The settings that the trained weights depend on: all but those that change their rounding only.

        A seed of the training's own is called training_seed here, beside the run's; where there is none the key is left out.
        """
        found = self.model_dump(mode="json", exclude={*NOT_LEARNT_FROM, "seed"})
        return found if self.seed is None else found | {"training_seed": self.seed}

    @property
    def scale(self) -> float:
        """β, or the loss's usual one where it is not given."""
        return DEFAULT_BETA[self.loss] if self.beta is None else self.beta

    @property
    def target_margin(self) -> float:
        """SimPO's γ, however it was written; the paper's γ/β of 0.3 where neither form is given; 0 for other losses."""
        if self.loss != "simpo":
            return 0.0
        if self.gamma is not None:
            return self.gamma
        ratio = 0.3 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return ratio * self.scale

    @property
    def likelihood_weight(self) -> float:
        """The weight of the likelihood term; 1 for the losses that are defined with it."""
        if self.nll_weight is not None:
            return self.nll_weight
        return 1.0 if self.loss in ("orpo", "cpo") else 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the untrained model."""
        return self.loss in ("dpo", "ipo", "dpo_norm", "kto")


class EvalConfig(Section):
    """Trained model against base on held-out prompts."""

    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples of the prompts for the 95 % intervals."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest verdict or mark with its reasons, in tokens (suites arena, mtbench, mtbench-pairs)."""
    self_tests: int = Field(default=20, ge=0)
    """Answers on which the judge of `sao eval --suite` is tried: against themselves, swapped, padded, cut, shuffled; 0: none."""
    engine: EngineConfig | None = None
    """What runs base and tuned model; null: the recipe's engine, or the built-in one where that is a server, which cannot be
    given the tuned weights."""


class Config(Section):
    """A whole recipe."""

    model: str = "builtin:world"
    """The chat model to align: builtin:world, a folder, or a hub id."""
    revision: str | None = None
    """Revision of the hub model."""
    seed: int = Field(default=0, ge=0)
    """The run's seed: every request's own seed follows from it."""
    max_drop_share: float = Field(default=0.5, ge=0, le=1)
    """A stage that drops a larger share of its items than this ends the run with the commonest reasons."""
    engine: EngineConfig = EngineConfig()
    """What runs the model."""
    personas: PersonasConfig = PersonasConfig()
    """Who asks."""
    prompts: PromptsConfig = PromptsConfig()
    """How prompts are written."""
    filters: FiltersConfig = FiltersConfig()
    """Which of them are dropped."""
    responses: ResponsesConfig = ResponsesConfig()
    """How they are answered."""
    judging: JudgingConfig = JudgingConfig()
    """How answers are compared."""
    pairs: PairsConfig = PairsConfig()
    """Which comparisons are learnt from."""
    train: TrainConfig = TrainConfig()
    """How the model is trained on them."""
    eval: EvalConfig = EvalConfig()
    """How the result is measured."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.judging.method == "given" and self.pairs.imported is None:
            raise ValueError("judging.method given belongs to runs that `sao import` made: only they have given labels")
        if self.personas.n == 0 and self.pairs.source is None:
            raise ValueError("personas.n is 0, so nobody asks: give at least 1, or a data set with pairs.source")
        return self


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        f.name.removesuffix(".yaml") for f in resources.files("sao.recipes").iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The validated config of a shipped recipe (by name) or a YAML file (by path), with dotted overrides such as
    {"train.beta": "2.0"}, whose values are read as YAML.

    Raises ConfigError for an unknown recipe, unreadable YAML, an unknown key (naming the nearest) or a bad value.
    """
    where, text = _read(str(recipe))
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a recipe is a mapping of keys to values, not {type(data).__name__}")
    return make_config(overridden(data, overrides or {}), where)


def overridden(data: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """A recipe's nested dict with dotted overrides put in, whose values are read as YAML."""
    for dotted, value in overrides.items():
        _set(data, dotted, value)
    return data


def make_config(data: Mapping[str, Any], where: str = "config") -> Config:
    """A Config from nested dicts; `where` opens the error messages."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [_explain(e["loc"], e["type"], e["msg"], e.get("input")) for e in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def field_names(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe."""
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from field_names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, None where it holds a value or a list; `Section | None` counts as a section."""
    if get_origin(annotation) is list:
        return None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _read(recipe: str) -> tuple[str, str]:
    """Where a recipe stands and its text."""
    path = Path(recipe)
    if recipe in recipe_names():
        return f"recipe {recipe}", resources.files("sao.recipes").joinpath(f"{recipe}.yaml").read_text("utf-8")
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"no recipe {recipe!r}: it is no file, and the shipped ones are {', '.join(recipe_names())}.{hint}"
        )
    try:
        return str(path), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _set(data: dict[str, Any], dotted: str, value: str) -> None:
    """Set data[a][b] for "a.b"."""
    *parents, last = dotted.split(".")
    for key in parents:
        child = data[key] = {} if data.get(key) is None else data[key]
        if not isinstance(child, dict):
            raise ConfigError(f"--{dotted}: {key} is a value, not a section.{nearest(dotted)}")
        data = child
    if _is_text(dotted) and value != "null":
        data[last] = value  # a revision such as 12e4567 is no number
        return
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads 1e-6 as a string.
        data[last] = float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    except yaml.YAMLError as error:
        raise ConfigError(f"--{dotted} {value!r}: not a YAML value: {error}") from error


def _is_text(dotted: str) -> bool:
    """Whether this key of a recipe holds free text."""
    section: Any = Config
    for key in dotted.split("."):
        field = getattr(section, "model_fields", {}).get(key)
        if field is None:
            return False
        section = section_of(field.annotation) or field.annotation
    return section in (str, str | None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "-inf", "infinity")


def nearest(dotted: str) -> str:
    """The hint that names the key nearest to a mistyped one."""
    names = list(field_names())
    by_last = {name.rsplit(".", 1)[-1]: name for name in names}
    near = difflib.get_close_matches(dotted, [*names, *{n.split(".")[0] for n in names}], 1, 0.6)
    if not near:
        near = [by_last[n] for n in difflib.get_close_matches(dotted.rsplit(".", 1)[-1], by_last, 1, 0.6)]
    return f" Did you mean {near[0]}?" if near else " `sao run --help-config` lists the keys."


def _explain(loc: tuple[int | str, ...], kind: str, message: str, given: object) -> str:
    dotted = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"unknown key {dotted}.{nearest(dotted)}"
    message = message.removeprefix("Value error, ")
    return f"{dotted or 'recipe'}: {message}" + (f" (given: {given!r})" if not isinstance(given, dict) else "")
