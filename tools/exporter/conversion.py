"""Convert a trained model to the bytes of a file that runs without this program.

Every file takes uint8 images (N, H, W, 3), or (N, H, W) of a grey set, for any N, and gives float32 probabilities
(N, K). Importing this module imports PyTorch.
"""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.errors import PipelineError, storage_errors
from scripts.data_handler.augmentation import to_float
from scripts.data_handler.tasks import Task
from scripts.evaluation.inference import Predictor

INPUT, OUTPUT = "images", "probabilities"
OPSET = 18  # the one that PyTorch's exporter is written in: newer ones are converted from it, and need newer runtimes
FACTS_FILE = "description.json"  # the member of a .pt2 file with what an ONNX file has in metadata_props
QUANTISED = ["Conv", "Gemm", "MatMul"]  # nearly all arithmetic; softmax and sigmoid in 8 bits would have 256 values


class ImagesToProbabilities(nn.Module):
    """A network with everything between stored images and probabilities, as a ``Predictor`` without TTA has it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, task: Task, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self._activation = task.probabilities
        # buffers rather than normalise(): its cache of constants would keep the tensors of the tracing
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, H, W[, 3]) to float32 probabilities (N, K)."""
        logits = self.network((to_float(images) - self.mean) / self.std)
        return self._activation(logits)


def as_module(predictor: Predictor) -> nn.Module:
    """A copy of a predictor's network on the CPU, with preparation and activation around it, in evaluation mode."""
    network = copy.deepcopy(predictor.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return ImagesToProbabilities(network, predictor.task, predictor.mean, predictor.std).eval()


def to_onnx(model: nn.Module, image_shape: Sequence[int], facts: Mapping[str, str]) -> bytes:
    """Convert a model to ONNX; ``facts`` become its metadata.

    The exporter is the one on torch.export: the older one, on TorchScript, is deprecated and will be removed.

    Raises:
        PipelineError: PyTorch cannot convert the network.
    """
    with _exporter_errors("ONNX"):
        program: Any = torch.onnx.export(
            model,
            (_example(image_shape),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=_any_batch(),
            verbose=False,
        )
        proto = program.model_proto
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        part.ClearField("metadata_props")  # the lines of source, with this machine's paths
    return with_facts(proto.SerializeToString(), facts)


def to_torch(model: nn.Module, image_shape: Sequence[int], facts: Mapping[str, str]) -> bytes:
    """Convert a model to a .pt2 file of torch.export, which needs no class of this program; TorchScript is deprecated.

    Raises:
        PipelineError: PyTorch cannot convert the network.
    """
    content = io.BytesIO()
    with _exporter_errors("torch.export"):
        program = torch.export.export(model, (_example(image_shape),), dynamic_shapes=_any_batch())
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # the lines of source, with this machine's paths
        torch.export.save(program, content, extra_files={FACTS_FILE: json.dumps(facts)})
    return content.getvalue()


def to_int8(model: bytes, batches: Iterable[NDArray[np.uint8]], facts: Mapping[str, str]) -> bytes:
    """Quantise an ONNX file to 8-bit integers, whose ranges are those of ``batches`` of images.

    Weights have one range per output channel and 7 bits, because processors without VNNI add products of 8 bits with
    saturation: the file would predict worse there than where it was checked.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(({INPUT: batch} for batch in self._batches), None)

    with tempfile.TemporaryDirectory() as folder, storage_errors(Path(folder), "write temporary files"):
        source, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        source.write_bytes(model)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return with_facts(result.read_bytes(), facts)


def with_facts(model: bytes, facts: Mapping[str, str]) -> bytes:
    """The same ONNX file with ``facts`` as its metadata."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, dict(facts))
    return proto.SerializeToString()


def _example(image_shape: Sequence[int]) -> Tensor:
    """Two black images; one would fix the number of images to 1."""
    return torch.zeros(2, *image_shape, dtype=torch.uint8)


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1)},)


@contextmanager
def _exporter_errors(what: str) -> Iterator[None]:
    """Turn an exporter's error, which may be of any class, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PipelineError(f"PyTorch {torch.__version__} cannot convert this network to {what}: {reason}") from error
