"""Python values as C: literals, comments and identifiers that are what they should be, whatever a checkpoint says."""

from __future__ import annotations


def c_string(text: str) -> str:
    """A C string literal of any text, in UTF-8: nothing in it has a meaning in C."""
    safe = {ord(c) for c in " .-_"} | {code for code in range(128) if chr(code).isalnum()}
    return '"' + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def c_float(value: float) -> str:
    """A float literal that C reads as the same float32."""
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".e") else text + ".0") + "f"


def c_comment(text: str) -> str:
    """Text that can stand in a comment: it can't end it."""
    return "".join(c if c.isprintable() and c != "/" else " " for c in text)


def c_identifier(name: str) -> str:
    """The C name of a value or slot of the ir."""
    return name.replace(".", "_")
