"""Counting instructions: the plugin's file is read right, loops are found, a known loop has its known count."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import qemu
from benchmarks.instructions_mca import Instruction, find_loops, parse_disassembly
from benchmarks.qemu import Profile, Symbols, parse_counts


def test_counts_of_blocks_translated_twice_add_up() -> None:
    profile = parse_counts("threads 1\n1000 3 7\n100c 2 1\n1000 3 4\n")
    assert dict(profile.blocks) == {(0x1000, 3): 11, (0x100C, 2): 1}
    assert profile.instructions == 3 * 11 + 2


@pytest.mark.parametrize("threads", [0, 2])
def test_other_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads {threads}"):
        parse_counts(f"threads {threads}\n1000 3 7\n")


BLOCKS = st.dictionaries(
    st.tuples(st.integers(0, 40).map(lambda place: 4 * place), st.integers(1, 9)), st.integers(1, 1000), max_size=20
)


@given(BLOCKS, BLOCKS)
def test_the_three_views_of_a_profile_agree(
    longer: dict[tuple[int, int], int], shorter: dict[tuple[int, int], int]
) -> None:
    difference = Profile(longer) - Profile(shorter)
    expected = Profile(longer).instructions - Profile(shorter).instructions
    assert difference.instructions == expected
    assert sum(difference.executions().values()) == expected
    assert sum(difference.by_symbol(Symbols([(0, "low"), (80, "high")])).values()) == expected


def test_symbols_are_found_by_address() -> None:
    symbols = Symbols([(200, "second"), (100, "first")])
    found = [symbols.at(address) for address in (99, 100, 199, 200, 9999)]
    assert found == ["?", "first", "first", "second", "second"]


DISASSEMBLY = """
/some/program:	file format elf64-littleaarch64

Disassembly of section .text:

0000000000001000 <work>:
    1000:      	mov	w9, #0x5                // =5
    1004:      	ldr	q0, [x1], #0x10
    1008:      	sdot	v1.4s, v0.16b, v2.4b[0]
    100c:      	subs	x3, x3, #0x1
    1010:      	b.ne	0x1008 <work+0x8>
    1014:      	cbz	x4, 0x101c <work+0x1c>
    1018:      	add	x5, x5, #0x1
    101c:      	tbnz	w2, #0x3, 0x1004 <work+0x4>
    1020:      	bl	0x1000 <work>
    1024:      	ret
"""


def test_disassembly() -> None:
    instructions = parse_disassembly(DISASSEMBLY)
    assert instructions[0] == Instruction(0x1000, "mov w9, #0x5", None)
    assert instructions[2] == Instruction(0x1008, "sdot v1.4s, v0.16b, v2.4b[0]", None)
    targets = {instruction.text: instruction.target for instruction in instructions if instruction.target}
    assert targets == {"b.ne .Lloop": 0x1008, "cbz x4, .Lloop": 0x101C, "tbnz w2, #0x3, .Lloop": 0x1004}


def test_loops_own_what_no_loop_inside_owns() -> None:
    instructions = parse_disassembly(DISASSEMBLY)
    outer, inner, rare = 10, 80, 2
    executions = Counter({0x1000: 1, 0x1004: outer, 0x1018: rare, 0x1020: 1, 0x1024: 1})
    executions.update(dict.fromkeys((0x1008, 0x100C, 0x1010), inner))
    executions.update(dict.fromkeys((0x1014, 0x101C), outer))
    loops = find_loops("work", instructions, executions)
    assert [[i.address for i in loop.body] for loop in loops] == [[0x1008, 0x100C, 0x1010], [0x1004, 0x1014, 0x101C]]
    assert [loop.turns for loop in loops] == [inner, outer]
    assert [loop.instructions for loop in loops] == [3 * inner, 3 * outer]


def test_loops_that_never_ran_are_none() -> None:
    assert find_loops("work", parse_disassembly(DISASSEMBLY), {0x1000: 1}) == []


COUNTED = """
#include <stdlib.h>
int main(int count, char **words) {
  long turns = atol(words[1]);
  __asm__ volatile("1: sub %0, %0, #1\\n nop\\n nop\\n cbnz %0, 1b" : "+r"(turns));
  return (int)turns;
}
"""


@pytest.mark.arm64
@pytest.mark.skipif(not qemu.EMULATOR.is_file(), reason="needs `python -m benchmarks.qemu`, which takes ten minutes")
def test_a_known_loop_has_its_known_count(tmp_path: Path) -> None:
    source, program = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text(COUNTED)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    subprocess.run([*zig, str(source), "-o", str(program)], check=True)
    profiles = [qemu.profile([str(program), turns], "cortex-a53")[0] for turns in ("1234567", "1234568", "7234567")]
    assert (profiles[1] - profiles[0]).instructions == 4
    difference = profiles[2] - profiles[0]
    assert difference.by_symbol(Symbols.of(program))["main"] == 4 * 6_000_000
    assert sorted(count for count in difference.executions().values() if count > 100) == [6_000_000] * 4
