"""The evaluate step: the candidate against base and champion, and the decision.

Reads   the candidate (train); base, champion and reward models (snapshot); training pairs,
        held-out prompts and pairs (merge)
Gives   decision.json and perhaps its signature, answers.jsonl with every comparison, suites.jsonl
        with every single answer, report.html, eval_results_table.json for MLflow
Not     what follows from the verdict: register and the reviewer
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import PreferencePair, Prompt, read_parquet, write_jsonl
from dpoflow.contracts.results import EvaluateResult, SuiteScores, Test
from dpoflow.contracts.spec import CHAMPION, EvaluateConfig
from dpoflow.evaluate import harness
from dpoflow.evaluate.answers_table import TABLE, answers_table
from dpoflow.evaluate.changes import changes_since
from dpoflow.evaluate.claims import data_claims, judge_claim
from dpoflow.evaluate.compare import compare
from dpoflow.evaluate.decide import Unread
from dpoflow.evaluate.document import Measured, document_of
from dpoflow.evaluate.figures import PAGE, figures_of
from dpoflow.evaluate.grading import Graded, found, grade
from dpoflow.evaluate.heard import Asked, Heard, answered_by_all, hear, scored_by_both
from dpoflow.evaluate.matches import matches_of
from dpoflow.evaluate.measure import length_ratios, measures_of
from dpoflow.evaluate.names import BASE, CANDIDATE, HELDOUT
from dpoflow.evaluate.page import report_page
from dpoflow.evaluate.preference import preference_of
from dpoflow.evaluate.scores import scores_of, tests_of, unread_of
from dpoflow.evaluate.suites import Question, Suite, read_suites
from dpoflow.registry.ledger import check_ledger, record_once
from dpoflow.registry.signature import DECISION, check_key, sign
from dpoflow.state.files import write_text
from dpoflow.state.step import StepState
from dpoflow.tables import write_table


def run(
    config: EvaluateConfig,
    *,
    model: Path,
    policy: Path,
    pairs: Path,
    heldout: Path,
    decision: Path,
    judges: Path | None = None,
    champion: Path | None = None,
    data: Path | None = None,
    state: StepState,
) -> EvaluateResult:
    """Answer, judge, measure, decide, sign."""
    harness.check_installed(config)
    vouched = check_key(config.signer)
    if config.ledger is not None:
        check_ledger(config.ledger)
    suites = read_suites(config, data)
    prompts = _prompts(heldout, config.max_prompts)
    every = read_parquet(heldout / "pairs.parquet", PreferencePair)
    held = [pair for pair in every if pair.label == "preferred"]
    models = {CANDIDATE: policy} | ({CHAMPION: champion} if champion else {}) | {BASE: model}
    heard = _hear(config, models, prompts, held, suites, state)
    matches = matches_of(prompts, suites, heard, is_judged=config.judge is not None)
    compared = asyncio.run(compare(config, matches, judges, state))
    write_jsonl(compared, decision / "answers.jsonl")
    graded = [*asyncio.run(grade(config, suites, heard, state)), *found(suites, heard)]
    write_jsonl(graded, decision / "suites.jsonl")
    trained = manifest.read(policy)
    document = document_of(
        config,
        compared,
        Measured(
            measures=measures_of(heard) | _left_out(heard, prompts, held, state),
            length_ratios=length_ratios(heard),
            preference=preference_of(config, held, heard, trained.config),
            **_of_suites(config, suites, graded, heard),
            claims=(
                judge_claim(config.judge),
                *data_claims(policy, pairs, heldout, prompts, suites),
            ),
            changed=changes_since(manifest.read(champion), trained) if champion else {},
        ),
        _digests(models | _given(heldout=heldout, judges=judges, data=data), decision),
    )
    write_text(decision / PAGE, report_page(document, compared, graded))
    write_table(decision / TABLE, answers_table(compared, graded))
    write_text(decision / DECISION, document.model_dump_json(indent=2) + "\n")
    if config.signer is not None:
        sign(decision)
    if config.ledger is not None:
        # The state's key: what was evaluated, and how.
        state.events.say(record_once(decision, config.ledger, state.folder.name))
    state.events.say(f"{document.verdict}: {document.sentence}")
    state.events.say(vouched)
    state.events.metrics(0, figures_of(document))
    rate = document.against[BASE].win_rate
    return EvaluateResult(
        verdict=document.verdict,
        sentence=document.sentence,
        win_rate=rate.value if rate else None,
        ci=(rate.low, rate.high) if rate else None,
        decision_digest=sha256_json(document),
    )


def _given(**folders: Path | None) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if folder is not None}


def _digests(artifacts: Mapping[str, Path], decision: Path) -> dict[str, str]:
    """Of each, of what the policy was made from, and of the answers."""
    sealed = {name: manifest.read(path) for name, path in artifacts.items()}
    image = os.environ.get("DPOFLOW_IMAGE_DIGEST")
    return {
        **{name.replace(CANDIDATE, "policy"): each.digest for name, each in sealed.items()},
        **{f"policy.{name}": digest for name, digest in sealed[CANDIDATE].parents.items()},
        **({"image": image} if image else {}),
        "answers": manifest.sha256_file(decision / "answers.jsonl"),
        "suites": manifest.sha256_file(decision / "suites.jsonl"),
    }


def _prompts(heldout: Path, limit: int | None) -> list[Prompt]:
    every = sorted(read_parquet(heldout / "prompts.parquet", Prompt), key=lambda p: p.prompt_id)
    return every[:limit]  # ids are hashes, so the first few are a fair draw


def _hear(
    config: EvaluateConfig,
    models: Mapping[str, Path],
    prompts: Sequence[Prompt],
    pairs: Sequence[PreferencePair],
    suites: Mapping[str, Suite],
    state: StepState,
) -> dict[str, Heard]:
    """One model at a time, the base last: it says how likely the candidate's answers are."""
    asked = {HELDOUT: Asked([Question(each.prompt_id, each.prompt) for each in prompts])}
    tasks: list[harness.Posed] = []
    for name, suite in suites.items():
        if suite.config.task is None:
            asked[name] = Asked([item.question for item in suite.items], suite.config.sampling)
        else:
            docs = {item.question.id: item.doc for item in suite.items if item.doc is not None}
            tasks.append(harness.Posed(name, suite.config.task, docs))
    heard: dict[str, Heard] = {}
    for name, folder in models.items():
        others = heard[CANDIDATE].said() if name == BASE else {}
        heard[name] = hear(name, folder, asked, pairs, config, state, others=others, tasks=tasks)
    return heard


