"""What a run's judges and writers would be asked and paid, before the first request.

Reads   a spec and its data
Gives   `expected_spending`, `check_judges`, `show_spending`
Not     the arithmetic of a request (dpoflow.judge.estimate)
"""

from collections.abc import Iterator
from math import comb
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from dpoflow.contracts.judges import EndpointConfig, JudgeConfig, RubricJudgeConfig, models_in
from dpoflow.contracts.pairs import Prompt
from dpoflow.contracts.spec import EvaluateSpec, Spec, Suite
from dpoflow_pipelines.rows import local_rows, rows_of

if TYPE_CHECKING:
    from dpoflow.judge.build import Half
    from dpoflow.judge.estimate import Expected

BYTES_A_TOKEN = 4
"""Of text that models write: long enough for most languages."""


def endpoints_of(spec: Spec) -> Iterator[EndpointConfig]:
    """Every server that the spec names."""
    for writer in spec.synthesize.generators if spec.synthesize.enabled else ():
        if writer.endpoint is not None:
            yield writer.endpoint
    for judge, _ in judges_of(spec):
        yield from (each.endpoint for each in models_in(judge))
    if spec.evaluate.grader is not None:
        yield spec.evaluate.grader.endpoint


def judges_of(spec: Spec) -> Iterator[tuple[JudgeConfig, "Half"]]:
    """The judges that a run would ask, and which checks their rubrics go by."""
    if spec.synthesize.enabled and spec.synthesize.judge is not None:
        yield spec.synthesize.judge, "judge"
    if spec.evaluate.judge is not None:
        yield spec.evaluate.judge, "all"


def check_judges(spec: Spec, *, keys: bool = True) -> None:
    """Keys, templates and qualifications, before there is a run. Raises ConfigError."""
    endpoints = list(endpoints_of(spec))
    asked = [each for each in judges_of(spec) if not isinstance(each[0], RubricJudgeConfig)]
    if endpoints or asked:  # a rubric needs none of these imports
        from dpoflow.endpoints.client import key_of
        from dpoflow.judge.llm import template_of
        from dpoflow.judge.trust import check_trust
    for endpoint in endpoints if keys else ():
        key_of(endpoint)
    for judge, half in asked:
        for each in models_in(judge):
            template_of(each)
        check_trust(judge, (), half)


def expected_spending(spec: Spec, *, num_points: int = 1) -> "Expected":
    """Every request new, every answer as long as it may be; each point of a sweep is evaluated."""
    from dpoflow.judge.estimate import Expected, of_comparisons

    expected = Expected()
    if not any(True for _ in endpoints_of(spec)):
        return expected
    asked, answered, held = _sizes(spec)
    synthesize = spec.synthesize
    if synthesize.enabled:
        longest = [
            writer.sampling.max_new_tokens * BYTES_A_TOKEN
            for writer in synthesize.writers
            for _ in range(writer.candidates)
        ]
        for place, writer in enumerate(synthesize.writers):
            if writer.endpoint is not None:
                # Beside a human's answer the first writer is asked once, held-out prompts included.
                many = len(asked) * writer.candidates + (len(answered) if place == 0 else 0)
                size = sum(asked) * writer.candidates + (sum(answered) if place == 0 else 0)
                read = (size + many * len((writer.system or "").encode())) // BYTES_A_TOKEN
                written = many * writer.sampling.max_new_tokens
                expected = expected.plus(writer.endpoint, many, read, written)
        if synthesize.judge is not None and len(longest) > 1:
            mean = sum(longest) // len(longest)
            couples = comb(len(longest), 2)
            sizes = ((size, mean, mean) for size in asked for _ in range(couples))
            expected = of_comparisons(synthesize.judge, sizes, expected)
    if spec.evaluate.judge is not None:
        longest_answer = spec.evaluate.sampling.max_new_tokens * BYTES_A_TOKEN
        compared = held[: spec.evaluate.max_prompts] * num_points
        sizes = ((size, longest_answer, longest_answer) for size in compared)
        expected = of_comparisons(spec.evaluate.judge, sizes, expected)
    return _with_suites(spec.evaluate, num_points, expected)


def _with_suites(evaluate: EvaluateSpec, num_points: int, expected: "Expected") -> "Expected":
    """Of every suite: answers that are compared with the base's, and those that are marked."""
    from dpoflow.judge.estimate import of_comparisons, of_marks

    for suite in evaluate.suites:
        if suite.kind == "harness":
            continue  # it asks nobody but the models themselves
        sampling = suite.sampling or evaluate.sampling
        answer = sampling.max_new_tokens * BYTES_A_TOKEN
        asked = list(_turns_of(suite)) * num_points
        if evaluate.judge is not None and suite.kind != "xstest":
            opponents = 2 if suite.kind == "instructions" and suite.answers else 1
            sizes = ((size, turn * answer, turn * answer) for size, turn in asked * opponents)
            expected = of_comparisons(evaluate.judge, sizes, expected)
        if evaluate.marked_by is not None and suite.kind != "instructions":
            models = 2  # the candidate and the base
            marked = (size + turn * answer for size, turn in asked * models)
            expected = of_marks(evaluate.marked_by, marked, expected)
    return expected


def _turns_of(suite: Suite) -> Iterator[tuple[int, int]]:
    """Bytes that were said, and which turn it is, for each turn of each question."""
    from dpoflow.evaluate.suites import read_suite

    for item in read_suite(suite, local_rows(suite.uri, "evaluate.suites"), ()).items:
        said = len(item.question.prompt[-1].content.encode())
        yield said, 1
        if item.question.then is not None:
            yield said + len(item.question.then.encode()), 2


def _sizes(spec: Spec) -> tuple[list[int], list[int], list[int]]:
    """Bytes of each prompt: those that wait for candidates, have an answer, are held out.

    The sides are those that validate draws. Of equal prompts one counts, as it does there.
    """
    asked, answered, held = dict[str, int](), dict[str, int](), dict[str, int]()
    for row in rows_of(spec):
        size = sum(len(turn.content.encode("utf-8", "replace")) + 16 for turn in row.prompt)
        if row.split == "heldout":
            held[row.prompt_id] = size
        if isinstance(row, Prompt) and row.reference:
            answered[row.prompt_id] = size
        elif isinstance(row, Prompt) and row.split == "train":
            asked[row.prompt_id] = size
    bare = [size for prompt_id, size in asked.items() if prompt_id not in answered]
    return bare, [*answered.values()], [*held.values()]


def show_expected(console: Console, expected: "Expected", about: str) -> None:
    """One line a model."""
    for model, cost in expected.models.items():
        console.print(
            f"{escape(model)}: {about} {cost.requests:,} requests, {cost.tokens:,} tokens, "
            f"{cost.money:,.2f} in the currency of its prices",
            highlight=False,
        )


def show_spending(console: Console, spec: Spec, *, num_points: int = 1) -> None:
    """What each model would be asked, and the budget it is held to."""
    expected = expected_spending(spec, num_points=num_points)
    show_expected(console, expected, "with the longest answers about")
    evaluate = spec.evaluate
    judges = [*models_in(evaluate.judge)] if evaluate.judge else []
    if evaluate.champion is not None and (judges or evaluate.grader):
        console.print(
            "against a champion, where there is one, evaluation asks nearly as much again",
            highlight=False,
        )
    limits = {k: v for k, v in spec.synthesize.budget.model_dump().items() if v is not None}
    if expected.models and limits:
        told = ", ".join(f"{value:,} {name}" for name, value in limits.items())
        console.print(f"synthesize stops asking at {told}", highlight=False)
