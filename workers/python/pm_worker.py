"""The worker kit of pm for Python 3.8 and later: one file, no dependencies. A whole worker is

    import pm_worker
    pm_worker.serve(lambda team: {"legal": len(team) <= 6})

and `python3 pm_worker.py FILE:FUNC` serves a function of a file that knows nothing of pm. Any other program imports
this module first: in a process that pm started, it takes the link away from descriptors 0 and 1, so that prints go to
stderr, stdin is empty, and no child inherits the link. Calls run one after the other on the thread that called `serve`,
and each answer is written before the next call starts. An exception answers its call and the worker lives on, but
SystemExit and KeyboardInterrupt end it as they end any program. docs/PROTOCOL.md says what passes over the link.
"""
import collections, contextlib, json, os, select, struct, sys, time, traceback  # noqa: E401
from importlib import machinery, util

HELLO, READY, PING, PONG, DRAIN, BYE, NOTICE = range(1, 8)
REQ, RESP, ERR, CANCEL, RECALL = range(16, 21)
NOT_STARTED, CANCELLED, CRITICAL = 0x01, 0x02, 0x80
MAX_FRAME = (64 << 20) + 12  # until HELLO names another
MAX_TEXT = 64 << 10  # bytes of a notice, characters of each text in an error
MAX_WAITING = 1 << 20  # bytes of calls that wait here, each 1 KiB more: with more, one runs before the next read
LOOK = 0.001  # seconds that calls run back to back before the link is looked at: a RECALL may have come
_HEADER = struct.Struct(">IBBHQ")


def encode_frame(kind, id=0, payload=b"", flags=0, remaining=0):
    return _HEADER.pack(12 + len(payload), kind, flags, remaining, id) + payload


def decode_frame(buffer, at=0, max_frame=MAX_FRAME):
    """The frame at `at` as (rest, kind, flags, remaining, id, payload), or None while it is incomplete."""
    rest = int.from_bytes(buffer[at : at + 4], "big") if len(buffer) >= at + 4 else 12
    if not 12 <= rest <= max_frame:
        _end(70, f"violation: a frame claims a length of {rest} bytes; 12 to {max_frame} are allowed")
    end = at + 4 + rest
    return (*_HEADER.unpack_from(buffer, at), bytes(buffer[at + 16 : end])) if len(buffer) >= end else None


def decode_remaining(field):
    """The milliseconds that the header's `remaining` stands for; 0 means that there is no deadline."""
    return (field & 0x7FF) << (field >> 11)


_parser = json.JSONDecoder(parse_constant=int)  # int refuses NaN and Infinity, which are not JSON
_printer = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
CODECS = {  # name: (decode, encode)
    "json": (lambda payload: _parser.decode(payload.decode()), lambda value: _printer.encode(value).encode()),
    "bytes": (bytes, lambda value: memoryview(value).tobytes()),
}


