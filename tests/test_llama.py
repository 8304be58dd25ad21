"""`smc.Llama` and the cache of compiled checkpoints, with a tiny trained model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import smc
from benchmarks.models import glassllm
from smc.cli import main
from smc.errors import InputError, Notice
from smc.folders import cache_folder
from smc.model_cache import artifact_of, cached_models, is_checkpoint, remove_model

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


def test_tokens_and_embeddings(llama: smc.Llama):
    assert llama.detokenize(llama.tokenize(PROMPT.encode())).decode() == PROMPT
    assert (llama.n_ctx(), llama.n_vocab()) == (100, 1024)
    first, second = llama.embed([PROMPT, "x"])
    assert np.linalg.norm(first) == pytest.approx(1, rel=1e-5)
    assert llama.create_embedding(PROMPT)["data"][0]["embedding"] == first != second


def test_no_chat_without_a_template(llama: smc.Llama):
    with pytest.raises(InputError, match="has no chat template"):
        llama.create_chat_completion([{"role": "user", "content": "hello"}])


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
    [listed] = json.loads(runner.invoke(main.cli, ["list", "--json"]).output)
    assert listed["source"] == str(checkpoint)
    with pytest.raises(InputError, match="no model in the cache is called other: there are glassllm-"):
        remove_model("other")
    copied = cache / "models" / "copy.smc"
    shutil.copy(listed["path"], copied)
    copied.with_suffix(".json").write_text(json.dumps({"source": "copy", "made": 5}))
    assert [model.name for model in cached_models()] == [listed["name"], "copy"]
    assert runner.invoke(main.cli, ["rm", "copy"]).exit_code == 0
    assert not copied.exists() and [model.name for model in cached_models()] == [listed["name"]]
