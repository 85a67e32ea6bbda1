"""The train step: it learns, it says what it dropped, and a kill changes nothing."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tests.tiny import CHATML, WORDS, Family, pair_of, pairs_folder, tiny_folder, tiny_pairs
from tests.training import FAST, Job
from tests.waiting import AT_MOST_S, until
from torch import Tensor
from transformers import AutoModelForCausalLM

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.manifest import seal
from dpoflow.contracts.objectives import LossName
from dpoflow.contracts.pairs import PreferencePair
from dpoflow.contracts.spec import LoraConfig, TrainConfig
from dpoflow.policy.layout import Group, Groups
from dpoflow.policy.load import load
from dpoflow.policy.logprobs import pair_logps
from dpoflow.policy.tokenise import EncodedPair, EncodedPairs, encode_pair
from dpoflow.state.events import Events
from dpoflow.train import work
from dpoflow.train.examples import Strangers
from dpoflow.train.losses import OBJECTIVES, Scored
from dpoflow.train.plan import plan


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, tiny_pairs(24))


def test_the_first_loss_is_ln_2_and_pairs_that_differ_are_learnt(job: Job) -> None:
    result = job.run(FAST.model_copy(update={"epochs": 4.0}))

    assert result.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert result.last_loss < 0.5
    assert result.accuracy > 0.9
    assert (result.num_pairs, result.num_dropped, result.num_steps) == (24, 0, 12)


def test_the_training_is_told_in_a_sentence_at_its_end(job: Job) -> None:
    result = job.run(FAST.model_copy(update={"heldout_fraction": 0.25, "epochs": 4.0}))

    figures = [e.metrics for e in job.events() if "heldout/reward_accuracy" in e.metrics]
    (said,) = (e.message for e in job.events() if "→" in e.message)
    assert re.fullmatch(
        rf"{result.num_steps} updates on 18 pairs in \d+ s: loss 0\.693 → "
        rf"{result.last_loss:.3f}; chosen is preferred in {result.accuracy:.0%} of the pairs, "
        rf"in {figures[-1]['heldout/reward_accuracy']:.0%} of 6 held out",
        said,
    )


def test_a_supervised_term_holds_the_chosen_answers_up(job: Job) -> None:
    job.run(FAST, "without")
    result = job.run(FAST.model_copy(update={"sft_weight": 1.0}), "with")

    def last_chosen(name: str) -> float:
        return [e.metrics["train/chosen_logps"] for e in job.events(name) if e.metrics][-1]

    assert result.first_loss == pytest.approx(math.log(2), abs=1e-3)  # of DPO alone
    assert last_chosen("with") > last_chosen("without") + 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_lora_leaves_a_folder_that_loads_without_peft(tmp_path: Path, family: Family) -> None:
    job = Job(tmp_path, tiny_pairs(16), family=family)

    result = job.run(FAST.model_copy(update={"method": "lora", "lora": LoraConfig(rank=4)}))

    assert result.first_loss == pytest.approx(math.log(2), abs=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(job.policy(), dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    assert type(plain) is type(base)
    changed = [
        name
        for name, weight in plain.state_dict().items()
        if not torch.equal(weight, base.state_dict()[name])
    ]
    assert changed
    assert all("embed" not in name and "wte" not in name for name in changed)
    assert (job.policy() / "adapter" / "adapter_model.safetensors").is_file()


def test_the_policy_keeps_the_words_of_its_start(job: Job) -> None:
    job.run(FAST)

    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (job.policy() / name).read_bytes() == (job.model / name).read_bytes()
    model, _ = load(job.policy())
    assert model.config.use_cache


def test_the_digest_in_the_result_is_the_one_the_manifest_will_give(job: Job) -> None:
    result = job.run(FAST)

    sealed = seal(job.policy(), "train.policy", parents={}, config={}, code="")

    assert result.policy_digest == sealed.digest


def test_the_same_call_leaves_the_same_bytes_and_another_seed_others(job: Job) -> None:
    digests = [
        job.run(FAST.model_copy(update={"seed": seed, "method": "lora"}), name).policy_digest
        for seed, name in [(0, "one"), (0, "two"), (1, "three")]
    ]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_nothing_in_a_state_or_policy_is_a_pickle(job: Job) -> None:
    job.run(FAST)

    kinds = {path.suffix for path in (job.folder / "state").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".jinja", ".html"}


def test_every_update_reports_its_figures(job: Job) -> None:
    job.run(FAST)

    figures = [event for event in job.events() if event.metrics]
    assert [event.at for event in figures] == [1, 2, 3, 4, 5, 6]
    assert set(figures[0].metrics) == {
        *("train/loss", "train/sft_loss", "train/kl", "train/entropy", "train/token_accuracy"),
        *("train/reward_chosen", "train/reward_rejected"),
        *("train/reward_margin", "train/reward_accuracy"),
        *("train/chosen_logps", "train/rejected_logps"),
        *("train/chosen_tokens", "train/rejected_tokens"),
        *("train/grad_norm", "train/learning_rate", "train/memory_mib"),
        *("train/tokens_per_s", "train/pairs_per_s"),
    }
    progress = [event for event in job.events() if event.unit == "updates"]
    assert (progress[-1].done, progress[-1].total) == (6, 6)


def test_the_report_shows_every_curve_and_is_the_same_for_the_same_run(job: Job) -> None:
    job.run(FAST, "one")
    job.run(FAST, "two")

    pages = [
        (job.folder / "state" / name / "outputs" / "report" / "curves.html").read_text()
        for name in ("one", "two")
    ]
    assert pages[0] == pages[1]
    for title in ("Training: 6 updates", "reward margin", "pairs told apart", "gradient norm"):
        assert title in pages[0]
    alarms = json.loads((job.folder / "state/one/outputs/report/figures.json").read_text())[
        "alarms"
    ]
    assert ("No alarm sounded" in pages[0]) == (not alarms)
    assert pages[0].count('class="alarm"') == len(alarms)
    assert "<script" not in pages[0]
    assert not [*re.finditer(r"(?:src|href)=.(?!#)", pages[0].replace("xlink:href", "href"))]


def test_the_report_has_the_figures_of_every_update(job: Job) -> None:
    job.run(FAST, "one")
    figures = json.loads(
        (job.folder / "state" / "one" / "outputs" / "report" / "figures.json").read_text()
    )

    assert [update for update, _ in figures["updates"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 6), (5, 5), (1, 24)])
def test_an_update_is_the_same_however_its_pairs_are_cut_into_batches(
    job: Job, batch_size: int, accumulation: int
) -> None:
    """Also where the last batch is smaller: 24 pairs in fives."""
    config = FAST.model_copy(update={"epochs": 2.0, "warmup_ratio": 0.0, "learning_rate": 1e-4})
    cut = {"batch_size": batch_size, "gradient_accumulation": accumulation}

    whole = job.run(config.model_copy(update={"batch_size": 24}), "whole")
    parts = job.run(config.model_copy(update=cut), "parts")

    assert parts.num_steps == whole.num_steps == 2
    figures = [
        [event.metrics for event in job.events(name) if event.metrics]
        for name in ("whole", "parts")
    ]
    for one, other in zip(*figures, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/kl", "train/entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("loss", get_args(LossName))
def test_every_objective_learns_to_tell_chosen_from_rejected(job: Job, loss: LossName) -> None:
    # Each at a beta of its own: it is another quantity in each of them.
    beta = {"simpo": 2.0, "orpo": 1.0, "sigmoid_norm": 2.0}.get(loss, 0.1)
    wrong = {"label_smoothing": 0.1} if loss == "robust" else {}
    config = FAST.model_copy(update={"loss": loss, "beta": beta, "epochs": 6.0, **wrong})

    result = job.run(config)

    assert result.accuracy > 0.9
    margins = [e.metrics["train/reward_margin"] for e in job.events() if e.metrics]
    assert margins[-1] > margins[0] + 0.1


def test_kto_needs_a_second_prompt(tmp_path: Path) -> None:
    pairs = [pair_of("one?", f"blue {word}", "snow") for word in ("sea", "pier", "boats")]

    with pytest.raises(DataRejected, match="every pair has the same prompt"):
        Job(tmp_path, pairs).run(FAST.model_copy(update={"loss": "kto"}))


def test_kto_watches_a_single_prompt_with_answers_to_those_that_are_learnt(job: Job) -> None:
    result = job.run(FAST.model_copy(update={"loss": "kto", "heldout_fraction": 0.05}))

    assert result.num_heldout == 1
    assert all("heldout/loss" in told for told in looks(job).values())


def test_kto_never_puts_more_before_the_model_than_the_spec_allows(tmp_path: Path) -> None:
    """A long prompt with the long answer to a short one."""
    long, short = "the boats of the pier " * 6, "why"
    pairs = [pair_of(long, "sea", "snow"), pair_of(short, "blue sea " * 20, "snow " * 20)]
    whole = [encode_pair(load(tiny_folder(tmp_path / "m"))[1], pair, 10_000) for pair in pairs]
    longest = max(pair.longest for pair in whole if isinstance(pair, EncodedPair))

    groups = Groups(EncodedPairs(pair for pair in whole if isinstance(pair, EncodedPair)))
    found = Strangers(groups, groups, 0, longest=longest)

    assert [len(group.prompt) for group in found] == [len(group.prompt) for group in groups]
    sizes = [len(g.prompt) + len(answer) for g in found for answer in g.answers]
    assert max(sizes) == longest  # cut: whole, they would be longer
    assert sum(map(len, (groups[0].prompt, groups[1].answers[0]))) > longest


def test_ktos_unrelated_answers_are_those_of_the_next_pair_that_asks_another() -> None:
    asked = [1, 1, 2, 1, 1, 3, 1, 1, 1]
    groups = [Group((each,), ((place,),)) for place, each in enumerate(asked)]
    order = list(range(len(asked)))
    random.Random("5:strangers").shuffle(order)  # noqa: S311  # no secret

    found = Strangers(groups, groups, 5, longest=9)

    for place, prompt in enumerate(asked):
        at = order.index(place)
        others = (other for other in (order[at + 1 :] + order[:at]) if asked[other] != prompt)
        assert found[place] == Group((prompt,), ((next(others),),))


def test_dropped_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    tie = pair_of("a tie?", "blue", "calm").model_copy(update={"label": "tie"})
    bad = [pair_of("same?", "blue", "blue"), pair_of("long?", "blue " * 90, "calm"), tie]
    job = Job(tmp_path, [*tiny_pairs(8), *bad])

    result = job.run(FAST.model_copy(update={"max_tokens": 80}))

    assert (result.num_pairs, result.num_dropped) == (8, 3)
    story = json.loads((job.policy() / "training.json").read_text())
    assert story["dropped"] == {"identical": 1, "label_tie": 1, "too_long": 1}
    assert len(story["pair_ids"]) == 8
    assert any("dropped 3 of 11 pairs" in event.message for event in job.events())


def test_no_pair_to_train_on_is_the_datas_fault_with_counts(tmp_path: Path) -> None:
    job = Job(tmp_path, [pair_of("same?", "blue", "blue"), pair_of("long?", "blue " * 90, "calm")])

    with pytest.raises(DataRejected, match="1 identical, 1 too_long"):
        job.run(FAST.model_copy(update={"max_tokens": 80}))


def test_adapters_that_fit_no_module_are_the_configs_fault(job: Job) -> None:
    lora = LoraConfig(targets=("no_such_proj",))

    with pytest.raises(ConfigError, match="no_such_proj"):
        job.run(FAST.model_copy(update={"method": "lora", "lora": lora}))


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_update(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = OBJECTIVES["sigmoid"], Counter[str]()

    def breaks_at_the_third(of: Scored, knobs: TrainConfig) -> Tensor:
        """Asked twice an update: for what the head may expect, and for the loss."""
        calls["loss"] += 1
        return real(of, knobs) * (math.nan if calls["loss"] > 4 else 1.0)

    monkeypatch.setitem(OBJECTIVES, "sigmoid", breaks_at_the_third)

    with pytest.raises(DataRejected, match="loss at update 3 is not finite"):
        job.run(FAST)


def test_a_weight_that_is_no_number_is_told_before_training(job: Job) -> None:
    weights = load_file(job.model / "model.safetensors")
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, job.model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(DataRejected, match="logits that are not finite: its weights are damaged"):
        job.run(FAST)


def test_several_processes_are_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="one process"):
        job.run(FAST)


# ---------------------------------------------------------------- after a kill

CHILD = """
import os
import resource
import signal
import sys
from pathlib import Path
from dpoflow.contracts.spec import TrainConfig
from dpoflow.state.step import StepState
from dpoflow.train.step import run

