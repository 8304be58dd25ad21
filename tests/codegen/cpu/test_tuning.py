"""Tuning records: reading what strangers send, and the choices that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smc.codegen.cpu import tuning
from smc.codegen.cpu.tiles import candidate_tiles, candidates, default_tile
from smc.codegen.cpu.tuning import (
    Record,
    Tuning,
    cpu_names,
    load_tuning,
    merge_records,
    parse_record,
    read_records,
    records_hash,
    target_cpus,
    write_records,
)
from smc.codegen.cpu.tuning_kit import TOKENS, standard_matrices, workloads
from smc.codegen.kernels.specs import EmbeddingKernel, LinearKernel
from smc.errors import InputError
from smc.ir import F16, integer
from smc.targets import TARGETS
from tests.codegen.encodings import ENCODINGS

AVX2 = TARGETS["x86-64"].levels[-1]
KERNEL = LinearKernel(integer(4))
DEFAULT = str(default_tile(integer(4), AVX2))
OTHERS = [name for name in candidates(KERNEL, AVX2) if name != DEFAULT]
LINE = (
    '{"version": 1, "cpu": "arm-0x41-0xd0b", "level": "avx2", "kernel": "linear_int4_g32", '
    '"workload": {"rows": 1536, "columns": 576, "tokens": 21}, "nanoseconds": {"4x8": 1200, "8x8": 900}}'
)


def shape(columns: int, tokens: int, rows: int = 64) -> tuple[tuple[str, int], ...]:
    return (("rows", rows), ("columns", columns), ("tokens", tokens))


def record(cpu: str, times: dict[str, int], columns: int = 576, tokens: int = 21) -> Record:
    return Record(cpu, "avx2", KERNEL.name(), shape(columns, tokens), tuple(times.items()))


# ---------------------------------------------------------------- files


def test_a_line_and_back() -> None:
    parsed = parse_record(LINE)
    assert (parsed.cpu, parsed.level, parsed.kernel) == ("arm-0x41-0xd0b", "avx2", "linear_int4_g32")
    assert parsed.workload == shape(576, 21, 1536)
    assert dict(parsed.nanoseconds) == {"4x8": 1200, "8x8": 900}
    assert parsed.line() == LINE


NAMES = st.from_regex(r"\A[A-Za-z0-9_.-]{1,20}\Z")
NUMBERS = st.dictionaries(NAMES, st.integers(1, 10**12), min_size=1, max_size=5).map(lambda d: tuple(d.items()))
RECORDS = st.builds(Record, NAMES, NAMES, NAMES, NUMBERS, NUMBERS)


@given(RECORDS)
def test_every_record_survives_its_line(any_record: Record) -> None:
    assert parse_record(any_record.line()) == any_record


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_no_text_does_harm(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (json's own and ours)
        parse_record(text)


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(LINE), **values})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "a record is an object with the keys"),
        (changed(version=2), "version 2, this smc reads version 1"),
        (changed(more=1), "with the keys"),
        (changed(cpu="a b"), "not a name of a cpu"),
        (changed(kernel=['"']), "not a name of a kernel"),
        (changed(workload={"rows": 1.5}), "no whole number"),
        (changed(workload={}), "object of 1 to"),
        (changed(nanoseconds={"4x8": 0}), "no whole number"),
        (changed(nanoseconds={"4x8": True}), "no whole number"),
        (changed(nanoseconds={"4x8": 10**16}), "no whole number"),
        (changed(nanoseconds={'"': 5}), "no whole number"),
        (LINE.replace("1200", "NaN"), "no whole number"),
        ("[" * 100_000, "nested"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{LINE}\n\n{line}\n")
    with pytest.raises(InputError, match=r"records\.jsonl line 3 is not a tuning record") as error:
        read_records(path)
    assert words in str(error.value)


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_records(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        read_records(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="line 1"):
        read_records(tmp_path / "bytes")
    monkeypatch.setattr(tuning, "MAX_FILE_BYTES", 10)
    (tmp_path / "long").write_text(LINE)
    with pytest.raises(InputError, match="larger"):
        read_records(tmp_path / "long")


def test_of_equal_keys_the_last_counts_and_order_stays(tmp_path: Path) -> None:
    one, two, newer = record("a", {"4x8": 5}), record("b", {"4x8": 6}), record("a", {"4x8": 7})
    assert merge_records([one, two], [newer]) == [newer, two]
    write_records(tmp_path / "new" / "records.jsonl", [newer, two])
    assert read_records(tmp_path / "new" / "records.jsonl") == [newer, two]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["records.jsonl"]


# ---------------------------------------------------------------- CPUs

X86_CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
"""
ARM_CPUINFO = """processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 4
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Hardware\t: Something
"""


