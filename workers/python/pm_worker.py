"""The worker kit of pm for Python 3.8 and later: one file, no dependencies. A whole worker is

    import pm_worker
    pm_worker.serve(lambda team: {"legal": len(team) <= 6})

and `python3 pm_worker.py FILE:FUNC` serves a function of a file that knows nothing of pm. Any other program imports
this module first: in a process that pm started, it takes the link away from descriptors 0 and 1, so that prints go to
stderr, stdin is empty, and no child inherits the link. Calls run one after the other on the thread that called `serve`,
and each answer is written before the next call starts. An exception answers its call and the worker lives on, but
SystemExit and KeyboardInterrupt end it as they end any program. docs/PROTOCOL.md says what passes over the link.

Streams are calls with many messages both ways. Each has its handler in a thread of its own:

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
        self.streams, self.sending = {}, threading.Lock()  # for streams alone: queries need no lock

    def run(self, look=0):
        while self.waiting or self.streams or not self.draining:
            if self.waiting and time.monotonic() < look:
                self.start(*self.waiting.popitem(last=False)[1])
            elif self.waiting and (self.held >= MAX_WAITING or not select.select(self.readers, [], [], 0)[0]):
                look = time.monotonic() + LOOK
            elif self.waiting or not self.draining or _reader in select.select(self.readers, [], [])[0]:
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
            draining.set()
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
            names = ", ".join(map(repr, roles))
            unnamed = f'the manager named no role, of {names}: .serving("NAME") of its Spec names one, or PM_ROLE'
            _end(64, f"there is no role {role!r} here, only {names}" if role else unnamed)
        ready = {"version": 1, "codec": self.codec, "role": role, "concurrency": 1, "ahead": 1}
        if isinstance(self.handler, _Streams):
            self.handler, *self.window, most = self.handler
            ready.update(streams=dict(zip(("messages", "bytes"), self.window)), concurrency=most, ahead=most)
            wake, self.wake = os.pipe()  # by it the last stream ends the wait for frames of a worker that drains
            self.readers, self.take = [_reader, wake], self.take_of_streams
        self.send(READY, payload=CODECS["json"][1](ready))
        self.ready = True

    def take_of_streams(self, kind, flags, remaining, id, payload):
        if kind in (DATA, CREDIT, FIN, RST, CANCEL):
            if stream := self.streams.get(id):
                stream._take(kind, flags, payload)
        elif kind in (REQ, RECALL) or kind == OPEN and id in self.streams:
            _end(70, f"violation: {'a second OPEN of a stream' if kind == OPEN else 'a query for a worker of streams'}")
        elif kind == OPEN:
            expires = remaining and time.monotonic() + decode_remaining(remaining) / 1000
            stream = self.streams[id] = Stream(self, id, payload.decode("utf-8", "replace"))
            try:
                threading.Thread(target=stream._run, args=(self.handler, expires), daemon=True).start()
            except RuntimeError as error:  # there are too many threads
                stream._answer(error)
        else:
            _Worker.take(self, kind, flags, remaining, id, payload)

    def fit(self, payload):
        if 12 + len(payload) > self.max_frame:
            raise ValueError(f"the result's frame has {12 + len(payload)} bytes; max_frame is {self.max_frame}")
        return payload

    def describe(self, error, kind="error", skip=True):
        """The payload of ERR. `skip` takes from the trace the function of the kit that has caught the error."""
        most = min(MAX_TEXT, self.max_frame // 20)  # three texts, and a character has up to six bytes
        trace = error.__traceback__.tb_next if skip and error.__traceback__ else error.__traceback__
        summary = traceback.TracebackException(type(error), error, trace)
        texts = {"kind": kind if isinstance(error, Exception) else "panic", "type": type(error).__name__}
        texts.update(message=str(summary)[:most], trace="".join(summary.format())[-most:])
        return _printer.encode(texts).encode("utf-8", "replace")

    def start(self, id, payload, expires):
        self.held, self.expires, kind = self.held - 1024 - len(payload), expires, "decode"
        try:
            value, kind = self.decode(payload), "error"
            result = self.handler(value)
            result = __import__("asyncio").run(result) if hasattr(result, "__await__") else result
            output = self.fit(self.encode(result))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.send(ERR, id, self.describe(error, kind))
        else:
            self.send(RESP, id, output)


class StreamEnded(Exception):
    """Nothing more can be written: the stream is over, the peer reads no more, or `end` was called."""


class PeerError(Exception):
    """An error that the peer has sent in place of a message; its one argument is a dict, as in ERR."""


class Stream:
    """One stream, for its handler. A loop over it waits for messages until the peer has ended its side, or the stream
    is over. An error of the peer (PeerError) and a message that cannot be decoded raise there, and the next loop goes
    on behind them. `name` is what the manager calls the stream. `on_call`, a function, gets the calls among the
    messages, in order with them and in the thread that reads, and its result or exception is the reply. Without it a
    call is a message, and left unanswered. `cancelled` says that nobody waits for this stream any more: then loops end
    and writes raise, and the handler should return. The methods may block, and any thread may call them."""

    on_call, cancelled = None, False
    _closed = _fault = None  # why nothing more is written; what the manager did wrong
    _over = _stopped = _peer_ended = False

    def __init__(self, worker, id, name):
        self.name, self._worker, self._id = name, worker, id
        self._inbox, self._changed = queue.SimpleQueue(), threading.Condition()  # the worker's lock comes before this
        self._credit, self._allowance, self._taken = worker.credit, worker.window, (0, 0)  # messages and bytes

    def __iter__(self):
        return self

    def __next__(self):
        while (item := self._inbox.get()) and not (self._over or self._stopped):
            flags, payload, error = item
            with self._changed:
                self._taken = taken = _sum(self._taken, (1, len(payload)))
                is_half = any(2 * count >= whole for count, whole in zip(taken, self._worker.window))
                if grants := is_half and not self._peer_ended:
                    self._allowance, self._taken = _sum(self._allowance, taken), (0, 0)
            if grants:
                self._post(CREDIT, _CREDIT.pack(*taken))
            if error:
                raise error
            if not flags & CALL:
                return self._worker.decode(payload)
            self._reply(payload[:8], payload[8:])
            if not self.on_call:
                return self._worker.decode(payload[8:])
        self._inbox.put(None)  # for whoever reads next
        raise StopIteration

    def write(self, value):
        """Sends a message once the peer has room for it; raises StreamEnded where it never will."""
        self._send(self._worker.fit(self._worker.encode(value)))

    def error(self, error):
        """The same with an exception, after which the stream goes on."""
        self._send(self._worker.describe(error, skip=False), ERROR)

    def end(self):
        """Says that this side writes nothing more. It can still read."""
        with self._worker.sending:
            if not self._closed:
                self._close("this side has ended", False)
                self._post(FIN)

    def stop(self):
        """Says that this side reads nothing more, and drops what came. It can still write."""
        with self._worker.sending:
            known, self._stopped = self._stopped or self._peer_ended or self._over, True
            known or self._post(RST)
        while not self._inbox.empty():
            if (item := self._inbox.get()) and item[0] & CALL:
                self._reply(item[1][:8])
        self._inbox.put(None)

    def _reply(self, number, payload=None):
        flags, output, kind = REPLY | ERROR, number, "decode"
        try:
            if self.on_call and payload is not None:
                value, kind = self._worker.decode(payload), "error"
                output, flags = self._worker.fit(number + self._worker.encode(self.on_call(value))), REPLY
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            output = number + self._worker.describe(error, kind)
        with contextlib.suppress(StreamEnded):  # nobody waits for it then
            self._send(output, flags)

    def _send(self, payload, flags=0):
        cost = (0, 0) if flags & REPLY else (-1, -len(payload))  # whoever has made a call has room for the reply
        while True:
            with self._worker.sending:  # until it is sent: nothing may come behind FIN, or the answer
                with self._changed:
                    if self._closed:
                        raise StreamEnded(f"nothing more can be written to this stream: {self._closed}")
                    if goes := flags & REPLY or min(self._credit) > 0:
                        self._credit = _sum(self._credit, cost)
                if goes:
                    return self._post(DATA, payload, flags)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or min(self._credit) > 0)

    def _post(self, kind, payload=b"", flags=0):
        try:
            self._worker.send(kind, self._id, payload, flags)
        except OSError:  # of the link: the manager is gone
            _leave(SystemExit())

    def _close(self, why, over=True):
        with self._changed:
            self._closed, self._over = self._closed or why, self._over or over
            self._changed.notify_all()
        over and self._inbox.put(None)

    def _take(self, kind, flags, payload):
        """Takes a frame, in the thread that reads the link. What breaks the rules ends this stream."""
        unread = None
        with self._changed:
            try:
                if kind == CANCEL:
                    self.cancelled = True
                    self._close("it was cancelled")
                elif not self._over:
                    unread = self._heed(kind, flags, payload)
            except (TypeError, ValueError, RecursionError, struct.error) as error:
                self._fault = StreamEnded(f"the manager broke the rules of streams: {error}")
                self._close(str(self._fault))
        unread and self._reply(unread)

    def _heed(self, kind, flags, payload):
        if kind == RST:
            self._close("the peer reads no more", False)
        elif kind == CREDIT:
            self._credit = _sum(self._credit, _CREDIT.unpack(payload))
            if max(self._credit) > MAX_CREDIT:
                raise ValueError("more credit than the 2^31 - 1 that there can be")
            self._changed.notify_all()
        elif kind == DATA and flags & (CALL | REPLY) and len(payload) < 8:
            raise ValueError("a call or reply without its number")
        elif kind == DATA and flags & REPLY:
            pass  # to a call that nobody here has made
        elif self._peer_ended:
            raise ValueError("something after its end")
        elif kind == FIN:
            self._peer_ended = True
            self._inbox.put(None)
        elif min(self._allowance) <= 0:
            raise ValueError("a message for which there was no credit")
        else:
            self._allowance = _sum(self._allowance, (-1, -len(payload)))
            error = PeerError(dict(CODECS["json"][0](payload))) if flags & ERROR else None
            if not self._stopped:
                self._inbox.put((flags, payload, error))
            elif flags & CALL:  # whoever made it cannot know yet that nobody reads
                return payload[:8]

    def _run(self, handler, expires):
        _local.expires = expires
        try:
            result = handler(self)
            if hasattr(result, "__await__"):
                __import__("asyncio").run(result)
        except (SystemExit, KeyboardInterrupt) as end:
            _leave(end)
        except BaseException as error:
            self._answer(error)
        else:
            self._answer()

    def _answer(self, error=None):
        kind, payload = (ERR, self._worker.describe(self._fault or error)) if self._fault or error else (RESP, b"")
        with self._worker.sending:
            self._close("its handler has ended")
            del self._worker.streams[self._id]
            self._post(ERR, b"", CANCELLED) if self.cancelled else self._post(kind, payload)
        if self._worker.draining and not self._worker.streams:
            os.write(self._worker.wake, b"\0")


_Streams = collections.namedtuple("_Streams", "handler messages bytes at_once")


def streams(handler, messages=1024, bytes=262144, at_once=1000):
    """Makes of `handler`, a function of one Stream, what `serve` takes for a role of streams: `at_once` of them run at
    the same time, each in a daemon thread of its own, and hold up to `messages` and `bytes` unread. Its return ends the
    stream. asyncio.run runs an `async def` handler in that thread, where the stream's methods block all the same."""
    return _Streams(handler, messages, bytes, at_once)


