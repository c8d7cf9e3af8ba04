"""Text without credentials: what is written down, shown or logged goes through here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]+@")
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&](?:[A-Za-z0-9_-]*(?:token|key|secret|password|signature|sig)))=[^&\s'\"]+", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_TOKEN = re.compile(r"\b(?P<kind>hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}")
_SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|ACCESS_KEY|SECRET_KEY|CREDENTIALS)$")
SHORTEST = 8
"""Values of the environment that are shorter are no secrets, and may stand in any text."""


def scrub(value: Any) -> Any:
    """The value without credentials, all texts inside it too.

    Taken out are user names and passwords in URLs, tokens in queries and headers, tokens of known forms, and whatever
    an environment variable holds whose name ends in TOKEN, API_KEY, SECRET, PASSWORD and the like.
    """
    return _scrubbed(value, _environment())


def _scrubbed(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        value = _USERINFO.sub(r"\g<scheme>***@", value)
        value = _SECRET_QUERY.sub(r"\g<key>=***", value)
        return _TOKEN.sub(r"\g<kind>***", _BEARER.sub(r"\g<scheme>***", value))
    if isinstance(value, Mapping):
        return {str(key): _scrubbed(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, secrets) for item in value]
    return value


def _environment() -> list[str]:
    found = [value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())]
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)
