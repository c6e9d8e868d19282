"""The NBD protocol byte by byte, for what no decent client would send."""

import socket
import struct

NBDMAGIC = b"NBDMAGIC"
IHAVEOPT = b"IHAVEOPT"
OPTION_REPLY = 0x3E889045565A9
REQUEST = 0x25609513
SIMPLE_REPLY = 0x67446698
STRUCTURED_REPLY = 0x668E33EF

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO = 1, 2, 3, 5, 6, 7
STRUCTURED, LIST_META, SET_META = 8, 9, 10
REPLY_ACK, REPLY_SERVER, REPLY_INFO = 1, 2, 3
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 5, 6, 7
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = (
    1, 5, 12, 22, 28, 75, 95, 108)


class Closed(Exception):
    """The server closed the connection."""


class Wire:
    """A connection that says exactly what it is told to."""

    def __init__(self, path, timeout=20):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                piece = self.socket.recv(min(length - len(data), 1 << 20))
            except ConnectionError:
                piece = b""
            if not piece:
                raise Closed()
            data += piece
        return bytes(data)

    def is_closed(self):
        """Reads until the server closes; False when it does not within the timeout."""
        try:
            while True:
                if not self.socket.recv(1 << 16):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def greet(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        greeting = self.receive(18)
        assert greeting[:16] == NBDMAGIC + IHAVEOPT, greeting
        self.send(struct.pack(">I", flags))

    def option(self, number, data=b"", length=None):
        size = len(data) if length is None else length
        self.send(IHAVEOPT + struct.pack(">II", number, size) + data)

    def option_reply(self):
        """Returns (option, reply type, data)."""
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY, hex(magic)
        return option, kind, self.receive(length)

    def go(self, name):
        """Opens an export; returns its (size, transmission flags)."""
        name = name.encode()
        self.option(GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        found = None
        while True:
            _, kind, data = self.option_reply()
            if kind == REPLY_ACK:
                return found
            assert kind == REPLY_INFO, hex(kind)
            if struct.unpack(">H", data[:2])[0] == 0:
                found = struct.unpack(">QH", data[2:12])

    def open(self, name):
        self.greet()
        return self.go(name)

    def request(self, command, offset=0, length=0, flags=0, cookie=7, data=b"", magic=REQUEST):
        self.send(struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + data)

    def simple_reply(self, data=0):
        """Returns (error, cookie, data); data only when there is no error."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE_REPLY, hex(magic)
        return error, cookie, self.receive(data) if error == 0 else b""

    def ask(self, command, offset=0, length=0, flags=0, data=b""):
        """One request and its simple reply; returns (error, data)."""
        self.request(command, offset, length, flags, data=data)
        error, _, content = self.simple_reply(length if command == READ else 0)
        return error, content
