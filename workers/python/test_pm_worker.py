"""Tests of pm_worker.py: the vectors of docs/PROTOCOL.md, and conversations with real workers over stdio and uds.

    python3 workers/python/test_pm_worker.py

This file is its own worker: with PM_LINK in its environment it serves the handlers below.
"""
import contextlib
import faulthandler
import io
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import pm_worker as kit

HERE = os.path.dirname(os.path.abspath(__file__))
KIT = os.path.join(HERE, "pm_worker.py")
PROTOCOL = os.path.join(HERE, "..", "..", "docs", "PROTOCOL.md")


# The worker's side


class Panic(BaseException):
    pass


def gate(fifo):
    """Runs until the test closes its end; whoever could open that end knows that this call runs."""
    with open(fifo) as end:
        end.read()
    time.sleep(2 * kit.LOOK)  # slow work, after which the kit has to look at its link
    return "opened"


def descriptors(_):
    """What the descriptors of a child by exec and of a child by fork refer to, and the PM_ variables of the former."""
    list_all = "[os.readlink(e.path) for e in os.scandir('/proc/self/fd') if os.path.lexists(e.path)]"
    script = f"import json, os; print(json.dumps([{list_all}, sorted(k for k in os.environ if k[:3] == 'PM_')]))"
    executed, variables = json.loads(subprocess.check_output([sys.executable, "-c", script], close_fds=False))
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(eval(list_all)).encode())
        os._exit(0)
    os.wait()
    return {"executed": executed, "forked": json.loads(os.read(reader, 65536)), "variables": variables}


def prints(_):
    print("printed by Python")
    os.write(1, b"written to 1\n")
    subprocess.run(["echo", "echoed by a grandchild"], check=True)
    return sys.stdin.read()


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def fail(text):
    raise ValueError(text)


def panic(text):
    raise Panic(text)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


def mute(_):
    raise Mute


def bare(_):
    return os.fork() and os.wait() and "the parent answers"  # the child's 0 must not


HANDLERS = {
    "echo": lambda value: value,
    "length": len,
    "fail": fail,
    "panic": panic,
    "mute": mute,
    "exit": sys.exit,
    "gate": gate,
    "touch": lambda path: open(path, "w").close(),
    "deadline": lambda _: kit.deadline(),
    "notice": kit.notice,
    "descriptors": descriptors,
    "prints": prints,
    "bare": bare,
    "nan": lambda _: float("nan"),
    "surrogate": lambda _: "\ud800",
    "huge": lambda _: 10**5000,
    "set": lambda _: {1},
    "nest": nest,
    "recurse": lambda value: HANDLERS["recurse"](value),
    "long": lambda n: "x" * n,
    "cry": lambda n: fail("\x01" * n),
}


def call(value):
    name, argument = value
    return HANDLERS[name](argument)


def echo(stream):
    for message in stream:
        stream.write(message)


async def echo_later(stream):
    import asyncio

    for message in stream:
        await asyncio.sleep(0)
        stream.write(message)


def collect(stream):
    stream.write([*stream])
    stream.write([*stream])  # nothing follows the end


def end(stream):
    stream.end()
    stream.end()
    try:
        stream.write("too late")
    except kit.StreamEnded as error:
        kit.notice(f"{error}")
    kit.notice(json.dumps([*stream]))


def count(stream):
    for n in range(100):
        stream.write(n)


def calls(stream):
    def answer(value):
        return call(value)

    stream.on_call = answer
    echo(stream)


def errors(stream):
    while True:
        try:
            for message in stream:
                stream.error(ValueError(message))
            return
        except (kit.PeerError, ValueError) as error:
            stream.write(error.args[0] if isinstance(error, kit.PeerError) else "undecoded")


def stop(stream):
    next(stream)
    time.sleep(0.05)  # a call lies there
    stream.stop()
    stream.stop()
    stream.write([*stream])


def until_the_end(stream):
    with contextlib.suppress(kit.StreamEnded):
        while True:
            stream.write("more")
    kit.notice(f"{stream.cancelled} {[*stream]}")


def wait(stream):
    for message in stream:
        pass
    time.sleep(0.05)
    kit.notice(f"ends, {stream.cancelled}")


def threads(stream):
    """Four threads write at once; they have written all before the end."""
    workers = [threading.Thread(target=lambda: [stream.write("x" * 50) for _ in range(100)]) for _ in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]


def print_and_wait(stream):
    print("before the end", end="")
    stream.write("printed")
    for _ in stream:
        pass
    time.sleep(3600)


STREAMS = {
    "echo": echo,
    "later": echo_later,
    "collect": collect,
    "end": end,
    "count": count,
    "calls": calls,
    "errors": errors,
    "stop": stop,
    "until the end": until_the_end,
    "wait": wait,
    "sleepy": lambda stream: time.sleep(0.1) or [*stream],  # looks only after the manager has done its worst
    "threads": threads,
    "print and wait": print_and_wait,
    "fail": lambda stream: fail("oh"),
    "panic": lambda stream: panic("oh"),
    "exit": lambda stream: sys.exit("that is all"),
    "name": lambda stream: stream.write(stream.name),
    "notice": lambda stream: [kit.notice(message) for message in stream],
    "deadline": lambda stream: stream.write(kit.deadline()),
    "long": lambda stream: [stream.write("x" * n) for n in stream],
}


def talk(stream):
    return STREAMS.get(stream.name, STREAMS["name"])(stream)


def work():
    kit.notice("not ready yet")
    mode = sys.argv[1]
    if mode == "roles":
        kit.serve({"call": call, "length": len})
    elif mode == "bytes":
        kit.serve(lambda payload: payload[::-1] or 5, codec="bytes")
    elif mode == "streams":
        kit.serve({"call": call, "talk": kit.streams(talk, 8, 1000), "default": kit.streams(talk, at_once=3)})
    elif mode == "bytes of streams":
        kit.serve(kit.streams(echo), codec="bytes")
    else:
        kit.serve(call, role="named" if mode == "named" else None)