config, pairs, model, folder, limit = sys.argv[1:]

def stop(event, about):
    if event == "open" and str(about[0]).endswith("events.jsonl") and led.exists():
        os.kill(os.getpid(), signal.SIGSTOP)

led = Path(folder).with_suffix(".led")
sys.addaudithook(stop)
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
state = StepState(Path(folder), "train")
state.start_afresh(["policy", "report"])
run(TrainConfig.model_validate_json(config), pairs=Path(pairs), init=Path(model),
    reference=Path(model), policy=state.output("policy"), report=state.output("report"),
    state=state)
"""


def child(
    job: Job, config: TrainConfig, name: str, *, limit: int = 0, led: bool = False
) -> "subprocess.Popen[bytes]":
    """The step in a process of its own, which may write no file of more bytes than `limit`.

    One that is led stops at each event: see `lead`.
    """
    folder = job.folder / "state" / name
    folder.mkdir(parents=True, exist_ok=True)
    if led:
        folder.with_suffix(".led").touch()
    paths = [str(job.pairs), str(job.model), str(folder)]
    arguments = [config.model_dump_json(), *paths, str(limit)]
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # as many as here
    command = [sys.executable, "-c", CHILD, *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def lead(victim: "subprocess.Popen[bytes]", there: Callable[[], object]) -> None:
    """From event to event until `there()`; it stands still then, however late somebody looks."""
    while True:
        until(lambda: victim.poll() is not None or is_stopped(victim.pid), "its next event")
        assert victim.poll() is None, "it ended before it could be killed"
        if there():
            return
        victim.send_signal(signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.full), "lora"])
def test_killed_in_mid_training_it_ends_in_the_same_bytes(tmp_path: Path, method: str) -> None:
    job = Job(tmp_path, tiny_pairs(40))
    # With dropout the random state must come back, too.
    adapters = {"lora": LoraConfig(rank=4, dropout=0.1)} if method == "lora" else {}
    config = FAST.model_copy(
        update={
            "method": method,
            **adapters,
            "batch_size": 2,
            "epochs": 3.0,
            "gradient_accumulation": 2,
            "save_steps": 4,
        }
    )
    job.run(config, "whole")

    victim = child(job, config, "killed", led=True)
    checkpoints = job.folder / "state" / "killed" / "work" / "checkpoints"
    lead(victim, lambda: [*checkpoints.glob("update-*")])
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    job.run(config, "killed")

    assert any(re.search(r"after update \d+ of \d+$", e.message) for e in job.events("killed"))
    for path in sorted(job.policy("whole").rglob("*")):
        if path.is_file():
            other = job.policy("killed") / path.relative_to(job.policy("whole"))
            assert other.read_bytes() == path.read_bytes(), path.name


def test_sigterm_keeps_the_update_at_hand_and_the_same_call_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(40))
    config = FAST.model_copy(update={"batch_size": 2, "epochs": 3.0, "save_steps": 1000})
    whole = job.run(config, "whole")

    victim = child(job, config, "stopped", led=True)
    log = job.folder / "state" / "stopped" / "events.jsonl"
    lead(victim, lambda: log.exists() and "train/loss" in log.read_text())
    (job.folder / "state" / "stopped.led").unlink()
    victim.send_signal(signal.SIGTERM)
    victim.send_signal(signal.SIGCONT)
    _, said = victim.communicate(timeout=AT_MOST_S)

    assert "stopped by SIGTERM after update" in said.decode()
    result = job.run(config, "stopped")
    assert any("continuing after update" in event.message for event in job.events("stopped"))
    assert result.policy_digest == whole.policy_digest


def test_an_attempt_that_left_no_checkpoint_is_told(job: Job) -> None:
    config = FAST.model_copy(update={"save_steps": 1000})
    job.run(config)  # its checkpoints go with the sealing of the state, which is not done here
    shutil.rmtree(job.folder / "state" / "one" / "work")
    job.run(config)

    said = [event.message for event in job.events()]
    assert (
        "an earlier attempt came to update 6 and left no checkpoint (train.save_steps 1000): "
        in (" ".join(said))
    )


def test_a_half_written_checkpoint_is_ignored(job: Job) -> None:
    half = job.folder / "state" / "one" / "work" / "checkpoints" / ".update-5"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(b"half")

    whole = job.run(FAST, "two")

    assert job.run(FAST, "one").policy_digest == whole.policy_digest


@pytest.mark.full
def test_a_checkpoint_that_does_not_fit_is_told_and_the_same_call_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(24))
    whole = job.run(FAST, "whole")
    size = (job.model / "model.safetensors").stat().st_size

    _, said = child(job, FAST, "full", limit=size + 100_000).communicate(timeout=AT_MOST_S)

    assert "update-3 could not be written" in said.decode()  # weights fit, moments do not
    assert "make room, and the same command goes on" in said.decode()
    assert not [*(job.folder / "state" / "full" / "work" / "checkpoints").glob(".*")]
    assert job.run(FAST, "full").policy_digest == whole.policy_digest


def test_a_disk_without_room_for_checkpoints_is_told_before_training(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(job.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(ServiceUnavailable, match=r"need .* GiB and 0\.0 GiB are free"):
        job.run(FAST)

    assert not [event for event in job.events() if event.metrics]


# ---------------------------------------------------------------- the reference


def num_reference_pairs(job: Job, name: str) -> int:
    """Pairs that the reference was asked about in this run."""
    done = [event.done for event in job.events(name) if event.phase == "reference"]
    return max(done, default=0)


def test_the_reference_is_asked_once_for_all_rates_betas_objectives_and_folders(job: Job) -> None:
    job.run(FAST, "first")
    others = {"learning_rate": 1e-4, "beta": 0.5, "loss": "hinge", "sft_weight": 1.0, "epochs": 1.0}
    for name, value in others.items():
        job.run(FAST.model_copy(update={name: value}), name)

    asked = {name: num_reference_pairs(job, name) for name in ("first", *others)}
    assert asked == {"first": 24, **dict.fromkeys(others, 0)}


def test_the_reference_is_asked_again_when_weights_template_or_one_token_changed(job: Job) -> None:
    job.run(FAST, "first")

    (job.model / "chat_template.jinja").write_text(CHATML + "{# another #}")
    job.run(FAST, "template")
    tiny_folder(job.model, seed=1)
    job.run(FAST, "weights")
    changed = [*tiny_pairs(23), pair_of("the sea?", "blue", "calm")]
    job.pairs = pairs_folder(job.folder / "others", changed)
    job.run(FAST, "token")

    asked = [num_reference_pairs(job, name) for name in ("template", "weights", "token")]
    assert asked == [24, 24, 24]


def test_the_policy_may_start_away_from_its_reference(job: Job) -> None:
    """The first loss is the papers', of log-probabilities that transformers gives."""
    other = tiny_folder(job.folder / "other", seed=5)
    config = FAST.model_copy(update={"batch_size": 24, "beta": 0.02, "epochs": 1.0})

    result = job.run(config, "away", reference=other)

    def margins(folder: Path) -> list[float]:
        model, tokenizer = load(folder)
        found = []
        for pair in tiny_pairs(24):
            made = encode_pair(tokenizer, pair, 256)
            assert isinstance(made, EncodedPair)
            sums = []
            for answer in (made.chosen, made.rejected):
                ids = torch.tensor([[*made.prompt, *answer]])
                logps = model(input_ids=ids).logits[0].log_softmax(-1)[len(made.prompt) - 1 : -1]
                sums.append(float(logps.gather(1, torch.tensor(answer).unsqueeze(1)).sum()))
            found.append(sums[0] - sums[1])
        return found

    with torch.no_grad():
        gaps = [a - b for a, b in zip(margins(job.model), margins(other), strict=True)]
    expected = sum(math.log1p(math.exp(-0.02 * gap)) for gap in gaps) / 24
    assert result.first_loss == pytest.approx(expected, rel=1e-5)
    assert abs(expected - math.log(2)) > 0.01
    assert num_reference_pairs(job, "away") == 24


