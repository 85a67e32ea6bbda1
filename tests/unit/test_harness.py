"""Tasks of lm-evaluation-harness: its own figures, of tasks that can run no code."""

import json
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tests.tiny import pair_of, tiny_folder

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import PreferencePair, Prompt, write_parquet
from dpoflow.contracts.results import Decision, Gate
from dpoflow.contracts.spec import EvaluateConfig, SamplingConfig, SuiteConfig
from dpoflow.contracts.spec_file import load_spec
from dpoflow.evaluate.answered import identity
from dpoflow.evaluate.harness import Found, Posed, pose
from dpoflow.evaluate.step import run
from dpoflow.evaluate.suites import Suite, read_suites
from dpoflow.policy.dtype import NAMED
from dpoflow.policy.load import load
from dpoflow.sources.pinned import FILES, Pinned, write_pinned
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState

Row = dict[str, Any]

CHOOSE = """
task: sums
dataset_path: json
test_split: test
output_type: multiple_choice
description: "Sums of {{subject}} numbers.\\n\\n"
doc_to_text: "{{question.strip()}} ="
doc_to_choice: "{{options}}"
doc_to_target: "{{options.index(answer)}}"
num_fewshot: 2
fewshot_config:
  sampler: default
  samples:
    - {question: 1 + 1, options: ["1", "2"], answer: "2", subject: small}
    - {question: 2 + 2, options: ["4", "2"], answer: "4", subject: small}
    - {question: 3 + 3, options: ["9", "6"], answer: "6", subject: small}
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
"""
BY_COLUMN = """
output_type: multiple_choice
dataset_path: json
test_split: test
doc_to_text: question
doc_to_choice: options
doc_to_target: answer
gen_prefix: "Sum:"
"""
NO_QUESTION = """
output_type: multiple_choice
dataset_path: json
test_split: test
doc_to_text: ""
doc_to_choice: "{{[question ~ ' is ' ~ answer, question ~ ' are ' ~ answer]}}"
doc_to_target: 0
"""
LIKELY = """
output_type: loglikelihood
dataset_path: json
test_split: test
doc_to_text: "{{question}} is"
doc_to_target: "{{greedy | regex_replace('^$', 'seven')}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
output_type: generate_until
dataset_path: json
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["q", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
filter_list:
  - name: letter
    filter:
      - {function: regex, regex_pattern: "([a-z])", group_select: 0, fallback: "-"}
      - {function: take_first}
  - name: whole
    filter:
      - {function: remove_whitespace}
      - {function: take_first}
"""
TASKS = {
    "choose": CHOOSE,
    "by_column": BY_COLUMN,
    "no_question": NO_QUESTION,
    "likely": LIKELY,
    "written": WRITTEN,
}


def rows(count: int) -> list[Row]:
    dice = random.Random(3)  # noqa: S311  # sums, not secrets
    made = []
    for at in range(count):
        left, right = dice.randint(0, 99), at
        options = [str(left + right), str(left + right + 11), f"{left + at // 2} or so"]
        answer = options[at % 3]
        dice.shuffle(options)
        made.append(
            {
                "question": f" {left} + {right}",
                "options": options,
                "answer": answer,
                "subject": "odd" if at % 2 else "even",
                "said": "abcdefghij"[at % 10],
            }
        )
    return made


