"""Answers from a model, the same ones however often the work is killed and continued.

Reads   a model, prompts, how to sample
Gives   `Answer`, `has_room`, `generate`; finished batches lie in a store that survives a kill
Not     judging answers (judge/), loading models (load.py)

Each batch is seeded by (seed, its place), so batches can be made apart. Prompts are batched by
length and padded on the left; rows that have ended leave their batch, so the rest gets cheaper.
"""

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.functional import pad

from dpoflow.contracts.base import Contract, sha256_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import Message, prompt_digest
from dpoflow.contracts.spec import SamplingConfig
from dpoflow.policy.decoding import decoding
from dpoflow.policy.dtype import name_of
from dpoflow.policy.library import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from dpoflow.policy.tokenise import prompt_tokens, turn_end
from dpoflow.state.batches import Batches
from dpoflow.state.events import Events

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STRETCH = 8
"""Tokens between two looks at which rows have ended; dropping rows copies what is cached."""

WIDEST_NUCLEUS = 256
"""Tokens that a draw looks at; what lies beyond them is noise."""

Batch = list[int]
"""Places of prompts that are generated together."""


class Answer(Contract):
    """What the model said to one prompt."""

    text: str
    num_tokens: int
    """Without the end-of-turn token."""
    finished: bool
    """Whether the model ended its turn; False where it was cut at `max_new_tokens`."""


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[tuple[Message, ...]],
    sampling: SamplingConfig,
    *,
    seed: int,
    dtype: torch.dtype,
    store: Path,
    events: Events,
    phase: str,
) -> list[Answer]:
    """One answer a prompt, in the prompts' order. The random state of others is left as it was.

    `store` is the caller's word for this model and request: answers of another request in it are
    thrown away, and its caller keys it by the model.
    """
    tokens = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    room = _room(model, sampling)
    for place, prompt in enumerate(tokens):
        if len(prompt) > room:
            raise DataRejected(
                f"prompt {place} has {len(prompt)} tokens, and the model's context less "
                f"max_new_tokens {sampling.max_new_tokens} leaves {max(room, 0)}; "
                "drop it (data.max_chars), or lower max_new_tokens"
            )
    batches = _batches(tokens, sampling.batch_size)
    kept = Batches(store, _request(prompts, sampling, seed, dtype), events, phase)
    done = [
        [Answer.model_validate(answer) for answer in batch]
        for batch in kept.read([len(batch) for batch in batches])
    ]
    if len(done) < len(batches):
        watch = _Watch(events, phase, len(prompts))
        work = _Generator(model, tokenizer, sampling, seed, dtype, watch)
        num_done = sum(map(len, done))
        for place in range(len(done), len(batches)):
            answers = work([tokens[i] for i in batches[place]], place, num_done)
            kept.append(place, [answer.model_dump() for answer in answers])
            done.append(answers)
            num_done += len(answers)
            events.progress(phase, num_done, len(prompts), unit="answers")
    places = [place for batch in batches for place in batch]
    found = dict(zip(places, (answer for batch in done for answer in batch), strict=True))
    return [found[place] for place in range(len(prompts))]


def has_room(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: tuple[Message, ...],
    sampling: SamplingConfig,
) -> bool:
    """Whether prompt and longest answer fit into the model's context; `generate` refuses others."""
    return len(prompt_tokens(tokenizer, prompt)) <= _room(model, sampling)


def _room(model: "PreTrainedModel", sampling: SamplingConfig) -> int:
    """Tokens that a prompt may have."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return (context or 1 << 30) - sampling.max_new_tokens


def _batches(tokens: Sequence[tuple[int, ...]], batch_size: int) -> list[Batch]:
    """Longest first, so that too little memory shows at once; ties in the prompts' order."""
    order = sorted(range(len(tokens)), key=lambda place: (-len(tokens[place]), place))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _request(
    prompts: Sequence[tuple[Message, ...]],
    sampling: SamplingConfig,
    seed: int,
    dtype: torch.dtype,
) -> str:
    return sha256_json(
        {
            "prompts": [prompt_digest(prompt) for prompt in prompts],
            "sampling": sampling.model_dump(mode="json"),
            "seed": seed,
            "dtype": name_of(dtype),
        }
    )


class _Watch(StoppingCriteria):
    """Counts answers as they end, for the progress line; never stops anything."""

    def __init__(self, events: Events, phase: str, total: int) -> None:
        self._events, self._phase, self._total = events, phase, total
        self._num_done, self._start, self._ends = 0, 0, torch.tensor([])

    def begin(self, num_done: int, start: int, ends: torch.Tensor) -> None:
        """`num_done` answers are whole; the rows' own begin at column `start`."""
        self._num_done, self._start, self._ends = num_done, start, ends

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        ended = _ended(input_ids[:, self._start :], self._ends)
        done = min(self._num_done + int(ended.sum()), self._total - 1)
        self._events.progress(self._phase, done, self._total, unit="answers")
        return torch.zeros_like(ended)


