"""A pytest plugin that mends what Triton 3.6's interpreter gets wrong.

Its scalars are arrays of one element, which NumPy 2.4 takes for no index; its products of bfloat16 multiply the bits
that stand for the numbers; and it rounds to bfloat16 towards zero, not to the nearest.
"""

from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor
_dot = interpreter.InterpreterBuilder.create_dot
_cast = interpreter.InterpreterBuilder.cast_impl


def _patch_tensor_with_index(tensor: Any, scope: Any) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _dot_of_numbers(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (builder.cast_impl(x, tl.float32) for x in (a, b))
    return _dot(builder, a, b, *rest)


def _cast_to_nearest(builder: Any, source: Any, wanted: Any) -> Any:
    if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
        return _cast(builder, source, wanted)
    bits = torch.from_numpy(source.data).bfloat16().view(torch.uint16).numpy()
    return interpreter.TensorHandle(bits, tl.bfloat16)


interpreter._patch_lang_tensor = _patch_tensor_with_index
interpreter.InterpreterBuilder.create_dot = _dot_of_numbers
interpreter.InterpreterBuilder.cast_impl = _cast_to_nearest
