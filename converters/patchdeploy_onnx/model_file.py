"""Nodes to the bytes of a ModelProto.

In: onnx-graphsurgeon nodes with the input and the output. Out: one self-contained file, the
same bytes for the same nodes.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

OPSET, MICROSOFT_OPSET, IR_VERSION = 15, 1, 8
"""What ONNX Runtime's mobile packages list: opsets 12 to 15 (their operator page for 1.15)."""
MICROSOFT = "com.microsoft"
PRODUCER = "patchdeploy"


def serialize_model(name: str, nodes: list[Any], image: Any, scores: Any, note: str) -> bytes:
    """The file's bytes; ``note`` becomes the model's doc_string."""
    domains = [onnx.helper.make_opsetid("", OPSET)]
    if any(node.domain == MICROSOFT for node in nodes):
        domains.append(onnx.helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET))
    graph = gs.Graph(
        nodes,
        inputs=[image],
        outputs=[scores],
        name=name,
        opset=OPSET,
        import_domains=domains,
        producer_name=PRODUCER,
        ir_version=IR_VERSION,
    )
    model = gs.export_onnx(graph, doc_string=note)
    return bytes(model.SerializeToString(deterministic=True))
