"""The engine on a GPU, which the stand-in is: what sequences can do, and a sentence for all that can go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smc
from tests.conftest import TINY
from tests.cuda_emulator import StandIn

TOKENS = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(2)).tolist()

SENTENCE = """
import ctypes, sys
import smc
try:
    with smc.load(sys.argv[1], context_length=int(sys.argv[2])) as model:
        for _ in range(2):
            try:
                model.logits([1, 2, 3])
            except RuntimeError as error:
                print("step:", error)
except smc.InputError as error:
    print("open:", error)
try:
    driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    driver = None
if driver:
    left, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.emulator_forget()
    driver.cuMemGetInfo_v2(ctypes.byref(left), ctypes.byref(total))
    assert left.value == total.value, "memory of the GPU was not freed"
"""

AGAIN = """
import sys
import smc
for _ in range(2):
    with smc.load(sys.argv[1]) as model:
        try:
            print(model.logits([1, 2, 3]).shape)
        except RuntimeError as error:
            print(error)
"""

CANCELLED = """
import json, sys, threading
import numpy as np
import smc
from smc.runtime.binding import CancelledError
tokens, done = json.loads(sys.argv[2]), threading.Event()
with smc.load(sys.argv[1]) as model, model.new_sequence() as sequence:
    def cancel():
        while not done.wait(0.01):
            model.engine.cancel()
    sequence.extend(tokens[:3])
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        sequence.extend(tokens[3:], logits="all")
    except CancelledError as error:
        print(error)
    done.set()
    thread.join()
    again = sequence.extend(tokens[3:], logits="all")
    assert np.array_equal(again, model.logits(tokens)[3:])
"""

SEQUENCES = """
import json, sys
import numpy as np
import smc
from smc.runtime.model import Sequence
tokens = json.loads(sys.argv[2])
with smc.load(sys.argv[1], sequences=3) as model:
    whole = model.logits(tokens).copy()
    with model.new_sequence() as sequence:
        sequence.extend(tokens[:20])
        with sequence.fork() as other:
            assert np.array_equal(other.extend(tokens[20:], logits="all"), whole[20:])
            other.truncate(10)
            assert np.array_equal(other.extend(tokens[10:25], logits="all"), whole[10:25])
        saved = model.engine.sequence_save(sequence.slot)
        assert np.array_equal(sequence.extend(tokens[20:], logits="all"), whole[20:])
    with Sequence(model, model.engine.sequence_restore(saved), tokens[:20]) as again:
        assert np.array_equal(again.extend(tokens[20:], logits="all"), whole[20:])
    with model.new_sequence() as sequence:
        assert sequence.next_token(tokens[:20]) == whole[19].argmax()
        assert sequence.next_token(tokens[20:21]) == whole[20].argmax()
print("equal")
"""


BENCH = """
import runpy, sys
sys.argv = ["smc", "bench", *sys.argv[1:], "--profile", "--prompt-tokens", "9", "--decode-tokens", "2", "--repeat", "1"]
runpy.run_module("smc", run_name="__main__")
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    import transformers

    folder = tmp_path_factory.mktemp("gpu")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(folder / "checkpoint")
    return StandIn.of(smc.apply(smc.load_checkpoint(folder / "checkpoint"), ["quantize-rtn:bits=4"]), folder / "out")


def sentence(stand_in: StandIn, settings: str = "", context: int = 64, **env: str) -> str:
    run = stand_in.python(SENTENCE, str(stand_in.artifact), str(context), settings=settings, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


def test_sequences(stand_in: StandIn) -> None:
    run = stand_in.python(SEQUENCES, str(stand_in.artifact), json.dumps(TOKENS))
    assert run.stdout == "equal\n", run.stderr[-2000:]


def test_no_driver(stand_in: StandIn, tmp_path: Path) -> None:
    said = sentence(stand_in, LD_LIBRARY_PATH=str(tmp_path))
    assert said.startswith("open: ") and "there is no NVIDIA driver here (libcuda.so.1)" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("version=11080", "the NVIDIA driver is for CUDA 11.8, and the artifact needs one for CUDA 12.0 or newer"),
        ("devices=0", "the NVIDIA driver finds no GPU"),
        ("devices=-1", "the NVIDIA driver does not start: no CUDA-capable device is detected"),
        ("capability=75", "the GPU stand-in 0 has compute capability 7.5, and the artifact has code for sm_80"),
        ("capability=90", "has compute capability 9.0, and the artifact has code for sm_80"),
    ],
)
def test_no_such_gpu(stand_in: StandIn, settings: str, expected: str) -> None:
    said = sentence(stand_in, settings)
    assert said.startswith("open: ") and expected in said
    assert said.count("\n") == 0