class Bench:
    """A folder with pinned rows, tasks and models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, suites: Mapping[str, list[Row]]) -> Path:
        data = self.folder / "data"
        (data / FILES).mkdir(parents=True, exist_ok=True)
        entries = []
        for name, given in suites.items():
            content = "".join(json.dumps(row) + "\n" for row in given).encode()
            (data / FILES / f"of-{name}").write_bytes(content)
            entries.append(
                Pinned(
                    source=name,
                    name=f"{name}.jsonl",
                    format="auto",
                    licence="",
                    sha256=f"of-{name}",
                    num_bytes=len(content),
                    role="evaluation",
                )
            )
        write_pinned(entries, data)
        return data

    def suite(self, task: str, given: list[Row], **knobs: Any) -> Suite:
        config = suite_of("sums", task, **knobs)
        return read_suites(EvaluateConfig(suites=(config,)), self.data({"sums": given}))["sums"]

    def pose(self, model: Path, suite: Suite, state: str = "one") -> tuple[dict[str, Found], int]:
        """What was found, and how many rows the model was fed for it."""
        loaded, tokenizer = load(model)
        fed: list[int] = []
        loaded.get_input_embeddings().register_forward_hook(
            lambda _, given, __: fed.append(given[0].shape[0])
        )
        assert suite.config.task is not None
        docs = {item.question.id: item.doc or {} for item in suite.items}
        found = pose(
            loaded,
            tokenizer,
            Posed("sums", suite.config.task, docs),
            digest=identity(model),
            dtype=NAMED["float32"],
            state=self.state(state),
            name="candidate sums",
        )
        return found, sum(fed)

    def state(self, name: str) -> StepState:
        return StepState(self.folder / "root" / "state" / name, "evaluate")


def suite_of(name: str, task: str, **knobs: Any) -> SuiteConfig:
    given = {"name": name, "kind": "harness", "task": yaml.safe_load(task), **knobs}
    return SuiteConfig.model_validate(given)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def model_in(folder: Path, seed: int = 0) -> Path:
    made = tiny_folder(folder, seed=seed)
    manifest.seal(made, "test", parents={}, config={}, code="")
    return made


def oracle(folder: Path, model: Path, task: str, given: list[Row]) -> dict[str, Any]:
    """What lm-eval itself makes of the YAML as it stands, the file, and the model's folder."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path = folder / "oracle.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    config = {
        "task": "sums",
        **yaml.safe_load(task),
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
    }
    found = simple_evaluate(
        HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4),
        tasks=[config],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    return dict(found)


# ---------------------------------------------------------------- the same as lm-eval


@pytest.mark.filterwarnings("ignore")  # of the oracle's loading of data
@pytest.mark.parametrize("name", TASKS)
def test_figures_are_those_of_lm_eval_question_by_question(bench: Bench, name: str) -> None:
    model = model_in(bench.folder / "model")
    given = with_greedy(model, rows(70))

    found, _ = bench.pose(model, bench.suite(TASKS[name], given))

    expected = oracle(bench.folder, model, TASKS[name], given)
    for sample in expected["samples"]["sums"]:
        mine = found[f"sums.jsonl:{sample['doc_id'] + 1}"].metrics
        for metric in sample["metrics"]:
            assert mine[ours(metric, sample["filter"])] == sample[metric]
    means = {
        ours(*key.split(",")): value
        for key, value in expected["results"]["sums"].items()
        if "," in key and "stderr" not in key
    }
    assert means.keys() == found["sums.jsonl:1"].metrics.keys()
    for metric, mean in means.items():
        assert fmean(each.metrics[metric] for each in found.values()) == pytest.approx(
            mean, abs=1e-9
        )
    assert any(0 < mean < 1 for mean in means.values()), "a task that tells nothing shows nothing"


def ours(metric: str, filters: str) -> str:
    return metric if filters == "none" else f"{metric}_{filters}"


def with_greedy(model: Path, given: list[Row]) -> list[Row]:
    """Every third row with what the model says next to it: the first token that is a letter."""
    loaded, tokenizer = load(model)
    for at, row in enumerate(given):
        ids = tokenizer(f"{row['question']} is", return_tensors="pt")["input_ids"]
        likely = int(loaded(ids).logits[0, -1].argmax())
        row["greedy"] = "" if at % 3 else tokenizer.decode([likely])
    return given


# ---------------------------------------------------------------- nothing is asked twice


def test_a_model_that_was_measured_is_not_measured_again(bench: Bench) -> None:
    model, given = model_in(bench.folder / "model"), rows(30)
    first, fed = bench.pose(model, bench.suite(CHOOSE, given))

    again, fed_again = bench.pose(model, bench.suite(CHOOSE, given), "two")
    _, fed_for_another = bench.pose(model, bench.suite(CHOOSE, given[:20]), "three")

    assert again == first
    assert fed > 0
    assert fed_again == 0
    assert fed_for_another > 0