def test_another_reference_is_not_even_loaded_once_it_was_asked(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, loaded = tiny_folder(job.folder / "other", seed=5), list[Path]()
    real = work.load.load
    monkeypatch.setattr(
        work.load, "load", lambda folder, **how: loaded.append(folder) or real(folder, **how)
    )

    job.run(FAST, "first", reference=other)
    job.run(FAST.model_copy(update={"beta": 0.3}), "second", reference=other)

    assert loaded.count(other) == 1


def test_a_reference_of_another_tokenizer_is_refused(job: Job) -> None:
    other = tiny_folder(job.folder / "other", seed=5)
    page = json.loads((other / "tokenizer.json").read_text())
    words = page["model"]["vocab"]
    words["blue"], words["calm"] = words.get("calm", 300), words.get("blue", 301)
    some = sorted(words, key=words.get)[-2:]
    words[some[0]], words[some[1]] = words[some[1]], words[some[0]]
    (other / "tokenizer.json").write_text(json.dumps(page))

    with pytest.raises(ConfigError, match=r"train.reference has another tokenizer"):
        job.run(FAST, reference=other)


def test_a_checkpoint_of_another_config_is_refused(job: Job) -> None:
    config = FAST.model_copy(update={"batch_size": 2, "epochs": 20.0, "save_steps": 2})
    victim = child(job, config, "one", led=True)
    checkpoints = job.folder / "state" / "one" / "work" / "checkpoints"
    lead(victim, lambda: [*checkpoints.glob("update-*")])
    victim.kill()
    victim.communicate()

    with pytest.raises(ConfigError, match=r"of a training with beta 0\.1, and this one has 0\.3"):
        job.run(config.model_copy(update={"beta": 0.3}))


def test_a_gpu_that_is_asked_for_and_absent_is_told_before_anything_is_loaded(job: Job) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (job.model / "config.json").unlink()

    with pytest.raises(ConfigError, match=r"train.device cuda: torch .* finds no GPU"):
        job.run(FAST.model_copy(update={"device": "cuda"}))


def test_activation_checkpointing_changes_no_number(job: Job) -> None:
    plain = job.run(FAST, "plain")
    fewer = job.run(FAST.model_copy(update={"activation_checkpointing": True}), "fewer")

    assert fewer.last_loss == plain.last_loss
    for name, weight in load_file(job.policy("plain") / "model.safetensors").items():
        other = load_file(job.policy("fewer") / "model.safetensors")[name]
        assert torch.allclose(weight, other, atol=1e-6), name


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of is its own
@pytest.mark.parametrize("method", ["full", "lora"])
def test_compiled_it_goes_the_same_way_or_says_what_is_missing(job: Job, method: str) -> None:
    config = FAST.model_copy(update={"method": method, "learning_rate": 1e-4})
    plain, compiled = job.run(config, "plain"), config.model_copy(update={"compile": True})

    if not shutil.which("g++"):
        with pytest.raises(ConfigError, match=r"train.compile needs a C\+\+ compiler"):
            job.run(compiled, "compiled")
        return
    assert job.run(compiled, "compiled").last_loss == pytest.approx(plain.last_loss, abs=1e-5)


def test_compiling_without_a_compiler_is_the_configs_fault(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(job.folder))
    monkeypatch.delenv("CXX", raising=False)

    with pytest.raises(ConfigError, match=r"there is no g\+\+ or clang\+\+; install one"):
        job.run(FAST.model_copy(update={"compile": True}))


def test_adapters_on_a_base_at_four_bits_leave_a_folder_that_loads_plainly(job: Job) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_folder(job.model, hidden=64)  # bitsandbytes wants multiples of 32 on a processor
    lora = LoraConfig(rank=4, bits=4)

    result = job.run(FAST.model_copy(update={"method": "lora", "lora": lora, "epochs": 6.0}))

    assert result.first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert result.accuracy > 0.9
    policy, base = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (job.policy(), job.model)
    )
    assert policy.keys() == base.keys()
    assert {weight.dtype for weight in policy.values()} == {torch.float32}
    assert not torch.equal(*(each["model.layers.0.mlp.up_proj.weight"] for each in (policy, base)))


