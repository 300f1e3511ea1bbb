#!/usr/bin/env python3
"""A reward program for waybill-grpo --reward-cmd: a completion as a JSON line in, a number a line out, for as long as the run lasts.

It is started once a rank and kept, so each answer is flushed as soon as it is known. "item" is the line of the task's file that the
prompt came from, with whatever keys it has; here "answer", the tokens of the right completion."""
import json
import sys

for line in sys.stdin:
    sample = json.loads(line)
    answer = sample["item"]["answer"]
    right = 0
    while right < min(len(answer), len(sample["completion"])) and sample["completion"][right] == answer[right]:
        right += 1
    print(1.0 if sample["completion"] == answer else 0.5 * right / len(answer), flush=True)