def test_what_was_cut_off_goes_on_where_it_stopped(bench: Bench) -> None:
    model, suite = model_in(bench.folder / "model"), bench.suite(CHOOSE, rows(70))
    whole, fed = bench.pose(model, suite)
    here = bench.state("one").work / "candidate sums harness.jsonl"
    lines = here.read_bytes().splitlines(keepends=True)
    here.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # the third of four batches is torn
    for kept in (bench.folder / "root" / "harness").iterdir():
        kept.unlink()

    resumed, fed_again = bench.pose(model, suite)

    said = [event.message for event in read_events(bench.state("one").folder / "events.jsonl")[0]]
    assert resumed == whole
    assert 0 < fed_again < 0.6 * fed
    assert any("continuing after 128" in message for message in said)


# ---------------------------------------------------------------- what a task may not do


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ question.__class__.__base__.__subclasses__() }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ ('{0.__class__}'|attr('format'))(question) }}",
        "{{ range.__init__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ options.append('x') }}",
        "{{ open('CANARY').read() }}",
        "{% include 'CANARY' %}",
        "{% import 'CANARY' as it %}",
        "{% extends 'CANARY' %}",
    ],
)
def test_a_template_reaches_nothing_but_its_row(
    bench: Bench, template: str, opened: list[str]
) -> None:
    canary = bench.folder / "canary"
    canary.write_text("secret")
    task = yaml.safe_load(BY_COLUMN) | {"doc_to_text": template.replace("CANARY", str(canary))}
    data = bench.data({"sums": rows(3)})
    config = SuiteConfig.model_validate({"name": "sums", "kind": "harness", "task": task})
    opened.clear()

    with pytest.raises((ConfigError, DataRejected)) as refused:
        read_suites(EvaluateConfig(suites=(config,)), data)

    assert "sums" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert str(canary) not in opened
    assert not [event for event in opened if event in ("os.system", "subprocess.Popen")]


@pytest.fixture
def opened(audited: list[str]) -> list[str]:
    """Files that are opened, and programs that are started, from now on."""
    return audited


@pytest.fixture(scope="session")
def audited() -> list[str]:
    seen: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            seen.append(str(args[0]))
        elif event in ("os.system", "subprocess.Popen"):
            seen.append(event)

    sys.addaudithook(note)  # it cannot be taken away again
    return seen


@pytest.mark.parametrize(
    "line",
    [
        "process_docs: !function utils.process_docs",
        "description: !!python/object/apply:os.system ['touch CANARY']",
        "description: !include CANARY",
    ],
)
def test_a_tag_that_runs_code_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    canary = tmp_path / "canary"

    with pytest.raises(ConfigError, match=r"task\.yaml, line 8: .*leave the tag out"):
        loaded(tmp_path, f"{BY_COLUMN.strip()}\n{line.replace('CANARY', str(canary))}\n")

    assert not canary.exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"process_docs": "utils.py"}, "process_docs runs code"),
        ({"process_results": "utils.py"}, "process_results runs code"),
        ({"custom_dataset": "utils.py"}, "custom_dataset runs code"),
        ({"unsafe_code": True}, "unsafe_code runs code"),
        ({"class": "utils.Task"}, "class runs code"),
        ({"include": "other.yaml"}, "include names another file"),
        ({"group": ["one", "two"]}, "group names several tasks"),
        ({"use_prompt": "promptsource:all"}, "use_prompt fetches"),
        ({"doc_to_image": "picture"}, "doc_to_image is for models that see"),
        ({"shots": 5}, "shots is no key of a task"),
        ({"num_fewshot": 5}, "needs as many fewshot_config.samples, got 0"),
        ({"metric_list": [{"metric": "bleu"}]}, "must be one of 'acc', "),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "unknown key .*hf_evaluate"),
        ({"metric_list": [{"metric": "exact_match"}]}, "not one of output_type multiple_choice"),
        ({"metric_list": [{"metric": "acc", "ignore_case": True}]}, "ignore_case is not used"),
        ({"metric_list": [{"metric": "acc"}, {"metric": "acc"}]}, "twice"),
        ({"generation_kwargs": {"max_gen_toks": 3}}, "generation_kwargs is not used"),
        ({"repeats": 3}, "repeats must be one of 1"),
    ],
)
def test_a_key_that_is_not_data_or_not_used_is_refused(
    tmp_path: Path, more: Row, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, yaml.safe_dump(yaml.safe_load(BY_COLUMN) | more))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"generation_kwargs": {"custom_generate": "somebody/code"}}, "unknown key"),
        ({"generation_kwargs": {"do_sample": True}}, "do_sample must be"),
        ({"filter_list": [{"name": "a", "filter": [{"function": "custom"}]}]}, "must be one of"),
        (
            {"filter_list": [{"name": "a", "filter": [{"function": "lowercase"}]}]},
            "the last filter must be take_first",
        ),
        (
            {
                "filter_list": [
                    {"name": "a", "filter": [{"function": "take_first", "fallback": "b"}]}
                ]
            },
            "fallback is not used by filter take_first",
        ),
        (
            {
                "filter_list": [
                    {
                        "name": "a",
                        "filter": [
                            {"function": "regex", "regex_pattern": "(a"},
                            {"function": "take_first"},
                        ],
                    }
                ]
            },
            "is no regular expression",
        ),
        ({"doc_to_choice": ["a", "b"]}, "doc_to_choice is not used"),
    ],
)
def test_generation_takes_what_is_data_and_greedy(tmp_path: Path, more: Row, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, yaml.safe_dump(yaml.safe_load(WRITTEN) | more))