def test_cut_pairs_are_counted(job: Job) -> None:
    result = job.run(FAST.model_copy(update={"max_tokens": 40, "too_long": "cut_answer"}))

    assert 0 < result.num_cut < 24
    assert result.num_pairs + result.num_dropped == 24
    assert any("cut" in event.message and "to 40 tokens" in event.message for event in job.events())


# ---------------------------------------------------------------- held-out pairs


def looks(job: Job, name: str = "one") -> dict[int, dict[str, float]]:
    told = [
        (event.at or 0, event.metrics)
        for event in job.events(name)
        if "heldout/loss" in event.metrics
    ]
    assert len(dict(told)) == len(told), "no update was looked at twice"
    return dict(told)


def test_held_out_prompts_are_watched_and_not_learnt_from(tmp_path: Path) -> None:
    pairs = [pair for pair in tiny_pairs(20) for _ in range(2)]
    for place in range(1, 40, 2):  # a second pair of each prompt
        pairs[place] = pair_of(pairs[place].prompt[0].content, "blue sea", "snow snow")
    job = Job(tmp_path, pairs)

    result = job.run(FAST.model_copy(update={"heldout_fraction": 0.25, "heldout_looks": 4}))

    story = json.loads((job.policy() / "training.json").read_text())
    prompts = {pair.pair_id: pair.prompt for pair in pairs}
    learnt, watched = (
        {prompts[one] for one in story[name]} for name in ("pair_ids", "heldout_ids")
    )
    assert (result.num_pairs, result.num_heldout) == (30, 10)
    assert len(watched) == 5
    assert not learnt & watched
    assert [*looks(job)] == [2, 4, 6, 8]
    assert {"heldout/reward_margin", "heldout/reward_accuracy", "heldout/kl"} <= {*looks(job)[8]}
    assert "held-out" in (job.folder / "state/one/outputs/report/curves.html").read_text()


