"""Convert MediaPipe's short-range face detector, which `--keep faces` uses, to ONNX: `images/blazeface.onnx`.

    pip download --no-deps mediapipe==0.10.14 && unzip mediapipe-*.whl "*/face_detection_short_range.tflite"
    pip install tflite2onnx==0.4.1 && pip install -e ".[onnx]"
    python examples/convert_blazeface.py mediapipe/modules/face_detection/face_detection_short_range.tflite OUT.onnx

Its weights are half-precision numbers and stay so, cast when the graph is loaded.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import onnx

from modeling_setcrop.export.onnx_export import compact_graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tflite", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    import tflite2onnx

    # It warns of half precision once a weight.
    logging.disable(logging.WARNING)
    tflite2onnx.convert(str(args.tflite), str(args.out))
    graph = onnx.load(args.out)
    # The converter's order differs from run to run.
    weights = sorted(graph.graph.initializer, key=lambda tensor: tensor.name)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(weights)
    compact_graph(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, args.out)


if __name__ == "__main__":
    main()
