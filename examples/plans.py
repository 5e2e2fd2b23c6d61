"""A head plan, found once, drawn, saved, and used for another video: heads.png, plan.json and star.mp4.

python examples/plans.py
"""

import dummyforcing
from dummyforcing.analysis.plots import print_head_map, save_head_map

pipe = dummyforcing.load("tiny")
plan = pipe("a red ball bounces on a green floor", num_frames=33).plans[0]
print(f"{plan.counts}, found in chunk {plan.chunk}")
for role, context in plan.table.items():
    print(f"{role} heads see {context.sink} first and {context.recent} recent frames")

print_head_map(plan)
save_head_map("heads.png", plan)
plan.save("plan.json")

other = pipe.generate("a blue star spins", num_frames=33, plan=dummyforcing.Plan.load("plan.json"))
other.save("star.mp4")
print(f"{other.cache_bytes / 1e6:.1f} MB of keys and values, small from the first chunk on")
