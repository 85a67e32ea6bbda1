"""The parts of transformers that need torch, without what they would bring along unused.

transformers imports peft (which imports bitsandbytes and torch's compiler), datasets and scipy
where they are installed, boto3 through accelerate and click through httpx: a third of its time,
torch's included, and it has no switch for that. None of them is used through it: adapters are put
on by train/prepare.py, data are our own, scipy serves losses of object detection, boto3 asks for
credentials of SageMaker, click makes a command of httpx.

Gives   names of transformers; nothing else of dpoflow imports them from there
Not     its Trainer (train/library.py), configs and tokenizers, which need no torch (load.py)
"""

from dpoflow.state.imports import load

UNUSED = ("peft", "datasets", "scipy", "boto3", "click")

for _module in ("transformers.modeling_utils", "transformers.generation.utils"):
    load(_module, without=UNUSED)

from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = [
    "AttentionInterface",
    "AttentionMaskInterface",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "GenerationConfig",
    "LogitsProcessor",
    "LogitsProcessorList",
    "PreTrainedModel",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "sdpa_attention_forward",
    "sdpa_mask",
]
