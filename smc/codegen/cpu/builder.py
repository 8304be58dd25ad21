"""A small builder of TIR kernels: explicit vectors, loops and pointers; nothing is left for a scheduler to guess.

A kernel is a plain C function with the parameters of its `Signature` that returns 0. Pointers never alias each other
(TIR is lowered noalias); one that is read and written is passed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

from smc.codegen.kernels.signature import Signature
from smc.targets import CpuLevel

CACHE_LINE = 64
"""Bytes."""

Expr = Any
"""A TIR expression (tvm's classes carry no useful static types)."""


def const(value: float, dtype: str) -> Expr:
    """A scalar constant, or a vector with every lane equal ("float32x16")."""
    scalar, _, lanes = dtype.partition("x")
    constant = tirx.const(value, scalar)
    return tirx.Broadcast(constant, int(lanes)) if lanes else constant


def broadcast(scalar: Expr, lanes: int) -> Expr:
    """A vector with every lane equal to `scalar`."""
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def cast(value: Expr, dtype: str) -> Expr:
    """Numeric conversion, lane by lane."""
    return tirx.Cast(dtype, value)


def reinterpret(value: Expr, dtype: str) -> Expr:
    """The same bits as another type of the same size."""
    return tirx.reinterpret(dtype, value)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """A pure LLVM intrinsic. One that the target lacks aborts the process: kernels are built in workers."""
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c with one rounding, written as an fma so that no compiler decides."""
    return intrinsic(dtype_of(c), "llvm.fma", a, b, c)


def fence(value: Expr) -> Expr:
    """The same vector of int16 or int32, which LLVM computes as it is written: neither reordered nor from scalars."""
    floats = f"float32x{lanes_of(value) * int(dtype_of(value).partition('x')[0].lstrip('int')) // 32}"
    return reinterpret(intrinsic(floats, "llvm.arithmetic.fence", reinterpret(value, floats)), dtype_of(value))


def rounded_product(a: Expr, b: Expr) -> Expr:
    """a * b, rounded even where it is added to something next: LLVM fuses a plain product with the sum it goes into."""
    return fma(a, b, const(0.0, dtype_of(a)))


def dtype_of(value: Expr) -> str:
    """The dtype of an expression, such as "int32" or "float32x16"."""
    return str(value.ty.dtype) if hasattr(value, "ty") else str(value.dtype)


def lanes_of(value: Expr) -> int:
    """How many lanes an expression has; 1 for a scalar."""
    return int(dtype_of(value).partition("x")[2] or 1)


def shuffle(value: Expr, indices: Sequence[int]) -> Expr:
    """The lanes of one vector in another order, or some of them."""
    return tirx.Shuffle([value], [tirx.IntImm("int32", i) for i in indices])


def shuffle_pair(pair: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """Lanes of two or more vectors of the same type; lanes of the second are counted after those of the first."""
    return tirx.Shuffle(list(pair), [tirx.IntImm("int32", i) for i in indices])


def vector_constant(values: Sequence[float], dtype: str) -> Expr:
    """A vector constant from scalars of `dtype`, one per lane."""
    return tirx.Shuffle([tirx.const(v, dtype) for v in values], [tirx.IntImm("int32", i) for i in range(len(values))])


class Pointer:
    """A pointer parameter, or an array of the kernel's own, seen as a flat array of its element type."""

    def __init__(self, name: str, dtype: str, buffer: Any = None, const: bool = False) -> None:
        self.dtype, self.const = dtype, const
        self.var = tirx.Var(name, PointerType(PrimType(dtype), "global"))
        self.buffer = tirx.decl_buffer((1 << 62,), dtype, name + "_data", data=self.var) if buffer is None else buffer

    def load(self, index: Expr, lanes: int = 1) -> Expr:
        """`lanes` neighbouring elements from `index` on."""
        return self.buffer[_ramp(index, lanes)]

    def address(self, index: Expr) -> Expr:
        """Where an element is."""
        return tirx.address_of(self.buffer[index])

    def store(self, index: Expr, value: Expr) -> Expr:
        """The statement that stores a scalar or vector from `index` on."""
        return tirx.BufferStore(self.buffer, value, [_ramp(index, lanes_of(value))])


class Register:
    """A mutable scalar or vector that LLVM keeps in a register."""

    def __init__(self, buffer: Any, lanes: int) -> None:
        self.buffer, self.lanes = buffer, lanes

    @property
    def value(self) -> Expr:
        """The current value."""
        return self.buffer[_ramp(0, self.lanes)]


def _ramp(index: Expr, lanes: int) -> Expr:
    return (
        tirx.Ramp(index, tirx.const(1, dtype_of(index) if not isinstance(index, int) else "int32"), lanes)
        if lanes > 1
        else index
    )


class Kernel:
    """Collects statements; `function` is the finished TIR function. matmul: use the level's schedule for matmuls."""

    def __init__(self, name: str, signature: Signature, matmul: bool = False) -> None:
        self.name, self.signature, self.matmul = name, signature, matmul
        self._scalars = {p.name: tirx.Var(p.name, p.dtype) for p in signature.parameters if not p.pointer}
        self._pointers: dict[str, Pointer] = {}
        self._blocks: list[list[Any]] = [[]]
        self._names = 0

    # ---- parameters, by name

    def pointer(self, name: str, view: str | None = None) -> Pointer:
        """A pointer parameter. view: the dtype of the elements that the kernel sees in bytes and structs."""
        parameter = self.signature.by_name[name]
        dtype = view or parameter.dtype
        assert parameter.pointer and dtype is not None, parameter
        assert parameter.is_raw or dtype == parameter.dtype, f"{parameter.declaration} has no elements of {dtype}"
        pointer = self._pointers.setdefault(name, Pointer(name, dtype, const=parameter.const))
        assert pointer.dtype == dtype, f"{name} is seen in two ways"
        return pointer

    def scalar(self, name: str) -> Expr:
        """A parameter that is a number."""
        return self._scalars[name]

    # ---- statements

    def emit(self, statement: Any) -> None:
        """Append a statement."""
        self._blocks[-1].append(statement)

    def store(self, pointer: Pointer, index: Expr, value: Expr) -> None:
        """pointer[index…] = value."""
        assert not pointer.const, f"{pointer.var.name} is only read"
        self.emit(pointer.store(index, value))

    def let(self, value: Expr, name: str = "v") -> Expr:
        """Name a value, so that it is computed once.

        Only scalar integers, for indices, become let-bindings: tvm's analyzer substitutes bindings into each other,
        which grows exponentially along a chain of vector arithmetic.
        """
        if dtype_of(value) not in ("int32", "int64"):
            return self.register(value, name).value
        var = tirx.Var(self._fresh(name), dtype_of(value))
        self.emit(tirx.Bind(var, value))
        return var

    def register(self, initial: Expr, name: str = "r") -> Register:
        """A mutable value, declared here and set to `initial`."""
        scalar = dtype_of(initial).partition("x")[0]
        buffer = tirx.decl_buffer((lanes_of(initial),), scalar, self._fresh(name))
        self.emit(tirx.AllocBuffer(buffer))
        register = Register(buffer, lanes_of(initial))
        self.set(register, initial)
        return register

    def array(self, dtype: str, count: int, name: str = "array") -> Pointer:
        """Uninitialized memory on the stack, also of 1 KiB or more; arrays of whole cache lines are aligned to them."""
        size = count * int(dtype.lstrip("intfloau")) // 8
        buffer = tirx.decl_buffer((count,), dtype, self._fresh(name))
        if size % CACHE_LINE:
            assert size < 1024
            self.emit(tirx.AllocBuffer(buffer))
            return Pointer(name, dtype, buffer)
        # An array's alignment is that of its elements; without the annotation tvm allocates large ones on a heap.
        lines = tirx.decl_buffer((size // CACHE_LINE,), "float32x16", self._fresh(name))
        self.emit(tirx.AllocBuffer(lines, annotations={"disable_lower_builtin": tirx.const(True, "bool")}))
        buffer = tirx.decl_buffer((count,), dtype, self._fresh(name), data=lines.data)
        self.emit(tirx.DeclBuffer(buffer, data=lines.data))
        return Pointer(name, dtype, buffer)

    def set(self, register: Register, value: Expr) -> None:
        """register = value."""
        self.emit(tirx.BufferStore(register.buffer, value, [_ramp(0, register.lanes)]))

    def prefetch(self, pointer: Pointer, index: Expr) -> None:
        """Prefetch the cache line of pointer[index] into the second cache; the address may be invalid."""
        hint = [tirx.IntImm("int32", value) for value in (0, 2, 1)]  # to read, nearer than the last cache, data
        self.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", pointer.address(index), *hint)))

    @contextmanager
    def loop(self, extent: Expr, name: str = "i", begin: Expr = 0) -> Iterator[Expr]:
        """for (i = begin; i < begin + extent; i++)."""
        if isinstance(extent, int):
            extent = tirx.const(extent, "int32")
        dtype = dtype_of(extent)
        begin = tirx.const(begin, dtype) if isinstance(begin, int) else begin
        variable = tirx.Var(self._fresh(name), dtype)
        self._blocks.append([])
        yield variable
        self.emit(tirx.For(variable, begin, extent, tirx.ForKind.SERIAL, self._closed()))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if (condition)."""
        self._blocks.append([])
        yield
        self.emit(tirx.IfThenElse(condition, self._closed(), None))

    def function(self) -> Any:
        """The finished function."""
        parameters, declarations = [], []
        for p in self.signature.parameters:
            if not p.pointer:
                parameters.append(self._scalars[p.name])
                continue
            pointer = self._pointers.get(p.name) or Pointer(p.name, p.dtype or "uint8")  # its value is not used
            parameters.append(pointer.var)
            declarations.append(tirx.DeclBuffer(pointer.buffer, data=pointer.var))
        body = tirx.SeqStmt([*declarations, *self._blocks[0], tirx.Return(tirx.IntImm("int32", 0))])
        function = tirx.PrimFunc(parameters, body, PrimType("int32"))
        return function.with_attr({"global_symbol": self.name, "calling_conv": 1, "tirx.noalias": True})

    def _closed(self) -> Any:
        statements = self._blocks.pop()
        return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)

    def _fresh(self, name: str) -> str:
        self._names += 1
        return f"{name}_{self._names}"


def _target(triple: str, level: CpuLevel, matmul: bool) -> Any:
    """The tvm Target of a triple with exactly a level's features, never a host CPU's."""
    from tvm.target import Target

    fields: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mattr": [f"+{f}" for f in level.features]}
    schedule = level.matmul_schedule if matmul else level.schedule
    if not matmul:
        fields["opt-level"] = 2  # at 3, the default, more loops are unrolled completely, which is larger and not faster
    if schedule:
        fields["mcpu"] = schedule
    if level.source_order:
        fields["cl-opt"] = ["-misched-regpressure:bool=false"]
    return Target(fields)


def lower(kernel: Kernel, triple: str, level: CpuLevel) -> Any:
    """Compile a finished kernel; returns a tvm module that can write objects and assembly."""
    target = _target(triple, level, kernel.matmul)
    module = tvm.IRModule({kernel.name: kernel.function()})
    passes = [
        tirx.transform.BindTarget(target),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    return tvm.get_global_func("target.build.llvm")(tvm.transform.Sequential(passes)(module), target)
