"""The reference against transformers, and its ops against formulas written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from smc.frontend import load_checkpoint
from smc.ir import F32, EncodedTensor, Encoding, ops, rotate
from smc.passes import FUSIONS, QuantizeRTN, apply
from smc.reference import Batch, Hook, Reference
from smc.reference.activations import round_activations
from smc.reference.weight import Weight

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILIES = {
    "grouped queries": ("Llama", {}),
    "one KV head": ("Llama", {"num_key_value_heads": 1}),
    "tied head": ("Llama", {"tie_word_embeddings": True}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "odd widths": ("Llama", {"hidden_size": 36, "num_key_value_heads": 4, "intermediate_size": 51, "head_dim": 10}),
    "llama3 rope": ("Llama", {"rope_parameters": {"rope_theta": 5e5, **LLAMA3_SCALING}}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}}),
    "Mistral with a window": ("Mistral", {"sliding_window": 7, "head_dim": 16}),
    "Mistral without": ("Mistral", {"sliding_window": None}),
}


def compute(op, inputs, attributes):
    found = ops.find(op)
    return found.call(found.compute, inputs, attributes)


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(make_checkpoint, tokens, family):
    kind, changes = FAMILIES[family]
    folder, model = make_checkpoint(kind, **changes)
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    logits = Reference(load_checkpoint(folder)).logits(tokens)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_fused_ir_computes_the_same(make_checkpoint, tokens):
    module = load_checkpoint(make_checkpoint(attention_bias=True, mlp_bias=True)[0])
    expected = Reference(module).logits(tokens)
    torch.testing.assert_close(Reference(apply(module, FUSIONS)).logits(tokens), expected, atol=1e-6, rtol=1e-6)


def test_values_names_every_layer(make_checkpoint, tokens):
    folder, model = make_checkpoint()
    module = load_checkpoint(folder)
    values = Reference(module, keep_weights=False).values(tokens)
    with torch.no_grad():
        states = model.model(tokens[None], output_hidden_states=True).hidden_states
    layers = [call.name for call in module.layer_calls()]
    # transformers gives the state before each layer (after the last one only normed).
    torch.testing.assert_close(values[layers[0]], states[1][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kv_dtype", "least", "most"), [("f16", 1e-6, 1e-2), ("i8", 1e-4, 1e-1)])
def test_the_cache_rounds_keys_and_values(make_checkpoint, tokens, kv_dtype, least, most):
    module = load_checkpoint(make_checkpoint()[0])
    exact, rounded = (Reference(module, dtype).logits(tokens) for dtype in ("f32", kv_dtype))
    assert least < (exact - rounded).abs().max() < most


def test_attention_matches_the_definition():
    generator = torch.Generator().manual_seed(0)
    heads, kv_heads, head_dim, tokens, window = 4, 2, 6, 9, 4
    q = torch.randn(tokens, heads * head_dim, generator=generator)
    k, v = (torch.randn(tokens, kv_heads * head_dim, generator=generator) for _ in range(2))
    attributes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": 0.3, "window": window}
    result = compute("attention", [q, k, v], attributes)
    for token in range(tokens):
        for head in range(heads):
            kv = head // (heads // kv_heads) * head_dim
            seen = range(max(0, token - window + 1), token + 1)
            query = q[token, head * head_dim : (head + 1) * head_dim]
            scores = torch.stack([query @ k[other, kv : kv + head_dim] * 0.3 for other in seen])
            mixed = torch.softmax(scores, 0) @ torch.stack([v[other, kv : kv + head_dim] for other in seen])
            torch.testing.assert_close(result[token, head * head_dim : (head + 1) * head_dim], mixed)


@pytest.mark.parametrize("columns", [5, 32, 70, 96])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_linear_is_exact_integer_dots_per_group(columns, symmetric):
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(3, columns, generator=generator)
    x[0, :32] = 0
    tensor = QuantizeRTN(bits=4, symmetric=symmetric).encode(torch.randn(7, columns, generator=generator))
    expected = np.zeros((3, 7))
    for token in range(3):
        for start in range(0, columns, 32):
            part = x[token, start : start + 32].numpy()
            amax = np.abs(part).max()
            scale, inverse = np.float32(amax / np.float32(127)), np.float32(127) / amax if amax else np.float32(0)
            codes = np.rint(part * inverse).astype(np.int64)
            for row in range(7):
                group = start // 32
                zero = int(tensor.zeros[row, group]) if tensor.zeros is not None else 8
                weights = tensor.codes[row, group, : len(part)].numpy().astype(np.int64) - zero
                expected[token, row] += float(codes @ weights) * float(scale) * float(tensor.scales[row, group])
    result = compute("linear", [x, Weight.decode(tensor)], {"bias": False, "residual": False})
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_activation_groups_follow_the_stored_order_of_columns():
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, 64, generator=generator), torch.randn(5, 64, generator=generator)
    order = torch.randperm(64, generator=generator).int()
    plain = QuantizeRTN(bits=8).encode(weights[:, order.long()])
    encoding = Encoding.of(bits=8, permuted=True)
    permuted = EncodedTensor(encoding, (5, 64), codes=plain.codes, scales=plain.scales, order=order)
    attributes = {"bias": False, "residual": False}
    expected = compute("linear", [x[:, order.long()], Weight.decode(plain)], attributes)
    torch.testing.assert_close(compute("linear", [x, Weight.decode(permuted)], attributes), expected)


def test_grouped_linear_multiplies_with_the_chosen_matrices():
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(4, 6, generator=generator), torch.randn(3, 5, 6, generator=generator)
    index = torch.tensor([[0, 2], [1, 0], [2, 1], [1, 2]], dtype=torch.int32)
    rows = compute("dispatch", [x, index], {})
    result = compute("grouped_linear", [rows, Weight(weights, F32), index], {})
    expected = torch.stack([torch.stack([weights[e] @ x[t] for e in index[t]]) for t in range(4)])
    torch.testing.assert_close(result, expected)


def test_combine_weighs_what_experts_made():
    generator = torch.Generator().manual_seed(0)
    made, weights = torch.randn(4, 2, 5, generator=generator), torch.rand(4, 2, generator=generator)
    expected = torch.stack([sum(w * row for w, row in zip(weights[t], made[t], strict=True)) for t in range(4)])
    torch.testing.assert_close(compute("combine", [made, weights], {}), expected)


@pytest.mark.parametrize("normalized", [False, True])
def test_route_chooses_as_transformers_does(normalized):
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    values, indices = logits.softmax(-1).topk(3)
    values = values / values.sum(-1, keepdim=True) if normalized else values
    weights, experts = compute("route", [logits], {"k": 3, "normalized": normalized})
    torch.testing.assert_close(weights, values)
    assert experts.tolist() == indices.tolist()


def test_route_keeps_the_lower_expert_of_equals():
    _, experts = compute("route", [torch.tensor([[1.0, 3.0, 3.0, 2.0]])], {"k": 3})
    assert experts.tolist() == [[1, 2, 3]]


def test_softmax():
    torch.testing.assert_close(
        compute("softmax", [torch.tensor([[0.0, float(np.log(3.0))]])], {}), torch.tensor([[0.25, 0.75]])
    )


def test_activations_are_rounded_in_the_rotated_basis():
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, 64, generator=generator), torch.randn(5, 64, generator=generator)
    plain = QuantizeRTN(bits=8).encode(rotate(weights, 16))
    rotated = EncodedTensor(Encoding.of(bits=8, rotation=16), (5, 64), codes=plain.codes, scales=plain.scales)
    attributes = {"bias": False, "residual": False}
    expected = compute("linear", [rotate(x, 16), Weight.decode(plain)], attributes)
    result = compute("linear", [x, Weight.decode(rotated)], attributes)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result, x @ weights.T, atol=0.2, rtol=0)


def sequences(*lengths):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 96, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_a_batch_is_its_sequences(make_checkpoint, kind):
    """Of different lengths, one with a single token: nobody sees another's keys, all start at position 0."""
    module = load_checkpoint(make_checkpoint(kind, **({"sliding_window": 7} if kind == "Mistral" else {}))[0])
    reference = Reference(apply(module, [QuantizeRTN(bits=4)]), "i8")
    parts = sequences(13, 1, 40)
    together = reference.run(Batch.of(parts))[module.main.outputs[0]]
    alone = torch.cat([reference.logits(tokens) for tokens in parts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


class Recorder(Hook):
    def __init__(self):
        self.read, self.written = {}, {}

    def reads(self, call, node, operands):
        self.read[call.name, node.name] = operands
        return operands

    def writes(self, call, node, result):
        self.written[call.name, node.name] = result
        return result


def test_a_hook_sees_what_transformers_computes(make_checkpoint, tokens):
    folder, model = make_checkpoint()
    module = load_checkpoint(folder)
    inputs = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, index=index: inputs.update({index: args[0][0]}))
    with torch.no_grad():
        model(tokens[None])
    recorder = Recorder()
    Reference(module).run(Batch.of([tokens]), recorder)
    for index, call in enumerate(module.layer_calls()):
        function = module.functions[call.attributes["function"]]
        [node] = [n for n in function.nodes() if n.op == "linear" and n.argument("weight") == "down_proj"]
        x, weight = recorder.read[call.name, node.name][:2]
        torch.testing.assert_close(x, inputs[index], atol=1e-4, rtol=1e-4)
        assert weight.values.shape == (48, 80)
        assert recorder.written[call.name, node.name].shape == (60, 48)


def test_a_hook_replaces_what_is_read_and_written(make_checkpoint, tokens):
    """The second layer's attention silenced, the first one's up_proj doubled: as in a model that has it so."""
    folder, model = make_checkpoint()
    module = load_checkpoint(folder)
    first, second = module.layer_calls()

    class Change(Hook):
        def reads(self, call, node, operands):
            if call.name == first.name and node.op == "linear" and node.argument("weight") == "up_proj":
                return [operands[0] * 2, *operands[1:]]
            return operands

        def writes(self, call, node, result):
            return result * 0 if call.name == second.name and node.op == "attention" else result

    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 2
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        expected = model(tokens[None]).logits[0]
    logits = Reference(module).run(Batch.of([tokens]), Change())[module.main.outputs[0]]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


class Trainable(Hook):
    """Every matrix as a leaf that wants a gradient."""

    def __init__(self):
        self.leaves = {}

    def reads(self, call, node, operands):
        return [self.leaf(call, name, operand) for name, operand in zip(node.inputs, operands, strict=True)]

    def leaf(self, call, slot, operand):
        if not isinstance(operand, Weight):
            return operand
        name = call.attributes["parameters"][slot]
        if name not in self.leaves:
            self.leaves[name] = replace(operand, values=operand.values.detach().requires_grad_())
        return self.leaves[name]


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_transformers(make_checkpoint, tokens, tied):
    folder, model = make_checkpoint(tie_word_embeddings=tied)
    module, hook = load_checkpoint(folder), Trainable()
    model(tokens[None], labels=tokens[None]).loss.backward()
    logits = Reference(module, gradients=True).run(Batch.of([tokens]), hook)[module.main.outputs[0]]
    torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).backward()
    parameters = dict(model.named_parameters())
    assert set(hook.leaves) == set(parameters)
    for name, leaf in hook.leaves.items():
        torch.testing.assert_close(leaf.values.grad, parameters[name].grad, atol=1e-5, rtol=1e-3)


def test_gradients_pass_through_rounding_and_change_no_number(make_checkpoint, tokens):
    module = apply(load_checkpoint(make_checkpoint()[0]), [QuantizeRTN(bits=8)])
    plain, hook = Reference(module, "i8"), Trainable()
    expected = plain.logits(tokens)
    logits = Reference(module, "i8", gradients=True).run(Batch.of([tokens]), hook)[module.main.outputs[0]]
    assert torch.equal(logits.detach(), expected)
    logits.square().sum().backward()
    assert all(leaf.values.grad.abs().max() > 0 for leaf in hook.leaves.values())
    assert not plain.logits(tokens).requires_grad


def test_the_gradient_of_rounding_is_that_of_the_identity():
    x = torch.randn(3, 40, requires_grad=True)
    rounded = round_activations(x, Encoding.of(bits=8, activation="i8"))
    assert not torch.equal(rounded, x)
    upstream = torch.randn(3, 40)
    rounded.backward(upstream)
    assert torch.equal(x.grad, upstream)
