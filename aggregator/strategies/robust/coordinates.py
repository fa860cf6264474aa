"""Rules that look at each coordinate by itself: mean, median and trimmed mean.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, definitions 1 (coordinate-wise median) and 2 (trimmed mean). There
the trimmed share is beta, here it is f of K. A buffer that is not full drops as many as leave one.
"""

from aggregator.exact import Doubles
from aggregator.strategies.robust.stacks import Stack, summed


def mean(stack: Stack) -> Doubles:
    """Sum of the rows / K, coordinate by coordinate: (K, n) -> (n,)."""
    return summed(stack) / len(stack)


def median(stack: Stack) -> Doubles:
    """The middle of each coordinate, or the mean of the two in the middle. Sorts the stack."""
    return trimmed_mean(stack, len(stack))


def trimmed_mean(stack: Stack, byzantine: int) -> Doubles:
    """The mean of what is left without the f smallest and the f largest of each coordinate.

    Sorts the stack, shape (K, n), in place. Where 2 f >= K, one or two are left: the median.
    """
    dropped = min(byzantine, (len(stack) - 1) // 2)
    stack.sort(axis=0)
    return mean(stack[dropped : len(stack) - dropped])