def _of_suites(
    config: EvaluateConfig,
    suites: Mapping[str, Suite],
    graded: Sequence[Graded],
    heard: Mapping[str, Heard],
) -> dict[str, Any]:
    """Scores and tests of single answers, and what of their grades could not be read."""
    scores, tests, unread = dict[str, SuiteScores](), dict[str, Test](), dict[str, Unread]()
    for name, suite in suites.items():
        mine = [each for each in graded if each.suite == name]
        scores[name] = scores_of(config, suite, mine, len(answered_by_all(heard, name)))
        tests |= dict(tests_of(name, mine))
        unread |= unread_of(config, suite, mine)
    return {"suites": scores, "tests": tests, "unread": unread}


def _left_out(
    heard: Mapping[str, Heard],
    prompts: Sequence[Prompt],
    pairs: Sequence[PreferencePair],
    state: StepState,
) -> dict[str, float]:
    num_prompts = len(prompts) - len(answered_by_all(heard))
    num_pairs = len(pairs) - len(scored_by_both(heard))
    if num_prompts or num_pairs:
        state.events.say(
            f"no room in a model's context for {num_prompts} of {len(prompts)} held-out prompts "
            f"and {num_pairs} of {len(pairs)} pairs: left out"
        )
    return {"prompts_left_out": float(num_prompts), "pairs_left_out": float(num_pairs)}
