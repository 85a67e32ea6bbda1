"""What Kubeflow shows of a validation: the name of its page, and its counts.

Nothing heavy is imported here: a task whose validation was done before shows it all the same.
"""

from dpoflow.contracts.results import ValidateResult

PAGE = "report.html"


def figures_of(result: ValidateResult) -> dict[str, float]:
    """Its counts, as Kubeflow shows them of a task."""
    counts = result.counts
    return {
        "rows_in": counts.num_in,
        "rows_kept": counts.num_kept,
        **{f"not_used_{code}": number for code, number in counts.quarantined.items()},
        "pairs": result.num_pairs,
        "heldout_pairs": result.num_heldout_pairs,
        "ratings": result.num_ratings,
        "heldout_ratings": result.num_heldout_ratings,
        "prompts": result.num_prompts,
        "heldout_prompts": result.num_heldout_prompts,
    }
