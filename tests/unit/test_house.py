"""House rules that a review should not have to repeat: what lies where, and what no text says."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = (
    *("snapshot", "decide", "validate", "synthesize", "train", "evaluate", "register"),
    "promote",
)
TOP_LEVEL = {
    *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "Makefile"),
    *("components", "pipelines", "infra", "tests"),
}
UNTRACKED_WITHOUT_GIT = {"build", "dist"}
"""What .gitignore names at the top; only looked at where there is no git to ask."""


def output_of(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def project_files() -> list[Path]:
    """What git tracks or would track; without git, everything but what make and tools leave."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = output_of(*command)
        top = output_of("git", "rev-parse", "--show-toplevel")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return sorted(path for path in ROOT.rglob("*") if path.is_file() and not _left_behind(path))
    if Path(top.strip()).resolve() != ROOT:  # unpacked inside somebody else's checkout
        return sorted(path for path in ROOT.rglob("*") if path.is_file() and not _left_behind(path))
    paths = (ROOT / name for name in sorted(set(listed.split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def _left_behind(path: Path) -> bool:
    first, *_ = parts = path.relative_to(ROOT).parts
    hidden = first.startswith(".") and first not in (".ci", ".gitignore", ".github")
    return hidden or first in UNTRACKED_WITHOUT_GIT or "__pycache__" in parts


def texts() -> list[tuple[str, str]]:
    """Name and content of each file of the project that is text."""
    found = []
    for path in project_files():
        raw = path.read_bytes()
        if b"\0" not in raw[:8000]:
            found.append((path.relative_to(ROOT).as_posix(), raw.decode("utf-8", "replace")))
    return found


def test_the_top_level_holds_the_fixed_names_and_nothing_else() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in project_files()}

    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["README.md", "component.py", "step.py"])
def test_a_step_is_a_folder_with_its_three_files(step: str, name: str) -> None:
    assert (ROOT / "components" / "dpoflow" / step / name).is_file()


def make_verbs() -> dict[str, str]:
    """Verb to what it says of itself, read from the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z][a-z-]*):[^=\n]*?## (.+)$", text, re.MULTILINE))


def test_every_make_verb_says_what_it_does_and_bare_make_prints_it() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)

    listing = output_of("make")

    assert phony is not None
    assert set(make_verbs()) == set(phony[1].split())
    assert all(verb in listing and words in listing for verb, words in make_verbs().items())


def test_every_make_verb_that_a_page_names_exists() -> None:
    missing = [
        f"{name}: make {verb}"
        for name, text in texts()
        if name.endswith(".md")
        for code in re.findall(r"`([^`\n]+)`|^\s{0,3}(?:\$ )?(make .*)$", text, re.MULTILINE)
        for verb in re.findall(r"(?:^|&& |; )make ([a-z][a-z-]*)", " ".join(code).strip())
        if verb not in make_verbs()
    ]

    assert missing == []


def test_no_test_is_skipped_without_a_reason() -> None:
    silent = [
        f"{name}: {ast.unparse(node)[:80]}"
        for name, text in texts()
        if name.startswith("tests/") and name.endswith(".py")
        for node in ast.walk(ast.parse(text))
        if _skips_without_reason(node)
    ]

    assert silent == []


def _skips_without_reason(node: ast.AST) -> bool:
    """`mark.skip` and `mark.xfail` bare or without reason=, `pytest.skip()` without words."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return any(_is_skip_mark(ast.unparse(each)) for each in node.decorator_list)
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    reason = any(word.arg == "reason" for word in node.keywords)
    if name in ("pytest.skip", "pytest.xfail"):
        return not (node.args or reason)
    # skipif and xfail take a condition first, so only reason= is a reason there.
    return _is_skip_mark(name) and not (reason or (name.endswith(".skip") and node.args))


def _is_skip_mark(name: str) -> bool:
    return re.fullmatch(r"(pytest\.)?mark\.(skip|skipif|xfail)", name) is not None


@pytest.mark.parametrize(
    ("source", "silent"),
    [
        ("@pytest.mark.skip\ndef test_x(): ...", True),
        ("@pytest.mark.skip()\ndef test_x(): ...", True),
        ("@pytest.mark.skip('needs a GPU')\ndef test_x(): ...", False),
        ("@pytest.mark.skipif(no_gpu)\ndef test_x(): ...", True),
        ("@pytest.mark.skipif(no_gpu, reason='needs a GPU')\ndef test_x(): ...", False),
        ("pytest.skip()", True),
        ("pytest.skip('needs a GPU')", False),
    ],
)
def test_the_rule_on_skips_sees_each_form(source: str, *, silent: bool) -> None:
    assert any(_skips_without_reason(node) for node in ast.walk(ast.parse(source))) is silent


# In pieces, so that this file does not name them.
ABSOLUTE = "|".join(f"/{folder}/" for folder in ("home", "Users", "root", "work"))
NEIGHBOURS = r"\.\./" + "shared"


def test_no_text_names_a_path_of_somebodys_machine() -> None:
    pattern = re.compile(rf"(?<![\w.}}/])(?:{ABSOLUTE})|{NEIGHBOURS}")
    named = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]

    assert named == []
