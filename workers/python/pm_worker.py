"""The worker kit of pm for Python 3.8 and later: one file, no dependencies. A whole worker is

    import pm_worker
    pm_worker.serve(lambda team: {"legal": len(team) <= 6})

and `python3 pm_worker.py FILE:FUNC` serves a function of a file that knows nothing of pm. Any other program imports
this module first: in a process that pm started, it takes the link away from descriptors 0 and 1, so that prints go to
stderr, stdin is empty, and no child inherits the link. Calls run one after the other on the thread that called `serve`,
and each answer is written before the next call starts. An exception answers its call and the worker lives on, but
SystemExit and KeyboardInterrupt end it as they end any program. docs/PROTOCOL.md says what passes over the link.

A worker of streams, calls with many messages both ways, runs each of them in a thread of its own:

    def echo(stream):
        for message in stream:
            stream.write(message)

    pm_worker.serve(pm_worker.streams(echo))
"""
import collections, contextlib, json, os, queue, select, struct, sys, threading, time, traceback  # noqa: E401
from importlib import machinery, util

HELLO, READY, PING, PONG, DRAIN, BYE, NOTICE, CREDIT = range(1, 9)
REQ, RESP, ERR, CANCEL, RECALL = range(16, 21)
OPEN, DATA, FIN, RST = range(32, 36)
NOT_STARTED, CANCELLED, CRITICAL = 0x01, 0x02, 0x80
ERROR, CALL, REPLY = 0x01, 0x02, 0x04  # flags of DATA
MAX_FRAME = (64 << 20) + 12  # until HELLO names another
MAX_TEXT = 64 << 10  # bytes of a notice, characters of each text in an error
MAX_WAITING = 1 << 20  # bytes of calls that wait here, each 1 KiB more: with more, one runs before the next read
MAX_CREDIT = (1 << 31) - 1  # messages, or bytes, that one side of a stream may send
LOOK = 0.001  # seconds that calls run back to back before the link is looked at: a RECALL may have come
_HEADER, _CREDIT = struct.Struct(">IBBHQ"), struct.Struct(">II")


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
        self.streams, self.sending, self.window = {}, threading.Lock(), None  # see Stream; queries need no lock

    def run(self, look=0):
        while self.waiting or self.streams or not self.draining:
            if self.waiting and time.monotonic() < look:
                self.start(*self.waiting.popitem(last=False)[1])
            elif self.waiting and (self.held >= MAX_WAITING or not select.select(self.readers, [], [], 0)[0]):
                look = time.monotonic() + LOOK
            elif not (self.streams and self.draining) or self.readers[0] in select.select(self.readers, [], [])[0]:
                self.receive()
        with self.sending:  # the last stream's answer goes first
            self.send(BYE)

    def receive(self):
        chunk, at = os.read(_reader, 65536), 0
        if not chunk:
            self.readers.remove(_reader) if self.draining else sys.exit(0)  # the manager is gone, or wants no answer
        self.partial += chunk
        while frame := decode_frame(self.partial, at, self.max_frame):
            at += 4 + frame[0]
            self.take(*frame[1:])
        del self.partial[:at]

    def send(self, kind, id=0, payload=b"", flags=0):  # from any thread: the buffer's own lock keeps frames whole
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
            granted = hello.get("streams") or {"messages": 0, "bytes": 0}
            self.credit = [min(int(granted.get(what)), MAX_CREDIT) for what in ("messages", "bytes")]
            roles = self.handler if isinstance(self.handler, dict) else {role: self.handler}
            role = role or (next(iter(roles)) if len(roles) == 1 else None)
            self.handler = roles.get(role)
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            _end(70, f"violation: HELLO cannot be read: {error}")
        if not self.handler:
            _end(64, f"there is no role {role!r} here, only {', '.join(map(repr, roles))}")
        ready = {"version": 1, "codec": self.codec, "role": role, "concurrency": 1, "ahead": 1}
        if isinstance(self.handler, _Streams):
            self.handler, *self.window, most = self.handler
            ready.update(streams=dict(zip(("messages", "bytes"), self.window)), concurrency=most, ahead=most)
            wake, self.wake = os.pipe()  # the last stream ends the wait for frames of a worker that drains
            self.readers, self.take = [_reader, wake], self.take_of_streams
        self.send(READY, payload=CODECS["json"][1](ready))
        self.ready = True

    def take_of_streams(self, kind, flags, remaining, id, payload):
        if kind in (DATA, CREDIT, FIN, RST, CANCEL):
            if stream := self.streams.get(id):
                stream._take(kind, flags, payload)
        elif kind == REQ or (kind == OPEN and id in self.streams):
            _end(70, f"violation: {'a query came to a worker of streams' if kind == REQ else f'a second OPEN of {id}'}")
        elif kind == OPEN:
            expires = remaining and time.monotonic() + decode_remaining(remaining) / 1000
            stream = self.streams[id] = Stream(self, id, payload.decode("utf-8", "replace"))
            try:
                threading.Thread(target=stream._run, args=(self.handler, expires), daemon=True).start()
            except RuntimeError as error:  # there are too many threads
                stream._answer(error)
        else:
            _Worker.take(self, kind, flags, remaining, id, payload)

    def describe(self, error, trace, kind="error"):
        """The payload of ERR."""
        most = min(MAX_TEXT, self.max_frame // 20)  # three texts, and a character has up to six bytes
        summary = traceback.TracebackException(type(error), error, trace)
        texts = {"kind": kind if isinstance(error, Exception) else "panic", "type": type(error).__name__}
        texts.update(message=str(summary)[:most], trace="".join(summary.format())[-most:])
        return _printer.encode(texts).encode("utf-8", "replace")

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
            self.send(ERR, id, self.describe(error, error.__traceback__.tb_next, kind))
        else:
            self.send(RESP, id, output)


class StreamEnded(Exception):
    """Nothing more can be written: the stream is over, the peer reads no more, or `end` was called."""


class PeerError(Exception):
    """An error that the peer has sent in place of a message; the stream goes on, and so may a new loop over it."""

    def __init__(self, texts):
        super().__init__(texts.get("message", ""))
        self.kind, self.type, self.trace = (texts.get(name, "") for name in ("kind", "type", "trace"))


class Stream:
    """One stream, as its handler sees it: its messages are read by a loop over it, which waits for them, and ends when
    the peer has ended its side or the stream is over. A message that cannot be decoded raises there, as an error of the
    peer does (PeerError), and the next one can be read all the same. All methods may block, and be called from any
    thread. `name` is what the manager calls the stream. `on_call`, a function, gets the calls among the messages, in
    order with them and in the thread that reads; what it returns or raises is the reply. Without it a call is read like
    a message, and left unanswered."""

    on_call = None

    def __init__(self, worker, id, name):
        self.name, self._worker, self._id, self._inbox = name, worker, id, queue.SimpleQueue()  # None: nothing follows
        self._lock = threading.Lock()  # held shortly, by the thread that reads the link too. The worker's comes first
        self._changed = threading.Condition(self._lock)  # for writers that wait
        self._credit, self._allowance, self._taken = [*worker.credit], [*worker.window], [0, 0]  # messages and bytes
        self._finished = self._peer_finished = self._stopped = self._peer_stopped = self._over = False
        self._cancelled, self._fault = False, None

    def __iter__(self):
        return self

    def __next__(self):
        while True:
            item = self._inbox.get()
            if item is None or self._over or self._stopped:
                self._inbox.put(None)  # for whoever reads next
                raise StopIteration
            flags, payload, error = item
            self._grant(len(payload))
            if error:
                raise error
            if flags & CALL:
                number, payload = payload[:8], payload[8:]
                self._reply(number, payload)
                if self.on_call:
                    continue
            return self._worker.decode(payload)

    @property
    def cancelled(self):
        """Whether nobody waits for this stream any more. Then loops end and writes raise; the handler should return."""
        return self._cancelled

    def write(self, value):
        """Sends a message, as soon as the peer has room for it. StreamEnded says that it never will."""
        self._send(self._pack(value))

    def error(self, error):
        """Sends an exception as an error after which the stream goes on; otherwise like `write`."""
        self._send(self._worker.describe(error, error.__traceback__), ERROR)

    def end(self):
        """Says that nothing more is written. Messages still come."""
        self._tell(FIN, "_finished", lambda: self._finished or self._over)

    def stop(self):
        """Says that nothing more is read, and drops what came. Messages can still be written."""
        self._tell(RST, "_stopped", lambda: self._stopped or self._peer_finished or self._over)
        with contextlib.suppress(queue.Empty, StreamEnded):
            while True:
                item = self._inbox.get_nowait()
                if item and item[0] & CALL:
                    self._send(item[1][:8], REPLY | ERROR)
        self._inbox.put(None)

    def _tell(self, kind, mark, is_known):
        with self._worker.sending:
            with self._lock:
                known = is_known()
                setattr(self, mark, True)
                self._changed.notify_all()
            known or self._post(kind)

    def _pack(self, value, number=b""):
        payload = number + self._worker.encode(value)
        if 12 + len(payload) > self._worker.max_frame:
            size = f"{12 + len(payload)} bytes; max_frame is {self._worker.max_frame}"
            raise ValueError(f"the message's frame has {size}")
        return payload

    def _why_closed(self):
        if self._over:
            return self._fault or "it was cancelled" if self._cancelled or self._fault else "its handler has ended"
        return "this side has ended" if self._finished else "the peer reads no more" if self._peer_stopped else None

    def _send(self, payload, flags=0):
        while True:
            with self._worker.sending:  # until it is sent: no message may come behind FIN, or the answer
                with self._lock:
                    if why := self._why_closed():
                        raise StreamEnded(f"nothing can be written to the stream: {why}")
                    goes = flags & REPLY or min(self._credit) > 0  # whoever has made a call has room for the reply
                    if goes and not flags & REPLY:
                        self._credit = [self._credit[0] - 1, self._credit[1] - len(payload)]
                if goes:
                    return self._post(DATA, payload, flags)
            with self._changed:
                self._changed.wait_for(lambda: self._why_closed() or min(self._credit) > 0)

    def _post(self, kind, payload=b"", flags=0):
        try:
            self._worker.send(kind, self._id, payload, flags)
        except OSError:  # of the link: the manager is gone
            _leave(SystemExit(0))

    def _grant(self, size):
        """A message of this size was taken: the peer may send as much again, which it hears at half of the window."""
        with self._lock:
            self._taken = taken = [self._taken[0] + 1, self._taken[1] + size]
            few = all(2 * count < whole for count, whole in zip(taken, self._worker.window))
            if few or self._peer_finished or self._over:
                return
            self._allowance, self._taken = [a + b for a, b in zip(self._allowance, taken)], [0, 0]
        self._post(CREDIT, _CREDIT.pack(*taken))

    def _reply(self, number, payload):
        flags, output, kind = REPLY, number, "decode"
        try:
            if not self.on_call:
                flags = REPLY | ERROR
            else:
                value, kind = self._worker.decode(payload), "error"
                output = self._pack(self.on_call(value), number)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            flags, output = REPLY | ERROR, number + self._worker.describe(error, error.__traceback__.tb_next, kind)
        with contextlib.suppress(StreamEnded):  # then nobody waits for it
            self._send(output, flags)

    def _take(self, kind, flags, payload):
        """A frame of the manager, in the thread that reads the link."""
        with self._lock:
            fault = None
            if kind == CANCEL:
                self._cancelled = self._over = True
            elif self._over:
                return
            elif kind == DATA and flags & REPLY:  # to a call that nobody here made
                fault = "a reply without its number" if len(payload) < 8 else None
            elif kind in (DATA, FIN) and self._peer_finished:
                fault = "something after its end"
            elif kind == DATA and min(self._allowance) <= 0:
                fault = "a message for which it had no credit"
            elif kind == DATA:
                self._allowance = [self._allowance[0] - 1, self._allowance[1] - len(payload)]
                fault = None if self._stopped else self._keep(flags, payload)
            elif kind == CREDIT and len(payload) != 8:
                fault = "credit that cannot be read"
            elif kind == CREDIT:
                self._credit = [had + more for had, more in zip(self._credit, _CREDIT.unpack(payload))]
                fault = "more credit than the 2^31 - 1 that there can be" if max(self._credit) > MAX_CREDIT else None
            self._peer_finished |= kind == FIN
            self._peer_stopped |= kind == RST
            if fault:
                self._over, self._fault = True, f"the manager has sent {fault}"
            if self._over or kind == FIN:
                self._inbox.put(None)
            if kind != DATA or fault:
                self._changed.notify_all()

    def _keep(self, flags, payload):
        error = None
        try:
            if flags & ERROR:
                error = PeerError(CODECS["json"][0](payload))
        except (AttributeError, ValueError, RecursionError):
            return "an error that cannot be read"
        if flags & CALL and not error and len(payload) < 8:
            return "a call without its number"
        self._inbox.put((flags, payload, error))

    def _run(self, handler, expires):
        _local.expires = expires
        try:
            result = handler(self)
            if hasattr(result, "__await__"):
                __import__("asyncio").run(result)
        except (SystemExit, KeyboardInterrupt) as error:
            _leave(error)
        except BaseException as error:
            self._answer(error)
        else:
            self._answer()

    def _answer(self, error=None):
        if error := StreamEnded(self._fault) if self._fault else error:
            output = self._worker.describe(error, error.__traceback__ and error.__traceback__.tb_next)
        with self._worker.sending:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._inbox.put(None)
            del self._worker.streams[self._id]  # before the manager hears of the end: from then on the id is free
            if self._cancelled:
                self._post(ERR, flags=CANCELLED)
            elif error:
                self._post(ERR, output)
            else:
                self._post(RESP)
        if self._worker.draining and not self._worker.streams:
            os.write(self._worker.wake, b"\0")


_Streams = collections.namedtuple("_Streams", "handler messages bytes at_once")


def streams(handler, messages=256, bytes=262144, at_once=1000):
    """Makes `handler`, a function of one Stream, a role of streams for `serve`: each runs in a daemon thread of its own,
    `at_once` of them at most, and holds up to `messages` and `bytes` that were not read. Its return ends the stream. An
    `async def` handler is run by asyncio.run in that thread; the stream's methods are the same, and block."""
    return _Streams(handler, messages, bytes, at_once)


def serve(handler, *, role=None, codec="json"):
    """Answers calls with `handler`, a function of one value or a dict of them by role, until the manager drains this
    worker or is gone; then exits with code 0. The codec "bytes" passes bytes; `role` overrules the manager's. What
    `streams` returns takes the place of a function where the calls are streams."""
    global _worker
    if _reader is None:
        _end(64, "no manager started this worker: PM_LINK does not say where the link is")
    _worker = _Worker(handler, role, codec)
    try:
        with contextlib.suppress(OSError):  # of the link: the manager is gone
            _worker.run()
    finally:
        if _worker.streams:
            _leave(sys.exc_info()[1] or SystemExit(0))
    _writer.raw.close()
    sys.exit(0)


def notice(text):
    """Writes to the manager's log, from any thread; before the handshake of `serve`, and outside of pm, to stderr."""
    if not _worker or not _worker.ready:
        return print(text, file=sys.stderr)
    _worker.send(NOTICE, payload=text.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore").encode())


def deadline():
    """The seconds that the current call has left, at least 0.0; None where it has no deadline."""
    expires = _worker and (_worker.expires or getattr(_local, "expires", None))
    return max(0.0, expires - time.monotonic()) if expires else None


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


def _leave(end):
    """Ends the process at once, while handlers run in daemon threads: the interpreter's own end might trip over them."""
    code = end.code or 0 if isinstance(end, SystemExit) else 130 if isinstance(end, KeyboardInterrupt) else 1
    with contextlib.suppress(OSError, ValueError):  # of stderr, where prints went as well
        if isinstance(end, SystemExit) and not isinstance(code, int):
            print(code, file=sys.stderr)
        elif not isinstance(end, SystemExit):
            traceback.print_exception(type(end), end, end.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


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


_role, _worker, _local = os.environ.pop("PM_ROLE", None), None, threading.local()
_reader, _writer = _take_link() if "PM_LINK" in os.environ else (None, None)

if __name__ == "__main__":
    main()
