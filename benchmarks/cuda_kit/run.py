"""Measures smc on this machine's NVIDIA GPU: `python3 run.py`. It needs Python 3.8 or newer, Linux and NVIDIA's driver.

Every part is a process with a time of its own, so that none can take another's; all of them together end within eight
minutes. What they find is written to report.json, line by line readable below "results", and printed as a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PARTS = {"probe": 70, "bits": 120, "sanitizer": 50, "speed": 140, "peers": 80}
"""Seconds that a part has at most."""


def bits(kit: dict, work: Path, small: bool) -> dict:
    """Logits of small models: the bits that the exact reference gave where the kit was made, in every mode."""
    from engine import Model, write_weights

    found: dict = {"compared": 0, "different": []}
    modes = [{}, {"SMC_CUDA": "launches"}, {"SMC_CUDA_BLOCKS": "1"}, {"SMC_CUDA_BLOCKS": "7"}]
    for model in kit["models"]:
        if "expected" not in model:
            continue
        weights = work / f"{model['name']}.weights"
        write_weights(HERE, model, weights)
        for kv_dtype, expected in model["expected"].items():
            for mode in modes[:2] if small else [*modes, *({"SMC_CUDA_BLOCKS": str(b)} for b in range(2, 132, 13))]:
                os.environ.update(mode)
                for chunks in model["chunks"]:
                    opened = Model(HERE, model, weights, kv_dtype)
                    found["compared"] += 1
                    if opened.digest(model["tokens"], chunks) != expected:
                        found["different"].append(
                            {"model": model["name"], "kv": kv_dtype, "mode": mode, "chunks": chunks}
                        )
                    opened.close()
                for name in mode:
                    del os.environ[name]
    return found


def speed(kit: dict, work: Path, small: bool) -> dict:
    """Tokens per second in decode, prefill and batches, with the share of the bandwidth that the probe measured."""
    from engine import Model, write_weights

    bandwidth = json.loads(os.environ.get("SMC_KIT_RESULTS", "{}")).get("probe", {}).get("read_gb_per_s")
    rows: list = []
    for model in kit["models"]:
        if not model["timed"]:
            continue
        weights = work / f"{model['name']}.weights"
        write_weights(HERE, model, weights)
        opened = Model(HERE, model, weights)
        context = opened.info.context_length

        def add(kind: str, tokens: int, rate: float, read: float = 0.0, name: str = model["name"]) -> None:
            row = {"model": name, "kind": kind, "tokens": tokens, "tokens_per_s": rate}
            if read:
                row["gb_per_s"] = read * rate / 1e9
                if bandwidth:
                    row["share_of_bandwidth"] = row["gb_per_s"] / bandwidth
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)

        for count in [16] if small else [128, 512, 2048]:
            if count < context:
                opened.truncate(0)
                opened.prompt(0, count)
                opened.truncate(0)
                add("prefill", count, count / opened.prompt(0, count))
        for depth in [8] if small else [64, 1024, 4000]:
            if depth + 65 < context:
                read = opened.info.token_weight_bytes + opened.info.kv_bytes_per_token * (depth + 32)
                add(f"decode behind {depth}", 64, opened.decode_rate(depth, 4 if small else 64), read)
        opened.close()
        for sequences in [2] if small else [8, 32]:
            batch = Model(HERE, {**model, "context": min(context, 256)}, weights, sequences=sequences)
            add(
                f"decode, {sequences} sequences",
                64,
                batch.decode_rate(64 if not small else 4, 4 if small else 64, sequences),
            )
            batch.close()
        weights.unlink()
    return {"rows": rows}


def probe_part(kit: dict, work: Path, small: bool) -> dict:
    """probe.py."""
    from probe import probe

    return probe(HERE, kit["probe"], small)


def sanitizer(kit: dict, work: Path, small: bool) -> dict:
    """compute-sanitizer's memcheck and racecheck on a model's prompt and one more token, where it is installed."""
    tool = shutil.which("compute-sanitizer", path=os.environ["PATH"] + ":/usr/local/cuda/bin")
    if tool is None:
        return {"skipped": "compute-sanitizer is not here"}
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__, "--part", "once"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found[check] = {"status": run.returncode, "said": run.stdout[-1500:]}
    return found


def once(kit: dict, work: Path, small: bool) -> dict:
    """A model's prompt and one more token, for tools that watch."""
    from engine import WANT_LOGITS, Model, write_weights

    model = next(model for model in kit["models"] if "expected" in model)
    write_weights(HERE, model, work / "weights")
    opened = Model(HERE, model, work / "weights")
    opened.step(model["tokens"][:-1], WANT_LOGITS)
    opened.step(model["tokens"][-1:], WANT_LOGITS)
    opened.close()
    return {"ran": model["name"]}