def test_cpu_names() -> None:
    assert cpu_names(X86_CPUINFO, "x86_64") == {"AuthenticAMD-26-2"}
    assert cpu_names(ARM_CPUINFO, "aarch64") == {"arm-0x41-0xd05", "arm-0x41-0xd0b"}
    assert cpu_names("", "x86_64") == frozenset()


def test_a_device_names_its_cpu() -> None:
    assert target_cpus("raspberry-pi-5") == {"arm-0x41-0xd0b"}
    assert target_cpus("arm64") == frozenset()


# ---------------------------------------------------------------- choosing


def choose(sources: list[list[Record]], cpus: tuple[str, ...] = (), **work: float) -> str:
    wanted = {KERNEL: {shape(576, 21): 1.0} if not work else {shape(int(k[1:]), 21): w for k, w in work.items()}}
    return Tuning(sources, frozenset(cpus)).choose(KERNEL, AVX2, wanted).name


A, B = OTHERS[:2]


def test_without_records_the_default_is_built() -> None:
    choice = Tuning([[record("c", {A: 1})]]).choose(LinearKernel(integer(8)), AVX2, {LinearKernel(integer(8)): {}})
    assert (choice.spec, choice.records) == (LinearKernel(integer(8)), ())
    embedding = EmbeddingKernel(F16)
    assert Tuning().choose(embedding, AVX2, {}).spec == embedding
    assert (
        Tuning([[record("c", {DEFAULT: 9, A: 10})]]).choose(KERNEL, AVX2, {KERNEL: {shape(576, 21): 1}}).spec == KERNEL
    )


def test_the_fastest_is_chosen_and_says_by_how_much() -> None:
    source = [record("c", {DEFAULT: 1000, A: 800, B: 500})]
    choice = Tuning([source]).choose(KERNEL, AVX2, {KERNEL: {shape(576, 21): 1.0}})
    assert (choice.name, choice.spec) == (B, candidates(KERNEL, AVX2)[B])
    assert choice.speedup == pytest.approx(2)
    assert choice.records == tuple(source)


def test_a_gain_within_the_noise_changes_nothing() -> None:
    assert choose([[record("c", {DEFAULT: 1000, A: 985})]]) == DEFAULT
    assert choose([[record("c", {DEFAULT: 1000, A: 975})]]) == A


def test_names_that_are_no_candidates_any_more_are_ignored() -> None:
    assert choose([[record("c", {DEFAULT: 1000, "99x99": 1, A: 700})]]) == A
    assert choose([[record("c", {"99x99": 1})]]) == ""
    assert choose([[record("c", {"99x99": 1, B: 7, A: 3})]]) == A  # the default was another when it was measured


def test_a_candidate_must_be_known_for_all_that_counts() -> None:
    records = [record("c", {DEFAULT: 100, A: 50, B: 90}), record("c", {DEFAULT: 100, B: 90}, columns=2048)]
    assert choose([records], _576=1, _2048=1) == B


def test_work_is_weighed() -> None:
    records = [record("c", {DEFAULT: 100, A: 50, B: 80}), record("c", {DEFAULT: 100, A: 120, B: 60}, columns=2048)]
    assert choose([records], _576=9, _2048=1) == A
    assert choose([records], _576=1, _2048=9) == B


