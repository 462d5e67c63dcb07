"""A PaTaRM judge as verl's custom reward function; verl calls `compute_score` once for each rollout.

    python3 -m verl.trainer.main_ppo … custom_reward_function.path=rollout/verl_reward.py \\
        custom_reward_function.name=compute_score \\
        +custom_reward_function.reward_kwargs.url=http://JUDGE:8000

The judge runs elsewhere, `rollout/main.py serve --model DIR`. `extra_info` of a row of the data holds "prompt", a text
or messages, and may hold "task"; what else verl hands over is passed over. verl takes a number: a response that the
judge gives no score raises, for 0 would be the worst there is.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object = None,
    extra_info: dict | None = None,
    *,
    url: str = "http://127.0.0.1:8000",
    votes: int | None = None,
    timeout: float = 600.0,
    **_: object,
) -> float:
    """The mean score, 0 to 10, of the response `solution_str`.

    Args:
        url: of the server.
        votes: judgments of the response; None: as many as the server was started with.
        timeout: seconds for one reply.

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
    request = urllib.request.Request(
        f"{url.rstrip('/')}/score", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            judged = json.load(reply)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code}: {error.read().decode(errors='replace')[:500]}") from None
    except OSError as error:
        raise RuntimeError(f"{url}: {error}") from None
    if judged["score"] is None:
        raise ValueError(f"a row of {data_source}: no judgment of the response has a score")
    return judged["score"]
