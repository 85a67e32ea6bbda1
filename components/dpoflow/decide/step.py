"""The decide step: whether there is something to learn since the champion.

Reads   the data that snapshot pinned; the champion's evidence, and the data that it rests on
Gives   train or skip with a sentence, also on the MLflow run of the whole pipeline
Not     branching: the pipeline does what this says
"""

from pathlib import Path

from dpoflow.contracts.results import DecideResult
from dpoflow.contracts.spec import DecideConfig
from dpoflow.decide.champion import look_up
from dpoflow.decide.news import news_of
from dpoflow.decide.verdict import decide
from dpoflow.state.step import StepState
from dpoflow.tracking.conclude import note


def run(config: DecideConfig, *, data: Path, state: StepState) -> DecideResult:
    """Look at what is new, and decide."""
    champion, before = look_up(config, state.root)
    news = news_of(data, before, config, state.work / "seen.sqlite", state.events)
    result = decide(config, news, champion)
    state.events.say(f"{result.decision}: {result.sentence}")
    note(
        tags={"dpoflow.retrain": result.decision, "dpoflow.retrain.why": result.sentence},
        metrics={"retrain/new_pairs": result.new_pairs},
    )
    return result
