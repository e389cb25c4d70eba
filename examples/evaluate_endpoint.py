"""Evaluate an endpoint: rounds of aggregation on problems of one's own, with intervals.

python examples/evaluate_endpoint.py http://localhost:8000/v1
"""

import sys

import paragator

problems = [paragator.Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(20)]
engine = paragator.OpenAI(sys.argv[1], sampling=paragator.Sampling(max_tokens=512))
result = paragator.evaluate(problems, engine, plan=paragator.Plan.method(pool_size=4, rounds=2))
print(result)
print("pass@1 by round:", [round(cell.mean, 3) for cell in result.table().series("pass_at_1")])
