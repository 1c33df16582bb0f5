"""Real vLLM, in process and behind its API server, on the shipped model: the whole loop, and the same words
and verdicts as the built-in engine. Run by the environment in build/vllm (`make build/vllm/.installed`);
skipped where vLLM is not installed."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("vllm")
# With this it starts in seconds; one thread, since tests run beside other work.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from sao.config import Config, EngineConfig, RayConfig, VllmConfig, load_recipe
from sao.engines import ChoiceRequest, Choices, Completion, Engine, Request, Sample, Sampling, cluster
from sao.engines.openai import OpenAIEngine
from sao.engines.pool import pool_of
from sao.engines.transformers import TransformersEngine
from sao.engines.vllm import VllmEngine
from sao.engines.vllm_worker import _widen_head
from sao.errors import EngineError, ModelError
from sao.method import run
from sao.models.locate import WORLD_MODEL, find_model
from sao.records import Judgment, Message, from_dict
from sao.results.summary import Summary
from sao.templates import load_template
from sao.toy_world.language import sample_persona
from support.checks import known
from support.errors import raises
from support.families import build
from support.family_checks import train_briefly
from support.pool_engines import end_ray
from support.run_files import records_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = {"personas.n": "80", "personas.held_out": "20", "engine.threads": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of vLLM's own API server with the shipped model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(find_model(WORLD_MODEL)),
    ]
    command += [
        "--served-model-name",
        "world",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.1", "--no-enable-chunked-prefill"]
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=os.environ | settings, stdout=out, stderr=out) as process,
    ):
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()[-3000:]
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def vllm() -> Iterator[Engine]:
    engine = VllmEngine(WORLD_MODEL, EngineConfig(name="vllm", threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def api(server: str) -> Iterator[OpenAIEngine]:
    config: Any = {"name": "openai", "openai": {"base_url": server}}
    engine = OpenAIEngine(WORLD_MODEL, EngineConfig(**config))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def builtin() -> Engine:
    return TransformersEngine(WORLD_MODEL, EngineConfig(threads=1, slots=32))


def personas(n: int) -> list[str]:
    import random

    rng = random.Random(7)
    return [sample_persona(rng) for _ in range(n)]


def asked(n: int, temperature: float, samples: int = 1) -> list[Request]:
    """Requests for prompts of the micro-world."""
    template = load_template("world/prompt", ("persona",))
    return [
        Request(
            (Message("user", template.replace("{persona}", text)),),
            tuple(Sample(f"{i}-{k}", 1000 * i + k) for k in range(samples)),
            Sampling(40, temperature),
        )
        for i, text in enumerate(personas(n))
    ]


def texts(engine: Engine, requests: list[Request]) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    found = {}
    for done in engine.generate(iter(requests)):
        assert isinstance(done, Completion)
        assert done.id not in found
        found[done.id] = (done.text, done.token_ids)
    return found


def verdicts(engine: Engine, n: int) -> dict[str, tuple[float, ...]]:
    """Log-probabilities of "1" and "2" on pairs of answers in both orders."""
    template = load_template("world/judge", ("prompt", "first", "second"))
    requests = []
    for i, question in enumerate(
        f"name three tools of the {who}." for who in ("baker", "printer", "miner", "cook") * (n // 4)
    ):
        answers = ("oven, tray, scale.", "oven.", "hm, let me see now, winch.")
        a, b = answers[i % 3], answers[(i + 1) % 3]
        for order, (x, y) in enumerate(((a, b), (b, a))):
            text = template.replace("{prompt}", question).replace("{first}", x).replace("{second}", y)
            requests.append(ChoiceRequest(f"{i}-{order}", (Message("user", text),), ("1", "2")))
    found = {}
    for done in engine.choice_logprobs(iter(requests)):
        assert isinstance(done, Choices)
        found[done.id] = done.logprobs
    assert len(found) == len(requests)
    return found


@pytest.mark.parametrize("which", ["vllm", "api"])
def test_greedy_text_and_tokens_are_those_of_the_built_in_engine(
    which: str, builtin: Engine, request: pytest.FixtureRequest
) -> None:
    requests = asked(60, temperature=0.0)
    assert texts(request.getfixturevalue(which), requests) == texts(builtin, requests)


@pytest.mark.parametrize("which", ["vllm", "api"])
def test_verdicts_are_those_of_the_built_in_engine(
    which: str, builtin: Engine, request: pytest.FixtureRequest
) -> None:
    expected, found = verdicts(builtin, 60), verdicts(request.getfixturevalue(which), 60)
    assert found.keys() == expected.keys()
    assert max(abs(a - b) for key in expected for a, b in zip(found[key], expected[key])) < 1e-3


def test_verdicts_of_a_model_in_bfloat16_come_from_logits_in_float32() -> None:
    config = EngineConfig(name="vllm", threads=1, dtype="bfloat16")
    engine = VllmEngine(WORLD_MODEL, config)
    try:
        found = verdicts(engine, 60)
    finally:
        engine.close()
    expected = verdicts(TransformersEngine(WORLD_MODEL, config), 60)
    errors = [a - b for key in expected for a, b in zip(found[key], expected[key], strict=True)]
    assert max(map(abs, errors)) < 0.1
    parts = [512 * (first - second) for first, second, *_ in found.values()]
    off_the_grid = [part for part in parts if abs(part - round(part)) > 0.05]
    assert len(off_the_grid) > len(parts) / 2, "logits in bfloat16 differ by multiples of 1/512 at least"


@pytest.mark.parametrize("which", ["vllm", "api"])
def test_turns_that_have_begun_are_those_of_the_built_in_engine(
    which: str, builtin: Engine, request: pytest.FixtureRequest
) -> None:
    engine: Any = request.getfixturevalue(which)
    assert engine.has_prefill
    greedy = Sampling(24, 0.0)
    asked = [
        Request((Message("user", f"person: {text}"),), (Sample(f"{i}p", i),), greedy, prefill="prompt:")
        for i, text in enumerate(personas(6))
    ] + [Request((), (Sample("open", 1),), greedy, as_user=True)]
    expected = {
        c.id: (c.text.lstrip(" "), c.finish_reason)
        for c in builtin.generate(asked)
        if isinstance(c, Completion)
    }
    found = {c.id: (c.text.lstrip(" "), c.finish_reason) for c in engine.generate(asked)}
    assert found == expected
    template = load_template("world/judge", ("prompt", "first", "second"))
    text = (
        template.replace("{prompt}", "name a tool of the baker.")
        .replace("{first}", "oven.")
        .replace("{second}", "winch.")
    )
    choice = ChoiceRequest("v", (Message("user", text),), ("1", "2"), "1 > ")
    (ours,), (theirs,) = builtin.choice_logprobs([choice]), engine.choice_logprobs([choice])
    assert isinstance(ours, Choices)
    # the server shows 20 alternatives; what is not among them is bounded
    least = -math.inf if which == "vllm" else -4.0
    for own, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert other == pytest.approx(own, abs=1e-3) or own < least
    assert max(ours.logprobs) > -1.0


def test_broken_weights_are_refused_before_vllm_starts(tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(find_model(WORLD_MODEL), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    gone = sorted(weights)[-1]
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    config = load_recipe("demo", SMALL | {"model": str(tmp_path / "m"), "engine.name": "vllm"})
    with raises(ModelError, key="weights", match=f"the weight {gone} is missing"):
        run(config, tmp_path / "run", until="prompts")
    with pytest.raises((EngineError, ModelError), match=r"missing|not initialized"):
        VllmEngine(str(tmp_path / "m"), EngineConfig(name="vllm", threads=1))


def test_the_server_and_the_process_draw_the_same_samples(vllm: Engine, api: Engine) -> None:
    """The seed of a sample decides it, alone or in company."""
    requests = asked(24, temperature=0.8, samples=3)
    together = texts(vllm, requests)
    assert together == texts(api, requests)
    assert len({text for text, _ in together.values()}) > 40  # seeds differ, so do samples
    alone = [replace(request, samples=request.samples[1:2]) for request in requests[:5]]
    assert all(together[key] == value for key, value in texts(vllm, alone).items())


def test_what_the_server_can_do_is_found_out(api: OpenAIEngine) -> None:
    skills = api.skills
    assert (skills.n, skills.seed, skills.logprobs, skills.top_logprobs) == (True, True, True, 20)
    assert skills.logprob_token_ids
    assert skills.structured_choice
    assert skills.token_ids


@pytest.mark.parametrize("which", ["vllm", "api"])
def test_a_prompt_without_room_is_cut_off_and_stops_nobody(
    which: str, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(which)
    long = Request((Message("user", "the baker " * 400),), (Sample("long", 1),), Sampling(40))
    tight = Request((Message("user", "the baker " * 245),), (Sample("tight", 1),), Sampling(200))
    short = asked(1, 0.0)[0]
    done = {c.id: c for c in engine.generate(iter([long, short, tight])) if isinstance(c, Completion)}
    assert (done["long"].text, done["long"].finish_reason) == ("", "length")
    assert done["0-0"].text
    assert done["tight"].token_ids
    wide = ChoiceRequest("wide", long.messages, ("1", "2"))
    (choices,) = engine.choice_logprobs(iter([wide]))
    assert all(math.isnan(value) for value in choices.logprobs)


def test_an_abandoned_stream_leaves_the_engine_usable(vllm: Engine) -> None:
    stream = vllm.generate(iter(asked(100, 0.8)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    requests = asked(10, temperature=0.0)
    assert len(texts(vllm, requests)) == 10


def test_stop_strings_end_a_sample(vllm: Engine, builtin: Engine) -> None:
    requests = [replace(r, sampling=replace(r.sampling, stop=("?", "."))) for r in asked(20, temperature=0.0)]
    found, expected = texts(vllm, requests), texts(builtin, requests)
    assert {key: text for key, (text, _) in found.items()} == {
        key: text for key, (text, _) in expected.items()
    }


def loop(config: Config, out: Path) -> Summary:
    summary = run(config, out)
    assert summary.funnel[0].records == 100
    assert known(known(summary.kept).share) > 0.3
    assert known(known(summary.judge).accuracy) > 0.75
    assert known(summary.heldout).n > 15
    assert (Path(summary.paths["model"]) / "model.safetensors").is_file()
    return summary


def test_the_whole_loop_in_process(tmp_path: Path) -> None:
    """Writing, answering, judging by vLLM; training; the tuned model loaded by vLLM again."""
    config = load_recipe("demo", SMALL | {"engine.name": "vllm"})
    loop(config, tmp_path)
    judgments = [from_dict(Judgment, row) for row in records_of(tmp_path, "judgments")]
    assert {j.judge for j in judgments} == {"self"}
    assert run(config, tmp_path).worked is False


def test_the_whole_loop_through_the_server(tmp_path: Path, server: str) -> None:
    config = load_recipe("demo", SMALL | {"engine.name": "openai", "engine.openai.base_url": server})
    summary = loop(config, tmp_path)
    usage = known(summary.usage)
    assert usage.requests > 300
    assert usage.completion_tokens > 1000


def test_the_server_as_a_judge_of_the_built_in_engine(tmp_path: Path, server: str) -> None:
    judge = {
        "judging.engine.name": "openai",
        "judging.engine.openai.base_url": server,
        "judging.engine.model": "world",
    }
    config = load_recipe("demo", SMALL | judge)
    summary = run(config, tmp_path, until="pairs")
    assert known(known(summary.judge).accuracy) > 0.75
    alone = run(load_recipe("demo", SMALL), tmp_path / "alone", until="pairs")
    # the same answers, the same judge
    assert abs(known(known(alone.judge).accuracy) - known(known(summary.judge).accuracy)) < 0.01


def test_a_lora_adapter_is_put_on(tmp_path: Path, builtin: Engine) -> None:
    pytest.importorskip("peft")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(find_model(WORLD_MODEL), dtype="float32")
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in find_model(WORLD_MODEL).glob("*token*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "merged/chat_template.jinja").write_bytes(
        (find_model(WORLD_MODEL) / "chat_template.jinja").read_bytes()
    )
    config: Any = {"name": "vllm", "threads": 1, "vllm": {"lora": str(tmp_path / "adapter")}}
    engine = VllmEngine(WORLD_MODEL, EngineConfig(**config))
    try:
        merged = TransformersEngine(str(tmp_path / "merged"), EngineConfig(threads=1))
        expected, found, plain = verdicts(merged, 8), verdicts(engine, 8), verdicts(builtin, 8)
        assert engine.identity != builtin.identity
        assert max(abs(a - b) for key in expected for a, b in zip(found[key], expected[key])) < 1e-3
        assert max(abs(a - b) for key in expected for a, b in zip(plain[key], expected[key])) > 0.1
    finally:
        engine.close()


@pytest.mark.parametrize("model_type", ["gemma3_text", "mixtral", "olmo3", "falcon_h1"])
def test_a_trained_model_of_a_family_is_read_back(model_type: str, tmp_path: Path) -> None:
    """Windows, a mixture, other norms, and a hybrid, after a training step: the same greedy tokens."""
    sizes = {"head_dim": 32, "hidden_size": 128, "num_attention_heads": 4}  # vLLM has kernels for few sizes
    trained = train_briefly(build(model_type, tmp_path / "model", **sizes), tmp_path / "out").model_dir
    requests = [
        Request((Message("user", "hello world " * i + str(i)),), (Sample(str(i), i),), Sampling(8, 0.0))
        for i in range(4)
    ]
    engine = VllmEngine(str(trained), EngineConfig(name="vllm", dtype="float32", threads=1))
    try:
        found = {done.id: done.token_ids for done in engine.generate(iter(requests))}
    finally:
        engine.close()
    plain = TransformersEngine(str(trained), EngineConfig(device="cpu", threads=1))
    assert found == {done.id: done.token_ids for done in plain.generate(iter(requests))}


def test_a_model_that_vllm_cannot_run_is_a_clear_error(tmp_path: Path) -> None:
    with raises(EngineError, key="vLLM", match="no_such_method.*goes on"):
        config: Any = {"name": "vllm", "vllm": {"quantization": "no_such_method"}}
        VllmEngine(WORLD_MODEL, EngineConfig(**config))


def test_the_child_dies_with_its_engine_and_its_death_is_told(tmp_path: Path) -> None:
    engine = VllmEngine(WORLD_MODEL, EngineConfig(name="vllm", threads=1))
    stream = engine.generate(iter(asked(400, 0.8)))
    next(stream)
    engine._child.kill()
    with raises(EngineError, key="vLLM", match="status -9.*the same command goes on"):
        list(stream)
    engine.close()
    assert engine._child.poll() is not None
    assert not engine._log.exists()


@pytest.mark.parametrize(
    ("quantization", "dtype", "given", "expected"),
    [
        (None, torch.bfloat16, None, {"head_dtype": "float32"}),
        (None, torch.bfloat16, {"head_dtype": "model", "a": 1}, {"head_dtype": "model", "a": 1}),
        (None, torch.float32, None, None),
        ("awq", torch.float16, None, None),
    ],
)
def test_the_head_is_widened_where_it_can_be(
    quantization: str | None,
    dtype: torch.dtype,
    given: dict[str, Any] | None,
    expected: dict[str, Any] | None,
) -> None:
    arguments: dict[str, Any] = {} if given is None else {"hf_overrides": given}
    _widen_head(arguments, SimpleNamespace(quantization=quantization, dtype=dtype))
    assert arguments.get("hf_overrides") == expected


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_pool_outlives_the_child_of_a_replica() -> None:
    """Two engines of vLLM behind Ray; the process that holds the model of one is killed."""
    cluster.connect(RayConfig(address="local"), cpus=2)
    config = EngineConfig(name="vllm", threads=1, replicas=2, vllm=VllmConfig(max_num_seqs=4))
    said: list[str] = []
    pool = pool_of(config, WORLD_MODEL, None, said.append, None, None)
    requests = asked(60, 0.8)
    killed, answers = False, {}
    for answer in pool.generate(requests):
        assert isinstance(answer, Completion)
        assert answer.id not in answers
        answers[answer.id] = answer.text
        if len(answers) == 30 and not killed:
            pid = next(one.pid for one in pool.replicas() if one.phase == "working")
            (child,) = psutil.Process(pid).children()
            child.kill()
            killed = True
    pool.close()
    end_ray()
    assert len(answers) == 60
    assert any("vLLM ended with status -9" in line for line in said), said
    alone = VllmEngine(WORLD_MODEL, config.model_copy(update={"replicas": None}))
    expected = texts(alone, requests)
    alone.close()
    # vLLM's numbers depend a little on what runs beside a request.
    assert sum(answers[name] == text for name, (text, _) in expected.items()) >= 50
