"""Golden texts of the printer."""

from __future__ import annotations

from smc.frontend.architectures import llama, parts
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.ir import Function, TensorType, print_function, print_module
from tests.ir.models import tiny_module

MODULE = """\
module tiny  # TinyForTests, context 16, 60 weights, 26.67 bits each
# made by hand

parameter table: [5, 4] f16
parameter up.0: [3, 4] f32
parameter down.0: [4, 3] f32
parameter up.1: [2, 4] f32
parameter down.1: [4, 2] f32

function main(tokens: i32[n]) {
  embedded = embed(tokens) [table=table] : f32[n, 4]
  layer_0 = block(embedded) [up=up.0, down=down.0] : f32[n, 4]
  layer_1 = block(layer_0) [up=up.1, down=down.1] : f32[n, 4]
  logits = head(layer_1) [weight=table] : f32[n, 5]
  return logits
}

function embed(tokens: i32[n]) {
  parameter table: f32[5, 4]
  embedding = embedding(tokens, table) : f32[n, 4]
  return embedding
}

function block(x: f32[n, 4]) {
  parameter up: f32[ffn, 4]
  parameter down: f32[4, ffn]
  h = linear(x, up) : f32[n, ffn]
  mul = mul(h, h) : f32[n, ffn]
  down_proj = linear(mul, down) : f32[n, 4]
  add = add(x, down_proj) : f32[n, 4]
  return add
}

function head(x: f32[n, 4]) {
  parameter weight: f32[5, 4]
  logits = linear(x, weight) : f32[n, 5]
  return logits
}
"""

BLOCK = """\
function block(x: f32[n, 48], positions: i32[n]) {
  parameter input_layernorm: f32[48]
  parameter q_proj: f32[32, 48]
  parameter q_proj.bias: f32[32]
  parameter k_proj: f32[16, 48]
  parameter k_proj.bias: f32[16]
  parameter v_proj: f32[16, 48]
  parameter v_proj.bias: f32[16]
  parameter o_proj: f32[48, 32]
  parameter o_proj.bias: f32[48]
  parameter post_attention_layernorm: f32[48]
  parameter gate_proj: f32[ffn, 48]
  parameter up_proj: f32[ffn, 48]
  parameter down_proj: f32[48, ffn]
  attention_norm = rms_norm(x, input_layernorm) {eps=1e-06} : f32[n, 48]
  q = linear(attention_norm, q_proj, q_proj.bias) {bias=True} : f32[n, 32]
  k = linear(attention_norm, k_proj, k_proj.bias) {bias=True} : f32[n, 16]
  v = linear(attention_norm, v_proj, v_proj.bias) {bias=True} : f32[n, 16]
  q_rope = rope(q, positions) {head_dim=8, table=theta 500000, llama3(8, 1..4, 8192)} : f32[n, 32]
  k_rope = rope(k, positions) {head_dim=8, table=theta 500000, llama3(8, 1..4, 8192)} : f32[n, 16]
  attention = attention(q_rope, k_rope, v) {heads=4, kv_heads=2, head_dim=8, scale=0.353553, window=64} : f32[n, 32]
  o = linear(attention, o_proj, o_proj.bias) {bias=True} : f32[n, 48]
  attention_residual = add(x, o) : f32[n, 48]
  ffn_norm = rms_norm(attention_residual, post_attention_layernorm) {eps=1e-06} : f32[n, 48]
  gate = linear(ffn_norm, gate_proj) : f32[n, ffn]
  up = linear(ffn_norm, up_proj) : f32[n, ffn]
  silu = silu(gate) : f32[n, ffn]
  mul = mul(silu, up) : f32[n, ffn]
  down = linear(mul, down_proj) : f32[n, 48]
  ffn_residual = add(attention_residual, down) : f32[n, 48]
  return ffn_residual
}
"""


def test_module() -> None:
    assert print_module(tiny_module()) == MODULE


def test_printing_does_not_depend_on_the_process() -> None:
    assert print_module(tiny_module().copy()) == MODULE


def test_llama_block() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "intermediate_size": 80,
        "vocab_size": 96,
        "attention_bias": True,
        "rope_parameters": {**rope, "original_max_position_embeddings": 8192},
    }
    checkpoint = Checkpoint("tiny", "none", Config(values, "config.json"), {})
    decoder = llama.decoder(checkpoint, parts.Heads(48, 4, 2, 8), default_context=2048, window=64)
    [block] = decoder.layers
    assert print_function(block.function) == BLOCK


def test_several_results_and_outputs() -> None:
    f = Function("route")
    route = f.add("route", f.input("x", TensorType(("n", 8))), k=2)
    weights = f.add("project", route, name="weights", index=0)
    experts = f.add("project", route, name="experts", index=1)
    f.set_outputs(weights, experts)
    assert print_function(f) == (
        "function route(x: f32[n, 8]) {\n"
        "  route = route(x) {k=2} : (f32[n, 2], i32[n, 2])\n"
        "  weights = project(route) {index=0} : f32[n, 2]\n"
        "  experts = project(route) {index=1} : i32[n, 2]\n"
        "  return weights, experts\n"
        "}\n"
    )
