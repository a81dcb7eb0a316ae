"""A team's program: calls the gateway with the openai client and its pod's own token, and says what came back.

It runs in a pod of the team's namespace. The key is a function that rereads the projected token, as the kubelet
renews that file. Prints one JSON object when done.

usage: caller.py [--url URL] [--model chat] [--requests N | --seconds S] [--concurrency C] [--prompt-words W] …
"""

import argparse
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

TOKEN = Path("/var/run/secrets/fairlead/token")
Answer = tuple[dict[str, str], dict[str, Any], str]
"""Headers, usage, and the price in USD as it was told."""
WORDS = "the quick brown fox jumps over the lazy dog and then looks for a cheaper way around "


@dataclass
class Tally:
    """What came back, counted under one lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    answered: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    pools: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    last_answer: dict[str, Any] = field(default_factory=dict)
    last_refusal: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def call(client: openai.OpenAI, args: argparse.Namespace, tally: Tally) -> bool:
    """Send one request; false when its budget refused it."""
    with tally.lock:
        tally.sent += 1
    try:
        headers, usage, cost = (streamed if args.stream else whole)(client, args)
    except openai.APIStatusError as error:
        return refused(error, tally)
    except openai.OpenAIError as error:
        with tally.lock:
            tally.codes[type(error).__name__] += 1
            tally.failures.append(repr(error)[:300])
        return True
    answered(headers, usage, cost, tally)
    return True


def request(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of one chat completion."""
    return {
        "model": args.model,
        "messages": [{"role": "user", "content": prompt(args.prompt_words)}],
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "extra_body": {"ignore_eos": args.ignore_eos},
    }


def whole(client: openai.OpenAI, args: argparse.Namespace) -> Answer:
    """An answer in one piece: its price is a header."""
    create: Any = client.chat.completions.with_raw_response.create
    answer = create(**request(args))
    cost = answer.headers.get("x-fairlead-cost-usd", "0")
    return dict(answer.headers), answer.parse().usage.model_dump(exclude_none=True), cost


def streamed(client: openai.OpenAI, args: argparse.Namespace) -> Answer:
    """An answer as a stream: its price is in the last usage chunk, without which the stream was cut."""
    options = {"include_usage": True}
    create: Any = client.chat.completions.with_raw_response.create
    answer = create(**request(args), stream=True, stream_options=options)
    last = None
    for chunk in answer.parse():
        last = chunk
    if last is None or last.usage is None:
        raise openai.OpenAIError("the stream ended without its usage chunk")
    cost = (last.model_extra or {}).get("fairlead", {}).get("cost_usd", "0")
    return dict(answer.headers), last.usage.model_dump(exclude_none=True), cost


def prompt(words: int) -> str:
    """Text of that many words, different in each call so that no prefix is shared by accident."""
    return f"{time.monotonic_ns()} " + " ".join((WORDS * (words // 16 + 1)).split()[:words])


def answered(headers: dict[str, str], usage: dict[str, Any], cost: str, tally: Tally) -> None:
    """Count an answer and keep its bill."""
    ours = {name: value for name, value in headers.items() if name.startswith("x-")}
    with tally.lock:
        tally.answered += 1
        tally.codes["ok"] += 1
        tally.pools[ours.get("x-fairlead-pool", "?")] += 1
        tally.cost_usd += float(cost)
        tally.last_answer = {"headers": ours, "usage": usage, "costUsd": cost}


def refused(error: openai.APIStatusError, tally: Tally) -> bool:
    """Count a refusal; true to go on."""
    body = error.body if isinstance(error.body, dict) else {}
    code = str(body.get("code") or error.status_code)
    with tally.lock:
        tally.codes[code] += 1
        tally.last_refusal = {
            "status": error.status_code,
            "retry_after": error.response.headers.get("retry-after"),
            **body,
        }
        if error.status_code != openai.RateLimitError.status_code:
            tally.failures.append(f"{error.status_code} {str(body)[:300]}")
    return code != "budget_exhausted"


def work(args: argparse.Namespace, tally: Tally, until: float) -> None:
    """Call until the time is over, the share of requests is sent, or the budget is shut."""
    client = openai.OpenAI(
        base_url=args.url, api_key=lambda: TOKEN.read_text(encoding="ascii"), max_retries=args.retries, timeout=120
    )
    for _ in range(args.requests // args.concurrency):
        if time.monotonic() > until:
            return
        if not call(client, args, tally) and args.until_refused:
            return


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://fairlead-gateway.fairlead/v1")
    parser.add_argument("--model", default="chat")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--until-refused", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run the callers and print the tally."""
    args = parse()
    tally = Tally()
    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(args, tally, began + args.seconds)) for _ in range(args.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {
                "sent": tally.sent,
                "answered": tally.answered,
                "codes": tally.codes,
                "pools": tally.pools,
                "costUsd": round(tally.cost_usd, 9),
                "seconds": round(time.monotonic() - began, 2),
                "lastAnswer": tally.last_answer,
                "lastRefusal": tally.last_refusal,
                "failures": tally.failures[:5],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
