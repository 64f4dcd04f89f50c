"""Amdahl's law: what a kernel that was judged alone is worth in its model."""

from __future__ import annotations

from collections.abc import Iterable

from autokernel.types import Target

SPELLED_OUT = 1.5  # a model's own code that takes so many times what its problem's baseline does is another program


def model_gain(target: Target, latency_us: float | None, speedup_vs_eager: float | None) -> float:
    """How many times faster the model's regions run with a kernel that takes so long, as it was judged; 1 where it does
    not beat what they are today, since it then stays out of the model.

    That is the problem's eager baseline, timed beside the kernel; but where a model spells out what PyTorch has an
    operator for, as attention in products around a softmax, it is what its own code took in the profile.
    """
    own = spelled_out(target, latency_us, speedup_vs_eager)
    if own is not None and latency_us is not None:
        return max(1.0, own / latency_us)
    return max(1.0, speedup_vs_eager or 1.0)


def spelled_out(target: Target, latency_us: float | None, speedup_vs_eager: float | None) -> float | None:
    """Microseconds a forward of this target's code in its model, where that is another program than the problem's
    eager baseline, which takes ``latency_us`` times ``speedup_vs_eager``; None where it is not, or not known.
    """
    if not latency_us or not speedup_vs_eager:
        return None
    return target.eager_us if target.eager_us > SPELLED_OUT * latency_us * speedup_vs_eager else None


def projected(parts: Iterable[tuple[float, float]], attributed: float = 1.0) -> float:
    """How many times faster the whole is for (share, gain) of its parts; shares are fractions of ``attributed``, the
    fraction of the whole's wall time that they account for.
    """
    return 1.0 / max(1e-9, 1.0 - min(attributed, 1.0) * sum(share * (1.0 - 1.0 / gain) for share, gain in parts))
