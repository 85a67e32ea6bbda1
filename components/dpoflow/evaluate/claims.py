"""What must be true before any answer counts: of the judge, and of the data.

Reads   the judge's config, manifests of what is evaluated, prompts and training pairs
Gives   `judge_claim`, `data_claims`: gates
Not     the answers (decide.py); whether a report is of this judge at all (judge/trust.py)
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.judges import JudgeConfig, RubricJudgeConfig
from dpoflow.contracts.pairs import PreferencePair, Prompt, Rating, read_parquet
from dpoflow.contracts.results import Gate
from dpoflow.evaluate.suites import Suite
from dpoflow.texts.contamination import Evaluations, Overlap, said_in

_BATCH = 1000


def judge_claim(judge: JudgeConfig | None) -> Gate:
    """Whether the judge was held against people's labels and is good enough."""
    asked = "held against people's labels"
    if judge is None:
        return Gate(name="judge_qualified", asked=asked, seen="no judge", passed=None)
    if isinstance(judge, RubricJudgeConfig):
        return Gate(name="judge_qualified", asked=asked, seen="a rubric: checked", passed=True)
    report = judge.qualification
    if report is None:
        seen = "never (dpoflow judge qualify)"
        return Gate(name="judge_qualified", asked=asked, seen=seen, passed=None)
    # An unqualified one ends the step before it costs anything; here the door is shut twice.
    passed = True if report.qualified else None
    return Gate(name="judge_qualified", asked=asked, seen=report.sentence, passed=passed)


def data_claims(
    policy: Path,
    pairs: Path,
    heldout: Path,
    prompts: Sequence[Prompt],
    suites: Mapping[str, Suite],
) -> tuple[Gate, Gate]:
    """Whether the policy was trained on these pairs, and these hold nothing that it is asked."""
    learnt = manifest.read(policy).parents.get("pairs")
    here, beside = manifest.read(pairs), manifest.read(heldout)
    same_split = here.parents == beside.parents
    current = learnt == here.digest and same_split
    if current:
        seen = f"pairs {here.digest[:12]}"
    elif same_split:
        seen = f"trained on {(learnt or 'nothing known')[:12]}, held out of {here.digest[:12]}"
    else:
        seen = "pairs and held-out data are of two splits"
    asked = {prompt.prompt_id for prompt in prompts}
    trained_on, quoting = set[str](), 0
    overlap = _overlap(suites)
    for some in _batches(_learnt(pairs)):
        trained_on |= asked & {each.prompt_id for each in some}
        if suites:
            quoting += sum(found is not None for found in overlap.of([*map(said_in, some)]))
    quotes = f", {quoting} pairs quote a suite" if suites else ""
    return (
        Gate(
            name="data_current",
            asked="held out of the data that the policy was trained on",
            seen=seen,
            passed=True if current else None,
        ),
        Gate(
            name="no_contamination",
            asked="nothing asked here was trained on",
            seen=f"{len(trained_on)} of {len(prompts)} prompts were{quotes}",
            passed=not trained_on and not quoting,
        ),
    )


def _learnt(pairs: Path) -> Iterator[PreferencePair | Rating]:
    yield from read_parquet(pairs / "train.parquet", PreferencePair)
    ratings = pairs / "ratings.parquet"
    if ratings.exists():
        yield from read_parquet(ratings, Rating)


def _batches(rows: Iterator[PreferencePair | Rating]) -> Iterator[list[PreferencePair | Rating]]:
    while some := list(islice(rows, _BATCH)):
        yield some


def _overlap(suites: Mapping[str, Suite]) -> Overlap:
    held = Evaluations()
    for name, suite in suites.items():
        for item in suite.items:
            held.add(
                {"prompt": item.question.prompt[-1].content, "turns": item.question.then}, name
            )
    return Overlap(held)
