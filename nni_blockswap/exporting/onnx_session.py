"""Runs a network in ONNX Runtime, where many students are deployed."""

from collections.abc import Callable

from torch import Tensor, nn

from nni_blockswap.errors import ConfigError
from nni_blockswap.exporting.onnx_graph import graph
from nni_blockswap.exporting.snapshot import Snapshot


def session(network: nn.Module, images: Tensor, threads: int) -> Callable[[], object]:
    """A function that runs ``network``, as it is now and in eval mode, on ``images``, on a CPU.

    Args:
        threads: that an operation is spread over.

    Raises:
        ConfigError: onnxruntime, or what it takes to write a graph, is not installed.
        ExportError: the network cannot be written as a graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("there is no onnxruntime here to run networks in: pip install onnxruntime.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content = graph(Snapshot(network.eval(), images, None, dynamic_batch=False))
    made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {made.get_inputs()[0].name: images.numpy()}
    return lambda: made.run(None, feed)
