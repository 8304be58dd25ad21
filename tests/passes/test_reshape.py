"""Passes that change a model's shape, against transformers with the same change made by hand."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import Context, ExpandBlocks, PruneDepth, PruneWidth, apply, parse_pass
from smc.reference import CalibrationText, Reference

TOKENS = torch.arange(60) * 7 % 96


def windows():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 96, (50,), generator=generator) for _ in range(3)]


def context():
    return Context(calibration=CalibrationText(windows()))


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens[None]).logits[0]


def with_layers(model, picks):
    """The same model with copies of these layers."""
    twin = copy.deepcopy(model)
    twin.model.layers = torch.nn.ModuleList(copy.deepcopy(model.model.layers[i]) for i in picks)
    for place, layer in enumerate(twin.model.layers):
        layer.self_attn.layer_idx = place
    twin.config.num_hidden_layers = len(picks)
    if getattr(twin.config, "layer_types", None):
        twin.config.layer_types = [twin.config.layer_types[i] for i in picks]
    return twin


@pytest.mark.parametrize(
    ("kind", "step", "picks"),
    [
        ("Llama", "drop-layers:layers=1-2+4", [0, 3]),
        ("Gemma2", "map-layers:layers=0-3+2-4", [0, 1, 2, 3, 2, 3, 4]),
        ("Qwen3", "up-scale:remove=2", [0, 1, 2, 2, 3, 4]),
        ("Llama", "up-scale:remove=0", [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
    ],
)
def test_depth_is_that_of_transformers(make_checkpoint, kind, step, picks):
    folder, model = make_checkpoint(kind, num_hidden_layers=5, **({"sliding_window": 9} if kind == "Gemma2" else {}))
    module = load_checkpoint(folder)
    result = apply(module, [step])
    assert module.layer_map() == (0, 1, 2, 3, 4)
    assert result.layer_map() == tuple(picks)
    expected = logits(with_layers(model, picks))
    torch.testing.assert_close(Reference(result).logits(TOKENS), expected, rtol=0, atol=1e-3)
    for place in range(len(picks)):  # parameters are numbered by place, and nobody shares one
        names = set(result.layer_calls()[place].attributes["parameters"].values())
        assert all(f".{place}." in name for name in names)
    assert len(result.parameters) == len(module.parameters) + (len(picks) - 5) * len(names)


def test_maps_follow_chains(make_checkpoint):
    module = load_checkpoint(make_checkpoint(num_hidden_layers=6)[0])
    assert apply(module, ["drop-layers:layers=2", "up-scale:remove=1"]).layer_map() == (0, 1, 3, 4, 1, 3, 4, 5)


def test_block_expansion_changes_no_bit(make_checkpoint):
    for kind in ("Llama", "GPTNeoX", "Gemma2"):
        module = load_checkpoint(make_checkpoint(kind, num_hidden_layers=4, hidden_size=64)[0])
        result = apply(module, [ExpandBlocks(every=2)])
        assert result.layer_map() == (0, 1, 1, 2, 3, 3)
        assert torch.equal(Reference(result).logits(TOKENS), Reference(module).logits(TOKENS))


def influences(model):
    """1 - mean cosine of a layer's input and output, written out."""
    found = [[] for _ in model.model.layers]
    with torch.no_grad():
        for window in windows():
            states = []
            hooks = [
                layer.register_forward_hook(lambda _, args, out, to=states: to.append((args[0], out)))
                for layer in model.model.layers
            ]
            model(window[None])
            for hook in hooks:
                hook.remove()
            for place, (x, y) in enumerate(states):
                y = y[0] if isinstance(y, tuple) else y
                x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
                found[place].append((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1))
    return [1 - torch.cat(part).mean().item() for part in found]


def test_the_least_influential_layers_go(make_checkpoint):
    folder, model = make_checkpoint(num_hidden_layers=6)
    with torch.no_grad():
        for layer in (1, 4):  # these hardly change anything
            model.model.layers[layer].self_attn.o_proj.weight *= 0.01
            model.model.layers[layer].mlp.down_proj.weight *= 0.02 * layer
    model.save_pretrained(folder)
    module, told = load_checkpoint(folder), []
    result = apply(module, [PruneDepth(2)], Context(calibration=CalibrationText(windows()), report=told.append))
    own = influences(model)
    assert sorted(range(6), key=own.__getitem__)[:2] == [1, 4]
    assert result.layer_map() == (0, 2, 3, 5)
    assert f"influence {own[1]:.3f} to {own[4]:.3f}" in told[0]
    third = sorted(range(4), key=influences(with_layers(model, [0, 2, 3, 5])).__getitem__)[0]
    expected = [layer for place, layer in enumerate((0, 2, 3, 5)) if place != third]
    assert apply(module, [PruneDepth(3, one_by_one=True)], context()).layer_map() == tuple(expected)


