"""transformers' Trainer, without what it would bring along unused: see policy/library.py."""

from dpoflow.policy.library import UNUSED
from dpoflow.state.imports import load

load("transformers.trainer", without=UNUSED)

from transformers import PrinterCallback, Trainer, TrainingArguments

__all__ = ["PrinterCallback", "Trainer", "TrainingArguments"]
