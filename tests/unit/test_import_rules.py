"""Who may import what, and what nobody may call: read from the source, so nothing has to run."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "components", ROOT / "pipelines")
STEPS = (
    *("snapshot", "decide", "validate", "synthesize", "train", "evaluate", "register"),
    "promote",
)


class Import(NamedTuple):
    module: str
    """Absolute and dotted, the imported names included: `from a import b` gives `a.b`."""
    line: int
    at_top: bool
    """Runs when the module is imported, rather than inside a function or for type checkers only."""


def imports(tree: ast.AST, package: str = "") -> Iterator[Import]:
    """Every import below `tree`; `package` is what relative ones start from."""
    yield from _imports(tree, package, at_top=True)


def _imports(node: ast.AST, package: str, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1]
            base = ".".join([*(above if child.level else []), child.module or ""]).strip(".")
            yield from (Import(f"{base}.{it.name}", child.lineno, at_top) for it in child.names)
        elif isinstance(child, ast.Call) and child.args:
            name = child.args[0]
            by_name = _called(child).endswith(("import_module", "__import__"))
            if by_name and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, child.lineno, at_top)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = True
        yield from _imports(child, package, at_top=at_top and not inside)


def _called(call: ast.Call) -> str:
    """The dotted name that is called, as written: `torch.load`, `load`, or `` for anything else."""
    return ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""


def shipped() -> list[Path]:
    return sorted(path for root in SHIPPED for path in root.rglob("*.py"))


def where(path: Path) -> str:
    """As imports see it: dpoflow/train/step.py."""
    return path.relative_to(ROOT).as_posix().split("/", 1)[1]


def imports_of(path: Path) -> list[Import]:
    package = ".".join(Path(where(path)).parent.parts)
    return list(imports(ast.parse(path.read_text(encoding="utf-8")), package))


def importers(library: str, *, allowed: str, only_at_top: bool = False) -> list[str]:
    """`file:line` of each import of `library` where the pattern `allowed` does not match."""
    return [
        f"{where(path)}:{found.line}"
        for path in shipped()
        if not re.fullmatch(allowed, where(path))
        for found in imports_of(path)
        if found.module.split(".")[0] == library and (found.at_top or not only_at_top)
    ]


def test_the_source_is_where_these_rules_look_for_it() -> None:
    names = {where(path) for path in shipped()}

    assert {"dpoflow/contracts/spec.py", "dpoflow/train/component.py"} <= names
    assert "kfp.dsl" in {found.module for found in imports_of(path_of("train/component.py"))}


def path_of(name: str) -> Path:
    return ROOT / "components" / "dpoflow" / name


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("kfp", r"dpoflow/.*/component\.py|dpoflow_pipelines/.*"),
        ("mlflow", r"dpoflow/(tracking|registry)/.*"),
        ("great_expectations", r"dpoflow/validate/.*"),
    ],
)
def test_a_heavy_library_is_imported_only_where_it_belongs(library: str, allowed: str) -> None:
    assert importers(library, allowed=allowed) == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("transformers", r"dpoflow/(policy|train)/library\.py"),
        ("great_expectations", r"dpoflow/validate/library\.py"),
        ("matplotlib", r"dpoflow/train/page\.py"),
        *((name, "") for name in ("lm_eval", "mlflow", "openai", "peft", "scipy", "sklearn")),
    ],
)
def test_a_slow_library_is_imported_where_it_is_used(library: str, allowed: str) -> None:
    """Inside the function; or with its own module, which spares what the library would add."""
    assert importers(library, allowed=allowed, only_at_top=True) == []


def test_contracts_import_only_pydantic_yaml_and_themselves() -> None:
    light = {"pydantic", "pydantic_core", "ruamel", *sys.stdlib_module_names}
    strangers = []
    for path in sorted(path_of("contracts").rglob("*.py")):
        for found in imports_of(path):
            top = found.module.split(".")[0]
            ours = found.module.startswith("dpoflow.contracts") or found.module == "dpoflow"
            parquet = top == "pyarrow" and not found.at_top
            if not (top in light or ours or parquet):
                strangers.append(f"{where(path)}:{found.line} {found.module}")

    assert strangers == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_never_imports_another_step(step: str) -> None:
    others = tuple(f"dpoflow.{other}" for other in STEPS if other != step)
    crossings = [
        f"{where(path)}:{found.line} {found.module}"
        for path in sorted(path_of(step).rglob("*.py"))
        for found in imports_of(path)
        if any(found.module == other or found.module.startswith(f"{other}.") for other in others)
    ]

    assert crossings == []


def test_components_never_import_pipelines() -> None:
    assert importers("dpoflow_pipelines", allowed=r"dpoflow_pipelines/.*") == []


@pytest.mark.parametrize("module", ["dpoflow.contracts.spec", "dpoflow_pipelines.cli"])
def test_reading_a_spec_and_the_command_line_start_light(module: str) -> None:
    """In a fresh process, since this one has long loaded everything."""
    heavy = ["torch", "transformers", "mlflow", "kfp", "pandas", "great_expectations"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    path = [str(root) for root in SHIPPED]

    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what nobody may call

UNSAFE_MODULES = ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
UNSAFE_CALLS = ("torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system")
UNSAFE_KEYWORDS = ("trust_remote_code", "shell", "allow_pickle")


def unsafe(source: str) -> list[str]:
    """What runs code out of data in `source`, each as it would be named in review."""
    tree = ast.parse(source)
    found = [each for each in imports(tree) if each.module.split(".")[0] in UNSAFE_MODULES]
    modules = {each.module.split(".")[0] for each in found}
    aliases = _aliases(tree)
    calls = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node)
        head, _, tail = name.partition(".")
        full = f"{aliases.get(head, head)}.{tail}".rstrip(".")
        if full in UNSAFE_CALLS:
            calls.append(full)
        calls += [f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords if _on(word)]
    return sorted([*modules, *calls])


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: `from torch import load as l` gives l: torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {it.asname or it.name: it.name for it in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {it.asname or it.name: f"{node.module}.{it.name}" for it in node.names}
    return names


def _on(word: ast.keyword) -> bool:
    """Anything but a plain False counts as on: a variable may hold True."""
    off = isinstance(word.value, ast.Constant) and not word.value.value
    return word.arg in UNSAFE_KEYWORDS and not off


@pytest.mark.parametrize("path", shipped(), ids=where)
def test_nothing_runs_code_out_of_data(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import torch\ntorch.load(p)", ["torch.load"]),
        ("import torch as t\nt.load(p, weights_only=True)", ["torch.load"]),
        ("from torch import load\nload(p)", ["torch.load"]),
        ("def f():\n    import pickle", ["pickle"]),
        ("import importlib\nimportlib.import_module('pickle')", ["pickle"]),
        ("from_pretrained(n, trust_remote_code=True)", ["trust_remote_code=True"]),
        ("from_pretrained(n, trust_remote_code=flag)", ["trust_remote_code=flag"]),
        ("from_pretrained(n, trust_remote_code=False)", []),
        ("import subprocess\nsubprocess.run(c, shell=True)", ["shell=True"]),
        ("import yaml\nyaml.load(t, Loader=L)", ["yaml.load"]),
        ("YAML(typ='safe').load(t)", []),
        ("model.eval()", []),
    ],
)
def test_the_rule_itself_sees_through_spellings(source: str, named: list[str]) -> None:
    assert unsafe(source) == named
