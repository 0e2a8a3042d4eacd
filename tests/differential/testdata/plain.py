"""A back end on Python's own http.server, which forgives much and knows nothing of
transfer codings: each request that it saw as a JSON line."""
import base64
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment: Nagle would wait 40 ms between them

    def handle_expect_100(self):
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def answer(self):
        if self.headers.get("Transfer-Encoding"):
            # It has no decoder; reading on would take the body for requests.
            self.close_connection = True
            self.tell(b"", coded=True)
            self.reply(411, b"")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.tell(body)
        self.reply(200, ("seen %s %s\n" % (self.command, self.path)).encode("latin-1"))

    def tell(self, body, **more):
        line = {
            "method": self.command,
            "target": self.path,
            "host": self.headers.get("Host") or "",
            "body": base64.b64encode(body).decode(),
        }
        line.update(more)
        os.write(1, (json.dumps(line) + "\n").encode())

    def reply(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_OPTIONS = do_DELETE = do_PATCH = answer

    def send_error(self, code, message=None, explain=None):
        os.write(1, (json.dumps({"refused": str(code)}) + "\n").encode())
        super().send_error(code, message, explain)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
