"""The probe: bandwidth, barriers, launches, the real matrix product in three forms; by the driver's own functions."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

THREADS, SHARED = 256, 16 << 10
GRAPH_NODES = 100


class Driver:
    """libcuda.so.1, a GPU, a stream and the probe's module; RuntimeError with the driver's words for what fails."""

    def __init__(self, kit: Path, images: dict) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, self.context, self.stream, self.module = c_int(), c_void_p(), c_void_p(), c_void_p()
        self.call("cuDeviceGet", byref(device), 0)
        self.device = device.value
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), self.device)
        self.call("cuCtxPushCurrent_v2", self.context)
        self.call("cuStreamCreate", byref(self.stream), 1)
        self.capability = 10 * self.attribute(75) + self.attribute(76)
        self.processors = self.attribute(16)
        built = [int(architecture) for architecture in images if architecture != "ptx"]
        fitting = [a for a in built if a // 10 == self.capability // 10 and a <= self.capability]
        name = images[str(max(fitting))] if fitting else images["ptx"]
        self.call("cuModuleLoadData", byref(self.module), (kit / name).read_bytes() + b"\0")

    def call(self, name: str, *arguments: object) -> None:
        """A function of the driver."""
        status = getattr(self.library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")

    def attribute(self, number: int) -> int:
        """One of the GPU's."""
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), number, self.device)
        return value.value

    def name(self) -> str:
        """The GPU's."""
        text = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", text, 100, self.device)
        return text.value.decode()

    def version(self) -> int:
        """Of CUDA, that the driver is for: 12040 is 12.4."""
        value = c_int()
        self.call("cuDriverGetVersion", byref(value))
        return value.value

    def function(self, name: str) -> c_void_p:
        """A kernel of the probe."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), self.module, name.encode())
        return function

    def memory(self, size: int, data: bytes = b"") -> int:
        """Memory of the GPU, that begins with data."""
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        if data:
            self.write(pointer.value, data)
        return pointer.value

    def write(self, place: int, data: bytes) -> None:
        """Data into memory of the GPU."""
        self.call("cuMemcpyHtoDAsync_v2", c_uint64(place), data, c_size_t(len(data)), self.stream)
        self.wait()

    def wait(self) -> None:
        """For all that was begun."""
        self.call("cuStreamSynchronize", self.stream)

    def launch(self, function: c_void_p, blocks: int, a: int, b: int, c: int, d: int, together: bool = False) -> None:
        """A kernel of the probe."""
        values = (c_uint64(a), c_uint64(b), c_uint32(c), c_uint32(d))
        pointers = (c_void_p * 4)(*(ctypes.addressof(value) for value in values))
        sizes = (blocks, 1, 1, THREADS, 1, 1, SHARED)
        if together:
            self.call("cuLaunchCooperativeKernel", function, *sizes, self.stream, pointers)
        else:
            self.call("cuLaunchKernel", function, *sizes, self.stream, pointers, None)

    def seconds(self, work: Callable[[], None], repeat: int) -> float:
        """By the GPU's clock, the least of `repeat` runs behind one that does not count."""
        events = [c_void_p(), c_void_p()]
        for event in events:
            self.call("cuEventCreate", byref(event), 0)
        best = float("inf")
        for run in range(repeat + 1):
            self.call("cuEventRecord", events[0], self.stream)
            work()
            self.call("cuEventRecord", events[1], self.stream)
            self.wait()
            taken = c_float()
            self.call("cuEventElapsedTime", byref(taken), *events)
            best = min(best, taken.value / 1e3) if run else best
        return best

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does all launches of `work` as one graph."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, 1)
        work()
        self.call("cuStreamEndCapture", self.stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        return lambda: self.call("cuGraphLaunch", executable, self.stream)


def control(driver: Driver) -> int:
    """Memory for a grid's barrier, as phases.cuh has it."""
    return driver.memory(64)


def reset(driver: Driver, place: int) -> None:
    """No block has come yet, and they wait for ten seconds."""
    driver.write(place, struct.pack("<IIIIIIQQ", 0, 0xFFFFFFFF, 0, 0, 1, 0, 0, 10_000_000_000))


def probe(kit: Path, images: dict, small: bool) -> dict:
    """All figures: GB/s and microseconds. small: for tests."""
    driver = Driver(kit, images)
    repeat = 1 if small else 5
    report: dict = {"gpu": driver.name(), "capability": driver.capability, "multiprocessors": driver.processors}
    report["driver"] = driver.version()
    units = 256 if small else (1 << 31) // 4096
    source, sink, empty, read = (
        driver.memory(units * 4096),
        driver.memory(64),
        *map(driver.function, ("probe_empty", "probe_read")),
    )
    grid = driver.processors * (1 if small else 8)
    seconds = driver.seconds(lambda: driver.launch(read, grid, source, sink, units, 0), repeat)
    report["read_gb_per_s"] = units * 4096 / seconds / 1e9

    def many() -> None:
        for _ in range(GRAPH_NODES):
            driver.launch(empty, driver.processors, 0, 0, 0, 0)

    report["launch_us"] = driver.seconds(many, repeat) / GRAPH_NODES * 1e6
    report["graph_node_us"] = driver.seconds(driver.graph(many), repeat) / GRAPH_NODES * 1e6
    place, barriers = control(driver), driver.function("probe_barriers")
    count = 3 if small else 1000
    for each in (1, 2):
        blocks = each * driver.processors
        if small and each > 1:
            continue

        def wait_often(blocks: int = blocks) -> None:
            reset(driver, place)
            driver.launch(barriers, blocks, 0, place, count, 0, together=True)

        def wait_once(blocks: int = blocks) -> None:
            reset(driver, place)
            driver.launch(barriers, blocks, 0, place, 1, 0, together=True)

        taken = driver.seconds(wait_often, repeat) - driver.seconds(wait_once, repeat)
        report[f"barrier_us_{each}_per_multiprocessor"] = max(taken, 0.0) / (count - 1) * 1e6
    shapes = [(32, 64, 2)] if small else [(576, 576, 210), (2048, 2048, 154), (4096, 4096, 128)]
    report["products"] = [_products(driver, place, *shape, repeat) for shape in shapes]
    return report


def _products(driver: Driver, place: int, rows: int, columns: int, count: int, repeat: int) -> dict:
    """int4 by one token, matrix after matrix: as launches, as a graph of them, and as one resident kernel."""
    tiles = columns // 32
    block = (b"\x00\x2c" * 32 + bytes(range(256)) * 2) * tiles  # scales of 1/16, then codes
    matrix = rows // 32 * len(block)
    weights = driver.memory(count * matrix)
    for i in range(count):
        driver.write(weights + i * matrix, block * (rows // 32))
    x, scales = driver.memory(columns, bytes([3]) * columns), driver.memory(4 * tiles, struct.pack("<f", 0.5) * tiles)
    sums, out = driver.memory(4 * tiles, struct.pack("<i", 96) * tiles), driver.memory(4 * rows)
    given = driver.memory(64, struct.pack("<QQQQQQii", x, scales, sums, weights, out, matrix, rows, tiles))
    multiply, blocks = driver.function("probe_multiply"), 2 * driver.processors
    blocks = min(blocks, rows // 8) if driver.processors > 8 else driver.processors

    def launches() -> None:
        for i in range(count):
            driver.launch(multiply, blocks, given, place, i, i + 1)

    def resident() -> None:
        reset(driver, place)
        driver.launch(multiply, blocks, given, place, 0, count, together=True)

    forms = {"launches": launches, "graph": driver.graph(launches), "resident": resident}
    figures = {name: driver.seconds(form, repeat) / count for name, form in forms.items()}
    best = {f"{name}_us": seconds * 1e6 for name, seconds in figures.items()}
    return {"rows": rows, "columns": columns, **best, "gb_per_s": matrix / min(figures.values()) / 1e9}
