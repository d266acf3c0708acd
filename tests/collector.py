"""A collector of traces as a process of its own: OTLP over HTTP in, one JSON object per span out, into a file.

python -m tests.collector FILE    prints its port
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def spans(request: ExportTraceServiceRequest) -> Iterator[dict[str, Any]]:
    """What was sent, with its resource and everything else that a span can hold."""
    for resource in request.resource_spans:
        about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "resource": about,
                    "name": span.name,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "links": [link.trace_id.hex() for link in span.links],
                    "attributes": {pair.key: str(pair.value).strip() for pair in span.attributes},
                    "events": [str(event) for event in span.events],
                    "status": (span.status.code, span.status.message),
                }


class Receiver(BaseHTTPRequestHandler):
    file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.file.open("a") as file:
            for span in spans(ExportTraceServiceRequest.FromString(body)):
                file.write(json.dumps(span) + "\n")
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main(file: str) -> None:
    Receiver.file = Path(file)
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
