"""The candidate's answers beside each opponent's, before the judge.

Reads   matches, the judge of the spec
Gives   `compare`: one `Comparison` a match
Not     who meets whom (matches.py), what is counted of them (document.py)
"""

from collections.abc import Sequence
from pathlib import Path

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.judges import RubricJudgeConfig
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.stream import in_order
from dpoflow.evaluate.matches import Match
from dpoflow.evaluate.measure import Comparison, points, reasons_of, unseen_difference
from dpoflow.judge.build import ahead_of, build
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.session import session
from dpoflow.judge.verdict import Outcome
from dpoflow.state.step import StepState


async def compare(
    config: EvaluateConfig,
    matches: Sequence[Match],
    judges: Path | None,
    state: StepState,
) -> list[Comparison]:
    """Each match as the judge sees it in both orders, in their order; unjudged without a judge."""
    if config.judge is None:
        return [_comparison(config, match, None) for match in matches]
    compared: list[Comparison] = []
    async with session(config.judge, state, config.budget, half="all") as at:
        judge = await build(config.judge, at, half="all", models=judges)

        async def work(match: Match) -> Comparison:
            try:
                outcome = await judge.decide(match.prompt, match.candidate, match.theirs)
            except Exhausted as spent:
                raise ConfigError(
                    f"evaluate.budget: {spent}, and an evaluation of some prompts would choose "
                    "among them; raise it, or lower evaluate.max_prompts: what was paid is kept"
                ) from None
            return _comparison(config, match, outcome)

        async for each in in_order(matches, work, ahead=ahead_of(config.judge)):
            compared.append(each)
            state.events.progress("judging", len(compared), len(matches), unit="comparisons")
    return compared


def _comparison(config: EvaluateConfig, match: Match, outcome: Outcome | None) -> Comparison:
    question = match.prompt[-1].content
    rubric = config.judge.rubric if isinstance(config.judge, RubricJudgeConfig) else None

    def scores(answer: str) -> dict[str, float]:
        return RubricJudge(rubric, half="all").score(question, answer).by_check if rubric else {}

    return Comparison(
        suite=match.suite,
        prompt_id=match.prompt_id,
        turn=match.turn,
        slice=match.slice,
        question=question,
        against=match.against,
        theirs=match.theirs,
        candidate=match.candidate,
        outcome=points(outcome) if outcome else None,
        reasons=reasons_of(outcome) if outcome else (),
        their_scores=scores(match.theirs),
        candidate_scores=scores(match.candidate),
        heldout_difference=unseen_difference(rubric, question, match.candidate, match.theirs),
    )
