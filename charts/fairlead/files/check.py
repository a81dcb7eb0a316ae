"""What `helm test` runs with the operator image's Python: do the parts answer, does the gateway refuse strangers."""
# ruff: noqa: INP001, S310, T201 - a script outside any package; its addresses are the chart's own; its log is stdout

import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

LIMIT_S = 90.0
ANSWER_S = 5.0
PAUSE_S = 1.0


def unverified() -> ssl.SSLContext:
    """TLS without a look at the certificate: its names are those that callers use, and nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def status_of(url: str, body: bytes | None) -> int | str:
    """Status of the answer, or why there is none."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=unverified()) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)


def check(name: str, url: str, expected: int, body: bytes | None, until: float) -> bool:
    """Ask until the expected status comes or the time is over; say which."""
    while True:
        seen = status_of(url, body)
        if seen == expected:
            print(f"ok    {name}: {expected} from {url}", flush=True)
            return True
        if time.monotonic() >= until:
            print(f"WRONG {name}: {seen} from {url}, expected {expected}", flush=True)
            return False
        time.sleep(PAUSE_S)


def main(arguments: Sequence[str], limit_s: float = LIMIT_S) -> int:
    """Check operator, ledger and gateway, given as three addresses; the exit status is the number of wrong answers."""
    operator, ledger, gateway = arguments
    until = time.monotonic() + limit_s
    anonymous = b'{"model": "helm-test", "messages": [{"role": "user", "content": "hello"}]}'
    answers = [
        check("operator is ready", f"{operator}/readyz", 200, None, until),
        check("ledger is ready", f"{ledger}/readyz", 200, None, until),
        check("gateway refuses a caller without a token", f"{gateway}/v1/chat/completions", 401, anonymous, until),
    ]
    return answers.count(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