def test_the_last_update_is_looked_at_also_where_the_looks_do_not_divide_them(job: Job) -> None:
    job.run(FAST.model_copy(update={"heldout_fraction": 0.25, "heldout_looks": 4, "batch_size": 3}))

    assert [*looks(job)] == [3, 6, 9, 12]
    job.run(
        FAST.model_copy(update={"heldout_fraction": 0.2, "heldout_looks": 4, "batch_size": 4}), "b"
    )
    assert [*looks(job, "b")] == [3, 6, 9, 10]


def heldout_margin(job: Job, pairs: list[PreferencePair]) -> float:
    """The mean reward margin of the pairs that were only watched, from both folders' models."""
    ids = json.loads((job.policy() / "training.json").read_text())["heldout_ids"]
    sums = []
    for folder in (job.policy(), job.model):
        model, tokenizer = load(folder)
        made = [encode_pair(tokenizer, pair, 256) for pair in pairs if pair.pair_id in ids]
        chosen, rejected = pair_logps(
            model,
            [pair for pair in made if isinstance(pair, EncodedPair)],
            batch_size=4,
            dtype=torch.float32,
            events=Events(job.folder / "e.jsonl", "t"),
            phase="t",
        )
        sums.append([a - b for a, b in zip(chosen, rejected, strict=True)])
    return sum(0.1 * (a - b) for a, b in zip(*sums, strict=True)) / len(ids)


