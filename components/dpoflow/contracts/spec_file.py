"""From a YAML file to a `Spec`, with errors that name the key, the value, the line and the way out.

Reads   a spec file, and `--set key=value` overrides
Gives   `load_spec`, `sentence` (an error of pydantic in our words)
Not     what the knobs mean (contracts/spec.py)

Relative paths inside the file start at the file's folder; those in overrides start where you are.
"""

import difflib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import PLACES, REGISTRY, ROLES, Spec

_MAX_BYTES = 1_000_000
_HINTS = {"train.beta": "larger holds the policy tighter to the reference"}


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec at `path` with each `key=value` of `overrides` laid over it.

    Raises ConfigError: one line with the key, what was given, where, and what would do.
    """
    tree = _read(path)
    plain = _resolved(_plain(tree), path.parent)
    for override in overrides:
        _lay_over(plain, _resolved(_parse_override(override), Path.cwd()))
    try:
        return Spec.model_validate(plain)
    except ValidationError as error:
        set_here = [override.partition("=")[0].strip() for override in overrides]
        raise ConfigError(_explain(error.errors(), tree, path, set_here)) from None


def _read(path: Path) -> CommentedMap:
    tree = _parsed(path, YAML(typ="rt"), "spec")
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{path} holds {_kind(tree)}, a spec is a mapping: start with `name:`")
    return tree


def _read_task(path: Path) -> dict[str, Any]:
    """A task of lm-evaluation-harness, as YAML 1.1 like there, but without tags that run code."""
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    tree = _parsed(path, reader, "task")
    if not isinstance(tree, dict):
        raise ConfigError(f"the task {path} holds {_kind(tree)}, and a task is a mapping")
    return {str(key): value for key, value in tree.items()}


def _parsed(path: Path, reader: YAML, what: Literal["spec", "task"]) -> Any:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        such = " such as pipelines/configs/demo.yaml" if what == "spec" else ""
        raise ConfigError(f"no {what} at {path}; name a YAML file{such}") from None
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read ({error.strerror})") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path} has {len(raw):,} bytes, a {what} at most {_MAX_BYTES:,}")
    try:
        text = raw.decode("utf-8-sig")
        return reader.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except ConstructorError as error:  # of a tag that is not plain YAML, such as !function
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(
            f"{path}, line {line}: {error.problem}; only data is read here, and no code is run: "
            "leave the tag out"
        ) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}, line {line}: not YAML: {error.problem}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None


def _kind(value: object) -> str:
    names = {list: "a list", CommentedSeq: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):  # ruamel's scalars remember quotes and bases: forget them
        if isinstance(node, kind):
            return kind(node)
    return node


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, got '{text}'; such as --set train.beta=0.05")
    try:
        nested: Any = _plain(YAML(typ="safe").load(value))
    except YAMLError:
        raise ConfigError(f"--set {key}: '{value}' is not YAML; quote it as one value") from None
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def _lay_over(base: dict[str, Any], top: dict[str, Any]) -> None:
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _lay_over(base[key], value)
        else:
            base[key] = value


def _resolved(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths made absolute, rubrics, templates and tasks read in."""
    train, data = tree.get("train"), tree.get("data")
    for section, key in ((tree, "model"), (train, "init"), (train, "reference")):
        _locate(section, key, folder)
    for key in PLACES:
        sources = data.get(key) if isinstance(data, dict) else None
        for source in sources if isinstance(sources, list) else ():
            _locate(source, "uri", folder)
    evaluate = tree.get("evaluate")
    if isinstance(evaluate, dict):
        _read_in(evaluate.get("grader"), folder)
        _locate(evaluate, "champion", folder)
        _locate(evaluate, "ledger", folder)
        suites = evaluate.get("suites")
        for suite in suites if isinstance(suites, list) else ():
            _locate(suite, "uri", folder)
            _locate(suite, "answers", folder)
            if isinstance(suite, dict) and isinstance(suite.get("task"), str):
                suite["task"] = _read_task(Path(_absolute(suite["task"], folder)))
    for section in ("synthesize", "evaluate"):
        judge = tree[section].get("judge") if isinstance(tree.get(section), dict) else None
        seats = judge.get("seats") if isinstance(judge, dict) else None
        seated = [seat.get("judge") for seat in seats or () if isinstance(seat, dict)]
        for each in (judge, *seated):
            _read_in(each, folder)
    return tree