def _llama_cpp(kit: dict, work: Path) -> list | dict:
    """llama-bench of the kit, or of the search path, on a Q4_0 file of each shape, or on $SMC_KIT_GGUF alone."""
    from gguf import write_gguf

    ours = HERE / "llama-bench"
    bench, given = str(ours) if ours.exists() else shutil.which("llama-bench"), os.environ.get("SMC_KIT_GGUF")
    if bench is None:
        return {"skipped": "there is no llama-bench in the kit or the search path"}
    environment, rows = {**os.environ, "LD_LIBRARY_PATH": ":".join(_libraries())}, []
    for model in [None] if given else [model for model in kit["models"] if model["timed"]]:
        path = given if model is None else str(work / f"{model['name']}.gguf")
        if model is not None:
            write_gguf(Path(path), model["config"])
        command = [bench, "-m", path, "-p", "512", "-n", "64", "-fa", "1", "-o", "json"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        result = json.loads(run.stdout) if run.returncode == 0 else {"failed": run.stderr[-500:]}
        rows.append({"model": given if model is None else model["name"], "result": result})
        if model is not None:
            Path(path).unlink()
    return rows


def _libraries() -> list:
    """Where cuBLAS, which llama.cpp needs, may be: what is set, and the packages that come with torch."""
    places = [os.environ.get("LD_LIBRARY_PATH", "")]
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        places += [str(path) for path in sorted(Path(folder).glob("*/lib"))]
    return [place for place in places if place]


def peers(kit: dict, work: Path, small: bool) -> dict:
    """llama.cpp and torch, where they are: the same shapes, the same minutes."""
    found: dict = {"llama.cpp": _llama_cpp(kit, work)}
    try:
        import torch
    except ImportError:
        return {**found, "torch": {"skipped": "torch is not here"}}
    if not torch.cuda.is_available():
        return {**found, "torch": {"skipped": "torch finds no GPU"}}
    rows = []
    for model in kit["models"]:
        if not model["timed"]:
            continue
        matrices = [torch.zeros(r, c, dtype=torch.bfloat16, device="cuda") for r, c in model["matrices"]]
        inputs = {c: torch.zeros(c, 1, dtype=torch.bfloat16, device="cuda") for _, c in model["matrices"]}
        for matrix in matrices:
            matrix @ inputs[matrix.shape[1]]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for matrix in matrices:
                matrix @ inputs[matrix.shape[1]]
        graph.replay()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(20):
            graph.replay()
        torch.cuda.synchronize()
        rows.append({"model": model["name"], "bf16_linears_tokens_per_s": 20 / (time.perf_counter() - begin)})
        del matrices, inputs, graph
    return {**found, "torch": rows}


RUN = {"probe": probe_part, "bits": bits, "sanitizer": sanitizer, "speed": speed, "peers": peers, "once": once}


def table(results: dict) -> str:
    """What was found, for people."""
    lines = []
    for name, result in results.items():
        if "failed" in result or "skipped" in result:
            lines.append(f"{name}: {result.get('failed') or result.get('skipped')}")
    for key, value in results.get("probe", {}).items():
        if key != "products":
            lines.append(f"{key:34} {value:.2f}" if isinstance(value, float) else f"{key:34} {value}")
    for row in results.get("probe", {}).get("products", []):
        times = "launches {launches_us:.2f} us, graph {graph_us:.2f}, resident {resident_us:.2f}".format(**row)
        lines.append(f"int4 {row['rows']} x {row['columns']}: {times}, {row['gb_per_s']:.0f} GB/s")
    if "compared" in results.get("bits", {}):
        lines.append(f"bits: {results['bits']['compared']} runs compared, {len(results['bits']['different'])} differ")
    for row in results.get("speed", {}).get("rows", []):
        share = f", {100 * row['share_of_bandwidth']:.0f} % of the bandwidth" if "share_of_bandwidth" in row else ""
        lines.append(f"{row['model']:16} {row['kind']:24} {row['tokens_per_s']:12.1f} tokens/s{share}")
    return "\n".join(lines)


def main() -> None:
    """All parts, or one of them, whose result goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(RUN), help="run this part alone, in this process")
    parser.add_argument("--out", type=Path, default=Path("report.json"), help="the report")
    parser.add_argument("--small", action="store_true", help="less of everything, for tests")
    arguments = parser.parse_args()
    with open(HERE / "kit.json", encoding="utf-8") as file:
        kit = json.load(file)
    if arguments.part:
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(RUN[arguments.part](kit, Path(work), arguments.small)))
        return
    machine = {"system": platform.platform(), "python": platform.python_version(), "kit": kit["made_by"]}
    results: dict = {}
    for name, seconds in PARTS.items():
        command = [sys.executable, __file__, "--part", name, *(["--small"] if arguments.small else [])]
        environment = {**os.environ, "SMC_KIT_RESULTS": json.dumps(results)}
        begin = time.time()
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
            lines = run.stdout.splitlines()
            results[name] = json.loads(lines[-1]) if run.returncode == 0 and lines else {"failed": run.stderr[-1500:]}
        except subprocess.TimeoutExpired as expired:
            said = expired.stderr or b""
            partly = said.decode(errors="replace") if isinstance(said, bytes) else said
            results[name] = {"failed": f"it took more than {seconds} s", "until then": partly[-3000:]}
        print(f"{name}: {time.time() - begin:.1f} s", file=sys.stderr, flush=True)
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1), encoding="utf-8")
    print(table(results))
    print(f"\nThe report is {arguments.out}: send it back with what you know of the machine.")


if __name__ == "__main__":
    main()