def test_the_held_out_margin_is_that_of_the_policy(job: Job) -> None:
    job.run(FAST.model_copy(update={"heldout_fraction": 0.25, "heldout_looks": 1, "epochs": 1.0}))

    (told,) = looks(job).values()
    expected = heldout_margin(job, tiny_pairs(24))
    assert told["heldout/reward_margin"] == pytest.approx(expected, abs=1e-4)


def test_it_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    """Labels without meaning, learnt by heart: held-out margins fall before long."""
    dice = random.Random(3)  # noqa: S311

    def text() -> str:
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(4, 12)))

    pairs = [pair_of(f"{row} {text()}", text(), text()) for row in range(48)]
    job = Job(tmp_path, pairs)

    result = job.run(
        FAST.model_copy(
            update={"heldout_fraction": 0.3, "heldout_looks": 40, "epochs": 10.0, "early_stop": 2}
        )
    )

    margins = {update: told["heldout/reward_margin"] for update, told in looks(job).items()}
    best = max(margins, key=lambda update: margins[update])
    assert result.best_step == best
    assert result.num_steps == [*margins][[*margins].index(best) + 2] < 50  # two looks later
    assert any("stopped early" in event.message for event in job.events())
    assert heldout_margin(job, pairs) == pytest.approx(margins[best], abs=1e-4)


