"""An endpoint of this machine that replies, or misbehaves, as a test wants it."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text="<answer>7</answer>", reason="stop", **usage):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"choices": [choice], "usage": usage or {"prompt_tokens": 10, "completion_tokens": 5}}


def replies(body, status=200, content_type="application/json", **headers):
    """Writes one reply, whatever it is."""

    def write(handler):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(headers.pop("length", len(data))))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return write


GOOD = replies(completion())


def hangs(handler):
    time.sleep(0.6)


def drips(handler):
    """A byte now and then: no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def drips_headers(handler):
    for byte in b"HTTP/1.1 200 OK\r\nX-Wait: " + b"x" * 60:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.02)


def hangs_up(handler):
    handler.close_connection = True
    handler.connection.close()


def is_cut_off(handler):
    replies(b'{"choices": [{"mess', length=500)(handler)


@contextmanager
def server(answer):
    """`answer(body, number)` gives what writes the reply to the request of that number; yields (url, bodies seen)."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen)
                seen.append({"path": self.path, "headers": dict(self.headers), "at": time.monotonic(), **body})
            try:
                answer(body, number)(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1", seen
        httpd.shutdown()
        httpd.handle_error = lambda *_: None
