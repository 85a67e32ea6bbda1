"""Inside an image that is being built: our wheel, and /opt/dpoflow with what one image needs.

Reads   pyproject.toml, infra/locks/constraints.txt; pip's own settings say where packages come from
Gives   `install.py wheel`: /opt/build with the build's tools, and our wheel in it
        `install.py cpu|gpu|mlflow`: /opt/dpoflow without pip, and in its share/sbom a list of its
        parts (CycloneDX)
Not     which engine builds (build.py), what runs (Dockerfile)
"""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "infra" / "local"))

from set_up import Pip, choose_torch, pinned  # noqa: E402  # the path comes first

PREFIX = Path(os.environ.get("DPOFLOW_PREFIX", "/opt"))
"""Where environments are made."""
TOOLS, ENVIRONMENT = PREFIX / "build", PREFIX / "dpoflow"
WHEELS = TOOLS / "wheels"
EXTRAS = {"cpu": ("cpu",), "gpu": ("gpu", "qlora"), "mlflow": ("server",)}
"""Image to the extras of pyproject.toml that it holds."""


def main(arguments: list[str]) -> None:
    """One verb."""
    match arguments:
        case ["wheel"]:
            wheel()
        case [image] if image in EXTRAS:
            install(image)
        case _:
            sys.exit(f"install.py takes wheel, {', '.join(EXTRAS)}; got {arguments}")


def project() -> dict[str, list[str]]:
    """Each extra's requirements, and those of every part under an empty name."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": found["dependencies"], **found["optional-dependencies"]}


def environment(folder: Path) -> Pip:
    """A new one with the pip that the lock names."""
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    pip = Pip(folder / "bin" / "python")
    pip.install("--upgrade", f"pip=={pinned('pip')}")
    return pip


def wheel() -> None:
    """Ours, by the build backend that the lock names, and what lists parts."""
    pip = environment(TOOLS)
    pip.install(f"hatchling=={pinned('hatchling')}", *project()["images"])
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(TOOLS, *command, "--wheel-dir", str(WHEELS), str(ROOT))


def install(image: str) -> None:
    """What `image` needs, as the lock pins it: torch first, so that nothing brings another."""
    pip, extras = environment(ENVIRONMENT), project()
    needed = [each for name in ("", *EXTRAS[image]) for each in extras[name]]
    if any(each.startswith("torch") for each in needed):
        chosen = choose_torch(pip, f"torch=={pinned('torch')}", gpu=image == "gpu")
        print(chosen.note)
        pip.install(*chosen.arguments)
    pip.install(*needed)
    pip.install("--no-deps", "--no-index", *map(str, sorted(WHEELS.glob("*.whl"))))
    run(ENVIRONMENT, "-m", "pip", "uninstall", "--quiet", "--yes", "pip")
    list_parts(ENVIRONMENT / "share" / "sbom" / f"{image}.cdx.json")


def list_parts(path: Path) -> None:
    """Everything in the environment, as CycloneDX, the same at every build."""
    path.parent.mkdir(parents=True)
    python = str(ENVIRONMENT / "bin" / "python")
    options = ["--output-reproducible", "--of", "JSON", "-o", str(path), python]
    run(
        TOOLS,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        str(ROOT / "pyproject.toml"),
        *options,
    )


def run(folder: Path, *arguments: str) -> None:
    """That environment's Python."""
    subprocess.run([str(folder / "bin" / "python"), "-I", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