def _read_in(judge: Any, folder: Path) -> None:
    """What a judge names by path: a rubric, a template, a reward model."""
    if not isinstance(judge, dict):
        return
    _locate(judge, "model", folder)
    if isinstance(judge.get("rubric"), str):
        judge["rubric"] = _plain(_read(Path(_absolute(judge["rubric"], folder))))
    if isinstance(judge.get("template"), str):
        judge["template"] = _text(judge["template"], folder, "template")
    if isinstance(judge.get("qualification"), str):
        text = _text(judge["qualification"], folder, "qualification")
        try:
            judge["qualification"] = json.loads(text)
        except ValueError as error:
            raise ConfigError(
                f"the judge's qualification {judge['qualification']} is not JSON ({error}); make "
                "it with dpoflow judge qualify --out"
            ) from None


def _text(uri: str, folder: Path, what: str) -> str:
    path = Path(_absolute(uri, folder))
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the judge's {what} {path} cannot be read ({error}); name a file"
        ) from None


def _locate(section: Any, key: str, folder: Path) -> None:
    if isinstance(section, dict) and isinstance(section.get(key), str):
        section[key] = _absolute(section[key], folder)


def _absolute(uri: str, folder: Path) -> str:
    if not uri or uri in ROLES or "://" in uri or uri.startswith(REGISTRY):
        return uri
    return str((folder / Path(uri).expanduser()).resolve())


def _explain(
    errors: list[ErrorDetails], tree: CommentedMap, path: Path, set_here: list[str]
) -> str:
    # An unknown key often explains a missing one, so it is named first.
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    name = _dotted(first["loc"])
    overridden = next((key for key in set_here if _within(name, key) or _within(key, name)), None)
    where = f"--set {overridden}" if overridden else _where(first["loc"], tree, path)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{sentence(first)} ({where}){more}"


def _within(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.")


def sentence(error: ErrorDetails) -> str:
    """One pydantic error in our words: the key, what it takes, what was given."""
    name = _dotted(error["loc"])
    kind, given, ctx = error["type"], error["input"], error.get("ctx", {})
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else _kind(given)
    if kind == "union_tag_invalid":
        name, shown = f"{name}.kind", repr(ctx["tag"])
    if kind == "extra_forbidden":
        return f"unknown key {name}{_nearest(name)}"
    if kind == "missing":
        return f"{name} is missing"
    bounds = {
        "greater_than": ("> ", "gt"),
        "greater_than_equal": (">= ", "ge"),
        "less_than": ("< ", "lt"),
        "less_than_equal": ("<= ", "le"),
        "literal_error": ("one of ", "expected"),
        "union_tag_invalid": ("one of ", "expected_tags"),
    }
    if kind in bounds:
        word, key = bounds[kind]
        hint = f"; {_HINTS[name]}" if name in _HINTS else ""
        bound = f"{ctx[key]:g}" if isinstance(ctx[key], float) else ctx[key]
        return f"{name} must be {word}{bound}, got {shown}{hint}"
    if kind == "string_pattern_mismatch":
        return f"{name} must match {ctx['pattern']}, got {shown}"
    if kind == "value_error":
        return f"{name or 'the spec'}: {ctx['error']}"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{name} must be {message}, got {shown}"


def _dotted(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in _without_kinds(loc))


def _without_kinds(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """`loc` without the kind that pydantic names after a judge."""
    return tuple(part for at, part in enumerate(loc) if at == 0 or loc[at - 1] != "judge")


def _nearest(name: str) -> str:
    """`; did you mean …?` over every key of the spec, its own section first."""
    section, _, leaf = name.rpartition(".")
    known = list(_known_keys(Spec.model_json_schema(), Spec.model_json_schema(), ""))
    here = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    for keys in (here, anywhere):
        close = difflib.get_close_matches(leaf, keys, n=1, cutoff=0.6)
        if close:
            return f"; did you mean {keys[close[0]]}?"
    return f"; known here: {', '.join(sorted(here))}" if here else ""


def _known_keys(node: dict[str, Any], root: dict[str, Any], prefix: str) -> Iterator[str]:
    for given in (node, *node.get("anyOf", ()), *node.get("allOf", ()), *node.get("oneOf", ())):
        option = root["$defs"][given["$ref"].rpartition("/")[2]] if "$ref" in given else given
        for key, child in option.get("properties", {}).items():
            yield f"{prefix}{key}"
            yield from _known_keys(child, root, f"{prefix}{key}.")


def _where(loc: tuple[int | str, ...], tree: Any, path: Path) -> str:
    """File and line of the deepest part of `loc` that the file holds."""
    line, node = None, tree
    for part in _without_kinds(loc):
        if isinstance(node, CommentedMap) and part in node:
            line = node.lc.key(part)[0] + 1
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line = node.lc.item(part)[0] + 1
        else:
            break
        node = node[part]
    return f"{path.name}, line {line}" if line else path.name
