"""What runs the model: engine, vLLM, a server; and a judge that is another model."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sao.config.section import Section, setting


class VllmConfig(Section):
    """What vLLM is told (engine.name vllm). Names are vLLM's own."""

    tensor_parallel_size: int = setting(default=1, ge=1, affects_records=False, because="speed and memory")
    """GPUs that share the model."""
    max_model_len: int | None = setting(
        default=None,
        ge=1,
        affects_records=False,
        because="a limit of memory; what does not fit is dropped with its reason",
    )
    """Longest prompt plus answer, in tokens; null: the model's own. A smaller one needs less memory."""
    gpu_memory_utilization: float = setting(default=0.9, gt=0, le=1, affects_records=False, because="memory")
    """Share of each GPU's memory that vLLM takes."""
    max_num_seqs: int = setting(default=256, ge=1, affects_records=False, because="speed and memory")
    """Most samples in one step."""
    quantization: str | None = None
    """vLLM's method (fp8, awq, bitsandbytes …); null: as the weights were saved."""
    lora: str | None = None
    """Folder of a LoRA adapter (peft) that is put on the model."""
    enforce_eager: bool = setting(default=False, affects_records=False, because="speed")
    """No CUDA graphs: starts quicker, decodes slower."""
    extra: dict[str, Any] = {}
    """Further arguments of vllm.LLM, such as {kv_cache_dtype: fp8}."""


class OpenAIConfig(Section):
    """A server that speaks /v1/chat/completions (engine.name openai): vLLM, SGLang, llama.cpp, Ollama, a
    hosted one."""

    base_url: str = setting(
        default="http://127.0.0.1:8000/v1",
        affects_records=False,
        because="where the server is, not what it runs",
    )
    """Where it listens, /v1 included."""
    model: str | None = None
    """The model's name there; null: the recipe's model, or the only one that is served."""
    api_key_env: str = setting(default="OPENAI_API_KEY", affects_records=False, because="a key")
    """The environment variable that holds the key; may be unset for servers that ask for none."""
    max_concurrency: int = setting(default=256, ge=1, le=4096, affects_records=False, because="speed")
    """Most requests in flight. Fewer are sent while the server answers 429 or 503 or too late."""
    requests_per_minute: float | None = setting(default=None, gt=0, affects_records=False, because="speed")
    """Most requests sent in a minute."""
    tokens_per_minute: float | None = setting(default=None, gt=0, affects_records=False, because="speed")
    """Most tokens, prompt and answer together, in a minute."""
    timeout: float = setting(
        default=600.0, gt=0, affects_records=False, because="when a request is sent again"
    )
    """Seconds for one request from sending it to the last byte of the answer."""
    patience: float = setting(
        default=120.0, gt=0, affects_records=False, because="when the run ends with an error"
    )
    """Seconds in which every request fails after which the run ends with an error."""
    retries: int = setting(default=20, ge=0, affects_records=False, because="when a request is given up")
    """Further tries of a request that fails while others succeed; then its item is dropped."""
    min_rows_per_minute: float = setting(
        default=0.0, ge=0, affects_records=False, because="when the run ends with an error"
    )
    """Fewer answers than this in a minute, over two minutes, end the run; 0: a warning only, where the rate
    falls to a tenth."""
    price_prompt: float = setting(default=0.0, ge=0, affects_records=False, because="shown only")
    """Price of a million prompt tokens, in any currency; the summary shows the cost."""
    price_completion: float = setting(default=0.0, ge=0, affects_records=False, because="shown only")
    """Price of a million tokens of answers."""
    extra_body: dict[str, Any] = {}
    """Further keys of each request, such as {chat_template_kwargs: {enable_thinking: false}}."""

    @model_validator(mode="after")
    def _check(self) -> OpenAIConfig:
        if not re.match(r"https?://[^/@\s]+(/\S*)?$", self.base_url):
            raise ValueError(
                "base_url is a URL such as http://127.0.0.1:8000/v1, without a key or password in it"
            )
        if self.extra_body.get("stream"):
            raise ValueError("extra_body: stream cannot be set, since answers are read whole")
        return self


class EngineConfig(Section):
    """What runs the model when it writes, answers and judges."""

    name: Literal["auto", "transformers", "vllm", "openai", "scripted"] = "auto"
    """auto (vllm where it is installed and suits model and device, else transformers; the run's first line
    says which), transformers (built in), vllm (in process; extra sao[vllm]), openai (a server), or scripted
    (a rule-following stand-in for tests)."""
    device: str = setting(default="auto", affects_records=False, because="rounding only")
    """Torch device, such as cpu or cuda:0; auto takes a GPU where there is one. (Not vllm's and openai's.)"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        default="auto", affects_records=False, because="rounding only"
    )
    """Number format of the weights; auto is float32 on a CPU and what the model was saved in on a GPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = setting(
        default="auto", affects_records=False, because="rounding only"
    )
    """Attention of plain forward passes: batches of equal length, padded training. auto: sdpa,
    or eager where the model's scores are soft-capped or transformers knows no sdpa for it. (The built-in
    engine's usual batches and packed training attend by code of their own.)"""
    slots: int = setting(default=64, ge=1, le=4096, affects_records=False, because="rounding only")
    """Samples that the built-in engine generates at once (rows of its decoding batch)."""
    exact: bool | None = setting(default=None, affects_records=False, because="rounding only")
    """Whether a sample of the built-in engine is the same to the last bit whatever runs beside it and after a
    restart; null: on a CPU, not on a GPU."""
    threads: int = setting(default=0, ge=0, affects_records=False, because="rounding only")
    """CPU threads of torch; 0 leaves torch's own choice. Byte-for-byte reruns need the same number."""
    replicas: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = setting(
        default=None, affects_records=False, because="speed"
    )
    """Copies of the engine that work side by side, run by Ray: a number, or auto (one to each GPU or group of
    vllm.tensor_parallel_size GPUs of one machine; without GPUs one to each machine). null: auto where
    ray.address is given, else the one in this process. (Not openai's.)"""
    trust_remote_code: bool = setting(
        default=False, affects_records=False, because="permission to run the model's own code"
    )
    """Whether code that comes with a model may run. Off unless asked for."""
    vllm: VllmConfig = VllmConfig()
    """Settings of vLLM."""
    openai: OpenAIConfig = OpenAIConfig()
    """Settings of a server."""

    @model_validator(mode="after")
    def _check_replicas(self) -> EngineConfig:
        if self.name == "openai" and self.replicas is not None:
            raise ValueError(
                "replicas: a server is asked by one engine, however many GPUs it has. Take the key out; "
                "several servers can stand behind one address (a load balancer)"
            )
        return self


class JudgeConfig(EngineConfig):
    """A judge that is not the model itself."""

    model: str | None = None
    """The judge: a folder, a hub id, or a name on a server; null: the recipe's model."""
    revision: str | None = None
    """Revision of the hub model."""
