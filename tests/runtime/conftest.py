"""The engine with a program whose logits can be told by hand, in an artifact with a byte-level tokenizer."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCAB = 259
SLOW = 7
"""A step that begins with this token takes a second."""

ENGINE = Path(__file__).parents[2] / "smc" / "runtime" / "engine"

CHAT_TEMPLATE = (
    "{% for message in messages %}<user>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def counting_logits(tokens: list[int]) -> np.ndarray:
    """What counting_program.c computes: float32 [len(tokens), VOCAB]."""
    sums = np.cumsum([(i + 1) * token for i, token in enumerate(tokens)])
    return (-0.125 * ((np.arange(VOCAB) - sums[:, None]) % VOCAB)).astype(np.float32)


def counting_text(prompt: list[int], count: int) -> list[int]:
    """The tokens that follow `prompt` greedily."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum((i + 1) * token for i, token in enumerate(tokens)) % VOCAB)
    return tokens[len(prompt) :]


def byte_tokenizer() -> Tokenizer:
    """Ids 0…255 are the bytes (in the order of the byte-level alphabet), 256…258 are <user>, <end> and <bot>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<user>", "<end>", "<bot>")])
    return tokenizer


def manifest_for(program: bytes, /, **changes: Any) -> dict[str, Any]:
    """A manifest for the counting program on this machine."""
    return {
        "format": "smc",
        "format_version": 2,
        "name": "counting",
        "target": "here",
        "machine": platform.machine(),
        "system": platform.system(),
        "context_length": 200,
        "vocab_size": VOCAB,
        "weights": {"sha256": hashlib.sha256(bytes(64)).hexdigest(), "bytes": 64},
        "program": {"sha256": hashlib.sha256(program).hexdigest(), "bytes": len(program)},
        "special_tokens": {"eos_token": "<end>"},
        "generation": {"eos_token_id": [257]},
        **changes,
    }


def write_artifact(path: Path, members: dict[str, bytes | str]) -> Path:
    """A ZIP of stored members; the first one's data begin at 64 KiB."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(members.items()):
            info = zipfile.ZipInfo(name)
            if number == 0:
                space = 65536 - 30 - len(name) - 4
                info.extra = b"\0\0" + space.to_bytes(2, "little") + bytes(space)
            archive.writestr(info, data)
    return path


@pytest.fixture(scope="session")
def build_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Links the engine with counting_program.c, its text changed by (old, new) pairs: the bytes of a program.so."""

    def build(*changes: tuple[str, str]) -> bytes:
        folder = tmp_path_factory.mktemp("program")
        source = (Path(__file__).parent / "counting_program.c").read_text()
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        (folder / "program.c").write_text(source)
        out = folder / "program.so"
        flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-sanitize=undefined"]
        sources = [str(folder / "program.c"), *map(str, sorted([*ENGINE.glob("*.c"), *ENGINE.glob("cpu/*.c")]))]
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu.2.28"]
        subprocess.run([*compiler, *flags, f"-I{ENGINE}", *sources, "-o", str(out), "-lpthread", "-lm"], check=True)
        return out.read_bytes()

    return build


@pytest.fixture(scope="session")
def program(build_program: Callable[..., bytes]) -> bytes:
    return build_program()


@pytest.fixture(scope="session")
def artifact(program: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the counting program."""
    return write_artifact(
        tmp_path_factory.mktemp("artifact") / "counting.smc",
        {
            "weights": bytes(64),
            "manifest.json": json.dumps(manifest_for(program)),
            "program.so": program,
            "tokenizer.json": byte_tokenizer().to_str(),
            "chat_template.jinja": CHAT_TEMPLATE,
        },
    )