def inputs_of(model, pattern):
    """What linears whose names end so are multiplied with, by name: [tokens, columns]."""
    found = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, a, name=name: found.setdefault(name, []).append(a[0].flatten(0, -2)))
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and name.endswith(pattern)
    ]
    with torch.no_grad():
        for window in windows():
            model(window[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_narrower_feed_forwards_and_fewer_heads_are_masked_ones(make_checkpoint):
    """Cutting a channel is the same as making it zero, wherever the hidden state keeps its width."""
    folder, model = make_checkpoint("Qwen2", num_hidden_layers=3)
    result = apply(load_checkpoint(folder), [PruneWidth(ffn=33, kv_heads=1)], context())
    down, out = inputs_of(model, "down_proj"), inputs_of(model, "o_proj")
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            scores = down[f"model.layers.{index}.mlp.down_proj"].abs().mean(0)
            layer.mlp.down_proj.weight[:, scores.argsort(descending=True)[33:]] = 0
            heads = out[f"model.layers.{index}.self_attn.o_proj"].view(-1, 4, 12).norm(dim=-1).mean(0)
            worse = heads.view(2, 2).sum(1).argmin()
            layer.self_attn.o_proj.weight[:, worse * 24 : worse * 24 + 24] = 0
    torch.testing.assert_close(Reference(result).logits(TOKENS), logits(model), rtol=0, atol=1e-3)
    shapes = {name: p.shape for name, p in result.parameters.items() if name.startswith("model.layers.1.")}
    assert shapes["model.layers.1.mlp.gate_proj.weight"] == (33, 48)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (48, 33)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (24, 48)
    assert shapes["model.layers.1.self_attn.k_proj.bias"] == (12,)
    assert result.weight_count() == sum(p.values().numel() for p in result.parameters.values())


@pytest.mark.parametrize("tied", [False, True])
def test_a_narrower_hidden_state(make_checkpoint, tied):
    """transformers' model of that width, with the rows and columns that stay copied by hand."""
    folder, model = make_checkpoint(tie_word_embeddings=tied)
    result = apply(load_checkpoint(folder), [PruneWidth(hidden=28)], context())
    total = torch.zeros(48)
    for name in ("q_proj", "gate_proj", "lm_head"):  # one reader of every norm
        total += sum(x.abs().sum(0) for x in inputs_of(model, name).values())
    kept = total.argsort(descending=True)[:28].sort().values
    narrow = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 28, "head_dim": 12})).eval()
    state = {}
    for name, values in model.state_dict().items():
        if values.dim() == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] = values[kept]
        else:
            state[name] = values[:, kept]
    narrow.load_state_dict(state)
    torch.testing.assert_close(Reference(result).logits(TOKENS), logits(narrow), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2", "Phi3", "GPTNeoX", "Olmo2", "BitNet", "StableLm"])
def test_every_family_can_be_cut(make_checkpoint, kind):
    changes = {"pad_token_id": 0} if kind == "Phi3" else {}
    folder, _ = make_checkpoint(kind, hidden_size=64, **changes)
    result = apply(load_checkpoint(folder), [PruneWidth(ffn=40, kv_heads=1, hidden=36)], context())
    made = Reference(result).logits(TOKENS)
    assert made.shape == (60, 96)
    assert made.isfinite().all()
    for parameter in result.parameters.values():
        assert tuple(parameter.load().values.shape) == parameter.shape


def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_functional_tokens(make_checkpoint, tmp_path, tied):
    folder, _ = make_checkpoint(vocab_size=259, tie_word_embeddings=tied)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    functions = [{"name": f"f{i}", "description": "does " + "xyz"[i]} for i in range(3)]
    (tmp_path / "functions.json").write_text(json.dumps(functions))
    module = load_checkpoint(folder)
    result = apply(module, [parse_pass(f"functional-tokens:functions={tmp_path / 'functions.json'}")])
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(result.facts.tokenizer)
    assert tokenizer.encode("<fn_1>a<fn_end>").ids == [257, *tokenizer.encode("a").ids, 259]
    assert result.facts.vocab_size == 260  # three unused rows, and one more
    assert result.facts.generation.eos_token_ids[-1] == 259
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        old, new = module.parameters[name].values(), result.parameters[name].values()
        assert torch.equal(new[:256], old[:256])
        ids = sorted(set(tokenizer.encode("f1: does y").ids))
        torch.testing.assert_close(new[257], old[ids].mean(0))
    assert Reference(result).logits(torch.tensor([1, 257])).shape == (2, 260)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("drop-layers:layers=0-1", "would leave no layer of 2"),
        ("drop-layers:layers=2", "there is no layer 2: the model has layers 0 to 1"),
        ("map-layers:layers=1-0", "the range 1-0 is backwards: write 0-1"),
        ("map-layers:layers=a", "takes layers such as 3 or 0-20"),
        ("map-layers:layers=", "would leave no layer: name at least one"),
        ("up-scale:remove=2", "must be from 0 to 1, not 2"),
        ("expand-blocks:every=3", "every must be from 1 to 2"),
        ("prune-depth:layers=2", "can't leave out 2 of 2 layers"),
        ("prune-width:ffn=81", "can't keep ffn=81: layer_0 has only 80"),
        ("functional-tokens:functions=nowhere.json", "there is no file of functions nowhere.json"),
    ],
)
def test_what_cannot_be_is_refused(make_checkpoint, step, words):
    module = load_checkpoint(make_checkpoint()[0])
    with pytest.raises(InputError, match=words):
        apply(module, [step], context())


def test_measured_passes_need_a_text(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    for step in ("prune-depth:layers=1", "prune-width:ffn=3", "sparsify-wanda", "sparsify-sparsegpt"):
        with pytest.raises(InputError, match="needs a calibration text: give one with --calib FILE"):
            apply(module, [step])


@pytest.mark.parametrize("step", ["expand-blocks:every=1", "prune-width:ffn=40", "sparsify-magnitude"])
def test_quantized_matrices_are_refused(make_checkpoint, step):
    module = apply(load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"])
    with pytest.raises(InputError, match="is quantized: "):
        apply(module, [step], context())
