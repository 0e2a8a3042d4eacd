"""A WSGI application for gunicorn: each request that it saw as a JSON line."""
import base64
import json
import os


def application(environ, start_response):
    body = environ["wsgi.input"].read()
    line = {
        "method": environ["REQUEST_METHOD"],
        "target": environ["RAW_URI"],
        "host": environ.get("HTTP_HOST", ""),
        "body": base64.b64encode(body).decode(),
    }
    os.write(1, (json.dumps(line) + "\n").encode())
    if line["target"].startswith("/ok/empty"):
        start_response("204 No Content", [])
        return []
    if line["target"].startswith("/ok/chunks"):
        start_response("200 OK", [])
        return iter([b"one,", b"two"])
    answer = ("seen %s %s\n" % (line["method"], line["target"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
