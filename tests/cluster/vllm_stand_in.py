"""What stands in for the `vllm` command: checks its arguments, and answers as vLLM's server does."""

from __future__ import annotations

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXPECTED = {"--tensor-parallel-size": "2", "--pipeline-parallel-size": "1", "--host": "127.0.0.1"}
CHOICE = {"index": 0, "text": " 답", "logprobs": None, "finish_reason": "length"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": NAME}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("model") != NAME:
            self._send(404, {"error": {"message": "no such model", "type": "NotFoundError"}})
        elif body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for text in (" 답", "입니다"):
                self.wfile.write(f"data: {json.dumps({'choices': [{**CHOICE, 'text': text}]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self._send(200, {"id": "cmpl-1", "choices": [CHOICE], "usage": USAGE})

    def _send(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    verb, model, *words = sys.argv[1:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    assert verb == "serve" and config["architectures"] == ["PhiForCausalLM"], sys.argv
    assert options.items() >= EXPECTED.items(), options
    NAME = options["--served-model-name"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
