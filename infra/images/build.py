"""`make images`: the three images, by podman or docker; with --push, their digests in images.lock.

Reads   Dockerfile, the names in dpoflow/images.py, the commit that is checked out
Gives   images by those names; with --push REGISTRY also there, and images.lock beside this file
Not     what is in them (install.py), where they run (infra/cluster)

What stands behind -- goes to the engine's `build` as it is, such as a mirror's settings:
build.py cpu -- --volume /etc/pip.conf:/etc/pip.conf:ro
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
LOCK = FOLDER / "images.lock"
TARGETS = ("cpu", "gpu", "mlflow")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main(arguments: list[str]) -> None:
    """Build what is asked for, one after another; push and lock it where a registry is named."""
    given, extra = split(arguments)
    asked = parsed(given)
    engine = asked.engine or found_engine()
    for target in dict.fromkeys(asked.images or TARGETS):
        name = name_of(target)
        run(build_command(engine, target, name, asked.base, extra), dry=asked.dry_run)
        if asked.push:
            there = f"{asked.push.rstrip('/')}/{name}"
            digest = push(engine, name, there, dry=asked.dry_run)
            if not asked.dry_run:
                lock(LOCK, name, f"{there.rpartition(':')[0]}@{digest}")
                print(f"{LOCK.name}: {name} is {digest}")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Ours, and the engine's behind the first --."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="build.py", description="Build the container images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{', '.join(TARGETS)}; or all")
    parser.add_argument("--engine", choices=("podman", "docker"), help="the one that is there")
    parser.add_argument(
        "--base", metavar="IMAGE", help="another base; with a digest, NAME@sha256:…"
    )
    parser.add_argument("--push", metavar="REGISTRY", help="push there, and write images.lock")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    asked = parser.parse_args(arguments)
    for each in asked.images:
        if each not in TARGETS:
            stop(f"there is no image {each}; there are {', '.join(TARGETS)}")
    if asked.push and asked.base and not DIGEST.search(asked.base):
        stop(
            f"--base {asked.base} has no digest, and what is pushed must be the same tomorrow; "
            "name it as IMAGE@sha256:…"
        )
    return asked


def found_engine() -> str:
    """podman before docker: it needs no daemon."""
    for engine in ("podman", "docker"):
        if shutil.which(engine):
            return engine
    return stop("neither podman nor docker is here; install one (Debian: apt-get install podman)")


def name_of(target: str) -> str:
    """As dpoflow/images.py has it: dpoflow-python-cpu:0.1.0."""
    text = (ROOT / "components" / "dpoflow" / "images.py").read_text(encoding="utf-8")
    found = re.search(rf'^{target.upper()} = "(\S+)"$', text, re.MULTILINE)
    return found[1] if found else stop(f"dpoflow/images.py names no {target.upper()}")


def build_command(
    engine: str, target: str, name: str, base: str | None, extra: list[str]
) -> list[str]:
    """`docker` and `podman` take the same."""
    revision, when = commit()
    known = {"VERSION": name.rpartition(":")[2], "REVISION": revision, "CREATED": when}
    if base:
        known["BASE_IMAGE"] = base
    told = [word for key, value in known.items() for word in ("--build-arg", f"{key}={value}")]
    # Podman's own format drops SHELL, and with it that a failing line ends the build.
    shape = ["--format", "docker"] if engine == "podman" else []
    file = ["--file", str((FOLDER / "Dockerfile").relative_to(ROOT))]
    return [engine, "build", *shape, *file, "--target", target, *told, "--tag", name, *extra, "."]


def commit() -> tuple[str, str]:
    """What is checked out, and when it was made: the same sources give the same labels."""
    try:
        ask = ["git", "log", "-1", "--format=%H %cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"]
        clock = {**os.environ, "TZ": "UTC"}
        told = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True, env=clock)
        changed = ["git", "status", "--porcelain"]
        dirty = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown", "1970-01-01T00:00:00Z"
    revision, when = told.stdout.split()
    return revision + ("-changed" if dirty.stdout.strip() else ""), when


def push(engine: str, name: str, there: str, *, dry: bool) -> str:
    """The digest that the registry gave."""
    run([engine, "tag", name, there], dry=dry)
    if engine == "docker":
        run([engine, "push", there], dry=dry)
        ask = [engine, "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', there]
        if dry:
            print(shlex.join(ask))
            return ""
        told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        mine = [each for each in told.split() if each.startswith(f"{there.rpartition(':')[0]}@")]
        return digest_in(mine[-1] if mine else "", there)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digest"
        run([engine, "push", "--digestfile", str(file), there], dry=dry)
        return "" if dry else digest_in(file.read_text(encoding="utf-8"), there)


def digest_in(text: str, there: str) -> str:
    """The one in `text`; without it nothing is locked."""
    found = DIGEST.search(text)
    return found[0] if found else stop(f"the engine told no digest of {there} after its push")


def lock(path: Path, name: str, pinned: str) -> None:
    """The line of `name`, in place of an older one; whole or not at all."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    others = dict(line.split() for line in lines if line.strip() and not line.startswith("#"))
    others[name] = pinned
    body = [f"{each} {digest}" for each, digest in sorted(others.items())]
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text("\n".join([*comments, *body, ""]), encoding="utf-8")
    draft.replace(path)


def run(command: list[str], *, dry: bool) -> None:
    """Say it, and do it in the repository's root."""
    print(shlex.join(command), flush=True)
    if dry:
        return
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        stop(f"{command[0]} {command[1]} ended with {done.returncode}, see above")


def stop(why: str) -> NoReturn:
    """One line on standard error, and exit 1."""
    sys.exit(f"make images: {why}")


if __name__ == "__main__":
    main(sys.argv[1:])
