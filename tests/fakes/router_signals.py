"""Stands in for the routers of fake pods: whoever listens on all addresses of the cluster's namespace is every pod.

Run inside the namespace: ``python router_signals.py FILE``. FILE maps a pod's address to what it answers; it is read
anew for each request, so a test changes what routers say by writing it. An address that is not in it answers 404.
"""

import http.server
import json
import sys
from pathlib import Path

PORT = 9090


class Router(http.server.BaseHTTPRequestHandler):
    """Answers /-/signals with what the file says for the address that was asked."""

    def do_GET(self) -> None:
        """One scrape."""
        answers = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        said = answers.get(self.connection.getsockname()[0])
        body = json.dumps(said or {}).encode()
        self.send_response(200 if said and self.headers.get("Authorization") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Router).serve_forever()  # noqa: S104 - every fake pod's address
