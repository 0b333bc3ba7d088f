"""Secrets that detect-secrets does not know by itself; the git hook loads this file as a plugin."""

import re
from typing import ClassVar

from detect_secrets.plugins.base import RegexBasedDetector


class AgeSecretKeyDetector(RegexBasedDetector):
    """The key that opens .env.enc."""

    secret_type = "age secret key"  # noqa: S105
    denylist: ClassVar = [re.compile(r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{20,}")]


class LongBase64TokenDetector(RegexBasedDetector):
    """An API token of 64 random bytes in URL-safe base64."""

    secret_type = "API token"  # noqa: S105
    denylist: ClassVar = [re.compile(r"(?<![\w-])[\w-]{86}==")]
