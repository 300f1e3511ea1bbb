"""What the tests of the Python package share: where golden files lie, records that are made up, seeds.

Run one test file by itself with a seed of one's own: PYTHONPATH=build/python python3
tests/python/test_replay.py --seed 7
"""

import glob
import os
import sys
import unittest

import numpy as np

import waybill

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(TESTS, "golden")
FINGERPRINT = "0123456789abcdef0123456789abcdef"
SEED = 1
if "--seed" in sys.argv:
    SEED = int(sys.argv.pop(sys.argv.index("--seed") + 1))
    sys.argv.remove("--seed")


def golden(pattern):
    """Dumps of tests/golden/dump, which are there or the test looks at nothing."""
    found = sorted(glob.glob(os.path.join(GOLDEN, "dump", pattern)))
    assert found, pattern
    return found


def random_for(test):
    """A generator of this run's seed, which a failure shows."""
    print(f"{test.id()}: seed {SEED}", file=sys.stderr)
    return np.random.default_rng(SEED)


def make_model(L=3, E=8, K=2, name="test_moe", router="softmax_norm"):
    return waybill.RouteModel(name, FINGERPRINT, router, L + 1, tuple(range(1, L + 1)), E, K)


def make_routes(random, model, rows):
    """[rows, L, K] distinct experts of each row and layer."""
    shape = (rows, model.n_moe_layers, model.num_experts)
    return np.argsort(random.random(shape), -1)[..., : model.top_k].astype(model.id_dtype)


def make_record(random, model, rid, n=None, **fields):
    """A record of n tokens with a row for each but the last."""
    n = n or int(random.integers(2, 20))
    prompt_len = int(random.integers(1, n))
    fields.setdefault("routes", make_routes(random, model, n - 1))
    fields.setdefault("logprobs", -random.random(n - prompt_len).astype(np.float32))
    return waybill.Record(model, rid, random.integers(0, 1000, n), prompt_len, finish="length", **fields)


def main():
    # The README's reader, which test_dump.py borrows, leaves files to the collector.
    unittest.main(warnings="ignore")
