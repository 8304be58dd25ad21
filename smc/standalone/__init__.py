"""The second runtime: what executables have in place of Python's tokenizers and jinja2, as tables and C.

`tokenizer_tables` and `split_chat_template` make data of a model's texts when it is compiled; the C in `c/` uses them.
"""
