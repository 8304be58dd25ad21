"""Training against torch and transformers: losses, steps, rounding, resuming."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import smc
from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import Distill, QuantizeRTN, Train, apply, parse_pass
from smc.reference import Reference
from smc.training import losses
from smc.training.losses import Parts, prediction_loss
from tests.passes.test_reshape import byte_tokenizer

TEXT = "".join(f"The number {i} follows the number {i - 1}, and {i * i} is its square.\n" for i in range(1, 120))


@pytest.fixture
def model(make_checkpoint, tmp_path):
    """A folder with a byte tokenizer, the transformers model, and a text beside it."""
    folder, model = make_checkpoint(vocab_size=256, max_position_embeddings=64)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    return folder, model


def job(tmp_path, kind=Train, **options):
    defaults = {"steps": 6, "batch": 4, "window": 32, "warmup": 2, "learning_rate": 1e-3, "precision": "f32"}
    return kind(data=(str(tmp_path / "text.txt"),), **{**defaults, **options})


def log_of(work):
    (path,) = work.glob("*/log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- losses


@pytest.mark.parametrize(
    "parts", [Parts(1.0), Parts(0, 1.0), Parts(0, 0, 1.0), Parts(0.5, 0.7, 0.2, 2.5), Parts(0, 1.0, 0, 0.5)]
)
def test_losses_and_gradients_are_autograds(parts, monkeypatch):
    monkeypatch.setattr(losses, "ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 17, generator=generator, dtype=torch.float32).requires_grad_()
    teacher = torch.randn(10, 17, generator=generator)
    targets, counts = torch.randint(17, (10,), generator=generator), torch.rand(10, generator=generator)
    made = prediction_loss(logits, targets, counts, parts, teacher)
    (gradient,) = torch.autograd.grad(made * 2, logits)
    t, functional = parts.temperature, torch.nn.functional
    q, p = torch.log_softmax(logits / t, -1), torch.log_softmax(teacher / t, -1)
    each = parts.plain * functional.cross_entropy(logits, targets, reduction="none")
    each = each + parts.forward * t * t * functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    each = each + parts.reverse * t * t * functional.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    expected = (each * counts).sum()
    (wanted,) = torch.autograd.grad(expected * 2, logits)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


# ---- steps


def test_options_are_text_and_back():
    for task in (
        Train(data=("a.txt", "b.txt"), minutes=1.5, shares=(3.0, 0.5), held_out="c.txt", patience=2),
        Distill(data=("a.txt",), tokens=1000, reverse=0.25, include=("norm", "*.1.*")),
    ):
        assert parse_pass(str(task)) == task


def test_steps_are_those_of_transformers(model, tmp_path):
    """Six steps of torch's AdamW on transformers' model, with the same windows, schedule and clipping."""
    folder, torch_model = model
    from smc.training.data import Batches, read_source

    module = load_checkpoint(folder)
    task = job(tmp_path, schedule="linear", decay=0.1, clip=0.5, accumulate=2)
    result = smc.apply(module, [task], work=tmp_path / "work")
    batches = Batches([read_source(tmp_path / "text.txt", "text", module.facts, 32, 0)], 4, 0)
    named = dict(torch_model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in named.values() if p.dim() == 1], "weight_decay": 0},
        ],
        betas=(0.9, 0.95),
    )
    seen = []
    for step in range(6):
        tokens = torch.stack([example.tokens for (example,) in batches[step]])
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 2) * (0.05 + 0.95 * (1 - step / 6))
        optimizer.zero_grad()
        loss = torch_model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        optimizer.step()
        seen.append(loss.item())
    assert [line["loss"] for line in log_of(tmp_path / "work")] == pytest.approx(seen, rel=1e-5)
    for name, values in named.items():
        torch.testing.assert_close(result.parameters[name].values(), values.detach(), atol=2e-4, rtol=0)


def test_checkpointing_changes_no_bit(model, tmp_path):
    module = load_checkpoint(model[0])
    plain, again = (smc.apply(module, [job(tmp_path, checkpointing=c)]) for c in (False, True))
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter.values(), again.parameters[name].values())


class StopHereError(Exception):
    pass


def test_a_run_that_was_ended_goes_on_with_the_same_bits(model, tmp_path):
    torch.set_num_threads(1)
    module = load_checkpoint(model[0])
    task = job(tmp_path, steps=9, save=2, held_out=str(tmp_path / "text.txt"), evaluate=3)
    whole = smc.apply(module, [task], work=tmp_path / "whole")

    def stop(fraction):
        if fraction > 0.5:
            raise StopHereError

    with pytest.raises(StopHereError):
        smc.apply(module, [task], work=tmp_path / "cut", progress=stop)
    notes = []
    resumed = smc.apply(module, [task], work=tmp_path / "cut", note=notes.append)
    assert "continuing from step 4" in notes[0]
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter.values(), resumed.parameters[name].values())
    first, second = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in log_of(tmp_path / part)]
        for part in ("whole", "cut")
    )
    assert first == second
    assert [line["step"] for line in first] == list(range(1, 10))
    assert sum("held_out" in line for line in first) == 3
    (curve,) = (tmp_path / "cut").glob("*/loss.svg")
    assert curve.read_text().count("<polyline") == 2
    notes.clear()
    smc.apply(module, [task], work=tmp_path / "cut", note=notes.append)
    assert "already done" in notes[0]


def test_two_runs_do_not_share_a_folder(model, tmp_path):
    import fcntl
    import os

    module, task = load_checkpoint(model[0]), job(tmp_path, steps=1)
    smc.apply(module, [task], work=tmp_path / "work")
    (folder,) = (tmp_path / "work").iterdir()
    (folder / "result.safetensors").unlink()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="the same training already runs in"):
        smc.apply(module, [task], work=tmp_path / "work")
    os.close(handle)
    smc.apply(module, [task], work=tmp_path / "work")


def test_other_texts_and_options_are_other_runs(model, tmp_path):
    module = load_checkpoint(model[0])
    for task in (job(tmp_path, steps=1), job(tmp_path, steps=2)):
        smc.apply(module, [task], work=tmp_path / "work")
    (tmp_path / "text.txt").write_text(TEXT[::-1])
    smc.apply(module, [job(tmp_path, steps=1)], work=tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 3


def test_early_stopping_takes_the_best(model, tmp_path):
    module = load_checkpoint(model[0])
    (tmp_path / "other.txt").write_text("".join(chr(97 + i * i % 26) for i in range(400)))
    task = job(
        tmp_path, steps=40, learning_rate=3e-3, held_out=str(tmp_path / "other.txt"), evaluate=1, patience=3, warmup=0
    )
    smc.apply(module, [task], work=tmp_path / "work")
    lines = [line["held_out"] for line in log_of(tmp_path / "work")]
    best = lines.index(min(lines))
    assert len(lines) == min(best + 4, 40)


# ---- what is trained


def test_distillation_closes_the_gap(model, tmp_path):
    module = load_checkpoint(model[0])
    healed = ["drop-layers:layers=1", job(tmp_path, Distill, steps=40, hidden=0.5, learning_rate=5e-3)]
    result = smc.apply(module, healed, work=tmp_path / "work")
    lines = [line["loss"] for line in log_of(tmp_path / "work")]
    assert result.layer_map() == (0,)
    assert lines[-1] < 0.7 * lines[0]


def test_the_first_loss_of_distillation_is_the_divergence(model, tmp_path):
    module = load_checkpoint(model[0])
    pruned = apply(module, ["drop-layers:layers=0"])
    smc.apply(pruned, [job(tmp_path, Distill, steps=1)], teacher=module, work=tmp_path / "work")
    from smc.reference import kl_divergence
    from smc.training.data import Batches, read_source

    windows = [e.tokens for (e,) in Batches([read_source(tmp_path / "text.txt", "text", module.facts, 32, 0)], 4, 0)[0]]
    parts = [kl_divergence(Reference(module).logits(w)[:-1], Reference(pruned).logits(w)[:-1]) for w in windows]
    assert log_of(tmp_path / "work")[0]["loss"] == pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)


def test_taps_follow_the_layer_map(make_checkpoint):
    from smc.training.objective import attention_taps, hidden_taps

    module = load_checkpoint(make_checkpoint(num_hidden_layers=6)[0])
    dropped = apply(module, ["drop-layers:layers=2-3"])
    assert hidden_taps(dropped, module) == {
        "layer_0": "layer_0", "layer_1": "layer_3", "layer_2": "layer_4", "layer_3": "layer_5",
    }  # fmt: skip
    grown = apply(module, ["map-layers:layers=0-3+2-5"])
    assert hidden_taps(grown, module)["layer_3"] == "layer_1"  # layer 4 is the second copy of layer 2
    assert hidden_taps(grown, module)["layer_7"] == "layer_5"
    assert hidden_taps(dropped, module, ("2",)) == {"layer_1": "layer_3"}
    with pytest.raises(InputError, match="the first layer reads what the teacher's reads"):
        hidden_taps(dropped, module, ("0",))
    named = [(own.name, other.name) for own, other in attention_taps(dropped, module)]
    assert named == [("layer_0", "layer_0"), ("layer_1", "layer_1"), ("layer_2", "layer_4"), ("layer_3", "layer_5")]
    assert [own.name for own, _ in attention_taps(grown, module, ("4-5",))] == ["layer_4", "layer_5"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_attention_is_that_of_transformers_maps(model, tmp_path, checkpointing):
    """The divergence of the attention that transformers tells of both models, in the layer that stayed."""
    import transformers

    from smc.export import write_checkpoint
    from smc.training.data import Batches, read_source

    module = load_checkpoint(model[0])
    pruned = apply(module, ["drop-layers:layers=0"])
    write_checkpoint(pruned, tmp_path / "pruned")
    maps = []
    for folder in (model[0], tmp_path / "pruned"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        maps.append(lambda w, m=loaded: m(w[None], output_attentions=True).attentions[-1][0].detach())
    windows = [e.tokens for (e,) in Batches([read_source(tmp_path / "text.txt", "text", module.facts, 32, 0)], 4, 0)[0]]
    parts = [(maps[0](w).clamp(1e-30).log() - maps[1](w).clamp(1e-30).log()) * maps[0](w) for w in windows]
    expected = torch.stack([part.sum(-1).mean(0)[:-1] for part in parts]).mean().item()
    options = {"forward": 0.0, "attention": 0.5, "steps": 12, "checkpointing": checkpointing, "learning_rate": 5e-3}
    smc.apply(pruned, [job(tmp_path, Distill, **options)], teacher=module, work=tmp_path / "work")
    lines = [line["loss"] for line in log_of(tmp_path / "work")]
    assert lines[0] == pytest.approx(0.5 * expected, rel=1e-4)
    assert lines[-1] < 0.8 * lines[0]


@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_compared_with_windows_and_soft_caps(window):
    """As the op itself mixes values: v is the identity of positions, so that the mix is the attention."""
    from smc.ir.ops import find
    from smc.training.attention import attention_divergence

    generator, shapes = torch.Generator().manual_seed(0), ((9, 4 * 8), (9, 2 * 8))
    attributes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "scale": 0.4, "window": window, "softcap": 3.0}
    q, k, other_q, other_k = (torch.randn(shape, generator=generator) for shape in (*shapes, *shapes))
    attention = find("attention").compute
    maps = []
    for a, b in ((q, k), (other_q, other_k)):
        padded = [torch.nn.functional.pad(x.view(9, -1, 8), (0, 1)).reshape(9, -1) for x in (a, b)]
        eye = torch.eye(9).repeat(1, 2)  # v [9, 2 heads · 9]
        maps.append(attention(*padded, eye, **{**attributes, "head_dim": 9}).view(9, 4, 9))
    apart = (maps[0] * (maps[0].clamp(1e-30).log() - maps[1].clamp(1e-30).log())).sum(-1).mean(1)
    made = attention_divergence((q, k), (other_q, other_k), (9,), (attributes, attributes))
    torch.testing.assert_close(made, apart, atol=1e-5, rtol=1e-5)
    two = attention_divergence((q, k), (other_q, other_k), (4, 5), (attributes, attributes))
    torch.testing.assert_close(two[:4], made[:4], atol=1e-6, rtol=0)
    assert not torch.equal(two[4:], made[4:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"taps": ("0",)}, "chooses layers for hidden and attention: give one of them a weight"),
        ({"attention": 1.0, "taps": ("7",)}, "taps: there is no layer 7"),
        ({"attention": -1.0}, "forward, reverse, plain, hidden and attention of distill must be 0 or more"),
        ({"attention": 1.0, "taps": ("1",)}, "layer 1 came from no layer of the teacher: leave it out of taps"),
        ({"attention": 1.0}, "has 4 heads, that of the teacher's layer_0 has 2, so they can't be compared"),
    ],
)
def test_taps_that_cannot_be(model, make_checkpoint, tmp_path, options, words):
    module = load_checkpoint(model[0])
    narrow = {"num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 256}
    teacher = load_checkpoint(make_checkpoint(**narrow)[0])
    with pytest.raises(InputError, match=words):
        smc.apply(module, [job(tmp_path, Distill, **options)], teacher=teacher)


@pytest.mark.parametrize("recipe", ["ternary", "int4", "nf4", "int2"])
def test_rounding_is_learned(model, tmp_path, recipe):
    """The first loss is that of the rounded model, and the last that of what comes out."""
    module = load_checkpoint(model[0])
    result = smc.apply(module, [job(tmp_path, steps=12, quantize=recipe)], work=tmp_path / "work")
    from smc.passes import load_recipe
    from smc.training.data import Batches, read_source

    source = read_source(tmp_path / "text.txt", "text", module.facts, 32, 0)

    def loss(module, step):
        model, windows = Reference(module), [e.tokens for (e,) in Batches([source], 4, 0)[step]]
        parts = [torch.nn.functional.cross_entropy(model.logits(w)[:-1], w[1:], reduction="none") for w in windows]
        return torch.cat(parts).mean().item()

    lines = [line["loss"] for line in log_of(tmp_path / "work")]
    rounded = apply(module, load_recipe(recipe).passes)
    for name, parameter in result.parameters.items():
        assert parameter.encoding == parameter.load().encoding == rounded.parameters[name].encoding
    assert lines[0] == pytest.approx(loss(rounded, 0), rel=1e-4)
    assert loss(result, 11) < lines[0]


def test_scales_alone(model, tmp_path):
    module = apply(load_checkpoint(model[0]), [QuantizeRTN(bits=3, symmetric=False)])
    result = smc.apply(module, [job(tmp_path, steps=5, weights="scales", learning_rate=1e-4)])
    changed = 0
    for name, parameter in result.parameters.items():
        before, after = module.parameters[name].load(), parameter.load()
        if before.codes is None:
            assert torch.equal(after.values, before.values)
        else:
            assert torch.equal(after.codes, before.codes)
            assert torch.equal(after.scales, after.scales.half().float())
            changed += int((after.scales != before.scales).sum())
    assert changed > 100


def test_lora_is_pefts(model, tmp_path):
    """PEFT merges the adapter to the weights that come out; embedding, head and norms stay."""
    import peft

    folder, torch_model = model
    module = load_checkpoint(folder)
    result = smc.apply(module, [job(tmp_path, weights="lora", rank=3, alpha=5.0)], work=tmp_path / "work")
    (adapter,) = (tmp_path / "work").glob("*/adapter")
    merged = peft.PeftModel.from_pretrained(torch_model, adapter).merge_and_unload()
    for name, values in merged.named_parameters():
        torch.testing.assert_close(result.parameters[name].values(), values.detach(), atol=1e-6, rtol=0)
        same = torch.equal(result.parameters[name].values(), module.parameters[name].values())
        assert same == (not name.endswith("_proj.weight"))
    again = load_checkpoint(folder, [adapter])  # and so does smc
    tokens = torch.arange(20)
    torch.testing.assert_close(Reference(again).logits(tokens), Reference(result).logits(tokens), atol=1e-4, rtol=0)


def test_only_what_is_included(model, tmp_path):
    module = load_checkpoint(model[0])
    result = smc.apply(module, [job(tmp_path, include=("*.1.*", "norm"))])
    for name, parameter in result.parameters.items():
        same = torch.equal(parameter.values(), module.parameters[name].values())
        assert same == (not (".1." in name or "norm" in name))


# ---- objectives


def test_chats_count_what_the_assistant_says(model, tmp_path):
    from smc.training.data import read_source

    facts = replace(
        load_checkpoint(model[0]).facts,
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    talk = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "So soon?")]
    messages = {"messages": [{"role": role, "content": content} for role, content in talk]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(messages) + "\n\n" + json.dumps(messages) + "\n")
    source = read_source(tmp_path / "chat.jsonl", "chat", facts, 200, 0)
    assert len(source.groups) == 2
    ((example,), _) = source.groups
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(example.tokens.tolist()).startswith("<system>Be kind.\n<user>Hi\n<assistant>Hello!\n<user>")
    counted = tokenizer.decode(example.tokens[1:][example.counts.bool()].tolist())
    assert counted == "Hello!\nSo soon?\n"


def test_denoising_hides_what_is_predicted(model, tmp_path):
    from smc.training.denoise import DENOISERS, corrupted

    tokenizer, seen = byte_tokenizer(), set()
    window = torch.tensor(tokenizer.encode(TEXT[:300]).ids)
    shares = []
    for seed in range(60):
        tokens, counts = corrupted(window, tokenizer, seed)
        text = tokenizer.decode(tokens.tolist())
        given, hidden = (tokenizer.decode(tokens[1:][counts == c].tolist()) for c in (0, 1))
        mode, given = text[:5], text[:1] + given
        seen.add(mode)
        given = given[5:]
        pieces = hidden.split("<extra_id_")[1:]
        for piece in pieces:  # each sentinel's span goes where it stands
            number, _, span = piece.partition(">")
            given = given.replace(f"<extra_id_{number}>", span, 1)
        assert given == TEXT[:300]
        if mode != "[S2S]":
            shares.append(sum(len(piece.partition(">")[2]) for piece in pieces) / 300)
    assert seen == {d.mode for d in DENOISERS}
    assert {round(share, 2) for share in shares} == {0.15, 0.5}


def test_preferences(model, tmp_path):
    """The first loss of DPO is log 2; it falls, and the chosen answers become likelier than the rejected ones."""
    module = load_checkpoint(model[0])
    pairs = [{"prompt": f"{i} is ", "chosen": "a good number", "rejected": "quite a bad one"} for i in range(12)]
    (tmp_path / "text.txt").write_text("\n".join(map(json.dumps, pairs)))
    task = job(tmp_path, steps=12, objective="preference", window=60)
    smc.apply(module, [task], work=tmp_path / "work")
    lines = [line["loss"] for line in log_of(tmp_path / "work")]
    assert lines[0] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1] < 0.5


def test_mixed_texts_have_their_shares(model, tmp_path):
    from smc.training.data import Batches, read_source

    facts = load_checkpoint(model[0]).facts
    sources = []
    for name, share in (("a", 3.0), ("b", 1.0)):
        (tmp_path / f"{name}.txt").write_text(name * 3200)
        source = read_source(tmp_path / f"{name}.txt", "text", facts, 32, 0)
        sources.append(replace(source, share=share))
    batches = Batches(sources, 10, 5)
    taken = [int(e.tokens[0]) for step in range(100) for (e,) in batches[step]]
    a = taken.count(int(sources[0].groups[0][0].tokens[0]))
    assert abs(a / 1000 - 0.75) < 0.05
    assert [e.tokens.tolist() for (e,) in batches[17]] == [e.tokens.tolist() for (e,) in Batches(sources, 10, 5)[17]]


# ---- several processes

RANKS = """
import sys, torch, smc
torch.set_num_threads(1)
from smc.passes import Train
task = Train(data=(sys.argv[2],), steps=4, batch=4, window=32, warmup=0, precision="f32", save=2)
result = smc.apply(smc.load_checkpoint(sys.argv[1]), [task], work=sys.argv[3])
result.parameters["model.layers.0.mlp.up_proj.weight"].load()
"""


@pytest.mark.slow
def test_two_processes_learn_as_one(model, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    folder, root = model[0], Path(__file__).parents[2]
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=29513"]
        arguments = [tmp_path / "ranks.py", folder, tmp_path / "text.txt", tmp_path / f"work{count}"]
        environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([line["loss"] for line in log_of(tmp_path / f"work{n}")] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": None}, "needs one of minutes, steps and tokens, not none"),
        ({"minutes": 1.0}, "not minutes and steps"),
        ({"learning_rate": 0.0}, "learning_rate of train must be above 0, not 0.0"),
        ({"batch": 3, "accumulate": 2}, "can't divide a batch of 3 into 2 parts"),
        ({"patience": 2}, "needs a text to evaluate on: give held_out"),
        ({"shares": (1.0, 2.0)}, "has 2 shares for 1 files of data"),
        ({"quantize": "nothing"}, "there is no recipe 'nothing'"),
        ({"include": ("nothing",)}, "the pattern 'nothing' matches no parameter"),
        ({"weights": "scales"}, "finds no scales to train"),
        ({"held_out": "nowhere.txt"}, "there is no text file nowhere.txt"),
        ({"objective": "chat"}, "has no chat template"),
        ({"objective": "completion"}, "line 1 of .*text.txt is no example for training"),
        ({"learning_rate": 1e30, "clip": 0, "warmup": 0}, "the loss of step 2 is not finite"),
    ],
)
def test_what_cannot_be_is_refused(model, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        smc.apply(load_checkpoint(model[0]), [job(tmp_path, **options)])


def test_quantized_weights_are_no_floats_to_train(model, tmp_path):
    module = apply(load_checkpoint(model[0]), ["quantize-rtn:bits=4"])
    with pytest.raises(InputError, match=r"is quantized .*: train its scales \(weights=scales\), or decode it"):
        smc.apply(module, [job(tmp_path)])


def test_texts_that_are_none(model, tmp_path):
    module = load_checkpoint(model[0])
    for data, words in ((b"\xff\xfe", "is not UTF-8 text"), (b" ", "is empty"), (b"short", "too short for training")):
        (tmp_path / "text.txt").write_bytes(data)
        with pytest.raises(InputError, match=words):
            smc.apply(module, [job(tmp_path)])


def test_a_full_disk_is_told_and_leaves_the_last_state(model, tmp_path, monkeypatch):
    from smc.training import state

    module, task = load_checkpoint(model[0]), job(tmp_path, save=2)
    real = state.shutil.disk_usage

    def small(path):
        used = real(path)
        return type(used)(used.total, used.total, 0 if list(tmp_path.glob("work/*/state.safetensors")) else used.free)

    monkeypatch.setattr(state.shutil, "disk_usage", small)
    with pytest.raises(InputError, match=r"no room for the state .*: choose another folder with --work"):
        smc.apply(module, [task], work=tmp_path / "work")
    (folder,) = (tmp_path / "work").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "state.safetensors"]
    assert state.load(folder / "state.safetensors")[1].step == 2


def test_a_damaged_state_is_told(model, tmp_path):
    module, task = load_checkpoint(model[0]), job(tmp_path, steps=1)
    smc.apply(module, [task], work=tmp_path / "work")
    (result,) = tmp_path.glob("work/*/result.safetensors")
    result.write_bytes(result.read_bytes()[:200])
    with pytest.raises(InputError, match=r"is damaged .*: remove its folder to start again"):
        smc.apply(module, [task], work=tmp_path / "work")


def test_a_teacher_with_other_tokens(model, make_checkpoint, tmp_path):
    module, other = load_checkpoint(model[0]), load_checkpoint(make_checkpoint(vocab_size=300)[0])
    with pytest.raises(InputError, match=r"has 300 tokens, .* has 256, so their predictions .* can't be compared: let"):
        smc.apply(module, [job(tmp_path, Distill)], teacher=other)
