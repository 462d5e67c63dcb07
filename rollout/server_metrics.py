"""Counts of the server and its engine in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import asdict

from rollout.server_worker import EngineWorker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    def __init__(self) -> None:
        self._replies: Counter[tuple[str, int]] = Counter()  # (route, status)
        self._num_within: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS_S) + 1))  # by first bound
        self._sum_s: Counter[str] = Counter()

    def observe(self, route: str, status: int, seconds: float) -> None:
        """A reply that has been sent whole; status 499 if the client left before."""
        route = route.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")  # it may hold the model's name
        self._replies[route, status] += 1
        self._num_within[route][bisect_left(_BOUNDS_S, seconds)] += 1
        self._sum_s[route] += seconds

    def text(self, worker: EngineWorker) -> str:
        lines = ["# HELP patarm_requests_total Replies, by route and status; 499: the client left."]
        lines += ["# TYPE patarm_requests_total counter"]
        for (route, status), count in sorted(self._replies.items()):
            lines.append(f'patarm_requests_total{{route="{route}",status="{status}"}} {count}')
        lines += ["# HELP patarm_request_seconds Time from the request to the end of its reply."]
        lines += ["# TYPE patarm_request_seconds histogram"]
        for route, within in sorted(self._num_within.items()):
            for i, bound in enumerate([*_BOUNDS_S, "+Inf"]):
                lines.append(f'patarm_request_seconds_bucket{{route="{route}",le="{bound}"}} {sum(within[: i + 1])}')
            lines.append(f'patarm_request_seconds_sum{{route="{route}"}} {self._sum_s[route]:.6f}')
            lines.append(f'patarm_request_seconds_count{{route="{route}"}} {sum(within)}')
        stats = asdict(worker.stats)
        counts = stats.pop("counts") | {"num_failures": worker.num_failures}
        for name, value in counts.items():
            lines += _single(
                "counter", f"engine_{name.removeprefix('num_')}_total", value, "Since the engine was made."
            )
        gauges = stats | {"num_open_requests": worker.num_open, "is_healthy": int(worker.is_healthy)}
        for name, value in gauges.items():
            lines += _single("gauge", f"engine_{name.removeprefix('num_')}", value, "Now.")
        return "\n".join(lines) + "\n"


def _single(kind: str, name: str, value: int, help: str) -> list[str]:
    return [f"# HELP patarm_{name} {help}", f"# TYPE patarm_{name} {kind}", f"patarm_{name} {value}"]