def serve(handler, *, role=None, codec="json"):
    """Answers calls with `handler`, a function of one value (or `streams` of one) or a dict of them by role, until the
    manager drains this worker or is gone; then exits with code 0. The codec "bytes" passes bytes; `role` overrules the
    manager's."""
    global _worker
    if _reader is None:
        _end(64, "no manager started this worker: neither PM_LINK nor PM_SOCKET says where the link is")
    _worker = _Worker(handler, role, codec)
    try:
        with contextlib.suppress(OSError):  # of the link: the manager is gone
            _worker.run()
        _worker.streams and _leave(SystemExit())
    except SystemExit as end:
        _worker.streams and _leave(end)
        raise
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
    handler = getattr(module, name)
    serve(streams(handler) if sys.argv[2:3] == ["streams"] and not isinstance(handler, _Streams) else handler)


def _end(code, text):
    print("pm_worker:", text, file=sys.stderr, flush=True)
    sys.exit(code)


def _leave(end):
    """Ends the process at once while handlers run in threads, over which the interpreter's own end might trip."""
    code = getattr(end, "code", 130) or 0  # a KeyboardInterrupt has none
    code = code if isinstance(code, int) else print(code, file=sys.stderr) or 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _sum(one, other):
    return one[0] + other[0], one[1] + other[1]


