"""How long the rest of a job takes, told from how it went on so far; whose clock that is, is the caller's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SAMPLES = 64
_SHORTEST_S = 1.0
_RECENT_S = 30.0
_LONGEST_S = 30 * 86400.0


class Sample(NamedTuple):
    """`at` in seconds of a clock that never goes back, `progress` in percent."""

    at: float
    progress: float


def sampled(samples: Sequence[Sample], sample: Sample) -> tuple[Sample, ...]:
    """With one more, if it says anything new. Many are thinned out: the first and the newest stay."""
    if samples and sample.progress <= samples[-1].progress:
        return tuple(samples)
    if len(samples) >= _SAMPLES:
        samples = (*samples[:-1:2], samples[-1])
    return (*samples, sample)


def remaining_s(samples: Sequence[Sample], now: float) -> float | None:
    """Seconds until 100 % at the rate of late: of the last half minute, or the last quarter of the time where that is
    longer. While nothing moves, the rate falls. None where nobody can tell: nothing has moved yet, the run has hardly
    begun, or it would take months."""
    if len(samples) < 2 or now - samples[0].at < _SHORTEST_S:
        return None
    since = now - max(_RECENT_S, (now - samples[0].at) / 4)
    first = next((one for one in reversed(samples[:-1]) if one.at <= since), samples[0])
    last = samples[-1]
    if last.progress >= 100:
        return 0.0
    needed = (100 - last.progress) * (now - first.at) / (last.progress - first.progress) - (now - last.at)
    needed = max(needed, 0.0)
    return needed if needed <= _LONGEST_S else None
