"""One speed of OpenVINO GenAI, in a process of its own and a Python that has openvino-genai (benchmarks.peers).

    python openvino_driver.py MODEL.gguf prefill|decode TOKENS THREADS

Prints JSON: tokens per second, the median of three runs after one that warms up. It imports nothing of this project.
"""

from __future__ import annotations

import json
import statistics
import sys

import numpy as np
import openvino
import openvino_genai


def main(model: str, kind: str, tokens: int, threads: int) -> None:
    """Measure and print."""
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = (2 if kind == "prefill" else tokens + 1), True, False
    length = tokens if kind == "prefill" else 1
    speeds = []
    for run in range(4):
        # Another text each time: it keeps the keys and values of earlier prompts.
        ids = np.array([[3 + (7919 * i + 613 * run) % 40000 for i in range(length)]], np.int64)
        prompt = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        metrics = pipeline.generate(prompt, config).perf_metrics
        milliseconds = metrics.get_ttft().mean / length if kind == "prefill" else metrics.get_tpot().mean
        speeds.append(1000 / milliseconds)
    print(json.dumps({"tokens_per_s": statistics.median(speeds[1:]), "version": openvino_genai.get_version()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
