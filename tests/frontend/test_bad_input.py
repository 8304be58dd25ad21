"""Broken and unsupported checkpoints: each is one sentence that names what is wrong and where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from smc.errors import InputError
from smc.frontend import load_checkpoint
from tests.test_errors import PANICS_AT_LOAD

Make = Callable[..., tuple[Path, Any]]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def assert_refused(source: Path | str, *parts: str) -> None:
    """Loading fails with one sentence that contains the parts."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(make_checkpoint: Make) -> Path:
    return make_checkpoint()[0]


@pytest.fixture
def sharded(make_checkpoint: Make) -> Path:
    folder, model = make_checkpoint()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_nothing_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none", str(tmp_path / "none"), "does not exist")
    assert_refused("none", "none does not exist: give a checkpoint folder, a .gguf file or a hub id like org/name")
    assert_refused("x" * 5000, "File name too long")


def test_a_hub_id_while_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert_refused("nobody/no-such-model", "nobody/no-such-model is not a local folder", "can't be downloaded")


@pytest.mark.parametrize("name", ["a..b/c", "org/" + "x" * 200, "org/name.git"])
def test_an_invalid_hub_id(name: str) -> None:
    assert_refused(name, "is neither a local folder nor a valid hub id")


def test_other_files(folder: Path, tmp_path: Path) -> None:
    assert_refused(folder / "model.safetensors", "give the folder")
    (tmp_path / "notes.txt").write_text("x")
    assert_refused(tmp_path / "notes.txt", "is not a checkpoint")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert_refused(folder, str(folder), "has no config.json")
    (folder / "model.gguf").touch()
    assert_refused(folder, "name the file itself", "model.gguf")
    (folder / "adapter_config.json").write_text("{}")
    assert_refused(folder, "LoRA adapter")


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "\udcff", "[" * 100_000])
def test_config_that_is_no_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    assert_refused(folder, "config.json")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": ...}, "config.json has no hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, at most 1,073,741,824, not 0"),
        ({"num_hidden_layers": 3}, "lacks the tensor model.layers.2.input_layernorm.weight, of shape [48]"),
        ({"num_hidden_layers": 10**9}, "lacks the tensor model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "no place for the tensor model.layers.1.input_layernorm.weight (and 8 more)"),
        ({"intermediate_size": [80]}, "intermediate_size must be a positive integer or a list of 2"),
        ({"intermediate_size": [80, 81]}, "mlp.gate_proj.weight has shape [80, 48], expected [81, 48]"),
        ({"vocab_size": 95}, "model.embed_tokens.weight has shape [96, 48], expected [95, 48]"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
        ({"attention_bias": True}, "lacks the tensor model.layers.0.self_attn.q_proj.bias"),
        ({"hidden_act": "prelu"}, "the activation prelu is not supported (silu, swish,"),
        ({"num_attention_heads": 7, "head_dim": ...}, "hidden_size 48 is not a multiple of 7 attention heads"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3 key-value heads"),
        ({"head_dim": 9}, "head_dim must be even"),
        ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "rope type spiral is not supported"),
        (
            {"architectures": ["FalconForCausalLM"]},
            "FalconForCausalLM is not supported; supported are BitNetForCausalLM, ",
        ),
        ({"architectures": ["LlamaForCausalML"]}, "(the nearest is LlamaForCausalLM)"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of class names"),
        ({"architectures": ..., "model_type": "mamba"}, "mamba is not supported"),
        ({"quantization_config": {"quant_method": "quip"}}, "weights quantized with quip are not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "no tensor is stored as awq stores it"),
        ({"quantization_config": {}}, "weights quantized with an unnamed method"),
        ({"eos_token_id": "2"}, "eos_token_id must be a token id or a list of them"),
    ],
)
def test_config_that_does_not_fit(folder: Path, changes: dict[str, Any], part: str) -> None:
    edit_config(folder, **changes)
    assert_refused(folder, part)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "neither model.safetensors nor model.safetensors.index.json")


def test_pickled_weights_are_never_unpickled(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "exploded",)

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    assert_refused(folder, "only pickled weights (pytorch_model.bin)", "convert to safetensors")
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(folder, f"{path} is truncated or corrupt")


REFUSE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* As file systems do that map no files: some FUSE and network ones. */
void *mmap(void *begin, size_t size, int protection, int flags, int file, off_t offset) {
  typedef void *(*function)(void *, size_t, int, int, int, off_t);
  const function real = (function)dlsym(RTLD_NEXT, "mmap");
  char link[64], path[4096] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  if (file >= 0 && readlink(link, path, sizeof path - 1) > 0 && strstr(path, ".safetensors")) {
    errno = ENODEV;
    return MAP_FAILED;
  }
  return real(begin, size, protection, flags, file, offset);
}
void *mmap64(void *begin, size_t size, int protection, int flags, int file, off_t offset) {
  return mmap(begin, size, protection, flags, file, offset);
}
"""


def test_a_file_system_that_maps_no_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "refuse.c").write_text(REFUSE)
    library = tmp_path / "refuse.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "refuse.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    path = str(folder / "model.safetensors")
    mapped = f"import safetensors; safetensors.safe_open({path!r}, 'numpy')"
    run = subprocess.run([sys.executable, "-c", mapped], env=environment, capture_output=True, text=True)
    assert run.returncode and "No such device" in run.stderr
    ours = (
        "import pathlib, smc\n"
        f"parameters = smc.load_checkpoint(pathlib.Path({str(folder)!r})).parameters\n"
        f"print(float(parameters[{Q_PROJ!r}].values().abs().sum()))"
    )
    run = subprocess.run([sys.executable, "-c", ours], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with safe_open(path, "pt") as file:
        assert float(run.stdout) == float(file.get_tensor(Q_PROJ).abs().sum())


def test_corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[20:30] = b"\xff" * 10
    path.write_bytes(data)
    assert_refused(folder, f"{path} is truncated or corrupt")


def test_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(Q_PROJ))
    assert_refused(folder, f"lacks the tensor {Q_PROJ}, of shape [48, 48]")


def test_unknown_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    assert_refused(folder, "no place for the tensor model.extra.weight,")


def test_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(47, 48)}))
    assert_refused(folder, f"tensor {Q_PROJ} has shape [47, 48], expected [48, 48]")


def test_unsupported_dtype(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(48, 48, dtype=torch.float64)}))
    assert_refused(folder, f"tensor {Q_PROJ} is stored as F64")


def test_scales_of_a_ternary_llama_that_do_not_fit(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.scales": torch.ones(79)}))
    assert_refused(folder, "model.layers.0.mlp.up_proj.scales has shape [79]", "[80]")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers(folder: Path, bad: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q_PROJ] = tensors[Q_PROJ].to(dtype)
        tensors[Q_PROJ][47, 47] = bad

    edit_tensors(folder, spoil)
    module = load_checkpoint(folder)
    module.parameters["model.layers.0.self_attn.q_proj.weight"].load()
    with pytest.raises(InputError, match=f"tensor {Q_PROJ} holds NaN or infinite weights"):
        module.parameters[Q_PROJ].load()


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert_refused(sharded, f"{shard} is missing")


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    assert_refused(sharded, f"{shard} is truncated or corrupt")


def test_index_and_shards_disagree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = content["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(content))
    assert_refused(sharded, "lacks the tensor model.norm.weight")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}', "x"])
def test_bad_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert_refused(sharded, "model.safetensors.index.json")


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "a\0b"])
def test_index_that_points_outside(sharded: Path, place: str) -> None:
    save_file({"model.norm.weight": torch.ones(48)}, sharded.parent / "secret.safetensors")
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = place
    index.write_text(json.dumps(content))
    assert_refused(sharded, "points outside its folder", repr(place))


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 269060552\n"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model", "generation_config.json", "model.gguf"],
)
def test_git_lfs_pointers(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    source = folder / name if name.endswith(".gguf") else folder
    assert_refused(source, f"{folder / name} is a git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "model-00001-of-…"]
)
def test_files_that_may_not_be_read(make_checkpoint: Make, name: str) -> None:
    """They are there: to say that they are missing would send the user the wrong way."""
    folder, model = make_checkpoint()
    if "…" in name:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="80KB")
        name = min(path.name for path in folder.glob("model-*"))
    with tempfile.TemporaryDirectory() as room:
        os.chmod(room, 0o755)
        copy = Path(shutil.copytree(folder, Path(room) / "model"))
        for path in copy.iterdir():
            path.chmod(0o644)
        (copy / name).write_bytes(b"{}")
        (copy / name).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert_refused(copy, f"can't read {copy / name}: Permission denied")
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("text", ["{}", "not json", '{"model": {"type": "Mystery"}}', PANICS_AT_LOAD])
def test_broken_tokenizer(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    assert_refused(folder, "tokenizer.json is not a tokenizer file that smc can read")


def test_memory_that_runs_out_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(text: str) -> None:
        raise MemoryError

    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("smc.frontend.folder_tokenizer.Tokenizer", SimpleNamespace(from_str=no_memory))
    with pytest.raises(MemoryError):
        load_checkpoint(folder)


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x7fabc", b"junk", b"\x08" + b"\xff" * 40])
def test_broken_sentencepiece_model(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    assert_refused(folder, "tokenizer.model")


def test_file_that_changes_after_loading(folder: Path) -> None:
    """Weights are read long after the head: a file that changed meanwhile is refused, not misread."""
    parameter = load_checkpoint(folder).parameters[Q_PROJ]
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="has changed since it was opened"):
        parameter.load()
    path.unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        parameter.load()
