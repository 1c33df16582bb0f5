"""Several processes: who I am among them, and how the model is shared out. Started by torchrun.

`ddp` holds a copy of the model in each process (DistributedDataParallel), `fsdp2` and `zero3` a share of its
weights, gradients and optimiser states (torch's fully_shard; DeepSpeed). The order of the pairs does not
depend on any of it, so all of them end with the weights of one process, but for rounding.

Each process holds the whole model once, while it is loaded and compared with itself, before it is cut up.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer

from sao.config import TrainConfig
from sao.errors import TrainingError

T = TypeVar("T")
PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: the first one alone writes the model. Where one dies, torchrun
ends the rest."""
ZERO3 = Path(__file__).with_name("zero3.json")
"""DeepSpeed's settings."""


@dataclass(frozen=True, slots=True)
class Processes:
    """A process's place among those that train together."""

    world: int = 1
    rank: int = 0

    def micro_steps(self, config: TrainConfig) -> int:
        """Forward passes of each process to one optimiser step. Raises TrainingError where the batch does not
        divide."""
        at_once = config.micro_batch_size * self.world
        if config.batch_size % at_once:
            raise TrainingError(
                f"train.micro_batch_size {config.micro_batch_size} times {self.world} processes does not "
                f"divide train.batch_size {config.batch_size}",
                key="train.micro_batch_size",
            )
        return config.batch_size // at_once

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def first_alone(self, work: Callable[[], T]) -> T:
        """What the first process gets from `work`, which only it does; the others wait for it."""
        if self.world == 1:
            return work()
        return self.from_first(work() if self.rank == 0 else None)  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """What the first process has as `value`."""
        result = [value]
        if self.world > 1:
            broadcast_object_list(result)
        return result[0]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes."""
        return gather_object(items) if self.world > 1 else items

    def sums(self, *numbers: int) -> tuple[int, ...]:
        """Each number summed over the processes."""
        every = self.gather([numbers])
        return tuple(sum(column) for column in zip(*every, strict=True))


def processes() -> Processes:
    """The place of this process. Raises TrainingError where torchrun's processes did not find each other."""
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        return Processes()
    cuda = torch.cuda.is_available()
    if not torch.distributed.is_initialized():
        # Both backends: a model may be kept on the CPU of a machine with GPUs, and numbers are exchanged
        # there.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    state = PartialState(cpu=not cuda)
    if state.num_processes != expected:
        raise TrainingError(
            f"torchrun started {expected} processes, but {state.num_processes} found each other. Start them "
            "with torchrun, not with `accelerate launch --cpu`",
            key="torchrun",
        )
    return Processes(state.num_processes, state.process_index)


def _leave() -> None:
    """Close the connections: a process that ends with them open is now and then aborted by their threads."""
    gc.collect()  # a model that is cut up holds on to them
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_setup(model: PreTrainedModel, config: TrainConfig, group: Processes) -> None:
    """Raise TrainingError where `config` asks for what these processes cannot do."""
    way = config.parallel
    if (
        group.world > 1
        and model.device.type == "cuda"
        and model.device.index != int(os.environ["LOCAL_RANK"])
    ):
        raise TrainingError(
            f"process {group.rank} has its model on {model.device}, but each process needs a GPU of its own. "
            "Set engine.device to cuda or auto",
            key="engine.device",
        )
    if way == "ddp":
        return
    if group.world == 1:
        raise TrainingError(
            f"train.parallel {way} shares the model out among several processes, and there is one. Start "
            "them with `torchrun --nproc-per-node N -m sao ...`, or set train.processes; for one process "
            "take train.parallel ddp",
            key="train.parallel",
        )
    if config.method == "qlora":
        raise TrainingError(
            f"train.method qlora cannot be shared out by {way}: take train.parallel ddp, or method lora",
            key="train.parallel",
        )
    if config.optimizer == "adamw_8bit" or (way, config.optimizer) == ("zero3", "adamw_sr"):
        raise TrainingError(
            f"train.optimizer {config.optimizer} does not go with train.parallel {way}: take adamw, or "
            "train.parallel ddp",
            key="train.optimizer",
        )
    if way == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise TrainingError(
            "train.parallel zero3 needs the package deepspeed: pip install deepspeed", key="deepspeed"
        )


def arguments(config: TrainConfig, group: Processes) -> dict[str, Any]:
    """What transformers.TrainingArguments are to know of it."""
    if config.parallel != "zero3":
        return {}
    # Accelerate would take DeepSpeed for one process on a CPU: it gets to know the others and DeepSpeed
    # before.
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="nccl" if torch.cuda.is_available() else "gloo")
    return {"use_cpu": False, "deepspeed": str(ZERO3), "accelerator_config": {"use_configured_state": True}}


def check_wrapper(model: nn.Module, config: TrainConfig, group: Processes) -> None:
    """Raise TrainingError where the model is not shared out as asked: some set-ups fall back to another way
    silently."""
    if group.world == 1:
        return
    match config.parallel:
        case "ddp":
            right = isinstance(model, nn.parallel.DistributedDataParallel)
        case "fsdp2":
            # The root keeps its weights whole between a measurement and the next step; the layers never do.
            parts = [
                module for module in model.modules() if isinstance(module, FSDPModule) and module is not model
            ]
            cut = all(isinstance(weight, DTensor) for part in parts for weight in part.parameters())
            right = isinstance(model, FSDPModule) and bool(parts) and cut
        case "zero3":
            right = type(model).__name__ == "DeepSpeedEngine" and model.zero_optimization_stage() == 3  # type: ignore[operator]
            right = right and all(hasattr(weight, "ds_id") for weight in model.parameters())
    met = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if not right or met != group.world:
        raise TrainingError(
            f"train.parallel {config.parallel} in {group.world} processes, but the model is a "
            f"{type(model).__name__} in {met}: it would be trained otherwise than asked. Please report the "
            "versions of torch, transformers and accelerate; another train.parallel may work",
            key="train.parallel",
        )


