"""A pytest plugin that mends what Triton 3.6's interpreter gets wrong.

Its scalars are arrays of one element, which NumPy 2.4 takes for no index; its products of bfloat16 multiply the bits
that stand for the numbers; and it rounds to bfloat16 towards zero, not to the nearest. And what makes it slow: it
prepares its language anew at every call of a function within a kernel, though the kernel's launch has just done so.
"""

from functools import cache
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


#: Of a function within a kernel: once, as this is never undone.
_prepare = cache(interpreter._patch_lang)


def _call_prepared(function: Any, *args: Any, **kwargs: Any) -> Any:
    _prepare(function.fn)
    return function.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call_prepared
interpreter._patch_lang_tensor = _patch_tensor_with_index
interpreter.InterpreterBuilder.create_dot = _dot_of_numbers
interpreter.InterpreterBuilder.cast_impl = _cast_to_nearest
