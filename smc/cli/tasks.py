"""`smc eval --tasks`: the tasks of EleutherAI's harness, the package lm-eval.

The harness has the tasks, the prompts and the scoring. This file answers its requests to a model: how likely
continuations are, how likely a whole text is, and what comes next.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc.distribution import install_command
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.cli.evaluate import Subject

MOST_NEW_TOKENS = 256
"""Of an answer where a task does not say."""


def check_tasks(names: Sequence[str], folder: Path | None) -> Any:
    """The harness's table of tasks. InputError where it is not installed or has no such task."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"--tasks needs the package lm-eval: {install_command('eval')}")
    from lm_eval.tasks import TaskManager

    if folder is not None and not folder.is_dir():
        raise InputError(f"--task-folder {folder} is no folder")
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            raise InputError(f"lm-eval has no task {name!r}: `lm-eval ls tasks` lists them, --task-folder adds yours")
    return manager


def run_tasks(
    subject: Subject, names: Sequence[str], manager: Any, limit: int | None, progress: Callable[[float], None]
) -> dict[str, dict[str, float]]:
    """The figures of every task, by the harness's names: {task: {metric: value}}, standard errors among them."""
    import lm_eval

    found = lm_eval.simple_evaluate(
        model=_harness_model(subject, progress),
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=1000,
        verbosity="ERROR",
    )
    return {
        task: {metric.removesuffix(",none"): value for metric, value in figures.items() if isinstance(value, float)}
        for task, figures in found["results"].items()
    }


def _harness_model(subject: Subject, progress: Callable[[float], None]) -> Any:
    """The subject as the harness's class of models."""
    import torch
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tokenizers import Tokenizer

    if subject.tokenizer is None:
        raise InputError(f"{subject.name} has no tokenizer, so it cannot do tasks")
    tokenizer = Tokenizer.from_str(subject.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
        backend = "causal"

        @property
        def eot_token_id(self) -> int:
            """What stands in front of a text without context: the token that begins texts, or ends them."""
            return subject.prefix_token

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).ids)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return list(_reported(requests, progress, lambda request: self._likelihood(request[1], request[2])))

        def _likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
            """The log-probability of a continuation, and whether it is what greedy choices make."""
            tokens = (context + continuation)[-(subject.context_length + 1) :]
            wanted = torch.tensor(tokens[-min(len(continuation), len(tokens) - 1) :])
            chances = torch.log_softmax(subject.logits(torch.tensor(tokens[:-1]))[-len(wanted) :].float(), -1)
            likelihood = chances.gather(1, wanted[:, None]).double().sum().item()
            return likelihood, bool((chances.argmax(-1) == wanted).all())

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            return list(_reported(requests, progress, lambda request: self._of_text(request.args[0])))

        def _of_text(self, text: str) -> float:
            """The log-probability of a text, in windows that each predict new tokens."""
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=subject.prefix_token,
                max_seq_len=subject.context_length,
                context_len=1,
            )
            return sum(self._likelihood(*make_disjoint_window(window))[0] for window in windows)

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return list(_reported(requests, progress, lambda request: self._generate(*request.args)))

        def _generate(self, prompt: str, options: dict[str, Any]) -> str:
            return _continued(subject, self.tok_encode(prompt), tokenizer.decode, options)

    return HarnessModel()


def _continued(
    subject: Subject, prompt: list[int], decode: Callable[[list[int]], str], options: dict[str, Any]
) -> str:
    """The likeliest next tokens one after the other, to one of the task's ends."""
    import torch

    until = options.get("until") or []
    ends = [until] if isinstance(until, str) else list(until)
    most = int(options.get("max_gen_toks") or options.get("max_tokens") or MOST_NEW_TOKENS)
    tokens = prompt[-(subject.context_length - most) :] or [subject.prefix_token]
    new: list[int] = []
    text = ""
    while len(new) < most:
        new.append(int(subject.logits(torch.tensor(tokens + new))[-1].argmax()))
        if new[-1] in subject.end_tokens:
            break
        text = decode(new)
        if any(end in text for end in ends):
            break
    cut = min((text.find(end) for end in ends if end in text), default=len(text))
    return text[:cut]


def _reported(requests: Any, progress: Callable[[float], None], answer: Callable[[Any], Any]) -> Iterable[Any]:
    """The answers to all requests, and how far they are."""
    count = len(requests)
    for index, request in enumerate(requests):
        yield answer(request)
        progress((index + 1) / count)