def test_a_sigterm_at_a_look_is_no_early_stop(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin had just grown: nothing but the signal ends this attempt."""
    say = Events.metrics

    def then_stop(self: Events, at: int, values: dict[str, float], *, phase: str = "") -> None:
        say(self, at, values, phase=phase)
        if at == 2 and "train/loss" in values:
            signal.raise_signal(signal.SIGTERM)

    config = FAST.model_copy(
        update={"heldout_fraction": 0.25, "heldout_looks": 99, "early_stop": 1, "batch_size": 4}
    )
    whole = job.run(config, "whole")
    with monkeypatch.context() as signals:
        signals.setattr(Events, "metrics", then_stop)
        with pytest.raises(ServiceUnavailable, match=r"stopped by SIGTERM after update 2 of"):
            job.run(config)

    assert job.run(config).policy_digest == whole.policy_digest


def test_what_an_earlier_attempt_keeps_is_room_of_its_own(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was just large enough is so for the retry."""
    work = job.state("one").work
    need = 4 * (6 + 2) * (job.model / "model.safetensors").stat().st_size // 4
    kept = work / "checkpoints" / ".update-3"
    kept.mkdir(parents=True)
    (kept / "weights.safetensors").write_bytes(b"0" * (need // 2))
    usage = shutil.disk_usage(job.folder)._replace(free=need // 2 + 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    assert job.run(FAST).num_steps == 6


def test_a_reference_that_a_failing_disk_left_is_asked_again(job: Job) -> None:
    job.run(FAST, "one")
    (kept,) = (job.folder / "reference").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])

    whole = job.run(FAST, "two")

    assert num_reference_pairs(job, "two") == 24
    assert any("is damaged" in event.message for event in job.events("two"))
    assert whole.first_loss == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"lora": {"rank": 64}}, r"lora.rank 64 is not used by method full; set method: lora"),
        ({"heldout_fraction": 0, "heldout_looks": 3}, r"heldout_looks 3 has nothing to look at"),
        (
            {"backend": "trainjob", "trainjob": {"timeout_s": 9 * 24 * 3600}},
            r"the task that waits for the job has 691,200 s",
        ),
    ],
)
def test_a_knob_that_would_change_nothing_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(knobs)


