"""Whether one lock holds for each Python that is supported, by PyPA's own reading of metadata."""

import re
import subprocess
import sys
import tomllib
from collections import deque
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
    each.rpartition(" ")[2]
    for each in PROJECT["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", each)
]
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
BY_ITSELF = {"demo", "harness", "kubectl"}
"""Extras whose own dependencies are left out: see set_up.py."""
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def pins() -> dict[str, str]:
    lines = (ROOT / "infra" / "locks" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def faults(python: str, pinned: dict[str, str]) -> list[str]:
    """What is asked for on that Python, directly or not, and not pinned to what is asked for."""
    told = {"python_version": python, "python_full_version": f"{python}.0"}
    environment = {**default_environment(), **told}
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(one for key in extras for one in extras[key])]
    alone = {Requirement(one).name for key in BY_ITSELF for one in extras[key]}
    waiting, seen, found = deque(map(Requirement, asked)), set(), []
    while waiting:
        one = waiting.popleft()
        name = canonicalize_name(one.name)
        if str(one) in seen or OF_TORCH.match(name):
            continue
        seen.add(str(one))
        if not one.specifier.contains(pinned.get(name, "0"), prereleases=True) or (
            name not in pinned
        ):
            found.append(f"{one} is asked for, pinned is {pinned.get(name)}")
        if one.name in alone:
            continue
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # of images, or of another Python
            continue
        takes = about.get("Requires-Python", "")
        if not SpecifierSet(takes).contains(python):
            found.append(f"{name} {pinned.get(name)} takes Python {takes}")
        for extra in ("", *one.extras):
            given = {**environment, "extra": extra}
            waiting.extend(
                needed
                for needed in map(Requirement, metadata.requires(name) or ())
                if needed.marker is None or needed.marker.evaluate(given)
            )
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_whatever_is_asked_for_on_a_python_is_pinned_and_takes_that_python(python: str) -> None:
    assert faults(python, pins()) == []


def test_what_is_not_pinned_or_pinned_too_old_is_named() -> None:
    without = {name: version for name, version in pins().items() if name != "tenacity"}

    assert "tenacity>=9 is asked for, pinned is None" in faults("3.14", without)
    assert "tenacity>=9 is asked for, pinned is 8.5" in faults(
        "3.14", without | {"tenacity": "8.5"}
    )
    assert any("numpy" in each and "takes Python" in each for each in faults("3.1", without))


def test_every_place_that_names_the_pythons_names_the_same() -> None:
    low, above = PYTHONS[0], f"3.{int(PYTHONS[-1][2:]) + 1}"
    minor = low[2:], above[2:]
    setup = (ROOT / "infra" / "local" / "setup.sh").read_text()
    doctor = (ROOT / "pipelines" / "dpoflow_pipelines" / "doctor.py").read_text()

    assert PROJECT["requires-python"] == f">={low},<{above}"
    assert re.findall(r"\(3, (\d+)\) <= \S+ < \(3, (\d+)\)", setup) == [minor]
    assert re.findall(r"\(3, (\d+)\) <= \S+ < \(3, (\d+)\)", doctor) == [minor]
    assert RUNNING in PYTHONS


def compiled() -> list[str]:
    """Pins of what is compiled for one Python at a time."""
    pinned, found = pins(), []
    for each in metadata.distributions():
        wheel = each.read_text("WHEEL") or ""
        tags = re.findall(r"^Tag: (\S+)", wheel, re.MULTILINE)
        name = canonicalize_name(each.name)
        if tags and not any(re.search(r"-abi3-|-none-", tag) for tag in tags):
            found += [f"{name}=={pinned[name]}"] if name in pinned else []
    return found


@pytest.mark.full
@pytest.mark.parametrize("python", [each for each in PYTHONS if each != RUNNING])
def test_the_index_has_every_compiled_pin_for_each_other_python(
    python: str, tmp_path: Path
) -> None:
    """From metadata alone: pip downloads nothing, and builds nothing."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"]
    command += ["--python-version", python, "--only-binary=:all:", "--target", str(tmp_path / "x")]
    asked = compiled()

    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)

    assert {"torch", "pyarrow"} <= {each.partition("==")[0] for each in asked}
    assert done.returncode == 0, done.stderr[-2000:]
