"""Alarms sound for runs that went wrong, once, and are silent for one that went well."""

from dpoflow.train.alarms import Alarms

FINE = {
    "train/chosen_logps": -40.0,
    "train/chosen_tokens": 20.0,
    "train/rejected_tokens": 22.0,
    "train/kl": 0.01,
    "train/reward_accuracy": 0.75,
}


def told(*updates: dict[str, float]) -> list[list[str]]:
    alarms = Alarms()
    return [alarms.of(FINE | update) for update in updates]


def test_a_run_that_goes_well_says_nothing() -> None:
    assert told({}, {"train/chosen_logps": -38.0}, {"train/reward_accuracy": 1.0}, {}) == [[]] * 4


def test_chosen_answers_that_become_unlikely_are_told_once() -> None:
    lines = told({}, {"train/chosen_logps": -59.0}, {"train/chosen_logps": -61.0}, {}, {})

    assert [len(line) for line in lines] == [0, 0, 1, 0, 0]
    assert "from -2.00 to -3.05 nats a token" in lines[2][0]


def test_longer_answers_in_a_batch_are_no_collapse() -> None:
    twice = {"train/chosen_logps": -80.0, "train/chosen_tokens": 40.0}

    assert told({}, twice) == [[], []]


def test_a_policy_that_runs_away_from_its_reference_is_told() -> None:
    assert "0.70 nats a token from its reference" in told({}, {"train/kl": 0.7})[1][0]


def test_objectives_without_a_reference_have_no_distance_to_it() -> None:
    alarms = Alarms()

    assert alarms.of({name: value for name, value in FINE.items() if name != "train/kl"}) == []


def test_pairs_that_differ_in_length_are_told_after_some_updates_not_by_the_first() -> None:
    long = {"train/chosen_tokens": 44.0, "train/chosen_logps": -88.0}

    assert told(long, *[{}] * 9) == [[]] * 10
    lines = told(*[long] * 10)
    assert [len(line) for line in lines] == [0] * 7 + [1, 0, 0]
    assert "2.0 times as long" in lines[7][0]


def test_pairs_that_are_told_apart_from_the_start_are_suspect() -> None:
    right = {"train/reward_accuracy": 1.0}
    start = {"train/reward_accuracy": 0.0}  # nothing has moved yet

    assert [len(line) for line in told(start, right, right, right, right)] == [0, 0, 0, 1, 0]
    assert told(start, right, {}, right, right, right) == [[]] * 6


def test_an_update_that_saw_one_kind_of_thumb_alone_is_no_error_and_hides_no_collapse() -> None:
    """Of KTO: what an update has no answer of has no figure."""
    kinds = ("chosen", "rejected")
    only = {
        kind: {name: value for name, value in FINE.items() if not name.startswith(f"train/{other}")}
        for kind, other in zip(kinds, reversed(kinds), strict=True)
    }
    alarms = Alarms()

    quiet = [
        alarms.of(each)
        for each in (only["rejected"], only["chosen"], FINE, *[only["rejected"]] * 9)
    ]
    fallen = alarms.of(only["chosen"] | {"train/chosen_logps": -80.0})

    assert quiet == [[]] * 12
    assert "from -2.00 to -4.00 nats a token" in fallen[0]
