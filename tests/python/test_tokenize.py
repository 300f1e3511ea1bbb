"""waybill.tokenize against transformers' reading of the same tokenizer.json, and back; what it refuses.

Needs tokenizers and transformers: tests/python/run.sh has them.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from support import TESTS, random_for

import waybill
import waybill.tokenize

try:
    import tokenizers
    import transformers
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)

TEXTS = [
    "one plus one",
    "  two\tspaces  ",
    "ünïcödé, 中文 and 😀",
    "<|im_end|> is a token",
    '{"not": "json"}',
    "x" * 500,
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder):
    """A byte-level BPE with a token before each text, as checkpoints have them."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    made.enable_truncation(8)  # which no prompt may suffer from
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)


class Tokenize(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = os.path.join(cls.scratch.name, "checkpoint")
        make_tokenizer(cls.folder)
        cls.tokenizer = waybill.tokenize.Tokenizer(cls.folder)
        cls.oracle = transformers.AutoTokenizer.from_pretrained(cls.folder)
        cls.oracle.backend_tokenizer.no_truncation()

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def file(self, name, text):
        path = os.path.join(self.scratch.name, name)
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)
        return path

    def command(self, *words, **more):
        return subprocess.run(
            [sys.executable, "-m", "waybill.tokenize", "--tokenizer", self.folder, *words],
            capture_output=True,
            text=True,
            **more,
        )

    def encode(self, lines, as_json):
        return list(waybill.tokenize.encode_lines(self.tokenizer, lines, "file", as_json))

    def test_texts_are_as_transformers_has_them(self):
        for found, text in zip(self.encode(TEXTS, False), TEXTS):
            self.assertEqual(found, {"prompt": self.oracle(text)["input_ids"], "prompt_text": text})

    def test_random_texts_come_back(self):
        random = random_for(self)
        for _ in range(200):
            text = "".join(
                chr(c)
                for c in random.integers(32, 0x2FFF, random.integers(1, 60))
                if not 0xD800 <= c < 0xE000
            )
            self.assertEqual(self.tokenizer.decode(self.tokenizer.encode(text)), text)

    def test_json_lines_keep_what_they_have(self):
        lines = [
            json.dumps({"prompt": "one", "answer": 3, "meta": {"a": [1]}}),
            "",
            json.dumps({"messages": CHAT, "id": 7}),
        ]
        one, chat = self.encode(lines, True)
        self.assertEqual(
            one,
            {
                "prompt": self.oracle("one")["input_ids"],
                "prompt_text": "one",
                "answer": 3,
                "meta": {"a": [1]},
            },
        )
        ids = self.oracle.apply_chat_template(
            CHAT, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        self.assertEqual(chat, {"prompt": ids, "messages": CHAT, "id": 7})

    def test_what_is_refused_is_named(self):
        for line, part in [
            ("{", "file: line 2: "),
            ("[1]", "expected an object, found [1]"),
            ('{"prompt": [1, 2]}', 'expected a text as "prompt"'),
            ('{"prompt": "a", "messages": []}', "and not both"),
            ('{"messages": [{"role": "tool", "content": ""}]}', "file: line 2: messages: no tools here"),
            ('{"messages": 3}', 'expected a text as "prompt"'),
            ("{}", 'expected a text as "prompt"'),
            ('{"prompt": "\\ud800"}', "file: line 2: 'utf-8' codec can't encode"),
            ('{"prompt": "a", "answer": NaN}', "file: line 2: Out of range float"),
            ('{"prompt": "a", "answer": 1e999}', "file: line 2: Out of range float"),
            ('{"prompt": "a", "answer": ' + "[" * 200000 + "]" * 200000 + "}", "file: line 2: nested too deeply"),
        ]:
            with self.assertRaises(waybill.Error) as raised:
                self.encode(['{"prompt": "a"}', line], True)
            self.assertIn(part, str(raised.exception))
        with self.assertRaisesRegex(waybill.InvalidArgument, "line 1: completion: expected token ids"):
            list(waybill.tokenize.decode_lines(self.tokenizer, ['{"completion": [1.5]}'], "file"))
        with self.assertRaisesRegex(
            waybill.InvalidArgument, "line 1: expected token ids as prompt, completion, tokens"
        ):
            list(waybill.tokenize.decode_lines(self.tokenizer, ['{"prompt": "a"}'], "file"))
        with self.assertRaisesRegex(
            waybill.InvalidArgument, "line 1: completion: expected ids of the tokenizer, found 99999"
        ):
            list(waybill.tokenize.decode_lines(self.tokenizer, ['{"completion": [0, 99999]}'], "file"))
        with self.assertRaisesRegex(waybill.NotFound, "tokenizer.json: expected a tokenizer"):
            waybill.tokenize.Tokenizer(TESTS)
        with self.assertRaises(waybill.Corrupt):
            waybill.tokenize.Tokenizer(self.file("tokenizer.json", "{}"))

    def test_the_command(self):
        prompts, out = (
            self.file("prompts.txt", "one plus one\n\ntwo\n"),
            os.path.join(self.scratch.name, "out.jsonl"),
        )
        wanted = [{"prompt": self.oracle(t)["input_ids"], "prompt_text": t} for t in ("one plus one", "two")]
        self.assertEqual(self.command(prompts, "-o", out).returncode, 0)
        with open(out, encoding="utf-8") as lines:
            self.assertEqual([json.loads(line) for line in lines], wanted)
        again = self.command(prompts, "-o", out)
        self.assertEqual(again.returncode, 1)
        self.assertIn("--force replaces it", again.stderr)
        self.assertEqual(
            self.command("--jsonl", "-", "-o", out, "--force", input='{"prompt": "two"}').returncode, 0
        )
        bad = self.command(self.file("bad.jsonl", '{"prompt": "a"}\n{'), "-o", out, "--force")
        self.assertEqual(bad.returncode, 1)
        self.assertIn("bad.jsonl: line 2", bad.stderr)
        with open(out, encoding="utf-8") as lines:  # as it was
            self.assertEqual([json.loads(line) for line in lines], wanted[1:])
        self.assertEqual([name for name in os.listdir(self.scratch.name) if name.endswith(".tmp")], [])

    def test_what_is_no_file_is_written_into_and_a_link_is_followed(self):
        prompts, wanted = self.file("one.txt", "one\n"), self.encode(["one"], False)
        at = lambda name: os.path.join(self.scratch.name, name)  # noqa: E731
        for more in ([], ["--force"]):
            self.assertEqual(self.command(prompts, "-o", "/dev/null", *more).returncode, 0)
            os.mkfifo(at("pipe"))
            with subprocess.Popen(["cat", at("pipe")], stdout=subprocess.PIPE, text=True) as reader:
                self.assertEqual(self.command(prompts, "-o", at("pipe"), *more).returncode, 0)
                self.assertEqual(json.loads(reader.stdout.read()), wanted[0])
            os.unlink(at("pipe"))
        self.assertFalse(os.path.isfile("/dev/null"))
        os.symlink(self.file("target.jsonl", "old"), at("link"))
        self.assertEqual(self.command(prompts, "-o", at("link")).returncode, 1)
        self.assertEqual(self.command(prompts, "-o", at("link"), "--force").returncode, 0)
        self.assertTrue(os.path.islink(at("link")))
        with open(at("target.jsonl"), encoding="utf-8") as lines:
            self.assertEqual([json.loads(line) for line in lines], wanted)

    def test_output_is_utf_8_and_a_byte_order_mark_is_no_text(self):
        found = self.command(
            self.file("mark.txt", "\ufeffüne\n"),
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        self.assertEqual([json.loads(found.stdout)], self.encode(["üne"], False), found.stderr)

    def test_what_is_no_utf_8_is_named(self):
        path = self.file("latin.txt", "")
        with open(path, "wb") as file:
            file.write(b"one\n\xe9t\xe9\n")
        found = self.command(path)
        self.assertEqual(found.returncode, 1)
        self.assertIn("latin.txt: expected UTF-8, found the byte 0xe9", found.stderr)

    def test_a_closed_output_and_signals_are_said(self):
        words = [sys.executable, "-m", "waybill.tokenize", "--tokenizer", self.folder]
        closed = subprocess.run(
            ["sh", "-c", '"$@" >&-', "sh", *words, self.file("one.txt", "one\n")],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.assertEqual((closed.returncode, "Traceback" in closed.stderr), (1, False), closed.stderr)
        for number in (signal.SIGINT, signal.SIGTERM):
            out = os.path.join(self.scratch.name, f"stopped{number}.jsonl")
            with subprocess.Popen(
                [*words, "-", "-o", out],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # A shell has its jobs in the background ignore SIGINT, and what they start inherits that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ) as child:
                temp = f"{out}.{child.pid}.tmp"
                while not os.path.exists(temp):
                    self.assertIsNone(child.poll())
                    time.sleep(0.01)
                child.send_signal(number)
                said = child.communicate()[1]
            self.assertEqual((child.returncode, "Traceback" in said), (128 + number, False), said)
            self.assertFalse(os.path.exists(temp) or os.path.exists(out))

    def test_decode_answers_line_by_line(self):
        ids = self.tokenizer.encode("four") + [2]
        words = [sys.executable, "-m", "waybill.tokenize", "--tokenizer", self.folder, "--decode", "-"]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=buffered
        ) as child:
            for rid in ("s0-g0-0", "s0-g0-1"):  # each answered before the next is sent
                child.stdin.write(json.dumps({"rid": rid, "prompt": ids, "completion": ids[1:]}) + "\n")
                child.stdin.flush()
                found = json.loads(child.stdout.readline())
                self.assertEqual(
                    (found["rid"], found["prompt_text"], found["completion_text"]), (rid, "four", "four")
                )
            child.stdin.close()
            self.assertEqual(child.wait(), 0)


if __name__ == "__main__":
    unittest.main()
