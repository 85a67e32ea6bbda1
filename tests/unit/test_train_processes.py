"""Several processes train as one does: the same losses, whoever is killed on the way."""

import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import Family, tiny_pairs
from tests.training import FAST, Job

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.spec import LoraConfig, TrainConfig

TWO = {"backend": "torchrun", "processes": 2}


def changed(**knobs: Any) -> TrainConfig:
    return TrainConfig.model_validate({**FAST.model_dump(), "learning_rate": 1e-4, **knobs})


def losses(job: Job, name: str) -> list[float]:
    return [event.metrics["train/loss"] for event in job.events(name) if event.metrics]


def weights(job: Job, name: str) -> dict[str, torch.Tensor]:
    return load_file(job.policy(name) / "model.safetensors")


full = pytest.mark.full
ADAPTERS = {"method": "lora", "lora": LoraConfig(rank=4)}
CASES = [
    pytest.param("llama", "ddp", {}, id="ddp"),
    pytest.param("llama", "fsdp", {}, id="fsdp"),
    pytest.param("qwen3", "fsdp", ADAPTERS, id="fsdp-lora", marks=full),
    pytest.param("gpt2", "ddp", ADAPTERS, id="ddp-lora", marks=full),
    pytest.param("llama", "fsdp", {"activation_checkpointing": True}, id="fsdp-less", marks=full),
    pytest.param("llama", "ddp", {"loss": "kto"}, id="ddp-kto", marks=full),
]


@pytest.mark.parametrize(("family", "sharding", "knobs"), CASES)
def test_two_processes_have_the_losses_and_weights_of_one(
    tmp_path: Path, family: Family, sharding: str, knobs: dict[str, Any]
) -> None:
    """21 pairs in batches of 4, two an update: some batches are one pair, so one has nothing."""
    job = Job(tmp_path, tiny_pairs(21), family=family)
    cut = {"batch_size": 4, "gradient_accumulation": 2, "heldout_fraction": 0.2, **knobs}

    one = job.run(changed(**cut), "one")
    two = job.run(changed(**cut, **TWO, sharding=sharding), "two")

    alone, together = job.events("one"), job.events("two")
    for name in ("train/loss", "train/reward_margin", "train/kl", "heldout/loss"):
        figures = [
            [e.metrics[name] for e in each if name in e.metrics] for each in (alone, together)
        ]
        assert len(figures[0]) > 2
        assert figures[1] == pytest.approx(figures[0], abs=1e-5), name
    assert two.accuracy == one.accuracy  # of each pair as it was last seen, by whichever process
    assert (two.num_pairs, two.num_steps, two.num_heldout) == (
        one.num_pairs,
        one.num_steps,
        one.num_heldout,
    )
    for name, weight in weights(job, "one").items():
        assert torch.allclose(weight, weights(job, "two")[name], atol=1e-5), name


@full
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_killed_rank_ends_the_others_and_the_same_call_goes_on(
    tmp_path: Path, sharding: str
) -> None:
    job = Job(tmp_path, tiny_pairs(40))
    knobs = {"batch_size": 4, "epochs": 8.0, "save_steps": 5}
    job.run(changed(**knobs), "one")
    config = changed(**knobs, **TWO, sharding=sharding)
    killed: list[int] = []

    def kill_one() -> None:
        work = job.folder / "state" / "two" / "work"
        while not [*(work / "checkpoints").glob("update-*")]:
            time.sleep(0.02)
        killed.append(pids_of(work / "job.json")[0])
        os.kill(killed[0], signal.SIGKILL)

    Thread(target=kill_one, daemon=True).start()
    with pytest.raises(ServiceUnavailable, match="a training process was lost"):
        job.run(config, "two")
    assert killed
    assert pids_of(job.folder / "state" / "two" / "work" / "job.json") == []
    job.run(config, "two")

    assert any("continuing after update" in event.message for event in job.events("two"))
    told = {e.at: e.metrics["train/loss"] for e in job.events("two") if e.metrics}
    assert [told[at] for at in sorted(told, key=int)] == pytest.approx(losses(job, "one"), abs=1e-5)


def pids_of(job: Path) -> list[int]:
    """Training processes of this job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(job) in words and "torch.distributed.run" not in words:
            found.append(int(folder.name))
    return sorted(found)


@full
def test_an_error_of_a_process_is_the_steps_own(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(8))

    with pytest.raises(DataRejected, match=r"8 too_long"):
        job.run(changed(**TWO, max_tokens=8))


@full
def test_more_processes_than_pairs_in_a_batch_are_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(8))

    with pytest.raises(ConfigError, match=r"train.batch_size 1 cannot be shared by 2 processes"):
        job.run(changed(**TWO, batch_size=1))


@full
def test_a_checkpoint_of_two_processes_is_continued_by_one(tmp_path: Path) -> None:
    """What is written does not tell how many wrote it."""
    job = Job(tmp_path, tiny_pairs(40))
    knobs = {"batch_size": 4, "epochs": 8.0, "save_steps": 5}
    job.run(changed(**knobs), "one")

    def stop() -> None:
        work = job.folder / "state" / "two" / "work"
        while not [*(work / "checkpoints").glob("update-*")]:
            time.sleep(0.02)
        for pid in pids_of(work / "job.json"):
            os.kill(pid, signal.SIGTERM)

    Thread(target=stop, daemon=True).start()
    with pytest.raises(ServiceUnavailable, match=r"stopped by SIGTERM after update \d+ of 80"):
        job.run(changed(**knobs, **TWO, sharding="fsdp"), "two")
    checkpoints = job.folder / "state" / "two" / "work" / "checkpoints"
    for path in checkpoints.glob("update-*/state.json"):
        text = path.read_text().replace('"backend": "torchrun"', '"backend": "inprocess"')
        text = text.replace('"processes": 2', '"processes": null')
        path.write_text(text.replace('"sharding": "fsdp"', '"sharding": "ddp"'))
    job.run(changed(**knobs), "two")

    told = {e.at: e.metrics["train/loss"] for e in job.events("two") if e.metrics}
    assert [told[at] for at in sorted(told, key=int)] == pytest.approx(losses(job, "one"), abs=1e-5)
