"""Every public function says what it takes and gives, and what it gives is a typed record: a plain mapping
makes each reader guess its keys."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import sao

SOURCE = Path(sao.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef

BARE = {"Any", "dict", "Mapping"}
"""Annotations that say nothing of what is in it."""
MAPPINGS = {"dict", "Mapping", "MutableMapping", "defaultdict"}
UNKNOWN = {"Any", "object"}

ALLOWED = {
    "JSON that is hashed into fingerprints and ids": [
        "sao.pipeline.*_settings",
        "sao.pipeline.*_ids",
        "sao.config.section.Section.counted",
    ],
    "JSON lines and files of the store, whose readers make records of them": [
        "sao.records.to_dict",
        "sao.store.files.read_jsonl",
        "sao.store.files.with_offsets",
        "sao.store.manifest.read_usage",
        "sao.store.stage.Stage.written",
        "sao.pipeline.rounds.Outside.look",  # any JSON value of the manifest
    ],
    "a recipe as YAML has it, before it is validated": [
        "sao.config.recipe.overridden",
        "sao.config.section.setting",  # a pydantic field, which takes the field's own type
    ],
    "bodies of HTTP requests and answers": [
        "sao.engines.client.Client.get",
        "sao.engines.client.Client.post",
        "sao.engines.json_http.JsonHttp.request",
        "sao.engines.openai_requests.*",
    ],
    "config.json of a model, and rows of other people's data sets or for other tools": [
        "sao.models.folder.read_settings",
        "sao.data.json_arrays.distinct",
        "sao.data.messages.text_in",
        "sao.data.messages.from_text",
        "sao.sharing.formats.rows_of",
    ],
    "what `sao export` and `sao import` print as JSON": [],
    "objects of transformers, PEFT, accelerate and lm-eval, which have no types": [
        "sao.engines.network.Network.mask_argument",
        "sao.evaluation.harness.language_model",
        "sao.evaluation.harness.task_index",
        "sao.models.load.model_class",
        "sao.models.load.read_config",
        "sao.training.adapters.add_adapter",
        "sao.training.adapters.quantisation",
        "sao.training.parallel.arguments",
        "sao.training.parallel.ParallelTrainer.whole_model",
        "sao.training.trainer.PreferenceTrainer.collate",
        "sao.training.trainer.PreferenceTrainer.compute_loss",
    ],
}
"""Functions whose return is a plain mapping or anything, by the reason; * stands for any text."""


def modules() -> dict[str, ast.Module]:
    """The syntax of each module of sao by its name. None is imported: some need further packages."""
    trees = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"))
    return trees


def public_functions(body: list[ast.stmt], place: str) -> Iterator[tuple[str, Function]]:
    """The public functions of a module, and the public methods of its public classes, by name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{place}.{node.name}")
        elif isinstance(node, ast.If):
            yield from public_functions([*node.body, *node.orelse], place)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{place}.{node.name}", node


def bare_parameters(function: Function) -> list[str]:
    """The parameters without an annotation, but for the first of a method."""
    own = function.args
    named = [*own.posonlyargs, *own.args, *own.kwonlyargs, *filter(None, [own.vararg, own.kwarg])]
    bare = [parameter.arg for parameter in named if parameter.annotation is None]
    return [name for name in bare if name not in ("self", "cls")]


def is_loose(annotation: ast.expr, aliases: frozenset[str] = frozenset()) -> bool:
    """Whether a return annotation is a mapping to anything, or holds one, or is anything at all."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Name) and annotation.id in BARE:
        return True
    return any(is_loose_mapping(node, aliases) for node in ast.walk(annotation))


def is_loose_mapping(node: ast.AST, aliases: frozenset[str]) -> bool:
    """Whether this is dict[str, Any] or the like, or a name that stands for it."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[_, ast.Name(id=inner)])):
            return name in MAPPINGS and inner in UNKNOWN
        case ast.Name(id=name):
            return name in aliases
    return False


def loose_aliases(trees: dict[str, ast.Module]) -> frozenset[str]:
    """Names that modules give to such a mapping."""
    assigned = (node for tree in trees.values() for node in tree.body if isinstance(node, ast.Assign))
    named = ((target, node.value) for node in assigned for target in node.targets)
    return frozenset(
        target.id
        for target, value in named
        if isinstance(target, ast.Name) and isinstance(value, ast.Subscript) and is_loose(value)
    )


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return modules()


@pytest.fixture(scope="module")
def functions(trees: dict[str, ast.Module]) -> dict[str, Function]:
    return dict(pair for name, tree in trees.items() for pair in public_functions(tree.body, name))


def test_every_public_function_is_annotated(functions: dict[str, Function]) -> None:
    assert len(functions) > 500
    bare = {name: bare_parameters(function) for name, function in functions.items()}
    assert [name for name, parameters in bare.items() if parameters] == []
    assert [name for name, function in functions.items() if function.returns is None] == []


def test_public_functions_return_typed_records(
    trees: dict[str, ast.Module], functions: dict[str, Function]
) -> None:
    aliases = loose_aliases(trees)
    loose = {name for name, f in functions.items() if f.returns is not None and is_loose(f.returns, aliases)}
    patterns = [pattern for group in ALLOWED.values() for pattern in group]
    allowed = {name for name in loose if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert loose - allowed == set(), "return a dataclass or a sao.results record"
    needless = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in loose)]
    assert needless == [], "no longer needed in ALLOWED"


@pytest.mark.parametrize(
    ("annotation", "loose"),
    [
        ("dict[str, Any]", True),
        ("Mapping[str, object]", True),
        ("list[dict[str, Any]]", True),
        ("dict[str, Any] | None", True),
        ("tuple[int, Mapping[str, Any]]", True),
        ("'dict[str, Any]'", True),
        ("Body", True),
        ("list[Body]", True),
        ("dict", True),
        ("Any", True),
        ("dict[str, int]", False),
        ("dict[str, list[Any]]", False),
        ("Callable[[Any], int]", False),
        ("Summary", False),
        ("None", False),
    ],
)
def test_what_is_loose(annotation: str, loose: bool) -> None:
    expression = ast.parse(annotation, mode="eval").body
    assert is_loose(expression, frozenset({"Body"})) == loose


def test_functions_are_found_wherever_they_stand() -> None:
    text = """
Body = dict[str, Any]
Fine = dict[str, int]
if TYPE_CHECKING:
    def early(a, *b: int): ...
class Open:
    async def method(self, *, c, **d) -> Body: ...
    def _own(self): ...
class _Hidden:
    def method(self): ...
def outer() -> None:
    def inner(): ...
"""
    tree = ast.parse(text)
    found = dict(public_functions(tree.body, "m"))
    assert {name: bare_parameters(function) for name, function in found.items()} == {
        "m.early": ["a"],
        "m.Open.method": ["c", "d"],
        "m.outer": [],
    }
    assert loose_aliases({"m": tree}) == {"Body"}
