"""What only a server can tell: whether the hub answers, who asks, and what time it is there."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fledge.verbs.doctor.findings import Finding, note, ok, problem

CLOCK_SECONDS = 60.0
"""By which a certificate or a signature is already refused."""
_REFUSED = (401, 403)


@dataclass(frozen=True)
class Hub:
    """What the hub says."""

    user: str | None
    """Whose token is used; None: there is none, or nothing was told of it."""
    has_token: bool
    trouble: str
    """Why it does not answer at all."""
    clock_ahead_seconds: float | None
    """Of this machine, against the server."""
    token_trouble: str = ""
    """Why nothing was told of the token, if not because it is refused."""


def look_at_hub() -> Hub:
    """Two requests at most."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    from fledge.corpus.sources.transport import client

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if constants.HF_HUB_OFFLINE:
        return Hub(None, token is not None, "HF_HUB_OFFLINE is set", None)
    try:
        date = client().head(constants.ENDPOINT).headers.get("Date", "")
        parsed = email.utils.parsedate_tz(date)
        ahead = None if parsed is None else time.time() - email.utils.mktime_tz(parsed)
    except Exception as error:  # a client fails without a network in many ways
        return Hub(None, token is not None, type(error).__name__, None)
    user, trouble = None, ""
    try:
        user = str(HfApi(library_name="fledge").whoami(token=token)["name"]) if token else None
    except HfHubHTTPError as error:
        trouble = "" if error.response.status_code in _REFUSED else f"HTTP {error.response.status_code}"
    except Exception as error:  # as above
        trouble = type(error).__name__
    return Hub(user, token is not None, "", ahead, trouble)


def check_hub(hub: Hub) -> Iterator[Finding]:
    """Reached, by whom, at what time."""
    if hub.trouble:
        fix = "unset HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in hub.trouble else "export HTTPS_PROXY=http://PROXY:PORT, if there is one"
        yield problem("hub", f"it does not answer: {hub.trouble}", fix)
    elif hub.user is not None:
        yield ok("hub", f"it answers, and knows the token of {hub.user}")
    elif hub.token_trouble:
        yield note("hub", f"it answers, but does not say whose token this is: {hub.token_trouble}", "try again later")
    elif hub.has_token:
        yield problem("hub", "it answers, and refuses the token", "hf auth login")
    else:
        yield note("hub", "it answers; there is no token for what is private and for fledge push", "hf auth login")
    if hub.clock_ahead_seconds is not None and abs(hub.clock_ahead_seconds) > CLOCK_SECONDS:
        yield problem("clock", f"{hub.clock_ahead_seconds:+,.0f} s from the hub's", "sudo timedatectl set-ntp true")