def loaded(folder: Path, task: str, suite: str = "") -> EvaluateConfig:
    """The evaluate section as a spec beside the task is read."""
    (folder / "task.yaml").write_text(task.strip() + "\n")
    (folder / "align.yaml").write_text(
        "name: sums\nmodel: ./model\ndata: {sources: [{uri: rows.jsonl}]}\n"
        "evaluate:\n  suites:\n"
        f"    - {{name: sums, kind: harness, uri: rows.jsonl, task: task.yaml{suite}}}\n"
    )
    return load_spec(folder / "align.yaml").evaluate


def test_a_task_is_config_and_where_its_data_lay_is_not(tmp_path: Path) -> None:
    there = loaded(tmp_path, BY_COLUMN.replace("path: json", "name: main"))
    here = loaded(tmp_path, BY_COLUMN)
    other = loaded(tmp_path, BY_COLUMN.replace("Sum:", "Total:"))

    assert sha256_json(here.suites[0]) == sha256_json(there.suites[0])
    assert sha256_json(here.suites[0]) != sha256_json(other.suites[0])
    assert (
        SuiteConfig.model_validate_json(  # as it reaches the step
            SuiteConfig.model_validate(
                here.suites[0].model_dump(exclude={"uri", "answers"})
            ).model_dump_json()
        ).task
        == here.suites[0].task
    )


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        (", sampling: {temperature: 1}", "sampling is not used by kind harness"),
        (", answers: rows.jsonl", "answers is not used by kind harness"),
    ],
)
def test_knobs_of_other_kinds_are_refused(tmp_path: Path, suite: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        loaded(tmp_path, BY_COLUMN, suite)


def test_a_harness_suite_without_a_task_is_refused() -> None:
    with pytest.raises(ValidationError, match="task is what kind harness asks"):
        SuiteConfig.model_validate({"name": "sums", "kind": "harness"})


# ---------------------------------------------------------------- data that do not fit


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"question": None}, "is no text"),
        ({"options": ["1"]}, "two choices are the least"),
        ({"options": "many"}, "is no list of texts"),
        ({"answer": "42 bis"}, "'42 bis' is none of 3 choices"),
        ({"answer": 3}, "'3' is none of 3 choices"),
        ({"question": "17"}, "17 alone is no question"),
    ],
)
def test_a_row_that_does_not_fit_is_told_with_its_line(
    bench: Bench, changed: Row, told: str
) -> None:
    given = rows(3)
    given[1] |= changed

    with pytest.raises(DataRejected, match=rf"sums\.jsonl:2 does not fit .*{told}"):
        bench.suite(BY_COLUMN, given)