def _visit():
    """Connects to the socket of a pool, for a worker that pm did not start."""
    import socket  # which no other worker has to load

    link, path = socket.socket(socket.AF_UNIX), os.environ.pop("PM_SOCKET")
    try:
        link.connect(path)
    except OSError as error:
        _end(64, f"{path} takes no visitor: {error}")
    return [link.detach()] * 2


def _take_link():
    """Makes the link private, and returns the descriptor to read and the file to write."""
    links = {"stdio": lambda: [os.dup(0), os.dup(1)], "uds": lambda: [int(os.environ.pop("PM_LINK_FD"))] * 2, "": _visit}
    link = links.get(name := os.environ.pop("PM_LINK", ""), lambda: _end(64, f"this kit speaks stdio and uds, not {name}"))()
    os.dup2(null := os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for fd in link:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)  # while a write blocks, nothing is read: that is the backpressure
    os.register_at_fork(after_in_child=lambda: [os.dup2(null, fd, False) for fd in link])
    sys.stdout.reconfigure(line_buffering=True)  # so that a crash loses no print
    return link[0], open(link[1], "wb")


# Set once the manager wants this worker to leave: then it should take on nothing new, such as further connections.
draining = threading.Event()

_role, _worker, _local = os.environ.pop("PM_ROLE", None), None, threading.local()
_reader, _writer = _take_link() if {"PM_LINK", "PM_SOCKET"} & set(os.environ) else (None, None)

if __name__ == "__main__":
    main()
