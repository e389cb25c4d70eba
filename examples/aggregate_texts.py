"""Aggregate solutions that one already has, wherever they come from: one round, one pool, four aggregations.

python examples/aggregate_texts.py
"""

import paragator

texts = ["3*8=24", "7+8=15", "(7-4)*8=24", "3+4+7+8=22"]
found = paragator.aggregate("3 4 7 8 -> 24", texts, "embedded", aggregations=4)
print("votes:", found.votes)
print("answer:", found.answer)
