"""The HTTP API over its UNIX socket, on one kept-alive connection."""

import http.client
import json
import socket


class APIError(Exception):
    """A reply that is not a success; carries its status and problem details."""

    def __init__(self, status, problem):
        super().__init__(f"{status}: {problem}")
        self.status = status
        self.problem = problem


class API(http.client.HTTPConnection):
    def __init__(self, path, timeout=120):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        """One request; returns the decoded reply, None when it has no content."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, path, None if body is None else json.dumps(body), headers)
        reply = self.getresponse()
        content = reply.read()
        if reply.status >= 300:
            raise APIError(reply.status, content[:500].decode(errors="replace"))
        return json.loads(content) if content else None
