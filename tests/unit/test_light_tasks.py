"""What a task has loaded at its end, in a process of its own: only what it used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.evaluation import RUBRIC, SHORT, WORDY, Evaluation, says
from tests.tiny import pair_of
from tests.training import FAST, Job
from tests.workshop import Workshop, rows

from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.spec import EvaluateConfig

ROOT = Path(__file__).parents[2]

AN_END = "import json, sys; print(json.dumps([*sys.modules]))"

SERVICES = {"mlflow", "kfp", "openai", "aiohttp", "boto3", "great_expectations", "lm_eval"}
TRAINED_WITH = {"torch", "transformers"}
EXTRAS = {
    *("peft", "bitsandbytes", "torch._inductor.compile_fx", "torch._inductor.lowering"),
    *("datasets", "pandas", "sklearn", "torchvision"),
}
"""What transformers and accelerate would bring along, or what that would."""
DRAWS, COUNTS = {"matplotlib"}, {"scipy"}


def loaded_by(program: str, *given: object) -> set[str]:
    """What is loaded once `program` ran in a fresh process, with `given` after its name."""
    path = [str(ROOT), str(ROOT / "components"), str(ROOT / "pipelines")]
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DPOFLOW_MLFLOW_PARENT")
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{AN_END}", *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in names}
        | {"PYTHONPATH": os.pathsep.join(path)},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("module", "wanted", "unused"),
    [
        ("train.work", TRAINED_WITH, SERVICES | EXTRAS | DRAWS | COUNTS),
        ("evaluate.step", TRAINED_WITH, SERVICES | EXTRAS | DRAWS | COUNTS),
        ("synthesize.step", TRAINED_WITH, SERVICES | EXTRAS | DRAWS | COUNTS),
        *(
            (f"{name}.step", set[str](), SERVICES | EXTRAS | DRAWS | COUNTS | TRAINED_WITH)
            for name in ("snapshot", "decide", "register", "promote", "train")
        ),
        # datasketch, which finds near-duplicates, has scipy.
        ("validate.step", set[str](), SERVICES | EXTRAS | DRAWS | TRAINED_WITH),
        ("tracking.conclude", set[str](), SERVICES | EXTRAS | DRAWS | COUNTS | TRAINED_WITH),
    ],
)
def test_a_step_is_imported_without_what_it_may_never_use(
    module: str, wanted: set[str], unused: set[str]
) -> None:
    loaded = loaded_by(f"import dpoflow.{module}")

    assert loaded & unused == set()
    assert wanted <= loaded


def test_full_fine_tuning_trains_without_adapters_data_sets_and_statistics(tmp_path: Path) -> None:
    job = Job(tmp_path, [pair_of(f"ask {at}", "yes please", "no") for at in range(8)])
    state = job.state("one").folder

    loaded = loaded_by(
        "import sys\n"
        "from pathlib import Path\n"
        "from dpoflow.contracts.spec import TrainConfig\n"
        "from dpoflow.train.outcome import Job\n"
        "from dpoflow.train.work import work\n"
        "config, (pairs, model, state) = sys.argv[1], map(Path, sys.argv[2:])\n"
        "work(Job(config=TrainConfig.model_validate_json(config), pairs=pairs, init=model,"
        " reference=model, state=state))",
        canonical_json(FAST),
        *(job.pairs, job.model, state),
    )

    assert list((state / "work").rglob("*.safetensors"))
    assert loaded & (SERVICES | EXTRAS | DRAWS | COUNTS) == set()


def test_a_rubric_judges_without_clients_adapters_and_benchmarks(tmp_path: Path) -> None:
    given = Evaluation(tmp_path, num_prompts=12)
    for name, text in (("base", SHORT), ("candidate", WORDY)):
        says(tmp_path / name, text)
    config = EvaluateConfig.model_validate(
        {
            "judge": RUBRIC,
            "sampling": {"max_new_tokens": 40, "batch_size": 8},
            "gates": {"equal_length": None},
        }
    )

    loaded = loaded_by(
        "import sys\n"
        "from pathlib import Path\n"
        "from dpoflow.contracts.spec import EvaluateConfig\n"
        "from dpoflow.evaluate.step import run\n"
        "from dpoflow.state.step import StepState\n"
        "names = ('model', 'policy', 'pairs', 'heldout')\n"
        "state = StepState(Path(sys.argv[2]), 'evaluate')\n"
        "state.start_afresh(['decision'])\n"
        "run(EvaluateConfig.model_validate_json(sys.argv[1]), state=state,"
        " decision=state.output('decision'), **dict(zip(names, map(Path, sys.argv[3:]))))",
        canonical_json(config),
        tmp_path / "root" / "state" / "one",
        *(given.model("base"), given.model("candidate"), given.pairs, given.heldout),
    )

    assert given.decision().against["base"].win_rate is not None
    assert loaded & (SERVICES | EXTRAS) == set()


def test_local_files_and_a_local_model_are_pinned_with_neither_torch_nor_pandas(
    tmp_path: Path,
) -> None:
    model = Job(tmp_path / "job", []).model
    (tmp_path / "a.jsonl").write_text(json.dumps(rows(1)[0]) + "\n")
    state = tmp_path / "root" / "state" / "key"
    (state / "work").mkdir(parents=True)

    loaded = loaded_by(
        "import sys\n"
        "from pathlib import Path\n"
        "from dpoflow.contracts.spec import SnapshotConfig\n"
        "from dpoflow.snapshot.step import run\n"
        "from dpoflow.state.step import StepState\n"
        "config = SnapshotConfig(model=sys.argv[1], sources=({'uri': sys.argv[2]},))\n"
        "run(config, state=StepState(Path(sys.argv[3]), 'snapshot'))",
        *(model, tmp_path / "a.jsonl", state),
    )

    assert list((tmp_path / "root").rglob("model.safetensors"))
    assert loaded & (SERVICES | EXTRAS | DRAWS | COUNTS | TRAINED_WITH | {"pyarrow"}) == set()


def test_data_are_held_against_expectations_without_databases_and_clouds(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.write({"x.jsonl": rows(30)})
    folders = [workshop.folder(name) for name in ("data", "pairs", "prompts", "report")]

    loaded = loaded_by(
        "import sys\n"
        "from pathlib import Path\n"
        "from dpoflow.contracts.spec import ValidateConfig\n"
        "from dpoflow.state.step import StepState\n"
        "from dpoflow.validate.step import run\n"
        "names = ('data', 'pairs', 'prompts', 'report')\n"
        "run(ValidateConfig(), state=StepState(Path(sys.argv[1]), 'validate'),"
        " **dict(zip(names, map(Path, sys.argv[2:]))))",
        *(workshop.state.folder, *folders),
    )

    assert "great_expectations" in loaded
    assert loaded & {"sqlalchemy", "boto3", "google.cloud", "google.auth", "pyspark"} == set()
    assert loaded & (SERVICES - {"great_expectations"} | TRAINED_WITH) == set()


def test_a_run_is_concluded_by_a_client_without_pandas_and_scipy(tmp_path: Path) -> None:
    loaded = loaded_by(
        "import os, sys\n"
        "os.environ['MLFLOW_TRACKING_URI'] = sys.argv[1]\n"
        "from dpoflow.tracking.conclude import run\n"
        "from dpoflow.tracking.settings import load_client\n"
        "load_client()\n"
        "from mlflow import MlflowClient\n"
        "opened = MlflowClient().create_run('0').info.run_id\n"
        "os.environ['DPOFLOW_MLFLOW_PARENT'] = opened\n"
        "run('SUCCEEDED', '')\n"
        "assert 'dpoflow.state' in MlflowClient().get_run(opened).data.tags",
        f"sqlite:///{tmp_path}/mlflow.db",
    )

    assert loaded & ({"pandas", "scipy", "kfp", "openai"} | EXTRAS | TRAINED_WITH) == set()


def test_a_dry_run_asks_nobody_and_loads_nothing_to_ask_with(tmp_path: Path) -> None:
    data, spec = tmp_path / "a.jsonl", tmp_path / "align.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    spec.write_text(f"name: desk\nmodel: {tmp_path}\ndata:\n  sources: [uri: {data}]\n")

    loaded = loaded_by(
        "import sys\n"
        "from dpoflow_pipelines.cli import app\n"
        "app(['run', sys.argv[1], '--dry-run'], standalone_mode=False)",
        spec,
    )

    assert loaded & (SERVICES | EXTRAS | DRAWS | COUNTS | TRAINED_WITH | {"pyarrow"}) == set()
