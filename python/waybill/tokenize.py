"""Prompts as text into the token ids that waybill-grpo reads, and ids back into text, by a checkpoint's
tokenizer.json. Needs the package tokenizers; chats (messages) need transformers beside it.

    python -m waybill.tokenize --tokenizer CHECKPOINT prompts.txt -o prompts.jsonl
    python -m waybill.tokenize --tokenizer CHECKPOINT --decode -      # in front of a reward program

`waybill tokenize` is the same command. A text file has a prompt a line; of JSON lines (.jsonl, or --jsonl)
each is an object with "prompt", a text, or "messages", a chat that the checkpoint's template ends with the
beginning of the answer. The line that comes out has the ids as "prompt", the text as "prompt_text", and what
else the object had: waybill-grpo hands all of it to a reward program. With --decode lines pass through one by
one, as they come, and "prompt", "completion" and "tokens" get their texts beside them, "prompt_text" and so
on, without the tokenizer's special tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ._errors import Corrupt, Error, InputOutput, InvalidArgument, NotFound, Unsupported

__all__ = ["Tokenizer", "decode_lines", "encode_lines", "main"]

ID_FIELDS = ("prompt", "completion", "tokens")


class Tokenizer:
    """The tokenizer of a checkpoint: a folder with tokenizer.json, or that file."""

    def __init__(self, path: str):
        self.folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        try:
            import tokenizers
        except ImportError:
            raise Unsupported(
                f"{file}: expected the Python package tokenizers to read it, found none"
            ) from None
        if not os.path.isfile(file):
            raise NotFound(f"{file}: expected a tokenizer, found no such file")
        try:
            self._fast = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # of no class of its own
            raise Corrupt(f"{file}: {error}") from None
        # What a file says of lengths is for batches of a model that classifies.
        self._fast.no_truncation()
        self._fast.no_padding()
        self._chat: Any = None

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a text."""
        return self._fast.encode(text).ids

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """By the checkpoint's chat template, up to where the answer begins."""
        if not self._chat:
            try:
                import transformers
            except ImportError:
                raise Unsupported("messages: expected the Python package transformers, found none") from None
            self._chat = transformers.AutoTokenizer.from_pretrained(self.folder)
        text = self._chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Without special tokens. An id that the tokenizer does not have is refused: it would be no text."""
        for i in ids:
            if self._fast.id_to_token(i) is None:
                raise InvalidArgument(f"expected ids of the tokenizer, found {i}")
        return self._fast.decode(ids)


def _json_line(item: dict[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _parsed(line: str, where: str) -> dict[str, Any]:
    """What can be read and not written again is refused here, where the line is known: NaN, a number that is
    infinite, half of a surrogate pair."""
    try:
        found = json.loads(line)
        if isinstance(found, dict):
            _json_line(found).encode("utf-8")
    except RecursionError:
        raise Corrupt(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise Corrupt(f"{where}: {error}") from None
    if not isinstance(found, dict):
        raise Corrupt(f"{where}: expected an object, found {line.strip()[:40]}")
    return found


def _encoded(tokenizer: Tokenizer, item: dict[str, Any], where: str) -> dict[str, Any]:
    prompt, messages = item.pop("prompt", None), item.get("messages")
    if isinstance(prompt, str) and messages is None:
        ids, text = tokenizer.encode(prompt), {"prompt_text": prompt}
    elif isinstance(messages, list) and messages and prompt is None:
        try:
            ids, text = tokenizer.encode_chat(messages), {}
        except Error:
            raise
        except Exception as error:  # of the template
            raise InvalidArgument(f"{where}: messages: {error}") from None
    else:
        raise InvalidArgument(f'{where}: expected a text as "prompt", or a list as "messages", and not both')
    if not ids:
        raise InvalidArgument(f"{where}: expected a prompt of at least one token, found none")
    return {"prompt": ids, **text, **item}


def encode_lines(
    tokenizer: Tokenizer, lines: Iterable[str], name: str, as_json: bool
) -> Iterator[dict[str, Any]]:
    """An object a line that is not empty; `name` is the file's in messages."""
    for number, line in enumerate(lines, 1):
        where, line = f"{name}: line {number}", line.rstrip("\r\n")
        if line.strip():
            item = _parsed(line, where) if as_json else {"prompt": line}
            yield _encoded(tokenizer, item, where)


