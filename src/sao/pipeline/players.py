"""The models of an evaluation, by what the user gives: a folder, a hub id, a run folder, a file of
answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sao.config import Config, make_config
from sao.errors import ConfigError
from sao.models.gguf import is_gguf
from sao.models.weights import is_whole
from sao.pipeline.folder import recorded
from sao.pipeline.kept_models import is_done
from sao.store.manifest import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A model that is evaluated: a folder, a hub id, or the file of its answers. `run` is the run folder that
    it was named by."""

    role: str
    model: str
    revision: str | None = None
    run: Path | None = None

    @property
    def is_file(self) -> bool:
        """Whether its answers are given."""
        return Path(self.model).is_file() and not is_gguf(self.model)

    @property
    def title(self) -> str:
        """What it is called in files for others: no path of this machine."""
        path = Path(self.model)
        if not path.exists():
            return self.model
        run = run_of(self.model) if path.name == "model" else None
        return path.name if run is None else run.name


def player(role: str, name: str, number: int | None = None) -> Player:
    """A player by what the user gives: a folder, `ID@REVISION`, a file of answers, or a run folder (its base
    or the model that it gave back, or that of round `number`).

    Raises ConfigError for a run without the trained model that its recipe asks for.
    """
    path = Path(name)
    if (path / "manifest.json").is_file():
        config = recipe_of(path)
        if role == "base":
            return Player(role=role, model=config.model, revision=config.revision, run=path)
        model = recorded(path, number).round.model_dir
        if not is_whole(model):
            trained = filter(is_whole, sorted(path.glob("round-*/train-*/model")))
            others = ", ".join(map(str, trained)) or "none"
            if is_done(model):
                raise ConfigError(
                    f"{name}: the model of this round was deleted (rounds.keep). Name one of these folders: "
                    f"{others}",
                    key="model",
                )
            raise ConfigError(
                f"{name}: a run without a trained model of its recipe. Train it (sao run … --out {name}), or "
                f"name one of these folders: {others}",
                key="model",
            )
        return Player(role=role, model=str(model), run=path)
    if number is not None:
        raise ConfigError(f"--round {number}: {name} is no run folder, so it has no rounds", key="--round")
    model_id, _, revision = name.partition("@") if not path.exists() else (name, "", "")
    return Player(role=role, model=model_id, revision=revision or None)


def recipe_of(run: Path) -> Config:
    """The recipe that a run folder was last used with."""
    return make_config(read_manifest(run).config, f"{run}/manifest.json")


def run_of(model: str) -> Path | None:
    """The run folder in which a trained model lies, None where it lies in none."""
    parents = list(Path(model).resolve().parents)
    return next((folder for folder in parents[:4] if (folder / "manifest.json").is_file()), None)