def test_early_stop_needs_something_to_look_at() -> None:
    with pytest.raises(ValidationError, match="early_stop needs held-out pairs"):
        TrainConfig(early_stop=2, heldout_fraction=0)


# ---------------------------------------------------------------- the plan


def test_every_epoch_of_a_plan_holds_every_pair_once() -> None:
    updates = plan([n % 7 for n in range(50)], batch_size=4, accumulation=2, epochs=3, seed=1)

    assert len(updates) == 21
    for epoch in range(3):
        some = updates[7 * epoch : 7 * epoch + 7]
        assert sorted(p for update in some for batch in update for p in batch) == list(range(50))


def test_half_an_epoch_is_half_its_batches() -> None:
    whole = plan(list(range(64)), batch_size=8, accumulation=1, epochs=2, seed=1)

    assert plan(list(range(64)), batch_size=8, accumulation=1, epochs=1.5, seed=1) == whole[:12]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one = plan(list(range(64)), batch_size=8, accumulation=1, epochs=2, seed=1)

    assert one[:8] != one[8:]
    assert plan(list(range(64)), batch_size=8, accumulation=1, epochs=2, seed=2) != one
    assert plan(list(range(64)), batch_size=8, accumulation=1, epochs=2, seed=1) == one


def test_batches_hold_pairs_of_like_length() -> None:
    lengths = [(37 * n) % 101 for n in range(128)]

    updates = plan(lengths, batch_size=8, accumulation=1, epochs=1, seed=0)

    batches = [batch for update in updates for batch in update]
    padded = sum(max(lengths[place] for place in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
