"""Keys and tokens by the forms that their issuers give them, so that they can be found.

No library of such forms that is still kept up can be called on a text (detect-secrets was last released in May 2024), and the
forms are few: each issuer publishes its own.
"""

import re

FORMS: tuple[str, ...] = (
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s*[A-Za-z0-9+/=\s\\]{64}",  # PEM, OpenSSH, PGP
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS access key
    r"gh[opsur]_[A-Za-z0-9]{36}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{82}",
    r"glpat-[A-Za-z0-9_-]{20}",  # GitLab
    r"xox[abeprs]-[A-Za-z0-9-]{20}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{40}",
    r"sk-ant-[A-Za-z0-9_-]{40}",  # Anthropic
    r"sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{40}",  # OpenAI and those who copied it
    r"hf_[A-Za-z0-9]{34}",  # Hugging Face
    r"[rs]k_live_[A-Za-z0-9]{24}",  # Stripe
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{40}",
    r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
    r"eyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # JSON Web Token
)
SECRET = "|".join(FORMS)


def is_secret(found: str) -> bool:
    """Whether something of a secret's form is one, and no placeholder: `xxxx…`, `1234…`, `YOUR_KEY`, `…EXAMPLE`."""
    body = found.rsplit("-----", 1)[-1] if found.startswith("-----") else found[4:]
    if re.search(r"example|your|placeholder|redacted|dummy|fake|x{6}|\.{3}|1234567|abcdef", body, re.IGNORECASE):
        return False
    mixed = any(sign.isdigit() for sign in body) or (body.lower() != body != body.upper())
    return mixed and len(set(body)) >= 12
