"""The programs of the shop, which speak to Redis by its protocol: migrate, api, worker, client."""
import http.server
import json
import os
import socket
import sys
import time
import urllib.request

API = f"http://127.0.0.1:{os.environ['API_PORT']}"


class Redis:
    """As much of a client as the shop needs."""

    def __init__(self):
        self.file = socket.create_connection(("127.0.0.1", int(os.environ["REDIS_PORT"]))).makefile("rwb")

    def __call__(self, *words):
        parts = [str(word).encode() for word in words]
        self.file.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        self.file.flush()
        return self.answer()

    def answer(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the database has gone")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"*":
            return None if rest == b"-1" else [self.answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2].decode()
        return int(rest) if kind == b":" else rest.decode()


def migrate():
    """Puts the goods into the database."""
    for name, cents in {"tea": 450, "cup": 900}.items():
        Redis()("SET", f"price:{name}", cents)
    print("the goods are there")


def api():
    """Takes orders, which workers carry out."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/health":
                self.reply(200 if Redis()("PING") == "PONG" else 503, {})
            else:
                done = Redis()("GET", f"done:{self.path[1:]}")
                self.reply(200 if done else 404, json.loads(done or "{}"))

        def do_POST(self):
            order = json.loads(self.rfile.read(int(self.headers["content-length"])))
            redis = Redis()
            number = redis("INCR", "orders")
            redis("RPUSH", "queue", json.dumps({"number": number, **order}))
            self.reply(202, {"number": number})

        def log_message(self, text, *args):
            print(text % args)

    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["API_PORT"])), Handler).serve_forever()


def worker():
    """Carries out one order after the other."""
    redis = Redis()
    print("waiting for orders")
    while True:
        order = json.loads(redis("BLPOP", "queue", 0)[1])
        cents = int(redis("GET", f"price:{order['good']}")) * order["count"]
        redis("SET", f"done:{order['number']}", json.dumps({"cents": cents, "worker": os.environ["PM_REPLICA"]}))
        print(f"order {order['number']} is done")


def client():
    """Orders, and looks whether it gets what it has ordered."""
    for good, count, cents in [("tea", 2, 900), ("cup", 1, 900), ("tea", 10, 4500)]:
        order = urllib.request.Request(API, json.dumps({"good": good, "count": count}).encode())
        number = json.load(urllib.request.urlopen(order))["number"]
        for _ in range(200):
            try:
                done = json.load(urllib.request.urlopen(f"{API}/{number}"))
                break
            except urllib.error.HTTPError:
                time.sleep(0.02)
        else:
            sys.exit(f"order {number} is never done")
        assert done["cents"] == cents, done
        print(f"{count} {good}: {cents / 100:.2f}, by worker {done['worker']}")


{"migrate": migrate, "api": api, "worker": worker, "client": client}[sys.argv[1]]()