def test_a_number_that_a_template_writes_is_a_place_and_that_is_told(bench: Bench) -> None:
    task = BY_COLUMN.replace("doc_to_target: answer", 'doc_to_target: "{{answer}}"')
    given = [row | {"options": ["42", "32"], "answer": "42"} for row in rows(1)]

    with pytest.raises(DataRejected, match=r"is a place; name the column alone"):
        bench.suite(task, given)


def test_a_column_that_is_not_there_is_named(bench: Bench) -> None:
    given = rows(3)
    del given[2]["question"]

    with pytest.raises(DataRejected, match=r"sums\.jsonl:3 .*there is no column question"):
        bench.suite(BY_COLUMN, given)
    with pytest.raises(DataRejected, match=r"sums\.jsonl:3 .*'question' is undefined"):
        bench.suite(CHOOSE, given)


def test_a_question_that_is_asked_twice_is_refused(bench: Bench) -> None:
    given = rows(3)

    with pytest.raises(DataRejected, match=r"sums\.jsonl:4 asks what sums\.jsonl:1 asks"):
        bench.suite(BY_COLUMN, [*given, given[0] | {"subject": "another"}])


def test_a_file_without_rows_is_refused(bench: Bench) -> None:
    with pytest.raises(DataRejected, match="holds no rows"):
        bench.suite(BY_COLUMN, [])


def test_as_many_questions_as_asked_for_are_drawn_and_stay_in_order(bench: Bench) -> None:
    every = [item.question.id for item in bench.suite(BY_COLUMN, rows(20)).items]
    some = [item.question.id for item in bench.suite(BY_COLUMN, rows(20), max_questions=7).items]

    assert len(some) == 7
    assert some == [place for place in every if place in some]


