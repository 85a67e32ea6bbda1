"""What should not be learnt by heart: personal data and secrets, by kind, never the thing itself.

Reads   a text
Gives   `personal_in`, `secrets_in`: names of what is in it; `is_private`: whether anything is
Not     what becomes of the row: see findings.py

Shapes are found with regular expressions and then held against what their owners publish: numbering
plans (phonenumbers), check digits (python-stdnum), the keys that providers hand out
(detect-secrets, its detectors of one unmistakable shape). Words and names are not looked at.
"""

import functools
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from dpoflow.texts.plain import texts_in

_MAIL = re.compile(r"[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")
_CARD = re.compile(  # as issuers number them today: American Express, then sixteen digits
    r"(?<![\d.-])(?:3[47]\d{2}[ -]?\d{6}[ -]?\d{5}|[2456]\d{3}(?:[ -]?\d{4}){3})(?!\d|[.-]\d)"
)
_WRITTEN_AS_NUMBER = re.compile(r"\+\d|.*\d[^\d]+\d")
"""Telephone numbers are grouped, or begin with +; ten digits in a row may be any number."""
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)")

_LONG = re.compile(r"\S{20}|://|PRIVATE KEY")
"""No secret that we know is without one of these; few texts have one."""
_DETECTORS = (
    "AWSKeyDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "JwtTokenDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)


def personal_in(text: str, region: str) -> set[str]:
    """Which of mail, phone, card, iban, ssn, address (IP) are in `text`.

    Numbers without a country code are read as those of `region` (ISO 3166).
    """
    found = {"mail"} if "@" in text and _MAIL.search(text) else set[str]()
    if _ADDRESS.search(text) and any(map(_is_public, _ADDRESS.findall(text))):
        found.add("address")
    if _DIGITS.search(text):
        found |= set(_numbers(text, region))
    return found


def secrets_in(text: str) -> set[str]:
    """Whose keys are in `text`, such as `AWS Access Key`."""
    if not _LONG.search(text):
        return set()
    return {
        str(each.secret_type)
        for each in _detectors()
        if any(any(pattern.finditer(text)) for pattern in each.denylist)
    }


def is_private(value: object, region: str) -> bool:
    """Whether any text in `value`, a text itself or JSON, has something of either.

    Each text by itself and as it is: where line breaks are written as two characters, what follows
    them is not found.
    """
    return any(secrets_in(text) or personal_in(text, region) for text in texts_in(value))


def _numbers(text: str, region: str) -> Iterator[str]:
    import phonenumbers
    from stdnum import iban, luhn
    from stdnum.us import ssn

    if any(luhn.is_valid(re.sub(r"[ -]", "", each)) for each in _CARD.findall(text)):
        yield "card"
    if any(map(iban.is_valid, _IBAN.findall(text))):
        yield "iban"
    if any(map(ssn.is_valid, _SSN.findall(text))):
        yield "ssn"
    found = phonenumbers.PhoneNumberMatcher(text, region)
    if any(_WRITTEN_AS_NUMBER.match(match.raw_string) for match in found):
        yield "phone"


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


@functools.cache
def _detectors() -> tuple[Any, ...]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds: Any = get_mapping_from_secret_type_to_class().values()
    known = {kind.__name__: kind for kind in kinds}
    return tuple(known[name]() for name in _DETECTORS)
