"""Gradients call by call: those that autograd finds through the whole of a transformers model, from the same tokens."""

from __future__ import annotations

import torch

from smc.frontend import load_checkpoint
from smc.reference import CalibrationText


def windows(count=4, length=20, vocabulary=96):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for _ in range(count)]


def all_gradients(model, tokens, seed):
    """Of every linear layer's result, [tokens, rows], when the loss is that of tokens drawn from the model itself."""
    found, handles = {}, []
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):

            def keep(_, __, result, name=name):
                result.register_hook(lambda gradient: found.__setitem__(f"{name}.weight", gradient[0]))

            handles.append(part.register_forward_hook(keep))
    logits = model(tokens[None]).logits[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
    torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return found


def test_gradients_are_those_of_the_whole_model(make_checkpoint, tmp_path):
    folder, model = make_checkpoint()
    module, text = load_checkpoint(folder), CalibrationText(windows())
    assert text.counts == (2, 2)
    work = tmp_path / "work"
    work.mkdir()
    runner = text.gradient_runner(module, work, seed=5)
    calls = [call for call, _ in module.calls()]
    for call in calls:
        runner.advance(call, lambda node, operands: None)
    seen: dict[str, list[torch.Tensor]] = {}
    for call in reversed(calls):

        def observe(node, operands, gradient, call=call):
            for name in node.inputs:
                weight = call.attributes["parameters"].get(name, "")
                if weight.endswith("proj.weight") or weight.startswith("lm_head"):
                    seen.setdefault(weight, []).append(gradient)

        runner.retreat(call, observe)
        runner.keep(call)
    assert not list(work.iterdir())  # nothing is left behind
    for index, window in enumerate(text.gradient_windows):
        expected = all_gradients(model, window, 5 + index)
        assert len(expected) == len(seen) == 15
        for name, gradient in expected.items():
            torch.testing.assert_close(seen[name][index], gradient, atol=1e-5, rtol=1e-3)


def test_it_goes_on_where_it_stopped(make_checkpoint, tmp_path):
    """What was written is enough for another runner to go back from there, with the same gradients."""
    module, text = load_checkpoint(make_checkpoint()[0]), CalibrationText(windows())
    calls = [call for call, _ in module.calls()]

    def back(runner, some):
        found = []
        for call in some:
            runner.retreat(call, lambda node, operands, gradient: found.append(gradient))
            runner.keep(call)
        return found

    results = []
    for cut in (len(calls), 2):
        folder = tmp_path / str(cut)
        folder.mkdir()
        first = text.gradient_runner(module, folder, seed=0)
        for call in calls:
            first.advance(call, lambda node, operands: None)
        order = calls[::-1]
        found = back(first, order[:cut])
        results.append(found + back(text.gradient_runner(module, folder, seed=0), order[cut:]))
    assert len(results[0]) > 20
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