def shard(model: Any, group: Processes, half: bool) -> None:
    """Cut the model up in place: each decoder layer by itself, and what is left (embedding, norm, head) as
    one piece. `half` says whether a GPU makes the products in bfloat16; on a CPU autocast does where asked.

    The head is used inside the root's forward pass, which has gathered it; in the backward pass the root
    gathers it again.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (group.world,))
    in_bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = in_bfloat16 if half and device.type == "cuda" else MixedPrecisionPolicy()
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if not isinstance(model, PreTrainedModel):
        # An adapter's `generate` calls the model below the root, past the root's hooks.
        register_fsdp_forward_method(model, "generate")


def _layers(model: Any) -> list[nn.Module]:
    """The decoder layers, by transformers' own list of the modules that must stay in one piece."""
    names = set(model._no_split_modules or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise TrainingError(
            f"{type(model).__name__} does not name its layers: take train.parallel ddp or zero3",
            key="train.parallel",
        )
    return found


def hollow(model: T) -> T:
    """A copy of the model without its weights."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():  # type: ignore[attr-defined]
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
    return copy.deepcopy(model, memo)


def _whole(weight: Any) -> Any:
    """A weight, gathered from all processes."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach()
    deepspeed = importlib.import_module("deepspeed")
    # In bfloat16 training the optimiser's own float32 weights are the exact ones.
    master = deepspeed.utils.safe_get_full_fp32_param(weight) if weight.requires_grad else None
    if master is not None:
        return master.detach()
    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()


class ParallelTrainer(Trainer):
    """transformers.Trainer with models that are cut up: how they are wrapped, kept in checkpoints, and put
    together.

    A subclass sets `config` and `group` before it calls `__init__`.
    """

    config: TrainConfig
    group: Processes

    def __init__(self, model: PreTrainedModel, **settings: Any) -> None:
        self.cut_up = self.config.parallel != "ddp"
        self._hollow = hollow(model) if self.cut_up and self.group.rank == 0 else None
        super().__init__(model=model, **settings)
        self.sharded = self.config.parallel == "fsdp2"
        if self.sharded:
            shard(model, self.group, half=self.config.half_precision is not False)
            # What Trainer calls a model that came from the disk in pieces: neither it nor accelerate wraps it
            # again.
            self.is_distributed_loading_by_transformers = True

    def whole_model(self) -> Any:
        """The trained model in one piece, in the first process; None in others. A call for all processes."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if not self.cut_up:
            return model if self.group.rank == 0 else None
        if isinstance(model, FSDPModule):
            model.reshard()  # its root is still whole after a measurement
        whole: dict[str, nn.Parameter] = {}
        for name, weight in model.named_parameters():
            gathered = _whole(weight)
            if self.group.rank == 0:
                whole[name] = nn.Parameter(gathered.cpu(), weight.requires_grad)
            del gathered
        if self._hollow is None:
            return None
        filled = {id(empty): whole[name] for name, empty in self._hollow.named_parameters()}
        for module in self._hollow.modules():
            for name, empty in module._parameters.items():
                if empty is not None:
                    module._parameters[name] = filled[id(empty)]  # the same for tied weights
        return self._hollow

    # Checkpoints. Each process writes its piece of the weights and of the optimiser's states.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint, where they do not come with the optimiser's states."""
        if not self.cut_up:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.cut_up:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        with _as_runtime_error():
            save(self._pieces(), checkpoint_id=output_dir)
        if self.group.rank == 0:
            torch.save(self._scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.sharded:  # else the weights come with the optimiser's states
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        pieces = self._pieces()
        with _as_runtime_error():
            load(pieces, checkpoint_id=checkpoint)
        model, optimizer = self._model_and_optimizer
        states = {"model_state_dict": pieces["model"], "optim_state_dict": pieces["optimizer"]}
        set_state_dict(model, optimizer, **states, options=self._options)
        self._scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _pieces(self) -> dict[str, Any]:
        """What this process holds of the trained weights and of the optimiser's states."""
        model, optimizer = get_state_dict(*self._model_and_optimizer, options=self._options)
        return {"model": model, "optimizer": optimizer}

    @property
    def _options(self) -> StateDictOptions:
        adapter = self.config.method != "full"  # its frozen weights come from the base model
        return StateDictOptions(ignore_frozen_params=adapter, strict=not adapter)

    @property
    def _model_and_optimizer(self) -> tuple[Any, Any]:
        wrapped: Any = self.optimizer
        return self.model, wrapped.optimizer  # torch's, inside accelerate's

    @property
    def _scheduler(self) -> Any:
        return self.lr_scheduler


@contextlib.contextmanager
def _as_runtime_error() -> Iterator[None]:
    """Let torch's CheckpointException, which is no Exception, be one."""
    try:
        yield
    except CheckpointException as error:
        raise RuntimeError(str(error)) from error
