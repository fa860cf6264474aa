"""Krum and Multi-Krum: the rows that lie closest to most others.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent", NeurIPS 2017, section 4: the score of a row is

    s(i) = sum of ||x_i - x_j||^2 over the K - f - 2 rows j nearest to it, itself left out

Krum takes the row with the smallest score, ties by order; Multi-Krum the mean of the m rows with
the smallest scores, here m = K - f. It holds for K >= 2 f + 3. In a buffer that is not full at
least one neighbour counts, and at least one row is taken.
"""

from aggregator.exact import Doubles


def best_rows(distances: Doubles, byzantine: int, wanted: int) -> list[int]:
    """The `wanted` rows with the smallest scores, at least one, in the order of the rows.

    Args:
        distances: squared, float64, shape (K, K).
        byzantine: f.
        wanted: how many.
    """
    count = len(distances)
    near = max(1, count - byzantine - 2)
    scores = []
    for i, from_here in enumerate(distances.tolist()):
        others = sorted(from_here[:i] + from_here[i + 1 :])
        score = 0.0
        for distance in others[:near]:
            score += distance
        scores.append(score)
    return sorted(sorted(range(count), key=scores.__getitem__)[: max(1, wanted)])