class _Worker:
    """One conversation: the bytes that are no whole frame yet, and the calls that wait, the oldest first."""

    def __init__(self, handler, role, codec):
        self.handler, self.role, self.codec, (self.decode, self.encode) = handler, role, codec, CODECS[codec]
        self.readers, self.partial, self.waiting = [_reader], bytearray(), collections.OrderedDict()
        self.max_frame, self.ready, self.draining, self.expires, self.held = MAX_FRAME, False, False, None, 0

    def run(self, look=0):
        while self.waiting or not self.draining:
            if self.waiting and time.monotonic() < look:
                self.start(*self.waiting.popitem(last=False)[1])
            elif self.waiting and (self.held >= MAX_WAITING or not select.select(self.readers, [], [], 0)[0]):
                look = time.monotonic() + LOOK
            else:
                self.receive()
        self.send(BYE)

    def receive(self):
        chunk, at = os.read(_reader, 65536), 0
        if not chunk:
            self.readers = [] if self.draining else sys.exit(0)  # for the manager is gone, or wants no answer
        self.partial += chunk
        while frame := decode_frame(self.partial, at, self.max_frame):
            at += 4 + frame[0]
            self.take(*frame[1:])
        del self.partial[:at]

    def send(self, kind, id=0, payload=b"", flags=0):
        _writer.write(encode_frame(kind, id, payload, flags))
        _writer.flush()

    def take(self, kind, flags, remaining, id, payload):
        if (kind == HELLO) == self.ready:
            _end(70, f"violation: a frame of kind {kind} came {'after' if self.ready else 'in place of'} HELLO")
        if kind == REQ:
            self.held += 1024 + len(payload)
            self.waiting[id] = id, payload, remaining and time.monotonic() + decode_remaining(remaining) / 1000
        elif kind in (CANCEL, RECALL) and (call := self.waiting.pop(id, None)):
            self.held -= 1024 + len(call[1])
            self.send(ERR, id, flags=NOT_STARTED if kind == RECALL else CANCELLED)
        elif kind == PING:
            self.send(PONG, id, payload)
        elif kind == DRAIN:
            self.draining = True
        elif kind == HELLO:
            self.shake_hands(payload)
        elif flags & CRITICAL and kind not in (PONG, CANCEL, RECALL):
            _end(70, f"violation: a frame of the unknown kind {kind} must be understood")

    def shake_hands(self, payload):
        try:
            hello = CODECS["json"][0](payload)
            role, self.max_frame = self.role or hello.get("role") or _role, int(hello.get("max_frame", MAX_FRAME))
            roles = self.handler if isinstance(self.handler, dict) else {role: self.handler}
            role = role or (next(iter(roles)) if len(roles) == 1 else None)
            self.handler = roles.get(role)
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            _end(70, f"violation: HELLO cannot be read: {error}")
        if not self.handler:
            _end(64, f"there is no role {role!r} here, only {', '.join(map(repr, roles))}")
        ready = {"version": 1, "codec": self.codec, "role": role, "concurrency": 1, "ahead": 1}
        self.send(READY, payload=CODECS["json"][1](ready))
        self.ready = True

    def start(self, id, payload, expires):
        self.held, self.expires, kind = self.held - 1024 - len(payload), expires, "decode"
        try:
            value, kind = self.decode(payload), "error"
            result = self.handler(value)
            output = self.encode(__import__("asyncio").run(result) if hasattr(result, "__await__") else result)
            if 12 + len(output) > self.max_frame:
                raise ValueError(f"the result's frame has {12 + len(output)} bytes; max_frame is {self.max_frame}")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            most = min(MAX_TEXT, self.max_frame // 20)  # three texts, and a character has up to six bytes
            summary = traceback.TracebackException(type(error), error, error.__traceback__.tb_next)
            texts = {"kind": kind if isinstance(error, Exception) else "panic", "type": type(error).__name__}
            texts.update(message=str(summary)[:most], trace="".join(summary.format())[-most:])
            self.send(ERR, id, _printer.encode(texts).encode("utf-8", "replace"))
        else:
            self.send(RESP, id, output)


def serve(handler, *, role=None, codec="json"):
    """Answers calls with `handler`, a function of one value or a dict of them by role, until the manager drains this
    worker or is gone; then exits with code 0. The codec "bytes" passes bytes; `role` overrules the manager's."""
    global _worker
    if _reader is None:
        _end(64, "no manager started this worker: PM_LINK does not say where the link is")
    _worker = _Worker(handler, role, codec)
    with contextlib.suppress(OSError):  # of the link: the manager is gone
        _worker.run()
    _writer.raw.close()
    sys.exit(0)


def notice(text):
    """Writes to the manager's log; before the handshake of `serve`, and outside of pm, to stderr."""
    if not _worker or not _worker.ready:
        return print(text, file=sys.stderr)
    _worker.send(NOTICE, payload=text.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore").encode())


def deadline():
    """The seconds that the current call has left, at least 0.0; None where it has no deadline."""
    return max(0.0, _worker.expires - time.monotonic()) if _worker and _worker.expires else None


def main():
    path, _, name = "".join(sys.argv[1:2]).rpartition(":")
    if not os.path.isfile(path):
        _end(64, f"usage: pm_worker.py FILE:FUNC; there is no file {path!r}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    sys.modules["pm_worker"] = sys.modules[__name__]  # for a file that imports it
    loader = machinery.SourceFileLoader(os.path.splitext(os.path.basename(path))[0], path)
    module = util.module_from_spec(util.spec_from_loader(loader.name, loader))
    sys.modules.setdefault(loader.name, module)
    loader.exec_module(module)
    if not hasattr(module, name):
        _end(64, f"{path} defines no {name!r}")
    serve(getattr(module, name))


def _end(code, text):
    print("pm_worker:", text, file=sys.stderr, flush=True)
    sys.exit(code)


def _take_link():
    """Makes the link private, and returns the descriptor to read and the file to write."""
    links = {"stdio": lambda: [os.dup(0), os.dup(1)], "uds": lambda: [int(os.environ.pop("PM_LINK_FD"))] * 2}
    link = links.get(name := os.environ.pop("PM_LINK"), lambda: _end(64, f"this kit speaks {[*links]}, not {name}"))()
    os.dup2(null := os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for fd in link:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)  # while a write blocks, nothing is read: that is the backpressure
    os.register_at_fork(after_in_child=lambda: [os.dup2(null, fd, False) for fd in link])
    sys.stdout.reconfigure(line_buffering=True)  # so that a crash loses no print
    return link[0], open(link[1], "wb")


_role, _worker = os.environ.pop("PM_ROLE", None), None
_reader, _writer = _take_link() if "PM_LINK" in os.environ else (None, None)

if __name__ == "__main__":
    main()
