"""What everything in an evaluation calls its models and its first suite."""

CANDIDATE, BASE = "candidate", "base"
"""Two of the models; the third is the champion."""

HELDOUT = "heldout"
"""The suite of one's own held-out prompts: the first, and there in every evaluation."""
