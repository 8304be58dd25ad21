"""The runtime of executables: C and tables in place of Python's tokenizers and jinja2.

`tokenizer_tables` and `split_chat_template` make tables when a model is compiled; the C in `c/` reads them.
"""
