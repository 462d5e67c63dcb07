"""A PaTaRM judge as verl's custom reward function; verl calls `compute_score` once for each rollout.

    python3 -m verl.trainer.main_ppo … custom_reward_function.path=rollout/verl_reward.py \\
        custom_reward_function.name=compute_score \\
        +custom_reward_function.reward_kwargs.url=http://JUDGE:8000

The judge runs elsewhere, `rollout/main.py serve --model DIR`. `extra_info` of a row of the data holds "prompt", a text
or messages, and may hold "task"; what else verl hands over is passed over. verl takes a number: a response that the
judge gives no score raises unless `unscored` says what it counts for, as 0 would be the worst there is.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException

_BUSY = (429, 503)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object = None,
    extra_info: dict | None = None,
    *,
    url: str = "http://127.0.0.1:8000",
    votes: int | None = None,
    timeout: float = 600.0,
    unscored: float | None = None,
    **_: object,
) -> float:
    """The mean score, 0 to 10, of the response `solution_str`.

    Args:
        url: of the server.
        votes: judgments of the response; None: as many as the server was started with.
        timeout: seconds for a reply as a whole; a server that has no room is asked again within them.
        unscored: what a response counts for that no judgment has a score of, such as 5; None: it raises.

    Raises:
        ValueError: there is no prompt, or no judgment has a score.
        RuntimeError: the server refuses or does not answer; the message is what it says.
    """
    extra = extra_info or {}
    prompt = extra.get("prompt")
    if not prompt:
        raise ValueError(f"a row of {data_source}: extra_info.prompt: missing; a judge reads it beside the response")
    asked = {"prompt": prompt, "response": solution_str}
    asked |= {"task": extra["task"]} if "task" in extra else {}
    asked |= {} if votes is None else {"n": votes}
    score = _reply(f"{url.rstrip('/')}/score", asked, timeout)["score"]
    if score is None and unscored is None:
        raise ValueError(f"a row of {data_source}: no judgment of the response has a score")
    return unscored if score is None else score


def _reply(url: str, asked: dict, timeout: float) -> dict:
    """verl asks for a whole batch at once, which is more than a server may have open: a busy one is asked again."""
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + timeout
    while True:
        try:
            code, after, body = _answer(request, max(0.001, end - time.monotonic()))
            if code < 300:
                judged = json.loads(body)
                if not isinstance(judged, dict) or "score" not in judged:
                    raise RuntimeError(f"{url}: the reply has no score; is it a server of rollout/main.py serve?")
                return judged
        except (OSError, HTTPException, ValueError) as error:
            raise RuntimeError(f"{url}: {type(error).__name__}: {error}") from None
        wait_s = (float(after) if after.isdecimal() else 1.0) * random.uniform(0.5, 1.5)  # not all at once again
        if code not in _BUSY or time.monotonic() + wait_s > end:
            raise RuntimeError(f"{url}: {code}: {body.decode(errors='replace')[:500]}")
        time.sleep(wait_s)


def _answer(request: urllib.request.Request, seconds: float) -> tuple[int, str, bytes]:
    """Status, Retry-After and body; TimeoutError where they are not there in time.

    urlopen has that time for each read, of a server or proxy that drips as often as it likes. So it is left behind in
    a thread of its own when the time is over.
    """
    done: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            try:
                reply = urllib.request.urlopen(request, timeout=seconds)
            except urllib.error.HTTPError as error:
                reply = error
            with reply:
                done.put((reply.status, reply.headers.get("retry-after", ""), reply.read()))
        except Exception as error:  # raised where it is waited for
            done.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no reply within {seconds:.3g} s") from None
    if isinstance(found, Exception):
        raise found
    return found
