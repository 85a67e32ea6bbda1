"""Whether a spec's judge has earned its vote, told before anything is spent on it.

Reads   a judge's config and who writes the candidates
Gives   `check_trust`: sentences for people; ConfigError for a judge that was found wanting
Not     the figures (qualify.py)
"""

import re
from collections.abc import Iterable

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.judges import JudgeConfig, RubricJudgeConfig, models_in
from dpoflow.judge.build import Half, judge_id


def check_trust(judge: JudgeConfig, writers: Iterable[str], half: Half = "judge") -> list[str]:
    """What to say of `judge` where models named `writers` are judged."""
    if isinstance(judge, RubricJudgeConfig):
        return []  # it is what it says
    report, name = judge.qualification, judge_id(judge, half)
    if report is not None and report.judge != name:
        raise ConfigError(
            f"the qualification is of judge {report.judge}, and this one is {name}: a model, a "
            "template or a knob changed; qualify it again with dpoflow judge qualify --out"
        )
    if report is not None and not report.qualified:
        raise ConfigError(
            f"the judge {name} is {report.sentence}; name another judge, or leave out its "
            "qualification to use it all the same"
        )
    told = [
        report.sentence
        if report
        else f"the judge {name} was never held against people's "
        "labels: dpoflow judge qualify does that"
    ]
    families = {family(writer) for writer in writers} - {""}
    told += [
        f"judge {asked.endpoint.model} and a writer are of one family: models prefer answers like "
        "their own (Panickssery et al. 2024)"
        for asked in models_in(judge)
        if family(asked.endpoint.model) in families
    ]
    return told


def family(model: str) -> str:
    """The first word of a model's own name: qwen of Qwen/Qwen2.5-7B-Instruct."""
    found = re.match(r"[a-z]+", model.rstrip("/").rpartition("/")[2].lower())
    return found.group() if found else ""
