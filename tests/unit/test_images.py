"""The images, as far as they can be known without an engine."""

import ast
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dpoflow import images

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "images" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
INSTALL = (ROOT / "infra" / "images" / "install.py").read_text("utf-8")
EXTRAS: dict[str, tuple[str, ...]] = ast.literal_eval(
    re.findall(r"^EXTRAS = (.+)$", INSTALL, re.MULTILINE)[0]
)
"""Image to what it holds, as the build has it."""
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


# ---------------------------------------------------------------- the Dockerfile


def hadolint(text: str) -> str:
    done = subprocess.run(
        [HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    assert hadolint(DOCKERFILE.read_text("utf-8")) == ""


@pytest.mark.parametrize(
    ("there", "instead", "rule"),
    [
        ("FROM ${BASE_IMAGE} AS run", "FROM python AS run", "DL3006"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("USER 10001:10001\n", "USER root\n", "DL3002"),
        ('CMD ["dpoflow", "--help"]', "CMD dpoflow --help", "DL3025"),
    ],
)
def test_hadolint_says_so_where_the_dockerfile_is_worse(
    there: str, instead: str, rule: str
) -> None:
    text = DOCKERFILE.read_text("utf-8")
    assert there in text

    assert rule in hadolint(text.replace(there, instead))


def stages() -> dict[str, str]:
    """Name to text of each stage."""
    text = DOCKERFILE.read_text("utf-8")
    parts = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_base_is_named_with_its_digest() -> None:
    (default,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)

    assert re.fullmatch(r"[a-z./-]+:3\.11-[a-z-]+@sha256:[0-9a-f]{64}", default)


@pytest.mark.parametrize("target", EXTRAS)
def test_what_runs_is_no_root_and_installs_nothing(target: str) -> None:
    text = stages()[target]

    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "install" not in text.replace(f"--from=install-{target}", "")
    assert "PIP_NO_INDEX=1" in stages()["run"]


def test_all_that_is_copied_is_let_through_to_the_engine() -> None:
    let = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    copied = {name for line in lines for name in line.split()}

    assert copied == let
    assert all((ROOT / name).exists() for name in copied)


# ---------------------------------------------------------------- what is in them


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def closure(image: str) -> frozenset[str]:
    """Every distribution that pip brings into it, by the metadata of those installed here."""
    requirements = [each for name in ("", *EXTRAS[image]) for each in extras()[name]]
    found: set[str] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonical(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # of another platform
            found.add(name)
            waiting += [(Requirement(each), wanted) for each in needs]
    return frozenset(found)


def lacking(image: str, modules: set[str]) -> list[str]:
    """Those of `modules` that no distribution in `image` brings."""
    held, by = closure(image), metadata.packages_distributions()
    ours = {"dpoflow", "dpoflow_pipelines"}
    tops = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - ours
    return sorted(top for top in tops if not {canonical(each) for each in by.get(top, [])} & held)


def imported(folder: Path) -> set[str]:
    """Every module that a file in `folder` imports, at its top or inside a function."""
    assert list(folder.glob("*.py"))
    nodes = [
        node
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module
    }


SHARED = ("contracts", "sources", "policy", "endpoints", "judge", "state", "tracking")
ELSEWHERE = {
    ("gpu", "evaluate"): ["lm_eval"],  # in no image: a suite that wants it says so
    ("cpu", "evaluate"): ["lm_eval"],
    ("mlflow", "tracking"): ["kfp"],  # its component.py is a step's face, and no server runs it
}


@pytest.mark.parametrize("image", EXTRAS)
def test_what_an_image_is_tried_with_is_there_and_comes_with_what_it_holds(image: str) -> None:
    (code,) = re.findall(r'RUN \["python3", "-c", "import (.+)"\]', stages()[image])
    modules = set(code.split(", "))

    assert lacking(image, modules) == []
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize(
    ("image", "folder"),
    [
        *(("cpu", name) for name in ("snapshot", "validate", "synthesize", "register")),
        *(("cpu", name) for name in ("registry", "train", "evaluate", *SHARED)),
        *(("gpu", name) for name in ("train", "evaluate", "synthesize", *SHARED)),
        *(("mlflow", name) for name in ("registry", "tracking", "state")),
    ],
)
def test_an_image_holds_what_its_code_imports(image: str, folder: str) -> None:
    named = imported(ROOT / "components" / "dpoflow" / folder)

    assert lacking(image, named) == ELSEWHERE.get((image, folder), [])


def test_a_library_that_an_image_lacks_is_seen() -> None:
    assert lacking("gpu", {"great_expectations.core"}) == ["great_expectations"]
    assert lacking("mlflow", {"torch", "json", "mlflow"}) == ["torch"]
    assert lacking("cpu", {"trl", "nowhere"}) == ["nowhere", "trl"]


# ---------------------------------------------------------------- build.py

ENGINE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["SAID"], "a") as said:
    said.write(json.dumps(sys.argv) + "\\n")
if sys.argv[1] == os.environ.get("FAILS"):
    sys.exit(125)
if "--digestfile" in sys.argv:
    with open(sys.argv[sys.argv.index("--digestfile") + 1], "w") as file:
        file.write(os.environ["DIGEST"])
if "inspect" in sys.argv:
    name = sys.argv[-1].rpartition(":")[0]
    print(f"elsewhere/x@sha256:{{'9' * 64}}", f"{{name}}@{{os.environ['DIGEST']}}", sep="\\n")
"""


class Place:
    """A copy of what build.py needs, with an engine that remembers what it was told."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        shutil.copytree(ROOT / "infra" / "images", self.root / "infra" / "images")
        named = self.root / "components" / "dpoflow" / "images.py"
        named.parent.mkdir(parents=True)
        shutil.copy(ROOT / "components" / "dpoflow" / "images.py", named)
        self.lock = self.root / "infra" / "images" / "images.lock"
        self.lock.write_text("# a comment\n")
        self._bin = folder / "bin"
        self._bin.mkdir()
        self.said = folder / "said"
        self.said.touch()

    def engine(self, name: str) -> None:
        path = self._bin / name
        path.write_text(ENGINE)
        path.chmod(0o755)

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"PATH": str(self._bin), "SAID": str(self.said), "DIGEST": DIGEST, **environment}
        return subprocess.run(
            [sys.executable, self.root / "infra" / "images" / "build.py", *arguments],
            env={**{key: os.environ[key] for key in ("TMPDIR",) if key in os.environ}, **given},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_dry_run_prints_the_commands_of_all_three_and_does_nothing(place: Place) -> None:
    place.engine("podman")

    done = place.build("--dry-run", "--push", "registry.example/team")

    assert done.returncode == 0, done.stderr
    for target, name in (("cpu", images.CPU), ("gpu", images.GPU), ("mlflow", images.MLFLOW)):
        assert f"--target {target} " in done.stdout
        assert f"--tag {name} ." in done.stdout
        assert re.search(rf"podman push --digestfile \S+ registry.example/team/{name}", done.stdout)
    assert place.said.read_text() == ""
    assert place.lock.read_text() == "# a comment\n"


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_what_was_pushed_is_locked_by_the_digest_that_the_registry_gave(
    place: Place, engine: str
) -> None:
    place.engine(engine)
    other = f"dpoflow-python-gpu:0.1.0 old.example/dpoflow-python-gpu@sha256:{'1' * 64}"
    stale = f"{images.CPU} old.example/dpoflow-python-cpu@sha256:{'2' * 64}"
    place.lock.write_text(f"# a comment\n{stale}\n{other}\n")

    done = place.build("cpu", "--push", "registry.example/team/")

    assert done.returncode == 0, done.stderr
    mine = f"{images.CPU} registry.example/team/dpoflow-python-cpu@{DIGEST}"
    assert place.lock.read_text() == f"# a comment\n{mine}\n{other}\n"


def test_a_build_that_is_not_pushed_locks_nothing(place: Place) -> None:
    place.engine("docker")

    assert place.build("mlflow").returncode == 0
    assert "--target" in place.said.read_text()
    assert place.lock.read_text() == "# a comment\n"


def test_what_stands_behind_two_dashes_goes_to_the_build_alone(place: Place) -> None:
    place.engine("podman")

    done = place.build("cpu", "--push", "r.example", "--", "--network", "host", "--no-cache")

    build, *others = done.stdout.splitlines()
    assert build.endswith("--network host --no-cache .")
    assert not any("--network" in each for each in others)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["tpu"], {}, "there is no image tpu; there are cpu, gpu, mlflow"),
        (["--base", "debian:12", "--push", "r.example"], {}, "--base debian:12 has no digest"),
        (["cpu"], {"FAILS": "build"}, "podman build ended with 125, see above"),
        (["cpu", "--push", "r.example"], {"FAILS": "push"}, "podman push ended with 125"),
        (["cpu", "--push", "r.example"], {"DIGEST": "none"}, "told no digest of r.example/dpo"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_line_and_locks_nothing(
    place: Place, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    place.engine("podman")

    done = place.build(*arguments, **environment)

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert place.lock.read_text() == "# a comment\n"


def test_a_machine_without_an_engine_hears_which_ones_there_are(place: Place) -> None:
    done = place.build("cpu")

    assert done.returncode == 1
    assert "neither podman nor docker is here" in done.stderr