def decode_lines(tokenizer: Tokenizer, lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """The same objects with the texts of their ids beside these."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        item = _parsed(line, where)
        fields = [field for field in ID_FIELDS if isinstance(item.get(field), list)]
        if not fields:
            raise InvalidArgument(
                f"{where}: expected token ids as {', '.join(ID_FIELDS)}, found none of them"
            )
        for field in fields:
            ids = item[field]
            if not all(type(i) is int and 0 <= i < 2**32 for i in ids):
                raise InvalidArgument(f"{where}: {field}: expected token ids")
            try:
                item[field + "_text"] = tokenizer.decode(ids)
            except InvalidArgument as error:
                raise InvalidArgument(f"{where}: {field}: {error}") from None
        yield item


def _is_special(path: str) -> bool:
    """Whether there is a device or a pipe, which is written into and never replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


class _Output:
    """Standard output, a device or a pipe, a line at a time; or a file that appears when it is whole, at the
    end of the links that lead to it."""

    def __init__(self, path: str | None, force: bool):
        self.path = self.temp = None
        if path in (None, "-", "/dev/stdout"):
            if not sys.stdout:
                raise InputOutput("standard output: expected it open, found it closed")
            sys.stdout.reconfigure(encoding="utf-8")
            self.file = sys.stdout
        elif _is_special(path):
            self.file = open(path, "w", encoding="utf-8")
        elif os.path.isdir(path):
            raise InputOutput(f"{path}: expected a file, found a folder")
        elif os.path.lexists(path) and not force:
            raise InputOutput(f"{path}: expected a path where nothing is, found a file (--force replaces it)")
        else:
            self.path = os.path.realpath(path)
            self.temp = f"{self.path}.{os.getpid()}.tmp"
            self.file = open(self.temp, "x", encoding="utf-8")

    def write(self, item: dict[str, Any]) -> None:
        self.file.write(_json_line(item))
        if not self.path:
            self.file.flush()

    def commit(self) -> None:
        if self.path:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temp, self.path)

    def discard(self) -> None:
        if self.temp and os.path.exists(self.temp):
            os.unlink(self.temp)


def _stop(number: int, _frame: Any) -> None:
    """Unwinds, so that no part of a file is left behind."""
    print(f"waybill tokenize: stopped by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


def _run(a: argparse.Namespace) -> None:
    is_stdin = a.prompts in ("-", "/dev/stdin")
    name = "standard input" if is_stdin else a.prompts
    tokenizer = Tokenizer(a.tokenizer)
    output = _Output(a.output, a.force)
    try:
        # Standard input by its number: a second opening of a file would begin at its start. A byte-order mark
        # is no part of the first prompt.
        with open(0 if is_stdin else a.prompts, encoding="utf-8-sig") as lines:
            if a.decode:
                items = decode_lines(tokenizer, lines, name)
            else:
                items = encode_lines(
                    tokenizer, lines, name, a.jsonl or a.prompts.endswith((".jsonl", ".json"))
                )
            for item in items:
                output.write(item)
        output.commit()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InvalidArgument(f"{name}: expected UTF-8, found the byte {byte:#04x}") from None
    finally:
        output.discard()


def main(words: list[str] | None = None) -> int:
    """The command; the exit code, 1 where the data or the system is at fault, after it was said."""
    parser = argparse.ArgumentParser(
        "waybill tokenize", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("prompts", metavar="PROMPTS", help="a file, or - for standard input")
    parser.add_argument(
        "--tokenizer", metavar="DIR", required=True, help="the checkpoint, or its tokenizer.json"
    )
    parser.add_argument("--jsonl", action="store_true", help="PROMPTS is JSON lines, whatever its name")
    parser.add_argument("--decode", action="store_true", help="ids into text")
    parser.add_argument("--force", action="store_true", help="replace OUT if there is a file")
    parser.add_argument("-o", "--output", metavar="OUT", help="instead of standard output")
    a = parser.parse_args(words)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        _run(a)
    except BrokenPipeError:  # the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Error, OSError) as error:
        print(f"waybill tokenize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
