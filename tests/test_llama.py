"""`smc.Llama` and the cache of compiled checkpoints, with a tiny trained model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import smc
from benchmarks.models import glassllm, random
from smc.cli import main
from smc.errors import InputError, Notice
from smc.folders import cache_folder
from smc.model_cache import artifact_of, cached_models, is_checkpoint, remove_model
from tests.frontend.test_gguf import write_gguf
from tests.runtime.conftest import byte_tokenizer

PROMPT = "Alice was beginning to get"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of compiled models of its own, which has the kernels of the user's."""
    folder, users = tmp_path_factory.mktemp("cache"), cache_folder()
    assert users is not None
    (users / "objects").mkdir(parents=True, exist_ok=True)
    (folder / "objects").symlink_to(users / "objects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "glassllm"
    glassllm(folder)
    return folder


@pytest.fixture(scope="module")
def llama(checkpoint: Path, cache: Path) -> Iterator[smc.Llama]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        model = smc.Llama(model_path=checkpoint, n_ctx=100, n_threads=1, n_batch=64, verbose=False)
    yield model
    model.close()


def test_a_checkpoint_is_compiled_once(llama: smc.Llama, checkpoint: Path, cache: Path):
    [entry] = cached_models()
    assert (entry.source, entry.path.parent) == (str(checkpoint), cache / "models")
    assert is_checkpoint(checkpoint) and not is_checkpoint(entry.path)
    written = entry.path.stat().st_mtime_ns
    assert artifact_of(checkpoint) == entry.path and entry.path.stat().st_mtime_ns == written
    assert artifact_of(entry.path) == entry.path
    assert artifact_of("nothing.smc") == Path("nothing.smc")  # whose absence the runtime tells


def test_completion(llama: smc.Llama):
    answer = llama(PROMPT, max_tokens=8, temperature=0.0)
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    [choice] = answer["choices"]
    alone = llama.model.generate(PROMPT, max_tokens=8, temperature=0.0)
    assert choice == {"index": 0, "text": alone.text, "logprobs": None, "finish_reason": "length"}
    assert answer["usage"]["completion_tokens"] == 8
    pieces = list(llama(PROMPT, max_tokens=8, temperature=0.0, stream=True))
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == alone.text
    assert [piece["choices"][0]["finish_reason"] for piece in pieces][-2:] == [None, "length"]
    stop = alone.text[3:5]
    stopped = llama.create_completion(PROMPT, max_tokens=8, temperature=0.0, stop=stop, echo=True)
    assert stopped["choices"][0]["text"] == PROMPT + alone.text[: alone.text.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_a_seed_makes_a_text_again(llama: smc.Llama):
    texts = {llama(PROMPT, max_tokens=12, temperature=1.5, seed=3)["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1
    assert texts != {llama(PROMPT, max_tokens=12, temperature=1.5, seed=4)["choices"][0]["text"]}


def test_logprobs_of_the_prompt_too(llama: smc.Llama):
    answer = llama(PROMPT, max_tokens=3, temperature=0.0, logprobs=2, echo=True)
    told = answer["choices"][0]["logprobs"]
    tokens = llama.tokenize(PROMPT.encode())
    generated = llama.model.generate(tokens, max_tokens=3, temperature=0.0).tokens
    rows = llama.model.logits(tokens + generated).astype(np.float64)
    expected = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    ids = tokens + generated
    assert told["token_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(
        [expected[i - 1, token] for i, token in enumerate(ids) if i], rel=1e-5
    )
    assert [len(top or ()) for top in told["top_logprobs"]] == [0] + [2] * (len(ids) - 1)
    assert told["text_offset"][: len(tokens) + 1 : len(tokens)] == [0, len(PROMPT)]
    pieces = list(llama(PROMPT, max_tokens=3, temperature=0.0, logprobs=2, echo=True, stream=True))
    streamed = [piece["choices"][0]["logprobs"] or {} for piece in pieces]
    for name in told:
        assert [value for part in streamed for value in part.get(name, [])] == told[name]


def test_tokens_and_embeddings(llama: smc.Llama):
    assert llama.detokenize(llama.tokenize(PROMPT.encode())).decode() == PROMPT
    assert (llama.n_ctx(), llama.n_vocab()) == (100, 1024)
    first, second = llama.embed([PROMPT, "x"])
    assert np.linalg.norm(first) == pytest.approx(1, rel=1e-5)
    assert llama.create_embedding(PROMPT)["data"][0]["embedding"] == first != second


def test_no_chat_without_a_template(llama: smc.Llama):
    with pytest.raises(InputError, match="has no chat template"):
        llama.create_chat_completion([{"role": "user", "content": "hello"}])


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


CONFIG = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "eos_token_id": 257,
}  # fmt: skip
ENDS = {"257": 100.0}
"""A bias by which an answer ends as soon as it may."""


@pytest.fixture(scope="module")
def chatty(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[smc.Llama]:
    """Random weights, bytes as tokens, a chat template that knows no tools, and a draft."""
    folder = tmp_path_factory.mktemp("chatty") / "chatty"
    random(folder, CONFIG)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    model = smc.Llama(folder, n_ctx=2000, n_threads=1, draft_model="lookup")
    yield model
    model.close()


MESSAGES = [{"role": "user", "content": "Where is Alice?"}]
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        {"type": "json_object", "schema": SCHEMA},  # as llama-cpp-python has it
        {"type": "regex", "regex": r'\{"n": (1|22)\}'},
    ],
)
def test_answers_of_a_given_form(chatty: smc.Llama, form: dict[str, Any]):
    answer = chatty.create_chat_completion(MESSAGES, response_format=form, max_tokens=60)
    assert json.loads(answer["choices"][0]["message"]["content"])["n"] in (1, 22)
    assert answer["choices"][0]["finish_reason"] == "stop"
    with pytest.raises(InputError, match="response_format: its type is text, json_object"):
        chatty.create_chat_completion(MESSAGES, response_format={"type": "xml"})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_tools(chatty: smc.Llama, choice: Any):
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "temperature": 0.0, "max_tokens": 200}
    options["logit_bias"] = ENDS
    [answered] = chatty.create_chat_completion(MESSAGES, **options)["choices"]
    assert answered["finish_reason"] == "tool_calls" and answered["message"]["content"] is None
    call = answered["message"]["tool_calls"][0]["function"]
    assert call["name"] == "look" and json.loads(call["arguments"])["n"] in (1, 22)
    pieces = [piece["choices"][0] for piece in chatty.create_chat_completion(MESSAGES, **options, stream=True)]
    assert [c["function"] for c in pieces[-1]["delta"]["tool_calls"]] == [
        c["function"] for c in answered["message"]["tool_calls"]
    ]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == ""
    assert pieces[-1]["finish_reason"] == "tool_calls"
    with pytest.raises(InputError, match="there is no tool 'fly'"):
        chatty.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice={"function": {"name": "fly"}})


