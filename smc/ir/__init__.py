"""What a model is: modules, functions, nodes, tensor types, encodings; verifying and printing them."""

from smc.ir.encoded_tensor import EncodedTensor, encode_float, rotate
from smc.ir.encoding import (
    BF16,
    F16,
    F32,
    Encoding,
    ceil_div,
    integer,
    matrix_shape,
    parse_encoding,
    stack_shape,
)
from smc.ir.function import Function, Node
from smc.ir.module import ModelFacts, Module, Parameter
from smc.ir.printer import print_function, print_module
from smc.ir.rope import RopeTable
from smc.ir.types import TensorType, TupleType
from smc.ir.verify import VerifyError, verify

__all__ = [
    "BF16",
    "F16",
    "F32",
    "EncodedTensor",
    "Encoding",
    "Function",
    "ModelFacts",
    "Module",
    "Node",
    "Parameter",
    "RopeTable",
    "TensorType",
    "TupleType",
    "VerifyError",
    "ceil_div",
    "encode_float",
    "integer",
    "matrix_shape",
    "parse_encoding",
    "print_function",
    "print_module",
    "rotate",
    "stack_shape",
    "verify",
]
