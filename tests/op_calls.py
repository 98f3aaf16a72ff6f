"""Ops as users call them."""

import torch

from fastlatent.ops._register import public_function


def outputs(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def call(op, *args):
    return outputs(public_function(op.name)(*args))


def main_dtype(op):
    return torch.float32 if torch.float32 in op.dtypes else op.dtypes[0]
