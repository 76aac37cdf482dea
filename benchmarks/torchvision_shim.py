"""Lets the PyPI torchvision wheel work beside a CPU build of torch, for benchmarks and zoo tests only.

That wheel's compiled operators are linked against CUDA; without them torchvision registers fake kernels for operators that do
not exist and its import fails. `install()` declares the operators from their published schemas, and implements NMS and RoI
align on the CPU in plain torch, which is all that torchvision's own models call. Does nothing when the
compiled operators load. Import this module before torchvision, timm or transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pathlib
from unittest import mock

import torch

ROI = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
IMAGE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
CONV = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask"
)
SCHEMAS = (
    *(f"{q}nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for q in ("", "q")),
    *(f"{q}roi_align(Tensor input, Tensor rois, {ROI}, int sampling_ratio, bool aligned) -> Tensor" for q in ("", "q")),
    f"_roi_align_backward(Tensor grad, Tensor rois, {ROI}, {IMAGE}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, {ROI}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {ROI}, {IMAGE}) -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, {ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {ROI}, int sampling_ratio, {IMAGE}) -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, {ROI}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {ROI}, {IMAGE}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {CONV}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    f"{CONV}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "_cuda_version() -> int",
)
_library: torch.library.Library | None = None


def install() -> None:
    """Make `import torchvision` work; idempotent, and a no-op where torchvision is absent or whole."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _library is not None:
        return
    for compiled in pathlib.Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
            return
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)
    _library.impl("nms", _nms, "CPU")
    _library.impl("roi_align", _roi_align, "CPU")
    _library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    with mock.patch.object(torch.ops, "load_library"):
        importlib.import_module("torchvision")


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy suppression: indices of the kept boxes, best score first."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True)
    overlaps = box_iou(boxes[order], boxes[order]) > threshold
    dropped = torch.zeros(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not dropped[i]:
            dropped[i + 1 :] |= overlaps[i, i + 1 :]
    return order[~dropped]


def _roi_align(
    image: torch.Tensor, rois: torch.Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    from torchvision.ops.roi_align import _roi_align as compiled

    in_plain_torch = inspect.unwrap(compiled)
    return in_plain_torch(image, rois, scale, height, width, sampling_ratio, aligned)


install()
