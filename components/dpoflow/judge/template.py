"""The question that a model judge is asked, with what it is to judge safely inside.

Reads   a template's text, a conversation, answers
Gives   `Template` (name, digest, `fill`), `shipped`
Not     reading what comes back (parse.py)

An answer is data. It stands between marks that hold a digest of all the texts, so that no text can
hold its own closing mark; control characters are removed, and what a server would take for the
turns of its chat template is broken up.
"""

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from importlib import resources

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Message

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
"""Control characters but tab and line feed; marks that turn or hide text."""
_BAR = "[|\uff5c]"
_TURN = re.compile(
    rf"<(?={_BAR})|(?<={_BAR})>|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn)>)|\[(?=/?INST\])"
)
"""Where the special tokens of chat templates begin or end (ChatML, Llama, Gemma, Mistral)."""

NEEDS = {
    "pairwise": frozenset({"conversation", "first", "second"}),
    "pointwise": frozenset({"conversation", "answer"}),
}


class Template(Contract):
    """Text with {placeholders}."""

    name: str
    text: str

    @property
    def id(self) -> str:
        """Name and the first digits of the text's sha256: a changed word is another template."""
        return f"{self.name}@{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    def check(self, needs: frozenset[str]) -> None:
        """Raises ConfigError unless it has these placeholders, and only these."""
        try:
            found = {
                name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None
            }
        except ValueError as error:
            raise ConfigError(
                f"template {self.name}: {error}; write {{{{ and }}}} for braces that stay"
            ) from None
        if found != needs:
            missing, strange = sorted(needs - found), sorted(found - needs)
            told = [f"{{{name}}} is missing" for name in missing]
            told += [f"{{{name}}} is not known" for name in strange]
            raise ConfigError(
                f"template {self.name}: {', '.join(told)}; it takes "
                + ", ".join(f"{{{name}}}" for name in sorted(needs))
            )

    def fill(self, texts: Mapping[str, str]) -> str:
        """The question, each text between marks that none of them can close."""
        clean = {name: cleaned(text) for name, text in texts.items()}
        digest = hashlib.sha256("\0".join(clean.values()).encode("utf-8", "surrogatepass"))
        mark = digest.hexdigest()[:16]
        assert not any(mark in text for text in clean.values())  # a text with its own digest inside
        marked = {name: f"<text {mark}>\n{text}\n</text {mark}>" for name, text in clean.items()}
        return self.text.format(**marked)


def cleaned(text: str) -> str:
    """`text` without what could steer a terminal, a reader's eye or a chat template."""
    seen = _CONTROL.sub("", text.encode("utf-8", "replace").decode("utf-8"))
    return _TURN.sub(lambda found: f"{found.group()} " if found.group() != ">" else " >", seen)


def transcript(conversation: Sequence[Message]) -> str:
    """A conversation as text: each turn under who spoke."""
    return "\n\n".join(f"{turn.role}:\n{turn.content}" for turn in conversation)


def shipped(name: str) -> Template:
    """A template of ours."""
    folder = resources.files("dpoflow.judge") / "templates"
    return Template(name=name, text=(folder / f"{name}.txt").read_text("utf-8").rstrip())