def test_the_nearest_shape_speaks_for_what_was_not_measured() -> None:
    records = [record("c", {DEFAULT: 100, A: 50}), record("c", {DEFAULT: 100, B: 50}, columns=4096)]
    assert choose([records], _640=1) == A
    assert choose([records], _3000=1) == B


def test_records_of_the_cpu_that_is_meant_come_first() -> None:
    records = [record("mine", {DEFAULT: 100, A: 90, B: 95}), record("other", {DEFAULT: 100, A: 90, B: 10})]
    assert choose([records], ("mine",)) == A
    assert choose([records]) == B  # all count alike
    assert choose([records], ("third",)) == B


def test_the_users_records_come_before_those_that_ship_but_not_before_the_right_cpu() -> None:
    users, shipped = [record("other", {DEFAULT: 100, A: 50})], [record("mine", {DEFAULT: 100, B: 50})]
    assert choose([users, shipped]) == A
    assert choose([users, shipped], ("mine",)) == B


def test_the_hash_is_of_the_records_that_count_in_any_order() -> None:
    one, two = record("c", {DEFAULT: 100, A: 50}), record("c", {DEFAULT: 100, A: 50}, columns=2048)
    unused = record("c", {A: 1}, columns=64)
    wanted = {KERNEL: {shape(576, 21): 1.0, shape(2048, 21): 1.0}}

    def hashed(*records: Record) -> str | None:
        return records_hash([Tuning([records]).choose(KERNEL, AVX2, wanted)])

    assert hashed(one, two) == hashed(two, one) == hashed(unused, two, one)
    assert hashed(one) != hashed(one, two)
    assert hashed() is None


def test_the_users_file_is_read_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMC_RECORDS", str(tmp_path / "mine.jsonl"))
    assert load_tuning("arm64").sources[0] == []
    (tmp_path / "mine.jsonl").write_text(LINE)
    assert load_tuning("arm64").sources[0] == [parse_record(LINE)]
    assert load_tuning("native", tmp_path / "mine.jsonl").sources[0] == [parse_record(LINE)]
    with pytest.raises(InputError, match="there is no file"):
        load_tuning("native", tmp_path / "other.jsonl")
    monkeypatch.delenv("SMC_RECORDS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tuning.user_records() == tmp_path / "smc" / "tuning.jsonl"


def test_records_that_ship_can_be_read() -> None:
    for path in tuning.shipped_records():
        names = {kernel.name() for kernel in workloads(standard_matrices())}
        assert {record.kernel for record in read_records(path)} <= names


# ---------------------------------------------------------------- search spaces


LEVELS = [level for target in ("x86-64", "arm64") for level in TARGETS[target].levels]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_search_spaces_are_small_and_begin_with_the_default(level: Any) -> None:
    for encoding in ENCODINGS:
        tiles = candidate_tiles(encoding, level)
        assert tiles[0] == default_tile(encoding, level)
        assert len(set(tiles)) == len(tiles) and 3 <= len(tiles) <= 40
        assert all(32 % tile.rows == 0 and tile.rows % level.lanes == 0 for tile in tiles)
        kernels = candidates(LinearKernel(encoding), level)
        assert [*kernels] == [str(tile) for tile in tiles]
        assert len({kernel.name() for kernel in kernels.values()}) == len(tiles)


def test_matrices_with_as_many_columns_are_one_class() -> None:
    matrices = [(integer(4), 192, 576), (integer(4), 49152, 576), (integer(4), 576, 1536), (F16, 7, 48)]
    found = workloads(matrices)
    assert list(found) == [KERNEL, LinearKernel(F16)]
    assert found[KERNEL] == {
        **{shape(576, tokens, 512): (192 + 49152) * 576.0 * tokens for tokens in TOKENS},
        **{shape(1536, tokens, 512): 576 * 1536.0 * tokens for tokens in TOKENS},
    }
