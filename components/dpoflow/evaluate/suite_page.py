"""What the report says of suites: figures, two-way tables, categories, and where it got worse.

Reads   figures of suites, single answers, comparisons
Gives   `suite_sections`: titles and markup, a suite each; `found`, `ended`, `figure`, `number`,
        `tested`, `said`: what a cell says
Not     the report around them (page.py), the drawings (drawings.py)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from statistics import fmean

from dpoflow.contracts.results import Decision, Interval, Opponent, SuiteScores, Test
from dpoflow.evaluate.drawings import categories, measured_in, metrics_of, models_of, spoken
from dpoflow.evaluate.grading import Graded
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.names import CANDIDATE
from dpoflow.evaluate.scores import LABELS, SIDES
from dpoflow.evaluate.xstest import COMPLIED, PARTLY, REFUSED
from dpoflow.pages import Html, table

_SHOWN = 3
"""Answers of a suite beside each opponent's: those that fell furthest behind, then by id."""
_ANSWERED: dict[str, float] = {COMPLIED: 1.0, PARTLY: 0.5, REFUSED: 0.0}
_SHOULD = {"safe": "should be answered", "unsafe": "should be refused"}
_WRONG = {("safe", "refused"), ("unsafe", "complied")}


def suite_sections(
    decision: Decision, compared: Sequence[Comparison], graded: Sequence[Graded]
) -> Iterator[tuple[str, str]]:
    """What was found on each suite, and the answers that fell furthest behind."""
    for name, scores in decision.suites.items():
        mine = [each for each in graded if each.suite == name]
        lost = [each for each in compared if each.suite == name and each.outcome == 0]
        yield (
            f"Suite {escape(name)}",
            _about(scores)
            + _against(name, scores, decision.tests)
            + _two_way(scores)
            + _figures(name, scores, decision.tests)
            + categories(scores)
            + _by_category(scores)
            + _fell_behind(mine)
            + _lost(lost),
        )


def _about(scores: SuiteScores) -> str:
    told = [
        f"{scores.kind}: {scores.num_questions:,} questions that every model answered",
        f"judged by {scores.judged_by}",
    ]
    if scores.left_out:
        told.append(f"{scores.left_out:,} left out, for which a model's context has no room")
    if scores.unreadable:
        told.append(
            f"{scores.unreadable:,} judgements that could not be read, and are in no figure"
        )
    return f"<p>{escape('; '.join(told))}.</p>"


def _against(suite: str, scores: SuiteScores, tests: Mapping[str, Test]) -> str:
    if not scores.against:
        return ""
    columns = ("the candidate against", "win rate", "at equal length", "at equal style", "test")
    rows: list[tuple[str, ...]] = [
        (
            name,
            figure(of.win_rate, counted=True),
            number(of.at_equal_length),
            number(of.at_equal_style),
            tested(tests.get(f"{suite}/win_rate/{name}")),
        )
        for name, of in scores.against.items()
    ]
    told = [at for at in range(len(columns)) if any(row[at] for row in rows)]
    shown = table([columns[at] for at in told], ([row[at] for at in told] for row in rows))
    return shown + _slices(scores.against)


def _slices(against: Mapping[str, Opponent]) -> str:
    names = list(dict.fromkeys(name for of in against.values() for name in of.slices))
    if len(names) < 2:
        return ""
    rows = (
        (name, *(figure(of.slices.get(name), counted=True) for of in against.values()))
        for name in names
    )
    return table(("win rate by category", *(f"against the {name}" for name in against)), rows)


def _two_way(scores: SuiteScores) -> str:
    """Safe and unsafe questions by what each model did with them."""
    if not scores.labels:
        return ""
    words = list(dict.fromkeys(w for of in scores.labels.values() for s in of.values() for w in s))
    sides = [side for side in SIDES if any(side in of for of in scores.labels.values())]
    rows: list[tuple[str | Html, ...]] = []
    for side in sides:
        for model in models_of(scores.labels):
            if side in (of := scores.labels[model]):
                begins = scores.by_string_match.get(model, {}).get(side)
                cells = (_counted(of[side].get(word), (side, word) in _WRONG) for word in words)
                rows.append((f"{side}, {_SHOULD[side]}", model, *cells, _counted(begins)))
    columns = ("questions", "model", *map(spoken, words), "begins like a refusal")
    return table(columns, rows)


def _counted(seen: Interval | None, is_wrong: bool = False) -> Html:
    if seen is None:
        return Html("<td></td>")
    count = f"{round(seen.value * seen.n):,} of {seen.n:,}"
    share = f"{seen.value:.1%} [{seen.low:.1%}, {seen.high:.1%}]"
    kind = ' class="bad"' if is_wrong and seen.value else ""
    return Html(f"<td{kind}>{count}<br><small>{share}</small></td>")


def _figures(suite: str, scores: SuiteScores, tests: Mapping[str, Test]) -> str:
    """Whatever a suite measures, by name: each model's, and the candidate's minus the others'."""
    metrics, models = metrics_of(scores), models_of(scores.models)
    if not metrics:
        return ""
    opponents = [name for name in models_of(scores.differences) if scores.differences[name]]
    columns = ("", *models, *(f"minus the {name}'s" for name in opponents))
    rows = (
        (
            spoken(metric),
            *(figure(scores.models[model].get(metric), counted=True) for model in models),
            *(
                _lines(
                    figure(scores.differences[name].get(metric), signed=True),
                    tested(tests.get(f"{suite}/{metric}/{name}")),
                )
                for name in opponents
            ),
        )
        for metric in metrics
    )
    return table(columns, rows)


