"""Recipes: each is a spec as it stands, and its page tells the truth of it as far as text can."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.recipes import NAMES, RECIPES, page, shown
from typer.testing import CliRunner

from dpoflow.contracts.spec import Spec
from dpoflow.contracts.spec_file import load_spec
from dpoflow_pipelines.cli import app

CALLED = {"name", "seed"}
"""Knobs that a page need not explain: what something is called, and which draw it is."""
PIPELINE = {"user_feedback": "retrain"}
WITHOUT_MLFLOW = {"user_feedback": ("--set", "data.sources=[{uri: thumbs.jsonl}]")}


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spec_of(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = YAML(typ="safe").load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    return tree


def knobs(node: object) -> Iterator[str]:
    """The last name of each knob that is set; what a rubric or a task holds is its own matter."""
    if isinstance(node, list):
        for each in node:
            yield from knobs(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("rubric", "task"):
                continue
            if isinstance(value, dict | list):
                yield from knobs(value)
            else:
                yield str(key)


def in_code(name: str) -> set[str]:
    """Words that a page sets as code, or names as a gate of the table."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page(name), flags=re.DOTALL))
    return {word for span in spans for word in re.findall(r"\w+", span)}


def test_there_is_a_recipe_for_each_use_and_a_page_for_each_recipe() -> None:
    assert set(NAMES) == {
        *("brand_voice", "domain_adaptation", "human_only", "judge_only"),
        *("safety", "support_policy", "user_feedback"),
    }
    assert {path.stem for path in RECIPES.glob("*.md")} == set(NAMES)


def test_a_recipe_is_a_sound_spec_as_it_stands(recipe: str) -> None:
    assert isinstance(load_spec(RECIPES / f"{recipe}.yaml"), Spec)


def test_its_page_names_each_knob_that_it_sets(recipe: str) -> None:
    assert set(knobs(spec_of(recipe))) - CALLED - in_code(recipe) == set()


def test_its_page_fits_a_screen_and_names_no_knob_that_is_not_there(recipe: str) -> None:
    known = set(re.findall(r'"(\w+)":', json.dumps(Spec.model_json_schema())))
    table = re.findall(r"^\| (.+?) \|", page(recipe), re.MULTILINE)
    named = {word for cell in table for span in re.findall(r"`([^`]+)`", cell)
             for word in span.split(".")}  # fmt: skip

    assert len(page(recipe).splitlines()) <= 75
    assert named - known <= {"general"}, "a suite's own name"


def test_it_plans_on_the_rows_that_its_page_shows(recipe: str, tmp_path: Path) -> None:
    for path in RECIPES.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name, text in shown(recipe).items():
        (tmp_path / name).write_text(text)
        assert text.count("\n") == 3
    sets = [part.replace("thumbs.jsonl", str(tmp_path / "thumbs.jsonl"))
            for part in WITHOUT_MLFLOW.get(recipe, ())]  # fmt: skip
    spec = tmp_path / f"{recipe}.yaml"
    named = load_spec(spec, sets[1:]).snapshot
    missing = [uri for uri in (each.uri for each in (*named.sources, *named.evaluation_sets))
               if not Path(uri).is_file()]  # fmt: skip

    ended = CliRunner().invoke(
        app,
        ["run", str(spec), "--dry-run", "--pipeline", PIPELINE.get(recipe, "align"), *sets],
        env={"COLUMNS": "500"},
    )

    assert missing == []
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert ": the spec is sound, and nothing was run" in ended.output


def test_every_row_that_a_page_shows_is_one_that_its_format_reads(recipe: str) -> None:
    from dpoflow.contracts.pairs import Source
    from dpoflow.sources.formats import registry
    from dpoflow.sources.reasons import Quarantine

    sources = {each.get("uri"): each for each in spec_of(recipe)["data"]["sources"]}
    for file, text in shown(recipe).items():
        if file not in sources and file != "thumbs.jsonl":
            continue  # a suite's
        rows = [json.loads(line) for line in text.splitlines()]
        form = registry.recognise(rows, file)
        assert f"`{form.name}`" in page(recipe) or f"format` {form.name}" in page(recipe)
        for row in rows:
            try:
                registry.convert(row, form, Source(dataset="page", row="1"))
            except Quarantine as why:
                pytest.fail(f"{file}: {why.code} {row}")