def _ended(tokens_RT: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.isin(tokens_RT, ends).any(dim=1)


class _Draw(LogitsProcessor):
    """Draws the next token of each row by temperature and nucleus (Holtzman et al. 2020).

    transformers sorts the whole vocabulary for a nucleus and draws from all of it: for 64 rows of
    49,152 tokens that took 0.36 s a step, the model itself 0.2 s. Here the nucleus lies within the
    256 likeliest tokens, and what was drawn is all that is left for the greedy choice to find.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logits = scores.float() / self._temperature
        likeliest = logits.topk(min(WIDEST_NUCLEUS, logits.shape[1]), dim=1)
        share = (likeliest.values - logits.logsumexp(dim=1, keepdim=True)).exp()
        before = share.cumsum(dim=1) - share
        drawn = torch.multinomial(share.masked_fill(before >= self._top_p, 0.0), 1)
        left = torch.full_like(scores, -torch.inf)
        left.scatter_(1, likeliest.indices.gather(1, drawn), 0.0)
        return cast("torch.FloatTensor", left)


class _Generator:
    """A model in the wanted dtype, asked for one batch at a time."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sampling: SamplingConfig,
        seed: int,
        dtype: torch.dtype,
        watch: _Watch,
    ) -> None:
        # A cast copy, not autocast: measured a sixth faster, a token at a time.
        self._model: Any = model if model.dtype == dtype else _cast(model, dtype)
        self._tokenizer, self._sampling, self._seed = tokenizer, sampling, seed
        self._ends = torch.tensor(_ends(model, tokenizer), device=self._model.device)
        self._watch = watch

    def __call__(
        self, prompts: Sequence[tuple[int, ...]], place: int, num_done: int
    ) -> list[Answer]:
        """Answers to a batch, in its order; `num_done` were given before."""
        inputs = self._tokenizer.pad(
            {"input_ids": [list(prompt) for prompt in prompts]},
            padding_side="left",
            return_tensors="pt",
        ).to(self._model.device)
        ids_RT, mask_RT, cache = inputs["input_ids"], inputs["attention_mask"], None
        rows, start = list(range(len(prompts))), ids_RT.shape[1]
        said: dict[int, list[int]] = {}
        seeded, alone = _seeded(self._seed, place, self._model.device), _only(self._model)
        with seeded, alone, decoding(self._model):
            while rows:
                self._watch.begin(num_done + len(said), start, self._ends)
                ids_RT, cache = self._stretch(ids_RT, mask_RT, cache, start)
                going = ~_ended(ids_RT[:, start:], self._ends)
                if ids_RT.shape[1] - start >= self._sampling.max_new_tokens:
                    going[:] = False
                for row, tokens, on in zip(rows, ids_RT.tolist(), going.tolist(), strict=True):
                    if not on:
                        said[row] = tokens[start:]
                rows = [row for row in rows if row not in said]
                ids_RT, mask_RT = ids_RT[going], mask_RT[going]
                mask_RT = pad(mask_RT, (0, ids_RT.shape[1] - mask_RT.shape[1]), value=1)
                if rows and not going.all():
                    cache.batch_select_indices(going.nonzero().flatten())
        return [self._answer(said[row]) for row in range(len(prompts))]

    def _stretch(
        self, ids_RT: torch.Tensor, mask_RT: torch.Tensor, cache: Any, start: int
    ) -> tuple[torch.Tensor, Any]:
        """The rows with up to `STRETCH` tokens more, and the cache that goes on from there."""
        left = self._sampling.max_new_tokens - (ids_RT.shape[1] - start)
        draw = LogitsProcessorList()
        if self._sampling.temperature > 0:
            draw.append(_Draw(self._sampling.temperature, self._sampling.top_p))
        out = self._model.generate(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            past_key_values=cache,
            generation_config=self._config(min(STRETCH, left)),
            logits_processor=draw,
            stopping_criteria=StoppingCriteriaList([self._watch]),
        )
        return out.sequences, out.past_key_values

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        """The likeliest token is taken; where one is drawn, `_Draw` leaves no other."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._ends.tolist(),
            pad_token_id=self._tokenizer.pad_token_id,
            use_cache=True,
            return_dict_in_generate=True,
        )

    def _answer(self, tokens: list[int]) -> Answer:
        ends = self._ends.tolist()
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        said = tokens if end is None else tokens[:end]
        text = self._tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Answer(text=str(text), num_tokens=len(said), finished=end is not None)


def _cast(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype)


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Every token that ends a turn: the template's, the tokenizer's, and those its makers list."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    ends = [*listed, tokenizer.eos_token_id, turn_end(tokenizer)]
    return sorted({token for token in ends if token is not None})


@contextlib.contextmanager
def _seeded(seed: int, place: int, device: torch.device) -> Iterator[None]:
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


@contextlib.contextmanager
def _only(model: "PreTrainedModel") -> Iterator[None]:
    """`model` without generation defaults of its own (Qwen2's top_k 20, repetition penalty 1.1)."""
    own, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.generation_config = own
        model.train(training)
