"""Published preference files, read through the step; what comes out is checked by other means."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import pytest
from sklearn.metrics import cohen_kappa_score
from tests.published import FOLDER, needs_data
from tests.workshop import Workshop

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import PreferencePair, Rating, Source, read_parquet
from dpoflow.sources.files import read_rows
from dpoflow.sources.formats.registry import FORMATS, convert, recognise
from dpoflow.sources.reasons import Quarantine

pytestmark = needs_data


def raw(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else map(json.loads, text.splitlines())
    return list(rows)


def read(name: str) -> list[PreferencePair]:
    """Every row as a pair; a Quarantine would fail the test."""
    rows = list(read_rows(FOLDER / name, name, max_line_mb=16))
    form = recognise([row for _, row in rows], name)
    made = [convert(row, form, Source(dataset=name, row=row_id)) for row_id, row in rows]
    assert all(isinstance(each, PreferencePair) for each in made)
    return [each for each in made if isinstance(each, PreferencePair)]


def test_hh_rlhfs_sample_reads_as_its_transcripts_say() -> None:
    """Here a transcript is cut at its last Assistant mark; the adapter splits it at every mark."""
    name = "hh_rlhf/harmless_base_test_dev400.jsonl"
    pairs = read(name)

    assert len(pairs) == 400
    for row, pair in zip(raw(name), pairs, strict=True):
        before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        same, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        assert before == same
        assert (pair.chosen.content, pair.rejected.content) == (chosen.strip(), rejected.strip())
        marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
        told = "".join(marks[turn.role] + turn.content for turn in pair.prompt)
        assert told.split() == before.split()


def test_llama_factorys_demo_reads_turn_by_turn() -> None:
    name = "llamafactory/dpo_en_demo.json"
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    pairs = read(name)

    assert len(pairs) == 300
    for row, pair in zip(raw(name), pairs, strict=True):
        turns = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        assert [(turn.role, turn.content) for turn in pair.prompt] == turns
        assert pair.chosen.content == row["chosen"]["value"]
        assert pair.rejected.content == row["rejected"]["value"]


def test_equal_rows_of_the_demo_have_equal_ids_and_no_others_do() -> None:
    name = "llamafactory/dpo_en_demo.json"
    texts = Counter(json.dumps(row, sort_keys=True) for row in raw(name))
    ids = Counter(pair.pair_id for pair in read(name))

    assert sorted(texts.values()) == sorted(ids.values())
    assert sum(ids.values()) - len(ids) == 5


def test_llama_factorys_second_layout_reads_as_two_conversations() -> None:
    name = "llamafactory/v1_dpo_demo.jsonl"
    pairs = read(name)

    assert len(pairs) == 10
    for row, pair in zip(raw(name), pairs, strict=True):
        assert pair.chosen.content == row["chosen_messages"][-1]["content"][0]["value"]
        assert pair.rejected.content == row["rejected_messages"][-1]["content"][0]["value"]
        assert [turn.role for turn in pair.prompt] == ["system", "user"]


def test_llama_factorys_thumbs_are_as_its_file_says(tmp_path: Path) -> None:
    path = FOLDER / "llamafactory" / "kto_en_demo.json"
    raw = json.loads(path.read_text(encoding="utf-8"))

    seen = Workshop(tmp_path).of_file(path)

    ratings = read_parquet(tmp_path / "pairs" / "ratings.parquet", Rating)
    found = {(each.prompt[-1].content, each.answer.content): each.desirable for each in ratings}
    counts = seen.result.counts
    assert counts.num_in == len(raw) == counts.num_kept + sum(counts.quarantined.values())
    assert len(found) == counts.num_kept > 250
    told = {
        (each["messages"][-2]["content"], each["messages"][-1]["content"]): each["label"]
        for each in raw
    }
    assert found.items() <= told.items()


def test_arena_hards_questions_are_prompts() -> None:
    name = "arena_hard/question_v0.1.jsonl"
    rows = [row for _, row in read_rows(FOLDER / name, name, max_line_mb=16)]
    form = recognise(rows, name)

    prompts = [convert(row, form, Source(dataset=name, row="1")) for row in rows]

    assert form.name == "prompts"
    assert [item.prompt[0].content for item in prompts] == [row["prompt"] for row in raw(name)]
    assert len(prompts) == 500


def test_pandalms_pairs_are_as_its_three_annotators_voted() -> None:
    """The published file has answers that are `true`: no text, so no answer to train on."""
    name = "pandalm/testset_v1_dev200.json"
    told: list[PreferencePair | str] = []
    for row in raw(name):
        try:
            made = convert(row, FORMATS["votes"], Source(dataset=name, row="1"))
            assert isinstance(made, PreferencePair)
            told.append(made)
        except Quarantine as refusal:
            told.append(refusal.code)

    assert len(told) == 200
    for row, pair in zip(raw(name), told, strict=True):
        if not all(isinstance(row[f"response{n}"], str) for n in (1, 2)):
            assert pair == "wrong_type"
            continue
        assert isinstance(pair, PreferencePair)
        votes = Counter(int(row[f"annotator{n}"]) for n in (1, 2, 3))
        winner, most = votes.most_common(1)[0]
        if most < 2:
            assert pair.label == "inconsistent"
        elif winner == 0:
            assert pair.label == "tie"
        else:
            assert pair.label == "preferred"
            assert pair.chosen.content == row[f"response{winner}"]
            assert pair.rejected.content == row[f"response{3 - winner}"]


def test_pandalms_annotators_agree_as_scikit_learn_says(tmp_path: Path) -> None:
    name = "pandalm/testset_v1_dev200.json"
    seen = Workshop(tmp_path).of_file(FOLDER / name)
    broken = {line["row"].rpartition(":")[2] for line in seen.quarantine}
    counted = [row for at, row in enumerate(raw(name), start=1) if str(at) not in broken]

    told = seen.report["agreement"]

    assert told["num_rows"] == len(counted)
    assert len(told["cohen_kappas"]) == 3
    for each in told["cohen_kappas"]:
        one, other = ([int(row[name]) for row in counted] for name in each["annotators"])
        assert each["kappa"] == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


BROKEN: dict[str, Callable[[dict[str, Any]], bool]] = {
    "wrong_type": lambda row: not all(isinstance(row[f"response{n}"], str) for n in (1, 2)),
    "empty_rejected": lambda row: not all(row[f"response{n}"].strip() for n in (1, 2)),
    "empty_chosen": lambda row: not all(row[f"response{n}"].strip() for n in (1, 2)),
    "damaged_text": lambda row: ftfy.fix_encoding(str(row)) != str(row),
}


@pytest.mark.parametrize(
    "name",
    [
        "hh_rlhf/harmless_base_test_dev400.jsonl",
        "llamafactory/dpo_en_demo.json",
        "llamafactory/v1_dpo_demo.jsonl",
        "pandalm/testset_v1_dev200.json",
    ],
)
def test_counts_balance_and_what_is_out_is_broken(tmp_path: Path, name: str) -> None:
    rows, seen = raw(name), Workshop(tmp_path).of_file(FOLDER / name)
    counts = seen.result.counts

    assert counts.num_in == len(rows)
    assert counts.num_kept == len(seen.pairs) == len(rows) - len(seen.quarantine)
    assert sum(counts.quarantined.values()) == len(seen.quarantine)
    for line in seen.quarantine:
        row = rows[int(line["row"].rpartition(":")[2]) - 1]
        if line["reason"] == "duplicate":
            of = rows[int(line["detail"].rpartition(":")[2]) - 1]
            assert _texts(of) == _texts(row)
        else:
            assert BROKEN[line["reason"]](row), line


def _texts(row: dict[str, Any]) -> Counter[str]:
    """Every text of a row, in whatever order."""
    found = Counter[str]()
    waiting: list[Any] = [
        value for key, value in row.items() if not key.startswith(("annotator", "idx", "cmp"))
    ]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found[value.strip()] += 1
        elif isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return found


@pytest.mark.parametrize(
    "name", ["model0_input_file", "model1_input_file", "full_helpfulness-full"]
)
@pytest.mark.parametrize("form", [name for name in FORMATS if name != "canonical"])
def test_answers_without_a_preference_make_no_pair_whatever_they_are_taken_for(
    tmp_path: Path, name: str, form: str
) -> None:
    """What Tulu 3's synthetic preferences are made of, before anybody rated it."""
    with pytest.raises(DataRejected, match=r"2 of 2 rows cannot be used, nothing is left"):
        Workshop(tmp_path).of_file(FOLDER / f"open_instruct/{name}.jsonl", form)


@pytest.mark.parametrize(
    "name",
    [
        "llmbar/natural_dataset.json",
        "mt_bench/question.jsonl",
        "open_instruct/model0_input_file.jsonl",
        "prometheus/hhh_alignment_eval.json",
    ],
)
def test_files_that_are_no_preferences_we_know_are_not_guessed(name: str) -> None:
    rows = [row for _, row in read_rows(FOLDER / name, name, max_line_mb=16)]

    with pytest.raises(DataRejected, match=r"set data\.sources") as caught:
        recognise(rows, name)

    assert all(form in str(caught.value) for form in FORMATS)
