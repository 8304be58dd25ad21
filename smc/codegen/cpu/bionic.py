"""Linking for Android, whose C library (bionic) does not come with zig.

The engine is compiled with musl's headers: what it takes from them (the types of pthreads, stat, CPU sets, the kernel's
constants) is the same on 64-bit ARM in both libraries; where they differ is in COMPILE_FLAGS. It is linked against
stand-ins of libc.so and libm.so that define just the names below, all of which Android has had since version 7
(API level 24), so a name that Android lacks is an error of the linker and not of the phone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

HEADERS = "aarch64-linux-musl"
"""zig's target for compiling."""

COMPILE_FLAGS = ("-ffixed-x18", "-fno-builtin-bcmp", "-D__errno_location=__errno")
"""Android reserves register x18, has no bcmp for LLVM to call, and finds errno with another function."""

_LIBC = """
__errno __sched_cpucount abort calloc clock_gettime close fclose fgets fopen fread free fstat getauxval getenv
getpagesize getpid madvise malloc memchr memcmp memcpy memmove memset mmap mprotect munmap open posix_memalign pread
pthread_cond_broadcast pthread_cond_destroy pthread_cond_init pthread_cond_wait pthread_create pthread_join
pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock pthread_sigmask qsort realloc
sched_getaffinity sched_getcpu sched_setaffinity sched_yield sigfillset snprintf sscanf strchr strcmp strcspn strerror
strlen strncmp strrchr strstr strtok_r strtol syscall vsnprintf
"""
LIBRARIES = {"libc": _LIBC.split(), "libm": ["cos", "exp", "log", "pow", "sin"]}
"""Functions that a program may call."""


def write_stand_ins(folder: Path, link: Callable[[list[str]], None]) -> list[Path]:
    """Make libc.so and libm.so in a folder. link: runs the compiler with arguments for a shared library."""
    libraries = []
    for name, functions in LIBRARIES.items():
        source, library = folder / f"{name}.c", folder / f"{name}.so"
        source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
        link(["-fno-builtin", f"-Wl,-soname,{name}.so", str(source), "-o", str(library)])
        libraries.append(library)
    return libraries