def test_a_model_of_no_numbers_ends_it(bench: Bench) -> None:
    folder = model_in(bench.folder / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(DataRejected, match="its weights are no numbers"):
        bench.pose(folder, bench.suite(CHOOSE, rows(3)))


# ---------------------------------------------------------------- the whole step


class Step(Bench):
    """The evaluation of a candidate beside a base, of a suite and nothing else."""

    def run(self, given: list[Row], **knobs: Any) -> Decision:
        held = [pair_of(f"ask {at}", "yes please", "no") for at in range(2)]
        for name in ("pairs", "heldout"):
            (self.folder / name).mkdir(exist_ok=True)
        learnt = [pair_of(knobs.pop("learnt", "learn"), "yes please", "no")]
        write_parquet(learnt, PreferencePair, self.folder / "pairs" / "train.parquet")
        write_parquet(held, PreferencePair, self.folder / "heldout" / "pairs.parquet")
        asked = [Prompt(prompt=pair.prompt, source=pair.source) for pair in held]
        write_parquet(asked, Prompt, self.folder / "heldout" / "prompts.parquet")
        data = self.data({"sums": given})
        for name in ("pairs", "heldout", "data"):
            manifest.seal(self.folder / name, "test", parents={}, config={}, code="")
        config = EvaluateConfig(
            suites=(suite_of("sums", CHOOSE, **knobs),),
            sampling=SamplingConfig(max_new_tokens=2),
            resamples=400,
        )
        state = self.state("evaluate")
        state.start_afresh(["decision"])
        champion = self.folder / "champion"
        run(
            config,
            model=self.folder / "base",
            policy=self.folder / "candidate",
            champion=champion if champion.exists() else None,
            pairs=self.folder / "pairs",
            heldout=self.folder / "heldout",
            data=data,
            decision=state.output("decision"),
            state=state,
        )
        written = (state.output("decision") / "decision.json").read_text()
        return Decision.model_validate_json(written)

    def picks(self, name: str, given: list[Row]) -> list[str]:
        """The choice of the model `name` for each row."""
        found, _ = self.pose(self.folder / name, self.suite(CHOOSE, given), f"picks {name}")
        return [each.said for each in found.values()]


@pytest.fixture
def step(tmp_path: Path) -> Step:
    made = Step(tmp_path)
    model_in(tmp_path / "base", seed=0)
    model_in(tmp_path / "candidate", seed=1)
    return made


def gates_of(decision: Decision) -> dict[str, Gate]:
    return {gate.name: gate for gate in decision.gates}


def test_a_candidate_that_lost_what_the_base_could_do_is_rejected(step: Step) -> None:
    given = rows(40)
    right = step.picks("base", given)
    theirs = step.picks("candidate", given)
    given = [row | {"answer": answer} for row, answer in zip(given, right, strict=True)]
    model_in(step.folder / "champion", seed=0)
    (step.folder / "champion" / "README").write_text("the base, registered")

    decision = step.run(given)

    scores, gates = decision.suites["sums"], gates_of(decision)
    kept = fmean(mine == base for mine, base in zip(theirs, right, strict=True))
    assert kept < 0.7, "random models agree by chance alone"
    assert scores.kind == "harness"
    assert scores.judged_by == "lm-eval 0.4.13"
    assert scores.num_questions == 40
    assert list(scores.models["candidate"]) == ["acc", "acc_norm", "acc_bytes"]
    assert scores.models["base"]["acc"].value == 1
    assert scores.models["candidate"]["acc"].value == pytest.approx(kept)
    assert scores.differences["base"]["acc"].value == pytest.approx(kept - 1)
    assert scores.by_category["base"] == {"even": 1.0, "odd": 1.0}
    assert decision.tests["sums/acc/base"].n == round(40 * (1 - kept))  # McNemar's discordant ones
    for name in ("sums_acc", "sums_acc_champion"):
        assert gates[name].asked == "lower bound >= -0.05"
        assert gates[name].passed is False
        assert not gates[name].undecided
    assert decision.verdict != "promote"


def test_the_same_model_again_holds_the_gate(step: Step) -> None:
    shutil.rmtree(step.folder / "candidate")
    model_in(step.folder / "candidate", seed=0)

    assert gates_of(step.run(rows(70)))["sums_acc"].passed is True


def test_one_question_lost_of_few_decides_nothing(step: Step) -> None:
    given = rows(120)
    picked = list(
        zip(given, step.picks("base", given), step.picks("candidate", given), strict=True)
    )
    same = [row | {"answer": base} for row, base, mine in picked if base == mine][:29]
    lost = [row | {"answer": base} for row, base, mine in picked if base != mine][:1]

    gate = gates_of(step.run([*same, *lost]))["sums_acc"]

    # Examples are drawn in the order of questions, and whoever is asked less is shown others.
    assert gate.passed is False
    assert gate.undecided


def test_a_question_that_no_context_has_room_for_is_left_out_and_counted(step: Step) -> None:
    given = rows(5)
    given[2]["question"] = "seven boats " * 200

    scores = step.run(given).suites["sums"]

    assert (scores.num_questions, scores.left_out) == (4, 1)


def test_a_pair_that_quotes_a_question_is_contamination(step: Step) -> None:
    given = rows(3)
    given[1]["question"] = (
        "how much are twelve boats and thirteen boats by the long stone pier today"
    )

    clean = gates_of(step.run(given))["no_contamination"]
    quoting = gates_of(step.run(given, learnt=f"Tell me, {given[1]['question']}?"))

    assert clean.passed is True
    assert quoting["no_contamination"].passed is False
    assert "1 pairs quote a suite" in quoting["no_contamination"].seen


def test_without_lm_eval_it_ends_before_anything_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python has it of what is not there
    config = EvaluateConfig(suites=(suite_of("sums", CHOOSE),))
    nowhere = tmp_path / "nowhere"

    with pytest.raises(
        ConfigError, match=r"suite sums .*lm_eval; pip install 'dpoflow\[harness\]'"
    ):
        run(
            config,
            model=nowhere,
            policy=nowhere,
            pairs=nowhere,
            heldout=nowhere,
            decision=nowhere,
            state=StepState(tmp_path / "root" / "state" / "one", "evaluate"),
        )
