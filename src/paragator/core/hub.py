"""Whether the model hub answers, found out in seconds, so that nobody waits for the retries of its library."""

from __future__ import annotations

import os
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

WAIT_S = 5.0


def hub_reached(wait_s: float = WAIT_S) -> bool:
    """Whether HF_ENDPOINT, else huggingface.co, answers anything within so many seconds."""
    url, answered = os.environ.get("HF_ENDPOINT") or "https://huggingface.co", threading.Event()

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=wait_s).close()  # nosec B310: http or https, checked below
        except HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    if not url.startswith(("http://", "https://")):
        return False
    asking = threading.Thread(target=ask, daemon=True)  # a name that is not found may take longer than any timeout
    asking.start()
    asking.join(wait_s)
    return answered.is_set()