def test_later_gpus_of_a_generation(stand_in: StandIn) -> None:
    assert sentence(stand_in, "capability=89") == ""


def test_which_gpu(stand_in: StandIn) -> None:
    assert sentence(stand_in, SMC_DEVICE="0") == ""
    assert "SMC_DEVICE is '3': this machine has GPUs 0 to 0" in sentence(stand_in, SMC_DEVICE="3")
    assert "SMC_DEVICE is 'first'" in sentence(stand_in, SMC_DEVICE="first")


def test_too_little_memory(stand_in: StandIn) -> None:
    """What is needed and what is free; all that was taken until then is free again."""
    assert "the weights need 1 MiB of the GPU's memory, of which 0 of 0 MiB are free" in sentence(stand_in, "memory=0")
    assert "the activations need" in (said := sentence(stand_in, "memory=1")) and "of 1 MiB are free" in said
    said = sentence(stand_in, "memory=8", context=1 << 17)
    assert "there is no room for a KV cache of up to" in said and "of the GPU's 8 MiB are free: use a shorter" in said


def test_another_process_takes_the_memory_meanwhile(stand_in: StandIn) -> None:
    said = sentence(stand_in, "memory=4096,eaten=4096")
    assert "the weights need 1 MiB of the GPU's memory, of which 0 of 4096 MiB are free" in said


def test_a_kernel_that_fails_is_said_at_every_step(stand_in: StandIn) -> None:
    said = sentence(stand_in, "fail_launch=1").splitlines()
    assert len(said) == 2 and said[0] == said[1]
    assert "the GPU stand-in 0 failed: unspecified launch failure; open the model again" in said[0]


def test_a_model_that_is_opened_again_behind_a_fault_works(stand_in: StandIn) -> None:
    run = stand_in.python(AGAIN, str(stand_in.artifact), settings="fail_launch=1")
    [fault, shape] = run.stdout.splitlines()
    assert "unspecified launch failure" in fault and shape == "(3, 96)"


def test_blocks_that_never_come(stand_in: StandIn) -> None:
    """The watchdog of the barrier: the others leave the step, and no process hangs."""
    said = sentence(stand_in, "late=1").splitlines()
    assert "its CUDA blocks waited for each other without end; open the model again" in said[0]


def test_profile(stand_in: StandIn) -> None:
    """Each phase is a launch of a microsecond, by the stand-in's clock; its tasks share that by their bytes."""
    run = stand_in.python(BENCH, str(stand_in.artifact), "--json")
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    layers = TINY["num_hidden_layers"]
    assert report["limits"][0]["memory_gb_per_s"] == 1024
    for profile in report["profile"].values():
        tasks = {(task["function"], task["name"]): task for task in profile["tasks"]}
        q, k, v, head = (tasks[name] for name in [*(("block", f"{x}_proj") for x in "qkv"), ("head", "lm_head")])
        assert [task["calls"] for task in (q, k, v, head)] == [layers, layers, layers, 1]
        assert q["us"] + k["us"] + v["us"] == pytest.approx(layers, rel=0.02)
        assert head["us"] == pytest.approx(1, rel=0.02) and q["us"] > k["us"] == pytest.approx(v["us"], rel=0.02)
        assert profile["kernels_us"] == pytest.approx(sum(task["us"] for task in profile["tasks"]))
        assert profile["kernels_us"] == pytest.approx(round(profile["kernels_us"]), rel=0.02)
    run = stand_in.python(BENCH, str(stand_in.artifact))
    assert "1 threads: memory 1,024.0 GB/s\n" in run.stdout and "lm_head" in run.stdout, run.stderr[-2000:]


@pytest.mark.parametrize("mode", ["resident", "launches"])
def test_cancel(stand_in: StandIn, mode: str) -> None:
    """The step ends at a barrier, or between two launches, and can be done again."""
    run = stand_in.python(CANCELLED, str(stand_in.artifact), json.dumps(TOKENS), env={"SMC_CUDA": mode})
    assert run.stdout == "the step was cancelled\n", run.stderr[-2000:]