def _by_category(scores: SuiteScores) -> str:
    models = models_of(scores.by_category)
    names = sorted({name for of in scores.by_category.values() for name in of})
    if len(names) < 2:
        return ""
    rows = (
        (name, *(number(scores.by_category[model].get(name)) for model in models)) for name in names
    )
    return table((f"{measured_in(scores)} by category", *models), rows)


# ------------------------------------------------------------------ single answers


def _fell_behind(graded: Sequence[Graded]) -> str:
    """The questions on which the candidate's answer was found worse than another's, worst first."""
    by_model: dict[str, dict[str, Graded]] = {}
    for each in graded:
        by_model.setdefault(each.model, {})[each.question_id] = each
    candidate = by_model.pop(CANDIDATE, {})
    shown = ""
    for name in models_of(by_model):
        theirs = by_model[name]
        both = [(candidate[at], of) for at, of in theirs.items() if at in candidate]
        behind = [(_worth(a) - _worth(b), a, b) for a, b in both if _is_read(a) and _is_read(b)]
        worse = sorted((each for each in behind if each[0] < 0), key=lambda it: it[0])
        shown += _beside(
            f"On {len(worse)} of {len(behind)} questions the candidate was found worse than "
            f"the {name}",
            name,
            len(worse),
            "the furthest behind first",
            [
                (_question(ours.category, ours.questions), _answer(other), _answer(ours))
                for _, ours, other in worse[:_SHOWN]
            ],
        )
    return shown


def _lost(compared: Sequence[Comparison]) -> str:
    shown = ""
    for name in dict.fromkeys(each.against for each in compared):
        of = [each for each in compared if each.against == name]
        shown += _beside(
            f"The candidate lost {len(of)} comparisons with the {name}",
            name,
            len(of),
            "the first by a hash",
            [
                (
                    _question(each.slice, (each.question,)),
                    said((each.theirs,)),
                    said((each.candidate,), each.reasons),
                )
                for each in of[:_SHOWN]
            ],
        )
    return shown


def _beside(
    told: str, name: str, there: int, order: str, rows: Sequence[tuple[Html, Html, Html]]
) -> str:
    if not rows:
        return ""
    some = f"; {len(rows)} of them, {order}" if len(rows) < there else ""
    return f"<p>{escape(told + some)}.</p>{table(('question', name, 'candidate'), rows)}"


def _worth(graded: Graded) -> float:
    """More is better: marks, or how far it does what its question calls for."""
    if graded.marks:
        return fmean(mark for mark in graded.marks if mark is not None)
    answered = _ANSWERED[graded.label or REFUSED]
    return answered if graded.is_safe else 1 - answered


def _is_read(graded: Graded) -> bool:
    return None not in graded.marks and (bool(graded.marks) or graded.label is not None)


def found(graded: Graded) -> str:
    """What an answer was found to be, in words."""
    if graded.marks:
        marks = ["not readable" if mark is None else f"{mark:g}" for mark in graded.marks]
        return f"{'mark' if len(marks) == 1 else 'marks'} {', '.join(marks)}"
    words = {label: spoken(word) for word, label in LABELS.items()}
    return words[graded.label] if graded.label else "not readable"


def ended(comparison: Comparison) -> str:
    """How a comparison ended, for the candidate."""
    return {1.0: "won", 0.0: "lost", None: "not judged"}.get(comparison.outcome, "a tie")


def _answer(graded: Graded) -> Html:
    return said(graded.answers, graded.reasons, found(graded))


def _question(category: str, turns: Sequence[str]) -> Html:
    return said(turns, head=category)


# ------------------------------------------------------------------ cells


def said(turns: Iterable[str], below: Iterable[str] = (), head: str = "") -> Html:
    """A cell of long texts, a turn each, with small print below."""
    shown = "".join(f'<div class="said">{escape(turn)}</div>' for turn in turns)
    small = "".join(f"<small>{escape(each)}</small><br>" for each in below)
    title = f"<b>{escape(head)}</b>" if head else ""
    return Html(f'<td class="long">{title}{shown}{small}</td>')


def figure(seen: Interval | None, *, counted: bool = False, signed: bool = False) -> str:
    """A value with its interval."""
    if seen is None:
        return ""
    form = "+.3f" if signed else ".3f"
    told = f"{seen.value:{form}} [{seen.low:{form}}, {seen.high:{form}}]"
    return f"{told}, n\u00a0{seen.n:,}" if counted else told


def number(value: float | None) -> str:
    """As figures are written; empty where there is none."""
    return "" if value is None else f"{value:.3f}"


def tested(test: Test | None) -> str:
    """How surprising it would be without a difference."""
    if test is None:
        return ""
    holm = "" if test.p_holm is None else f", {test.p_holm:.2g} with Holm"
    return f"p\u00a0{test.p:.2g}{holm}, n\u00a0{test.n:,}"


def _lines(*told: str) -> Html:
    return Html(f"<td>{'<br>'.join(escape(each) for each in told if each)}</td>")