def test_a_draft_changes_no_text(chatty: smc.Llama):
    prompt = "Alice was beginning to get very tired. Alice was beginning to get very"
    drafted = chatty(prompt, max_tokens=40, temperature=0.0)["choices"][0]["text"]
    assert drafted == chatty.model.generate(prompt, max_tokens=40, temperature=0.0).text
    chat = chatty.create_chat_completion(MESSAGES, max_tokens=20, temperature=0.0)
    alone = chatty.model.chat(MESSAGES, max_tokens=20, temperature=0.0)
    assert chat["choices"][0]["message"]["content"] == "".join(alone)


def test_a_gguf_file(cache: Path, make_checkpoint: Any, tmp_path: Path):
    """As users have it: a file in llama.cpp's format, compiled when it is first used."""
    write_gguf(tmp_path / "tiny.gguf", make_checkpoint()[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        llama = smc.Llama(model_path=str(tmp_path / "tiny.gguf"), n_ctx=64, n_threads=1)
    answer = llama([5, 6, 7], max_tokens=4, temperature=0.0)
    assert answer["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    llama.close()
    entry = next(model for model in cached_models() if model.source.endswith("tiny.gguf"))
    assert entry.name.startswith("tiny-")
    remove_model(entry.name)


def test_options(checkpoint: Path, cache: Path):
    with pytest.raises(InputError, match="Llama has no option 'n_cxt'"):
        smc.Llama(checkpoint, n_cxt=3)
    with pytest.warns(Notice, match="n_gpu_layers=40 has no effect"):
        smc.Llama(checkpoint, n_ctx=20, n_gpu_layers=40).close()


def test_commands(llama: smc.Llama, checkpoint: Path, cache: Path):
    runner = CliRunner()
    ran = runner.invoke(main.cli, ["run", str(checkpoint), PROMPT, "-n", "5", "-q"])
    assert ran.exit_code == 0
    assert ran.output.strip() == llama.model.generate(PROMPT, max_tokens=5).text.strip()
    entries = json.loads(runner.invoke(main.cli, ["list", "--json"]).output)
    [listed] = [entry for entry in entries if entry["source"] == str(checkpoint)]
    with pytest.raises(InputError, match=r"no model in the cache is called other: there are .*glassllm-"):
        remove_model("other")
    copied = cache / "models" / "copy.smc"
    shutil.copy(listed["path"], copied)
    copied.with_suffix(".json").write_text(json.dumps({"source": "copy", "made": 5}))
    assert [model.name for model in cached_models()][-1] == "copy"
    assert runner.invoke(main.cli, ["rm", "copy"]).exit_code == 0
    assert not copied.exists() and "copy" not in [model.name for model in cached_models()]
