"""Structures, constants and the function table of engine/engine.h, one to one."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p

import numpy as np

from smc.runtime.profile import LimitsStruct, ProfileStruct

ABI_VERSION = 8

ERROR_BYTES = 512
"""The size of the buffer for the sentence of a failed call."""

BAD_INPUT, NO_MEMORY, CANCELLED, NO_SPACE, UNSUPPORTED, FAILED, NOT_FINITE = -1, -2, -3, -4, -5, -6, -7

KV_DTYPES = {"f16": 0, "f32": 1, "i8": 2}
WANT_LOGITS, WANT_HIDDEN, WANT_ARGMAX = 1, 2, 4

TOKEN = np.dtype(
    [("token", "<i4"), ("sequence", "<i4"), ("position", "<i4"), ("index", "<i4"), ("flags", "<u4"), ("parent", "<i4")],
    align=True,
)
"""One token of a batch: id, sequence slot, rotary position, cache index, WANT_… flags, 0 (reserved for trees)."""


class Options(ctypes.Structure):
    """smc_options."""

    _fields_ = [
        ("size", c_uint32),
        ("context_length", c_int32),
        ("sequences", c_int32),
        ("kv_dtype", c_int32),
        ("threads", c_int32),
        ("path", c_char_p),
        ("level", c_char_p),
        ("pool", c_void_p),
        ("adapter", c_void_p),
        ("log", c_void_p),
        ("log_user", c_void_p),
    ]


class Info(ctypes.Structure):
    """smc_info: facts of an opened model."""

    _fields_ = [
        ("size", c_uint32),
        ("layers", c_int32),
        ("vocab_size", c_int32),
        ("hidden_size", c_int32),
        ("logits_stride", c_int32),
        ("context_length", c_int32),
        ("sequences", c_int32),
        ("threads", c_int32),
        ("kv_dtype", c_int32),
        ("max_step_tokens", c_int32),
        ("finds_argmax", c_int32),
        ("kv_page_tokens", c_int32),
        ("name", c_char_p),
        ("level", c_char_p),
        ("weight_bytes", c_uint64),
        ("token_weight_bytes", c_uint64),
        ("kv_bytes_per_token", c_uint64),
        ("state_bytes_per_sequence", c_uint64),
        ("kv_bytes_used", c_uint64),
        ("activation_bytes", c_uint64),
    ]


class Batch(ctypes.Structure):
    """smc_batch."""

    _fields_ = [
        ("count", c_int32),
        ("tokens", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
        ("argmax", c_void_p),
        ("cancels", c_uint32),
    ]


_ERROR = c_char_p
"""A writable buffer of ERROR_BYTES, or None."""


class Api(ctypes.Structure):
    """smc_engine_api: the table that a program exports."""

    _fields_ = [
        ("abi_version", c_uint32),
        ("size", c_uint32),
        ("pool_create", CFUNCTYPE(c_int, c_int32, POINTER(c_void_p))),
        ("pool_destroy", CFUNCTYPE(None, c_void_p)),
        ("open", CFUNCTYPE(c_int, POINTER(Options), POINTER(c_void_p), _ERROR)),
        ("close", CFUNCTYPE(None, c_void_p)),
        ("info", CFUNCTYPE(c_int, c_void_p, POINTER(Info), _ERROR)),
        ("step", CFUNCTYPE(c_int, c_void_p, POINTER(Batch), _ERROR)),
        ("cancel", CFUNCTYPE(None, c_void_p)),
        ("cancels", CFUNCTYPE(c_uint32, c_void_p)),
        ("sequence_create", CFUNCTYPE(c_int, c_void_p, _ERROR)),
        ("sequence_fork", CFUNCTYPE(c_int, c_void_p, c_int32, _ERROR)),
        ("sequence_truncate", CFUNCTYPE(c_int, c_void_p, c_int32, c_int32, _ERROR)),
        ("sequence_drop", CFUNCTYPE(c_int, c_void_p, c_int32, _ERROR)),
        ("sequence_length", CFUNCTYPE(c_int, c_void_p, c_int32, _ERROR)),
        ("sequence_save", CFUNCTYPE(c_int, c_void_p, c_int32, c_void_p, POINTER(c_uint64), _ERROR)),
        ("sequence_restore", CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint64, _ERROR)),
        ("profile_start", CFUNCTYPE(c_int, c_void_p, _ERROR)),
        ("profile_stop", CFUNCTYPE(c_int, c_void_p, POINTER(ProfileStruct), _ERROR)),
        ("limits", CFUNCTYPE(c_int, c_void_p, POINTER(LimitsStruct), _ERROR)),
    ]
