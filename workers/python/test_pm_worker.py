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


def work():
    kit.notice("not ready yet")
    mode = sys.argv[1]
    if mode == "roles":
        kit.serve({"call": call, "length": len})
    elif mode == "bytes":
        kit.serve(lambda payload: payload[::-1] or 5, codec="bytes")
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

    def request(self, *value, remaining=0):
        self.next += 1
        self.send(kit.REQ, self.next, json.dumps(value).encode(), remaining=remaining)
        return self.next

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
    if len(sys.argv) > 1 and sys.argv[1] in ("plain", "roles", "named", "bytes"):
        work()
    faulthandler.dump_traceback_later(60, exit=True)  # a test that waits for ever is a failed test
    unittest.main()
