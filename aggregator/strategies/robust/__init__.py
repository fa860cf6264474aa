"""Robust aggregation: who is not believed, and what stands in the mean's place.

`combine` makes one vector of a buffer's rows, `guarded` refuses single updates before that.
"""

from aggregator.strategies.robust.clipping import clip_factor
from aggregator.strategies.robust.combining import combine
from aggregator.strategies.robust.guard import guarded, length_of, summed_up

__all__ = ["clip_factor", "combine", "guarded", "length_of", "summed_up"]
