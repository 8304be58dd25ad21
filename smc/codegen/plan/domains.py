"""Domains: what a kernel's blocks are. Blocks are independent, so that backends may distribute them."""

from __future__ import annotations

from dataclasses import dataclass

from smc.codegen.plan.arguments import Buffer, Routing


@dataclass(frozen=True)
class Domain:
    """The domain of a kernel; by_token: a token's results depend on no other token."""

    by_token = False


@dataclass(frozen=True)
class Tokens(Domain):
    """A block is a token's whole row."""

    by_token = True

    def __str__(self) -> str:
        return "tokens"


@dataclass(frozen=True)
class Columns(Domain):
    """A block is 32 columns of a row, as wide as that of a buffer; the tokens' rows follow one another."""

    buffer: Buffer
    by_token = True

    def __str__(self) -> str:
        return "tokens x columns / 32"


@dataclass(frozen=True)
class Rows(Domain):
    """A block is 32 rows of the matrix in a slot, for any number of tokens."""

    slot: str
    by_token = True

    def __str__(self) -> str:
        return f"{self.slot}.rows / 32"


@dataclass(frozen=True)
class Once(Domain):
    """One block: all tokens."""

    by_token = True

    def __str__(self) -> str:
        return "once"


@dataclass(frozen=True)
class Groups(Domain):
    """A block is all rows of one expert. columns: the kernel's own blocks are tiles of these rows, not the rows."""

    routing: Routing
    columns: Buffer | None = None
    by_token = True

    def __str__(self) -> str:
        return "experts that are chosen"


@dataclass(frozen=True)
class GroupRows(Domain):
    """A block is 32 rows of the matrix that an expert has in a slot, for all rows of that expert."""

    slot: str
    routing: Routing
    by_token = True

    def __str__(self) -> str:
        return f"experts that are chosen x {self.slot}.rows / 32"


@dataclass(frozen=True)
class CacheWrites(Domain):
    """A block is one KV head by one tile of tokens."""

    kv_heads: int

    def __str__(self) -> str:
        return f"tiles x {self.kv_heads} KV heads"


@dataclass(frozen=True)
class Splits(Domain):
    """A block is one KV head by one tile of tokens by one split of the cache."""

    kv_heads: int

    def __str__(self) -> str:
        return f"tiles x {self.kv_heads} KV heads x splits"


@dataclass(frozen=True)
class Merges(Domain):
    """A block is one query head by one tile of tokens; there are none if the cache is not split."""

    heads: int

    def __str__(self) -> str:
        return f"tiles x {self.heads} heads, where the cache is split"
