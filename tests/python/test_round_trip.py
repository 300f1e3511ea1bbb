"""Checkpoints through this engine and back into transformers: what hf_oracle reads and saves again, from two
ranks, transformers loads without a tensor missing or left over, and computes the reference's logits of it;
layers for multi-token prediction come back bit for bit. And what is released quantized transformers reads
itself to the same logits. Needs hf_oracle of a build beside the sources."""

import glob
import os
import subprocess
import sys
import tempfile
import unittest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HF_ORACLE = os.path.join(os.path.dirname(TESTS), "build", "tests", "hf_oracle")
if not os.path.exists(HF_ORACLE):
    print(f"skip: no {HF_ORACLE}")
    raise SystemExit(77)
try:
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, os.path.join(TESTS, "tools"))
    import check_hf_load
    import transformers

    transformers.logging.set_verbosity_error()
except ImportError as error:
    print(f"skip: {error}")
    raise SystemExit(77) from None


def tensors(folder):
    found = {}
    for path in glob.glob(os.path.join(folder, "model*.safetensors")):
        found.update(load_file(path))
    return found


def folders(pattern="*"):
    found = sorted(glob.glob(os.path.join(TESTS, "golden", "oracles", pattern, "meta.json")))
    assert found, pattern
    return [os.path.dirname(meta) for meta in found]


class RoundTrip(unittest.TestCase):
    def assert_loads(self, saved, oracle):
        model, faults = check_hf_load.load(saved)
        self.assertEqual(faults, {})
        self.assertLessEqual(check_hf_load.error_of(model, oracle), 1e-4)
        return model

    def assert_same_layers_behind(self, model, oracle, saved):
        n_layers = model.config.get_text_config().num_hidden_layers
        before, after = tensors(oracle), tensors(saved)
        if any(name.endswith("_scale_inv") for name in before):
            return 0  # widened, so that names and numbers are others
        names = [name for name in before if check_hf_load.is_behind(name, n_layers)]
        self.assertEqual(sorted(names), sorted(n for n in after if check_hf_load.is_behind(n, n_layers)))
        for name in names:
            self.assertTrue(torch.equal(before[name].float(), after[name].float()), name)
        return len(names)

    def test_saved_checkpoints(self):
        behind = 0
        for oracle in folders():
            with self.subTest(os.path.basename(oracle)), tempfile.TemporaryDirectory() as saved:
                subprocess.run(
                    [HF_ORACLE, "--ranks", "2", "--save", saved, oracle], check=True, stdout=subprocess.DEVNULL
                )
                model = self.assert_loads(saved, oracle)
                behind += self.assert_same_layers_behind(model, oracle, saved)
        self.assertGreater(behind, 100)

    def test_released_checkpoints_as_transformers_reads_them(self):
        for oracle in folders("*_released"):
            with self.subTest(os.path.basename(oracle)):
                self.assert_loads(oracle, oracle)


if __name__ == "__main__":
    unittest.main(warnings="ignore")
