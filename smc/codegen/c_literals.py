"""Python values as C literals, comments and identifiers, safe for any text of a checkpoint."""

from __future__ import annotations


def c_string(text: str) -> str:
    """A C string literal of any text, in UTF-8, with everything escaped."""
    safe = {ord(c) for c in " .-_"} | {code for code in range(128) if chr(code).isalnum()}
    return '"' + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def c_float(value: float) -> str:
    """A float literal that C reads as the same float32."""
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".e") else text + ".0") + "f"


def c_comment(text: str) -> str:
    """The text for a comment, which it can't end."""
    return "".join(c if c.isprintable() and c != "/" else " " for c in text)


def c_identifier(name: str) -> str:
    """The C name of a value or slot of the ir."""
    return name.replace(".", "_")
