"""onnxruntime over a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compiler.errors import FormatError, MissingExtraError

if TYPE_CHECKING:
    import onnxruntime


def onnx_session(content: bytes, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on this machine's CPU of the ONNX model `content`, which holds all its weights; `threads` None: onnxruntime's own count.

    Raises `FormatError` with onnxruntime's words for a model that it does not take, `MissingExtraError` where it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "dev", "comparing an ONNX model's outputs") from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(bytes(content), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no type
        raise FormatError(f"onnxruntime does not take this model: {' '.join(str(error).split())[:400]}") from error
