"""Why a row is not used: one code a reason, the same in adapters, checks, reports and tests.

Reads   nothing
Gives   `Code`, `REASONS` (code to sentence), `Quarantine`
Not     damage to a whole file: that is DataRejected, see sources/files.py
"""

from typing import Literal

Code = Literal[
    "not_an_object",
    "repeated_key",
    "nested_too_deep",
    "ragged",
    "missing_field",
    "unknown_field",
    "wrong_type",
    "wrong_version",
    "wrong_id",
    "unknown_role",
    "unsupported_content",
    "lone_surrogate",
    "not_a_transcript",
    "roles_do_not_alternate",
    "system_not_first",
    "last_turn_not_user",
    "last_turn_not_assistant",
    "prompts_differ",
    "no_common_prompt",
    "scores_contradict",
    "ambiguous",
    "no_vote",
    "no_annotator",
    "empty_prompt",
    "empty_turn",
    "empty_chosen",
    "empty_rejected",
    "empty_answer",
    "identical",
    "too_long",
    "too_many_tokens",
    "contaminated",
    "damaged_text",
    "language",
    "personal",
    "refusal",
    "secret",
    "duplicate",
    "conflicting",
    "leakage",
    "not_preferred",
    "not_selected",
    "not_replayed",
]

REASONS: dict[Code, str] = {
    # the shape of a row: sources/
    "not_an_object": "the row is a list, a string or a number, not an object with fields",
    "repeated_key": "a key stands twice in one object, so one of its values would be lost",
    "nested_too_deep": "lists and objects stand in each other, more than 64 of them",
    "ragged": "a CSV row has more or fewer values than its header has columns",
    "missing_field": "a field that the format needs is absent or null",
    "unknown_field": "a canonical row has a field that its schema does not know",
    "wrong_type": "a field holds another type than the format says",
    "wrong_version": "a canonical row was written for another schema_version",
    "wrong_id": "a row's id is not that of its content: the row was edited",
    "unknown_role": "a turn is by somebody other than system, user or assistant",
    "unsupported_content": "a turn holds images, tools or several parts; only text is used",
    "lone_surrogate": "text holds half of a surrogate pair, which no encoding can write",
    "not_a_transcript": "an hh-rlhf text does not begin with a Human or Assistant turn",
    # the conversation
    "roles_do_not_alternate": "two turns of the same speaker follow each other",
    "system_not_first": "a system turn stands somewhere other than first",
    "last_turn_not_user": "a prompt does not end with a user's turn",
    "last_turn_not_assistant": "a conversation does not end with the assistant's answer",
    "prompts_differ": "chosen and rejected do not answer the same conversation",
    "no_common_prompt": "chosen and rejected share no beginning that could be their prompt",
    "scores_contradict": "the row's own scores rate rejected above chosen",
    # annotators: sources/formats/
    "ambiguous": "which field is the prompt, which the answers or what was voted would be a guess",
    "no_vote": "nobody finished a vote: all are drafts, discarded, skipped or absent",
    "no_annotator": "the server did not see the person whom the label names finish it",
    # the texts: sources/checks.py
    "empty_prompt": "the last user turn is blank",
    "empty_turn": "an earlier turn of the prompt is blank",
    "empty_chosen": "the chosen answer is blank",
    "empty_rejected": "the rejected answer is blank",
    "empty_answer": "the answer that was rated is blank",
    "identical": "chosen and rejected say the same, but for blanks around them",
    "too_long": "a prompt or answer has more characters than data.max_chars",
    # the texts, further: validate/row.py
    "too_many_tokens": "more tokens than data.max_prompt_tokens or data.max_answer_tokens",
    "contaminated": "quotes a question, or thirteen words in a row, of an evaluation set",
    "damaged_text": "text that was decoded in a wrong encoding, such as â€™ for an apostrophe",
    "language": "the answer is in none of data.languages",
    "personal": "mail or IP addresses, numbers of telephones, cards, accounts or social security",
    "refusal": "the chosen answer opens as English refusals do",
    "secret": "a key or password of a shape that only keys have",
    # the whole set: validate/ledger.py
    "duplicate": "the same row was already seen",
    "conflicting": "another row prefers these two answers the other way round, or turns the thumb",
    "leakage": "a training pair asks what is held out, or a held-out row is near an old pair",
    "not_preferred": "judged a tie, inconsistent or invalid: kept for audit, never trained on",
    "not_selected": "beyond data.max_pairs; nothing is wrong with it",
    "not_replayed": "an old pair beyond data.replay_per_new; nothing is wrong with it",
}

HARMLESS: frozenset[Code] = frozenset({"no_vote", "not_preferred", "not_selected", "not_replayed"})
"""Counted like every reason, but not held against the data: see data.max_quarantined."""


class Quarantine(Exception):
    """One row that cannot be used as it is. Raised by adapters and checks, caught in validate."""

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code: Code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type["Quarantine"], tuple[Code, str]]:
        """Between processes it is told by its parts, not by its message."""
        return Quarantine, (self.code, self.detail)