# The manager's side


def frames(data):
    """Splits bytes into frames (kind, flags, remaining, id, payload) and what is left."""
    found, at = [], 0
    while len(data) - at >= 4 and len(data) - at >= 4 + int.from_bytes(data[at : at + 4], "big"):
        rest, *frame = kit.decode_frame(data, at, 2**32)
        found.append(tuple(frame))
        at += 4 + rest
    return found, data[at:]


class Manager:
    """Starts a worker and talks to it by frames. All of it blocks; a watchdog ends the run if something never returns."""

    def __init__(self, transport, *command, role=None):
        env = {**os.environ, "PM_LINK": transport, "PM_UNIT": "u1", **({"PM_ROLE": role} if role else {})}
        self.link = None
        if transport == "uds":
            self.link, far = socket.socketpair()
            self.link_names = {f"socket:[{os.fstat(far.fileno()).st_ino}]"}
            self.reader = self.writer = self.link.fileno()
            os.set_inheritable(far.fileno(), True)
            env["PM_LINK_FD"] = str(far.fileno())
            # as the keeper does it: 1 is stderr, and the link is close-on-exec nowhere
            command = ["sh", "-c", 'exec "$@" >&2', "sh", *command]
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[far.fileno()]
            )
            far.close()
        else:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
            )
            self.reader, self.writer = self.process.stdout.fileno(), self.process.stdin.fileno()
            self.link_names = {f"pipe:[{os.fstat(fd).st_ino}]" for fd in (self.reader, self.writer)}
        self.rest, self.inbox, self.next = b"", [], 1

    def write(self, data):
        while data:
            data = data[os.write(self.writer, data) :]

    def send(self, kind, id=0, payload=b"", flags=0, remaining=0):
        self.write(kit.encode_frame(kind, id, payload, flags, remaining))

    def hello(self, **members):
        hello = {"version": 1, "codec": "json", "role": None, "max_frame": kit.MAX_FRAME, **members}
        self.send(kit.HELLO, payload=json.dumps(hello).encode())
        kind, _, _, _, payload = self.read()
        assert kind == kit.READY, (kind, payload)
        return json.loads(payload)

    def answer_of_any(self, id):
        """The kind of the answer to this call, after other frames of it."""
        while (frame := self.read())[0] not in (kit.RESP, kit.ERR) or frame[3] != id:
            assert frame[3] == id, frame
        return frame[0]

    def request(self, *value, remaining=0):
        self.next += 1
        self.send(kit.REQ, self.next, json.dumps(value).encode(), remaining=remaining)
        return self.next

    def open(self, name="echo", remaining=0):
        self.next += 1
        self.send(kit.OPEN, self.next, name.encode(), remaining=remaining)
        return self.next

    def data(self, id, value, flags=0, number=None):
        before = b"" if number is None else number.to_bytes(8, "big")
        self.send(kit.DATA, id, before + json.dumps(value).encode(), flags)

    def credit(self, id, messages, bytes):
        self.send(kit.CREDIT, id, messages.to_bytes(4, "big") + bytes.to_bytes(4, "big"))

    def message(self, id, flags=0):
        """The value of the next frame, a message of this stream; for a reply (number, value)."""
        kind, flags_, _, of, payload = self.read()
        assert (kind, flags_, of) == (kit.DATA, flags, id), (kind, flags_, of, payload)
        if flags & kit.REPLY:
            return int.from_bytes(payload[:8], "big"), json.loads(payload[8:]) if payload[8:] else None
        return json.loads(payload)

    def silent(self):
        """Whether nothing comes."""
        time.sleep(0.05)
        self.send(kit.PING, payload=b"silence")
        frame = self.read()
        return frame == (kit.PONG, 0, 0, 0, b"silence") or frame

    def read(self):
        """The next frame; None at the end."""
        while not self.inbox:
            try:
                data = os.read(self.reader, 1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self.rest, self.rest
                return None
            self.inbox, self.rest = frames(self.rest + data)
        return self.inbox.pop(0)

    def answer(self, id):
        kind, flags, _, answered, payload = self.read()
        assert answered == id, (answered, id, payload)
        assert not flags, flags
        return kind, json.loads(payload)

    def ask(self, *value, **options):
        kind, answer = self.answer(self.request(*value, **options))
        assert kind == kit.RESP, answer
        return answer

    def hang_up(self):
        if self.writer == self.reader:
            self.link.close()
        else:
            self.process.stdin.close()

    def end(self):
        """(exit code, stderr), after the worker ended."""
        stderr = self.process.stderr.read().decode()
        return self.process.wait(), stderr

    def discard(self):
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr, self.link):
            if file:
                file.close()


class Vectors(unittest.TestCase):
    def rows(self, columns):
        with open(PROTOCOL, encoding="utf-8") as file:
            lines = file.read().split("## Vectors")[1].splitlines()
        cells = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
        rows = [row for row in cells if len(row) == columns and not set(row[0]) <= {"-"}][1:]
        self.assertTrue(rows)
        return rows

    def test_frames(self):
        for name, kind, flags, remaining, id, text, frame in self.rows(7):
            with self.subTest(name):
                kind, flags, remaining, id = map(int, (kind, flags, remaining, id))
                payload, frame = text.encode(), bytes.fromhex(frame)
                self.assertEqual(kit.encode_frame(kind, id, payload, flags, remaining), frame)
                expected = (len(frame) - 4, kind, flags, remaining, id, payload)
                self.assertEqual(kit.decode_frame(frame), expected)
                self.assertEqual(kit.decode_frame(b"abc" + frame + frame, 3), expected)
                for length in range(len(frame)):
                    self.assertIsNone(kit.decode_frame(frame[:length]))

    def test_remaining(self):
        for milliseconds, field in self.rows(2):
            decoded, exact = kit.decode_remaining(int(field)), 0 if milliseconds == "none" else int(milliseconds)
            self.assertGreaterEqual(decoded, exact)  # rounded up ...
            self.assertLess(decoded - exact, 1 << (int(field) >> 11))  # ... to the next that can be said

    def test_lengths(self):
        for rest in (0, 11, 101, 2**32 - 1):
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as end:
                kit.decode_frame(rest.to_bytes(4, "big"), 0, 100)
            self.assertEqual(end.exception.code, 70)
        self.assertIsNone(kit.decode_frame((100).to_bytes(4, "big"), 0, 100))


