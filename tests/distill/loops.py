"""Loops in plain Python that losses are held against."""

import math


def kl_by_loop(p_logits: list[float], q_logits: list[float]) -> float:
    """KL(softmax(p) || softmax(q)) in plain Python."""
    p_sum, q_sum = (sum(math.exp(x) for x in logits) for logits in (p_logits, q_logits))
    total = 0.0
    for p_logit, q_logit in zip(p_logits, q_logits, strict=True):
        p, q = math.exp(p_logit) / p_sum, math.exp(q_logit) / q_sum
        total += p * math.log(p / q)
    return total
