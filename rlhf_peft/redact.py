"""Removes credentials from text; everything that is written to a file, shown or logged passes through `scrub`.

The patterns are this module's own: detect-secrets imports requests, knows neither Hugging Face's nor Google's keys, and
takes any word that begins with AKC for a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

SHORTEST = 8
"""Fewest characters of a secret; shorter values are never hidden."""
HIDDEN = "***"

_SECRET_WORDS = frozenset(
    [
        "KEY",
        "KEYS",
        "APIKEY",
        "TOKEN",
        "TOKENS",
        "SECRET",
        "SECRETS",
        "PASS",
        "PASSWORD",
        "PASSWORDS",
        "PASSWD",
        "PASSPHRASE",
        "PWD",
        "PAT",
        "CREDENTIAL",
        "CREDENTIALS",
        "AUTHORIZATION",
    ]
)
"""An environment variable is secret where one of its words is one of these."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_ENDING = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD)$")

_QUALIFIED = (
    r"(?:api|access|auth|account|bearer|client|encryption|id|private|refresh|secret|session|shared|signing|"
    r"subscription|webhook)"
)
_SECRET_KEY = re.compile(
    rf"(?:.*[-_.\s])?(?:{_QUALIFIED}[-_.]?(?:key|token)|[-_a-z]*(?:secret|password|passwd|passphrase|credentials?)|"
    r"x[-_][-_a-z]*(?:key|token)|authorization|cookie)(?:[-_.]?[0-9]+)?",
    re.IGNORECASE,
)
"""Keys of a mapping whose values are secrets. `key`, `token` and `eos_token` are not: they are names of options."""

_URL = re.compile(r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,30}://?)(?P<rest>[^\s<>]+)")
"""Also matches a URL with one slash, as a path that was made of a URL has it. One letter would be a drive."""
_HOST = re.compile(r"(localhost|[^:]*\.[^:]*|\[.*\]):[0-9]*", re.IGNORECASE)
_QUERY = re.compile(
    r"(?P<key>[?&;](?:[A-Za-z0-9_.-]{0,60}(?:token|key|secret|password|passwd|signature|sig|credential|auth)))=[^&;\s'\"]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<scheme>\b(?:Bearer|Basic|Token)\s+)[A-Za-z0-9._~+/=-]{8,}")
_ASSIGNED = re.compile(
    rf"(?P<key>(?<![A-Za-z0-9])(?:{_QUALIFIED}[-_.]?(?:key|token)|(?<![A-Za-z0-9_-])[a-z0-9_-]{{0,40}}(?:secret|password|passwd|passphrase)|"
    r"(?<![A-Za-z0-9_-])x-[a-z0-9-]{0,40}(?:key|token))(?:[-_]?[0-9]{1,4})?[\"']?\s{0,4}[:=]\s{0,4}[\"']?)"
    r"(?P<value>[^\s\"'&,;<>{}$*][^\s\"'&,;<>{}]{7,})",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")

_FORMS = (
    r"hf_|api_org_",  # Hugging Face
    r"sk-|sk_live_|sk_test_|rk_live_|rk_test_|whsec_",  # OpenAI, Anthropic and many like them; Stripe
    r"gh[pousr]_|github_pat_",
    r"gl(?:pat|dt|ft|soat|rt|ptt|agent|oas|imt)-|glcbt-",
    r"xox[a-z]-|xoxe\.xox[a-z]-|xapp-",
    r"AIza|ya29\.|GOCSPX-",
    r"npm_|pypi-|dckr_pat_|SG\.|shp(?:at|ca|pa|ss)_|ATATT3x|hvs\.|hvb\.|glsa_|sntry[su]_|dop_v1_|dapi",
    r"r8_|gsk_|xai-|nvapi-|pplx-|tvly-|lsv2_|fw_|together_|cfut_|nfp_|pcsk_|jina_|ls__|sbp_|figd_|lin_api_|secret_",
)
_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?P<kind>{'|'.join(_FORMS)})[A-Za-z0-9_.=-]{{16,}}")
_AWS = re.compile(r"\b(?P<kind>AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b")
_JWT = re.compile(r"\b(?P<kind>eyJ)[A-Za-z0-9_=-]{8,}\.[A-Za-z0-9_=-]{8,}(?:\.[A-Za-z0-9_.+/=-]*)?")
_TELEGRAM = re.compile(r"\b(?P<kind>)[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b")
_SLACK = re.compile(
    r"(?P<kind>hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)[A-Za-z0-9/_-]+"
)
_PEM = re.compile(
    r"(?P<kind>-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_KINDS = (_TOKEN, _AWS, _JWT, _TELEGRAM, _SLACK, _PEM)


def scrub(value: Any) -> Any:
    """A value without credentials, in all texts inside it too.

    These are hidden: user names and passwords in URLs, tokens in queries and headers, tokens of known forms, values
    that are assigned to a password or a key, and the values of environment variables whose names have a word such as
    KEY, TOKEN, SECRET, PASS, PAT or CREDENTIAL.
    """
    return _scrubbed(value, _environment())


def _scrubbed(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _text(value, secrets)
    if isinstance(value, Mapping):
        return {str(key): _item(str(key), item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, secrets) for item in value]
    return value


def _item(key: str, value: Any, secrets: list[str]) -> Any:
    secret = isinstance(value, str) and len(value) >= SHORTEST and not _VARIABLE.fullmatch(value)
    return HIDDEN if secret and len(key) < 100 and _SECRET_KEY.fullmatch(key) else _scrubbed(value, secrets)


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _URL.sub(_url, text)
    text = _QUERY.sub(rf"\g<key>={HIDDEN}", text)
    text = _BEARER.sub(rf"\g<scheme>{HIDDEN}", text)
    for kind in _KINDS:
        text = kind.sub(rf"\g<kind>{HIDDEN}", text)
    return _ASSIGNED.sub(_assigned, text)


def _url(match: re.Match[str]) -> str:
    """A URL without the part before the last `@`, where that is a user's name and password.

    A password may have any character, `@` and `/` too. `https://host:8000/x@y` and `s3://bucket/x@y` have none.
    """
    rest = match["rest"]
    before, at, after = rest.rpartition("@")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    secret = "@" in authority or (":" in authority and not _HOST.fullmatch(authority))
    return f"{match['scheme']}{HIDDEN}@{after}" if at and before and secret else match[0]


def _assigned(match: re.Match[str]) -> str:
    """An assignment with its value hidden, unless the value is the name of a variable."""
    return match[0] if _VARIABLE.fullmatch(match["value"]) else f"{match['key']}{HIDDEN}"


def _environment() -> list[str]:
    values: set[str] = set()
    for name, value in os.environ.items():
        if is_secret_name(name) and not os.path.exists(value):
            values |= {value, *(value.splitlines() if "\n" in value else ())}
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: `OPENAI_KEY`, `DB_PASS`, `HF_TOKEN_2`."""
    words = {word.upper() for word in _WORD.findall(name)}
    return name not in ("PWD", "OLDPWD") and bool(
        words & _SECRET_WORDS or _SECRET_ENDING.search(name.upper())
    )