class Conversations:
    """Run over each transport by the classes below."""

    def start(self, mode="plain", role=None):
        return self.run_command(sys.executable, os.path.abspath(__file__), mode, role=role)

    def run_command(self, *command, role=None):
        manager = Manager(self.transport, *command, role=role)
        self.addCleanup(manager.discard)
        return manager

    def ready(self, mode="plain", **members):
        manager = self.start(mode)
        manager.hello(**members)
        return manager

    def file(self, name, text=""):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def fifo(self):
        path = self.file("gate")
        os.unlink(path)
        os.mkfifo(path)
        return path

    def drained(self, manager):
        """Drains the worker and checks that nothing but BYE came, and how it ended; returns its stderr."""
        manager.send(kit.DRAIN)
        self.assertEqual(manager.read(), (kit.BYE, 0, 0, 0, b""))
        self.assertIsNone(manager.read())
        code, stderr = manager.end()
        self.assertEqual(code, 0, stderr)
        return stderr

    def test_handshake(self):
        ready = {"version": 1, "codec": "json", "role": None, "concurrency": 1, "ahead": 1}
        self.assertEqual(self.start().hello(later="member"), ready)
        self.assertEqual(self.start().hello(role="asked"), {**ready, "role": "asked"})
        self.assertEqual(self.start("named").hello(), {**ready, "role": "named"})
        self.assertEqual(self.start("bytes").hello(), {**ready, "codec": "bytes"})
        self.assertEqual(self.start("plain").hello(codec="postcard"), ready)

    def test_roles(self):
        manager = self.start("roles")
        self.assertEqual(manager.hello(role="length")["role"], "length")
        self.assertEqual(manager.ask(1, 2, 3), 3)
        self.assertEqual(self.start("roles", role="call").hello()["role"], "call")  # by PM_ROLE alone
        for role in (None, "none such", ["list"]):
            manager = self.start("roles")
            manager.send(kit.HELLO, payload=json.dumps({"version": 1, "role": role}).encode())
            self.assertIsNone(manager.read())
            code, stderr = manager.end()
            self.assertEqual(code, 70 if isinstance(role, list) else 64, stderr)
            if not isinstance(role, list):
                named = "there is no role 'none such' here, only 'call', 'length'"
                self.assertIn(named if role else "the manager named no role, of 'call', 'length': .serving(", stderr)

    def test_calls(self):
        manager = self.ready()
        value = {"n": [1, 2.5, None, True, "✓ \0 \U0001f600"], "deep": {"er": []}, "big": 2**70}
        self.assertEqual(manager.ask("echo", value), value)
        ids = [manager.request("echo", n) for n in range(500)]
        self.assertEqual([manager.answer(id) for id in ids], [(kit.RESP, n) for n in range(500)])
        for byte in kit.encode_frame(kit.REQ, 2**53 - 1, b' [ "echo" , 1 ] '):
            manager.write(bytes([byte]))
        self.assertEqual(manager.read(), (kit.RESP, 0, 0, 2**53 - 1, b"1"))
        self.assertEqual(len(manager.ask("echo", "é" * 3_000_000)), 3_000_000)
        self.drained(manager)

    def test_bytes(self):
        manager = self.ready("bytes", codec="bytes")
        manager.send(kit.REQ, 7, b"\x00\xff\x01")
        self.assertEqual(manager.read(), (kit.RESP, 0, 0, 7, b"\x01\xff\x00"))
        manager.send(kit.REQ, 8)  # is answered by 5
        kind, error = manager.answer(8)
        self.assertEqual((kind, error["kind"], error["type"]), (kit.ERR, "error", "TypeError"))
        self.drained(manager)

    def test_errors(self):
        manager = self.ready()
        kind, error = manager.answer(manager.request("fail", "not a number"))
        self.assertEqual(kind, kit.ERR)
        trace = error.pop("trace")
        self.assertEqual(error, {"kind": "error", "type": "ValueError", "message": "not a number"})
        self.assertRegex(trace, r'(?s)^Traceback .*test_pm_worker.py", line \d+, in fail.*ValueError: not a number\n$')
        self.assertNotIn("pm_worker.py\", line", trace.replace("test_pm_worker.py", ""))
        for name, argument, kind, type in [
            ("panic", "text", "panic", "Panic"),
            ("mute", 0, "error", "Mute"),
            ("recurse", 0, "error", "RecursionError"),
            ("nan", 0, "error", "ValueError"),
            ("surrogate", 0, "error", "UnicodeEncodeError"),
            ("set", 0, "error", "TypeError"),
            ("nest", 100_000, "error", "RecursionError"),
            ("no such handler", 0, "error", "KeyError"),
            ("fail", "\udcff", "error", "ValueError"),
            *([("huge", 0, "error", "ValueError")] if hasattr(sys, "set_int_max_str_digits") else []),
        ]:
            with self.subTest(name):
                answer, error = manager.answer(manager.request(name, argument))
                self.assertEqual((answer, error["kind"], error["type"]), (kit.ERR, kind, type), error)
        self.assertEqual(manager.ask("echo", "alive"), "alive")
        self.drained(manager)

    def test_inputs_that_cannot_be_decoded(self):
        manager = self.ready()
        for payload in (b"", b"{", b"NaN", b"[Infinity]", b"1 2", b'"\xed\xa0\x80"', b'"\xff"', b"\xef\xbb\xbf1",
                        '"é"'.encode("utf-16"), b"[" * 100_000 + b"]" * 100_000):  # fmt: skip
            with self.subTest(payload[:20]):
                manager.send(kit.REQ, 1, payload)
                kind, error = manager.answer(1)
                self.assertEqual((kind, error["kind"]), (kit.ERR, "decode"))
        self.assertEqual(manager.ask("echo", "alive"), "alive")
        self.drained(manager)

    def test_max_frame(self):
        most = 70_000
        manager = self.ready(max_frame=most)
        self.assertEqual(manager.ask("long", most - 14), "x" * (most - 14))  # two quotes and twelve bytes of header
        kind, error = manager.answer(manager.request("long", most - 13))
        self.assertEqual((kind, error["kind"]), (kit.ERR, "error"))
        self.assertIn(str(most), error["message"])
        self.assertIn(str(most + 1), error["message"])
        manager.request("cry", 1_000_000)  # its ERR fits although each character takes six bytes
        self.assertLess(len(manager.read()[4]), most - 12)
        manager.write((most + 1).to_bytes(4, "big"))
        self.assertEqual(self.violated(manager)[0], 70)

    def violated(self, manager):
        self.assertIsNone(manager.read())
        return manager.end()

    def test_violations(self):
        hello = kit.encode_frame(kit.HELLO, payload=b'{"version":1}')
        critical = kit.encode_frame(99, payload=b"x", flags=kit.CRITICAL)
        for data in (b"\0\0\0\0", b"\0\0\0\x0b", b"\xff\xff\xff\xff", critical, hello):
            manager = self.ready()
            manager.write(data)
            code, stderr = self.violated(manager)
            self.assertEqual(code, 70)
            self.assertIn("violation", stderr)
        for data in (kit.encode_frame(kit.REQ, 1, b"1"), kit.encode_frame(kit.HELLO, payload=b"{"),
                     kit.encode_frame(kit.HELLO, payload=b"[]"), kit.encode_frame(99)):  # fmt: skip
            manager = self.start()
            manager.write(data)
            self.assertEqual(self.violated(manager)[0], 70)

    def test_what_is_dropped(self):
        manager = self.ready()
        id = manager.request("echo", 1)
        self.assertEqual(manager.answer(id), (kit.RESP, 1))
        for kind in (8, 32, 35, 99, 255, kit.PONG):
            manager.send(kind, payload=b"x")
        for kind in (kit.RECALL, kit.CANCEL):
            manager.send(kind, id)  # answered already
            manager.send(kind, 12345)  # never seen
            manager.send(kind, 12345, flags=kit.CRITICAL)
        manager.send(kit.PONG, flags=kit.CRITICAL)
        self.assertEqual(manager.ask("echo", 2), 2)
        self.drained(manager)

    def test_ping(self):
        manager = self.ready()
        manager.send(kit.PING, payload=b"tick")
        self.assertEqual(manager.read(), (kit.PONG, 0, 0, 0, b"tick"))
        self.drained(manager)

    def test_recall_and_cancel(self):
        manager, fifo = self.ready(), self.fifo()
        running, recalled, cancelled, last = (manager.request(*value) for value in
                                              [("gate", fifo), ("exit", 1), ("exit", 1), ("echo", 4)])  # fmt: skip
        with open(fifo, "w"):  # now the first call runs
            manager.send(kit.RECALL, recalled)
            manager.send(kit.CANCEL, cancelled)
            manager.send(kit.RECALL, running)
            manager.send(kit.CANCEL, running)
        self.assertEqual(manager.answer(running), (kit.RESP, "opened"))
        self.assertEqual(manager.read(), (kit.ERR, kit.NOT_STARTED, 0, recalled, b""))
        self.assertEqual(manager.read(), (kit.ERR, kit.CANCELLED, 0, cancelled, b""))
        self.assertEqual(manager.answer(last), (kit.RESP, 4))
        self.drained(manager)

    def test_an_answer_is_written_before_the_next_call_starts(self):
        manager, fifo = self.ready(), self.fifo()
        data = b"".join(kit.encode_frame(kit.REQ, id, json.dumps(value).encode())
                        for id, value in [(1, ("echo", 1)), (2, ("gate", fifo))])  # fmt: skip
        manager.write(data)
        self.assertEqual(manager.answer(1), (kit.RESP, 1))  # while the second waits at the gate
        with open(fifo, "w"):
            pass
        self.assertEqual(manager.answer(2), (kit.RESP, "opened"))
        self.drained(manager)

    def test_drain_answers_all(self):
        manager, fifo = self.ready(), self.fifo()
        ids = [manager.request("gate", fifo), *(manager.request("echo", n) for n in range(100))]
        manager.send(kit.DRAIN)
        if self.transport == "uds":
            manager.link.shutdown(socket.SHUT_WR)  # end of file after DRAIN ends nothing
        else:
            manager.process.stdin.close()
        with open(fifo, "w"):
            pass
        self.assertEqual([manager.answer(id)[0] for id in ids], [kit.RESP] * 101)
        self.assertEqual(manager.read()[0], kit.BYE)
        self.assertIsNone(manager.read())
        self.assertEqual(manager.end()[0], 0)

    def test_end_of_file(self):
        whole = kit.encode_frame(kit.REQ, 1, b'["echo", 1]')
        for length in (0, 1, 4, 15, 16, len(whole) - 1):
            manager = self.ready()
            manager.write(whole[:length])
            manager.hang_up()
            self.assertEqual(manager.process.wait(), 0)
        manager = self.start()  # before HELLO
        manager.hang_up()
        self.assertEqual(manager.process.wait(), 0)

    def test_end_of_file_with_calls(self):
        manager, fifo = self.ready(), self.fifo()
        mark = os.path.join(os.path.dirname(fifo), "mark")
        manager.request("gate", fifo)
        manager.request("touch", mark)
        with open(fifo, "w"):
            manager.hang_up()
        code, stderr = manager.process.wait(), manager.process.stderr.read().decode()
        self.assertEqual(code, 0)
        self.assertEqual(stderr.replace("not ready yet\n", ""), "")
        self.assertFalse(os.path.exists(mark))

    def test_a_manager_that_is_gone_while_the_worker_writes(self):
        manager = self.ready()
        for _ in range(10):
            manager.request("long", 100_000)
        manager.read()
        if self.transport == "stdio":
            manager.process.stdout.close()
        manager.hang_up()
        code, stderr = manager.end()
        self.assertEqual((code, stderr.replace("not ready yet\n", "")), (0, ""))

    def test_backpressure(self):
        manager, count = self.ready(), 0
        payload = json.dumps(["echo", "x" * 10_000]).encode()
        os.set_blocking(manager.writer, False)
        poll, data = select.poll(), b""
        poll.register(manager.writer, select.POLLOUT)
        while poll.poll(300):  # until the worker takes nothing more, as nobody reads its answers
            if not data:
                count += 1
                data = kit.encode_frame(kit.REQ, count, payload)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(manager.writer, data) :]
            self.assertLess(count * len(payload), 4 << 20)
        os.set_blocking(manager.writer, True)
        for id in range(1, count + 1):
            if id == count:
                manager.write(data)  # the rest of the last one
            self.assertEqual(manager.answer(id), (kit.RESP, "x" * 10_000))
        self.drained(manager)

    def test_prints(self):
        manager = self.ready()
        self.assertEqual(manager.ask("prints", 0), "")
        stderr = self.drained(manager)
        for text in ("printed by Python", "written to 1", "echoed by a grandchild", "not ready yet"):
            self.assertIn(text, stderr)

    def test_children_inherit_nothing(self):
        manager = self.ready()
        found = manager.ask("descriptors", 0)
        self.assertTrue(found["executed"] and found["forked"])
        self.assertFalse(manager.link_names & {*found["executed"], *found["forked"]}, found)
        self.assertEqual(found["variables"], ["PM_UNIT"])
        self.assertEqual(manager.ask("bare", 0), "the parent answers")
        self.drained(manager)

    def test_notice(self):
        manager = self.ready()
        for text, sent in [("3 rules ✓", "3 rules ✓"), ("a" + "é" * 40_000, "a" + "é" * 32_767), ("\ud800", "?")]:
            id = manager.request("notice", text)
            self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, sent.encode()))
            self.assertEqual(manager.answer(id), (kit.RESP, None))
        self.drained(manager)

    def test_deadline(self):
        manager = self.ready()
        self.assertIsNone(manager.ask("deadline", 0))
        left = manager.ask("deadline", 0, remaining=20190)  # 900.096 seconds
        self.assertTrue(800 < left <= 900.096, left)
        self.assertIsNone(manager.ask("deadline", 0))
        self.drained(manager)

    WINDOW = {"messages": 100, "bytes": 10_000}  # of the manager

    def streams(self, role="talk", **window):
        manager = self.start("streams")
        manager.hello(role=role, streams={**self.WINDOW, **window})
        return manager

    def ended(self, id):
        return (kit.RESP, 0, 0, id, b"")

    def finish(self, manager, id):
        """Ends the manager's side, and checks that the stream's end is all that comes."""
        manager.send(kit.FIN, id)
        self.assertEqual(manager.read(), self.ended(id))

    def echoes(self, manager, id, times=20):
        for n in range(times):
            manager.data(id, n)
            while (frame := manager.read())[0] == kit.CREDIT:
                self.assertEqual(frame[3], id)
            self.assertEqual(frame, (kit.DATA, 0, 0, id, str(n).encode()))
            manager.credit(id, 1, len(frame[4]))

    def test_streams_handshake(self):
        ready = {"version": 1, "codec": "json", "role": "talk", "concurrency": 1000, "ahead": 1000}
        window = {"streams": {"messages": 8, "bytes": 1000}}
        self.assertEqual(self.start("streams").hello(role="talk", streams=self.WINDOW), {**ready, **window})
        self.assertEqual(self.start("streams").hello(role="talk"), {**ready, **window})
        window, few = {"streams": {"messages": 1024, "bytes": 262144}}, {"concurrency": 3, "ahead": 3}
        ready["role"] = "default"
        self.assertEqual(self.start("streams").hello(role="default", streams=self.WINDOW), {**ready, **few, **window})
        manager = self.start("streams")  # queries where streams are wanted: the manager reports it
        ready.update(role="call", concurrency=1, ahead=1)
        self.assertEqual(manager.hello(role="call", streams=self.WINDOW), ready)
        self.assertEqual(manager.ask("echo", 1), 1)
        self.drained(manager)
        for streams in (5, [1], {"messages": 1}, {"messages": "x", "bytes": 1}):
            manager = self.start("streams")
            manager.send(kit.HELLO, payload=json.dumps({"version": 1, "role": "talk", "streams": streams}).encode())
            self.assertEqual(self.violated(manager)[0], 70)

    def test_stream_echo(self):
        manager = self.streams()
        for name in ("echo", "later"):
            id = manager.open(name)
            self.echoes(manager, id)
            self.finish(manager, id)
        id = manager.open("name ✓")
        self.assertEqual(manager.message(id), "name ✓")
        self.assertEqual(manager.read(), self.ended(id))
        for kind in (kit.DATA, kit.FIN, kit.RST, kit.CREDIT, kit.CANCEL):
            manager.send(kind, id, b"x")  # it has ended
            manager.send(kind, 12345, b"x", kit.CRITICAL)  # and this never was
        id = manager.open("deadline", remaining=20190)
        self.assertTrue(800 < manager.message(id) <= 900.096)
        self.assertEqual(manager.read(), self.ended(id))
        id = manager.open("deadline")
        self.assertIsNone(manager.message(id))
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_of_bytes(self):
        manager = self.start("bytes of streams")
        manager.hello(codec="bytes", streams=self.WINDOW)
        id = manager.open()
        for payload in (b"", b"\x00\xff", b"x" * 5000):
            manager.send(kit.DATA, id, payload)
            self.assertEqual(manager.read(), (kit.DATA, 0, 0, id, payload))
        self.finish(manager, id)
        self.drained(manager)

    def test_stream_half_close(self):
        manager = self.streams()
        id = manager.open("collect")
        manager.data(id, 1)
        manager.data(id, 2)
        manager.send(kit.FIN, id)
        self.assertEqual(manager.message(id), [1, 2])
        self.assertEqual(manager.message(id), [])
        self.assertEqual(manager.read(), self.ended(id))
        id = manager.open("end")
        self.assertEqual(manager.read(), (kit.FIN, 0, 0, id, b""))
        self.assertIn("this side has ended", manager.read()[4].decode())
        manager.data(id, 3)
        manager.send(kit.FIN, id)
        self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, b"[3]"))
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_credit_of_the_manager(self):
        manager = self.streams(messages=2)
        id, other = manager.open("count"), manager.open("echo")
        self.assertEqual([manager.message(id), manager.message(id)], [0, 1])
        self.echoes(manager, other, 2)  # has its own
        self.assertIs(manager.silent(), True)
        manager.credit(id, 3, 0)
        self.assertEqual([manager.message(id) for _ in range(3)], [2, 3, 4])
        self.assertIs(manager.silent(), True)
        manager.credit(id, 1000, 0)
        self.assertEqual([manager.message(id) for _ in range(95)], [*range(5, 100)])
        self.assertEqual(manager.read(), self.ended(id))
        self.finish(manager, other)
        manager = self.streams(bytes=10)
        id = manager.open("long")
        for n in (1, 500, 1):
            manager.data(id, n)
        self.assertEqual([len(manager.message(id)) for _ in range(2)], [1, 500])  # 7 bytes were left, and -495 are now
        manager.credit(id, 0, 495)
        self.assertIs(manager.silent(), True)
        manager.credit(id, 0, 1)
        self.assertEqual(manager.message(id), "x")
        self.finish(manager, id)
        self.drained(manager)

    def test_stream_credit_of_the_worker(self):
        manager = self.streams()
        id, granted = manager.open(), (4).to_bytes(4, "big") + (6).to_bytes(4, "big")
        for value in (1, 2, 3):
            manager.data(id, value)
            self.assertEqual(manager.message(id), value)
        manager.data(id, "x")  # the fourth of eight
        self.assertEqual(manager.read(), (kit.CREDIT, 0, 0, id, granted))
        self.assertEqual(manager.message(id), "x")
        manager.data(id, "x" * 497)
        self.assertEqual(len(manager.message(id)), 497)
        manager.data(id, 1)  # the five hundredth byte of a thousand
        self.assertEqual(manager.read()[4], (2).to_bytes(4, "big") + (500).to_bytes(4, "big"))
        self.assertEqual(manager.message(id), 1)
        manager.data(id, "x" * 5000)  # one message passes whatever its size
        self.assertEqual(manager.read()[4], (1).to_bytes(4, "big") + (5002).to_bytes(4, "big"))
        self.assertEqual(len(manager.message(id)), 5000)
        self.finish(manager, id)
        id = manager.open("wait")
        for _ in range(3):
            manager.data(id, 0)
        manager.send(kit.FIN, id)  # who has ended needs no credit
        self.assertEqual(manager.read()[0], kit.NOTICE)
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_calls(self):
        manager = self.streams(messages=1)
        id = manager.open("calls")
        manager.data(id, ["echo", 5], kit.CALL, 2**64 - 1)
        self.assertEqual(manager.message(id, kit.REPLY), (2**64 - 1, 5))
        manager.data(id, "message")
        manager.data(id, ["fail", "oh"], kit.CALL, 7)
        self.assertEqual(manager.message(id), "message")  # spends all credit; a reply spends none
        number, error = manager.message(id, kit.REPLY | kit.ERROR)
        self.assertRegex(error.pop("trace"), r"(?s)^Traceback .*in answer.*ValueError: oh\n$")
        self.assertEqual((number, error), (7, {"kind": "error", "type": "ValueError", "message": "oh"}))
        for name, argument, kind, type in [("panic", "", "panic", "Panic"), ("nan", 0, "error", "ValueError")]:
            manager.data(id, [name, argument], kit.CALL, 8)
            frames = [manager.read()]
            frames += [manager.read()] if frames[0][0] == kit.CREDIT else []
            self.assertEqual(frames[-1][:2], (kit.DATA, kit.REPLY | kit.ERROR))
            error = json.loads(frames[-1][4][8:])
            self.assertEqual((error["kind"], error["type"]), (kind, type))
        manager.send(kit.DATA, id, bytes(8) + b"{", kit.CALL)
        self.assertEqual(manager.message(id, kit.REPLY | kit.ERROR)[1]["kind"], "decode")
        manager.send(kit.DATA, id, bytes(8), kit.REPLY)  # nobody asked
        self.finish(manager, id)
        id = manager.open("collect")  # has no on_call
        manager.data(id, 1)
        manager.data(id, 2, kit.CALL, 9)
        self.assertEqual(manager.message(id, kit.REPLY | kit.ERROR), (9, None))
        manager.send(kit.FIN, id)
        self.assertEqual(manager.message(id), [1, 2])
        manager.credit(id, 1, 0)
        self.assertEqual(manager.message(id), [])
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_errors(self):
        manager = self.streams(messages=1)
        id = manager.open("errors")
        manager.data(id, "oh")
        error = {"kind": "error", "type": "ValueError", "message": "oh", "trace": "ValueError: oh\n"}
        self.assertEqual(manager.message(id, kit.ERROR), error)
        manager.data(id, {"message": "ah", "more": []}, kit.ERROR)
        self.assertIs(manager.silent(), True)  # errors need credit
        manager.credit(id, 10, 0)
        self.assertEqual(manager.message(id), {"message": "ah", "more": []})
        manager.send(kit.DATA, id, b"{")
        self.assertEqual(manager.message(id), "undecoded")
        self.finish(manager, id)
        for name, kind, type in [("fail", "error", "ValueError"), ("panic", "panic", "Panic")]:
            kind_, error = manager.answer(manager.open(name))
            self.assertEqual((kind_, error["kind"], error["type"], error["message"]), (kit.ERR, kind, type, "oh"))
            self.assertRegex(error["trace"], r'(?s)^Traceback .*test_pm_worker.py", line \d+, in .*oh\n$')
            self.assertNotIn("pm_worker.py\", line", error["trace"].replace("test_pm_worker.py", ""))
        id = manager.open("echo")
        manager.send(kit.DATA, id, b"{")
        self.assertEqual(manager.answer(id)[1]["type"], "JSONDecodeError")
        self.drained(manager)

    def test_stream_max_frame(self):
        manager, most = self.start("streams"), 70_000
        manager.hello(role="talk", streams={"messages": 9, "bytes": 200_000}, max_frame=most)
        id = manager.open("long")
        manager.data(id, most - 14)
        self.assertEqual(len(manager.message(id)), most - 14)
        manager.data(id, most - 13)
        error = manager.answer(id)[1]
        self.assertIn(str(most + 1), error["message"])
        self.drained(manager)

    def test_stream_cancel(self):
        manager = self.streams(messages=1)
        cancelled = lambda id: (kit.ERR, kit.CANCELLED, 0, id, b"")  # noqa: E731
        id = manager.open("until the end")
        self.assertEqual(manager.message(id), "more")
        manager.data(id, "unread")
        self.assertIs(manager.silent(), True)  # it waits to write
        manager.send(kit.CANCEL, id)
        self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, b"True []"))
        self.assertEqual(manager.read(), cancelled(id))
        id = manager.open("wait")
        self.assertIs(manager.silent(), True)  # it waits to read
        manager.send(kit.CANCEL, id)
        manager.send(kit.CANCEL, id)
        manager.data(id, "late")
        self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, b"ends, True"))
        self.assertEqual(manager.read(), cancelled(id))
        self.drained(manager)

    def test_stream_stop(self):
        manager = self.streams()
        id = manager.open("stop")
        manager.data(id, 1)
        manager.data(id, 2, kit.CALL, 3)
        self.assertEqual(manager.read(), (kit.RST, 0, 0, id, b""))
        self.assertEqual(manager.message(id, kit.REPLY | kit.ERROR), (3, None))
        self.assertEqual(manager.message(id), [])
        self.assertEqual(manager.read(), self.ended(id))
        id = manager.open("until the end")
        for _ in range(self.WINDOW["messages"]):
            manager.message(id)
        manager.send(kit.RST, id)  # the manager's: writes fail, reads go on
        manager.data(id, 4)
        self.assertIs(manager.silent(), True)
        manager.send(kit.FIN, id)
        self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, b"False [4]"))
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_faults(self):
        manager = self.streams()
        other = manager.open("echo")
        for name, *frames in [
            ("no credit", *[(kit.DATA, b"1")] * 9),
            ("no credit", *[(kit.DATA, b"")] * 9),
            ("no credit", (kit.DATA, b'"%s"' % (b"x" * 1000)), (kit.DATA, b"1")),
            ("after its end", (kit.FIN,), (kit.DATA, b"1")),
            ("after its end", (kit.FIN,), (kit.FIN,)),
            ("more credit", (kit.CREDIT, b"\xff" * 8)),
            ("more credit", *[(kit.CREDIT, b"\x40" + bytes(7))] * 2),
            ("more credit", *[(kit.CREDIT, bytes(4) + b"\x40" + bytes(3))] * 2),
            ("8 bytes", (kit.CREDIT, b"1234567")),
            ("8 bytes", (kit.CREDIT, b"123456789")),
            ("number", (kit.DATA, b"1234567", kit.CALL)),
            ("number", (kit.DATA, b"1234567", kit.REPLY)),
            ("rules", (kit.DATA, b"oh", kit.ERROR)),
            ("rules", (kit.DATA, b"5", kit.ERROR)),
            ("rules", (kit.DATA, b"\xff", kit.ERROR)),
            ("rules", (kit.DATA, b"[" * 100_000, kit.ERROR)),
        ]:
            with self.subTest((name, frames[0])):
                id = manager.open("sleepy")
                for kind, *rest in frames:
                    manager.send(kind, id, *rest)
                kind, error = manager.answer(id)
                self.assertEqual((kind, error["kind"], error["type"]), (kit.ERR, "error", "StreamEnded"))
                self.assertIn(name, error["message"])
                self.echoes(manager, other)
        id = manager.open("sleepy")
        manager.send(kit.FIN, id, flags=0x70)  # unknown flags
        manager.send(kit.RST, id)
        manager.send(kit.RST, id)
        self.assertEqual(manager.answer_of_any(id), kit.RESP)
        id = manager.open("sleepy")  # a fault that is cancelled, as the manager does it
        manager.send(kit.CREDIT, id)
        manager.send(kit.CANCEL, id)
        self.assertEqual(manager.read(), (kit.ERR, kit.CANCELLED, 0, id, b""))
        self.finish(manager, other)
        self.drained(manager)

    def test_stream_violations(self):
        for role, kind, id in [("talk", kit.OPEN, 2), ("talk", kit.REQ, 3), ("talk", 99, 0), ("call", kit.OPEN, 1)]:
            manager = self.streams(role)
            if role == "talk":
                manager.open()
            manager.send(kind, id, b"echo", kit.CRITICAL)
            code, stderr = self.violated(manager)
            self.assertEqual(code, 70)
            self.assertIn("violation", stderr)
        manager = self.streams("call")
        for kind in (kit.CREDIT, kit.OPEN, kit.DATA, kit.FIN, kit.RST):
            manager.send(kind, 1, b"echo")
        self.assertEqual(manager.ask("echo", 1), 1)
        self.drained(manager)

    def test_streams_at_once(self):
        manager = self.streams()
        ids = [manager.open() for _ in range(200)]
        for n in range(20):
            for id in ids:
                manager.data(id, [id, n])
            came = {}
            while len(came) < len(ids):
                kind, _, _, id, payload = manager.read()
                if kind == kit.DATA:
                    came[id] = json.loads(payload)
            self.assertEqual(came, {id: [id, n] for id in ids})
        for id in ids:
            manager.send(kit.FIN, id)
        left = {*ids}
        while left:
            kind, _, _, id, _ = manager.read()
            if kind != kit.CREDIT:
                self.assertEqual(kind, kit.RESP)
                left.remove(id)
        self.drained(manager)

    def test_stream_of_many_threads(self):
        manager = self.streams(messages=10_000, bytes=100_000)
        id = manager.open("threads")
        for _ in range(400):
            self.assertEqual(manager.message(id), "x" * 50)
        self.assertEqual(manager.read(), self.ended(id))
        self.drained(manager)

    def test_stream_drain(self):
        for hang_up in (False, True):
            manager = self.streams()
            ids = [manager.open(), manager.open()]
            manager.send(kit.DRAIN)
            for id in ids:
                self.echoes(manager, id)
                self.assertIs(manager.silent(), True)
            self.finish(manager, ids[0])
            self.echoes(manager, ids[1])
            manager.send(kit.FIN, ids[1])
            if hang_up and self.transport == "uds":
                manager.link.shutdown(socket.SHUT_WR)  # end of file after DRAIN ends nothing
            elif hang_up:
                manager.process.stdin.close()
            self.assertEqual(manager.read(), self.ended(ids[1]))
            self.assertEqual(manager.read(), (kit.BYE, 0, 0, 0, b""))
            self.assertIsNone(manager.read())
            self.assertEqual(manager.end()[0], 0)

    def test_stream_end_of_file(self):
        manager = self.streams()
        id = manager.open("print and wait")
        self.assertEqual(manager.message(id), "printed")
        manager.hang_up()
        code, stderr = manager.end()
        self.assertEqual((code, stderr.replace("not ready yet\n", "")), (0, "before the end"))
        manager = self.streams(messages=10**6, bytes=10**9)
        for _ in range(20):
            manager.open("until the end")  # writes as much as it can
        manager.read()
        if self.transport == "stdio":
            manager.process.stdout.close()
        manager.hang_up()
        code, stderr = manager.end()
        self.assertEqual((code, stderr.replace("not ready yet\n", "")), (0, ""))

    def test_stream_exit(self):
        manager = self.streams()
        manager.open("exit")
        self.assertIsNone(manager.read())
        code, stderr = manager.end()
        self.assertEqual(code, 1)
        self.assertIn("that is all", stderr)

    def test_stream_notice(self):
        manager = self.streams()
        id = manager.open("notice")
        manager.data(id, "3 rules ✓")
        self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, "3 rules ✓".encode()))
        self.finish(manager, id)
        self.drained(manager)

    def test_exit(self):
        manager = self.ready()
        manager.request("exit", 3)
        self.assertIsNone(manager.read())
        self.assertEqual(manager.end()[0], 3)

    def test_file_and_function(self):
        path = self.file("my-work.py", "import helper, pm_worker\nhelper.check(__name__)\nprint('loaded')\n"
                         "def double(n):\n    pm_worker.notice('doubling')\n    return 2 * n\nroles = {'double': double}\n")  # fmt: skip
        with open(os.path.join(os.path.dirname(path), "helper.py"), "w") as file:
            file.write("import sys\ndef check(name): assert name in sys.modules, name\n")
        with open(KIT, encoding="utf-8") as file:
            source = file.read()
        for command in ([KIT], ["-c", source]):
            for name in ("double", "roles"):
                manager = self.run_command(sys.executable, *command, f"{path}:{name}")
                manager.hello()
                manager.send(kit.REQ, 1, b"21")
                self.assertEqual(manager.read(), (kit.NOTICE, 0, 0, 0, b"doubling"))
                self.assertEqual(manager.answer(1), (kit.RESP, 42))
                self.assertIn("loaded", self.drained(manager))
            for argument, said in [(f"{path}:triple", "triple"), ("/no/a.py:f", "/no/a.py"), (path, "usage"), ("", "usage")]:
                manager = self.run_command(sys.executable, *command, *[argument][: bool(argument)])
                self.assertIsNone(manager.read())
                code, stderr = manager.end()
                self.assertEqual(code, 64, stderr)
                self.assertIn(said, stderr)


class Stdio(Conversations, unittest.TestCase):
    transport = "stdio"


class Uds(Conversations, unittest.TestCase):
    transport = "uds"


class Outside(unittest.TestCase):
    def test_serve_without_a_manager(self):
        script = "import pm_worker as k; k.notice('hear'); print(k.deadline()); k.serve(len)"
        done = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (64, "None\n"))
        self.assertRegex(done.stderr, r"^hear\npm_worker: .*PM_LINK")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("plain", "roles", "named", "bytes", "streams", "bytes of streams"):
        work()
    faulthandler.dump_traceback_later(60, exit=True)  # a test that waits for ever is a failed test
    unittest.main()
