"""Callers of the endpoint `digits`: they send pictures of digits all the time, and know the right answers.

    python examples/rollout/ask.py [--rate 200] [--seconds 600] [--url http://127.0.0.1:8080]

Once a second it prints which revision answered how often, and how often it was right. Answers of an experiment carry a
decision token; the reward 1 (right) or 0 (wrong) goes back with it.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import time
import urllib.error
import urllib.request
from pathlib import Path

ROWS = json.loads((Path(__file__).parent / "digits.json").read_text())


def ask(url: str, row: dict) -> tuple[str, bool, str | None]:
    """Which revision answered (or the error's status), whether it was right, and the answer's decision token."""
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": row["image"]}
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v2/models/digits/infer", body), timeout=10
        ) as answer:
            outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
            right = int(outputs["label"]["data"][0]) == row["digit"]
            return answer.headers.get("penstock-revision", "?"), right, answer.headers.get("penstock-decision")
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}", False, None


def reward(url: str, rewards: list[dict]) -> None:
    """Brings rewards back, many at once."""
    request = urllib.request.Request(
        f"{url}/v2/models/digits/feedback",
        json.dumps({"rewards": rewards}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the endpoint `digits` all the time.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the platform's HTTP address")
    parser.add_argument("--rate", type=float, default=200.0, help="questions per second")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    arguments = parser.parse_args()
    start = time.monotonic()
    answered: collections.Counter[str] = collections.Counter()
    correct: collections.Counter[str] = collections.Counter()
    rewards: list[dict] = []
    asked, told = 0, start
    while (now := time.monotonic()) < start + arguments.seconds:
        who, right, token = ask(arguments.url, random.choice(ROWS))
        answered[who] += 1
        correct[who] += right
        if token is not None:
            rewards.append({"token": token, "reward": float(right)})
        if now - told >= 1.0:
            if rewards:
                reward(arguments.url, rewards)
                rewards = []
            line = "   ".join(
                f"{who}: {count} answers, {correct[who] / count:.0%} right"
                for who, count in sorted(answered.items())
            )  # fmt: skip
            print(f"{now - start:4.0f} s   {line}", flush=True)
            answered.clear(), correct.clear()
            told = now
        asked += 1
        time.sleep(max(0.0, start + asked / arguments.rate - time.monotonic()))


if __name__ == "__main__":
    main()
