'use strict';
/* Tests of pm_worker.js: the vectors of docs/PROTOCOL.md, and conversations with real worker processes over stdio and uds.

    node --test workers/node/test_pm_worker.js

This file is its own worker: with PM_LINK in its environment it serves the handlers below. */
const kit = require('./pm_worker.js');
const assert = require('assert');
const { execFileSync, spawn, spawnSync } = require('child_process');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const util = require('util');

const KIT = path.join(__dirname, 'pm_worker.js');
const PROTOCOL = path.join(__dirname, '..', '..', 'docs', 'PROTOCOL.md');
const [HELLO, READY, PING, PONG, DRAIN, BYE, NOTICE] = [1, 2, 3, 4, 5, 6, 7];
const [REQ, RESP, ERR, CANCEL, RECALL] = [16, 17, 18, 19, 20];
const [NOT_STARTED, CANCELLED, CRITICAL] = [0x01, 0x02, 0x80];
const MAX_FRAME = (64 << 20) + 12;

// The worker's side

const raise = thrown => { throw thrown; };
const nest = depth => { let value = []; while (--depth) value = [value]; return value; };
/** Resolves when the test has opened and closed its end. It holds no thread of the pool, for which an exit would wait. */
const gate = fifo => new Promise(resolve => {
  const fd = fs.openSync(fifo, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  new net.Socket({ fd, writable: false }).on('end', () => resolve('opened')).resume();
});
const descriptors = 'ls -l /proc/self/fd; env';

const handlers = {
  echo: value => value,
  later: async value => value,
  thenable: value => ({ then(resolve) { resolve(value); resolve('again'); } }),
  nothing: () => {},
  length: value => value.length,
  fail: text => { throw new RangeError(text); },
  reject: async text => { throw new RangeError(text); },
  string: text => raise(text),
  null: () => raise(null),
  object: () => raise({ code: 7 }),
  mute: () => raise({ get message() { throw new Error('never shown'); } }),
  exit: code => process.exit(code),
  crash: () => { setImmediate(() => raise(new Error('outside'))); return new Promise(() => {}); },
  block: fifo => {
    fs.readFileSync(fifo);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2); // slow work, after which the kit looks at its link
    return 'opened';
  },
  gate,
  stop: (fifo, { signal }) => new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason ?? new Error('aborted')));
    gate(fifo);
  }),
  touch: file => fs.writeFileSync(file, ''),
  deadline: (_, { deadline }) => deadline && deadline - performance.now(),
  notice: kit.notice,
  tell: (text, call) => call.notice(text),
  inherits: () => spawnSync('sh', ['-c', `(${descriptors}) >&2`], { stdio: 'inherit' }).status,
  piped: () => execFileSync('sh', ['-c', descriptors], { encoding: 'utf8' }),
  prints: () => {
    console.log('printed by Node');
    process.stdout.write('written to stdout\n');
    fs.writeSync(1, 'written to 1\n');
    spawnSync('echo', ['echoed by a grandchild'], { stdio: 'inherit' });
    return fs.readFileSync(0, 'utf8');
  },
  surrogate: () => '\ud800 \ude00',
  paired: () => '\\ud800 \u{1f600}',
  cycle: () => { const value = {}; value.value = value; return value; },
  big: () => 1n,
  function: () => () => {},
  nest,
  recurse: value => handlers.recurse(value),
  long: n => 'x'.repeat(n),
  cry: n => raise(new Error('\x01'.repeat(n))),
};
const call = ([name, argument], call) => handlers[name](argument, call);

function work(mode) {
  kit.notice('not ready yet');
  if (mode === 'roles') kit.serve({ call, length: value => value.length });
  else if (mode === 'bytes') kit.serve(bytes => (bytes.length ? bytes.reverse() : 5), { codec: 'bytes' });
  else kit.serve(call, { role: mode === 'named' ? mode : null, concurrency: mode === 'three' ? 3 : 1 });
}

// The manager's side

/** A worker, and the frames that it sent. What spawn calls a pipe is a socket, so what has to be a pipe is a named one. */
class Manager {
  constructor(transport, directory, command, role) {
    const env = { ...process.env, PM_LINK: transport, PM_UNIT: 'u1' };
    if (role) env.PM_ROLE = role;
    if (transport === 'uds') env.PM_LINK_FD = '3';
    this.pipes = ['stderr', 'requests', 'answers'].map(name => path.join(directory, name));
    const [stderr, requests, answers] = this.pipes;
    execFileSync('mkfifo', this.pipes);
    const script = transport === 'uds' ? `exec "$@" >${stderr} 2>&1` : `exec "$@" 2>${stderr} <${requests} >${answers}`;
    const stdio = ['ignore', 'ignore', 'ignore', transport === 'uds' ? 'pipe' : 'ignore'];
    this.process = spawn('sh', ['-c', script, 'sh', ...command], { env, stdio });
    this.exited = new Promise(resolve => this.process.on('exit', resolve));
    [this.frames, this.rest, this.next] = [[], Buffer.alloc(0), 0];
  }

  async open() {
    const [stderr, requests, answers] = this.pipes;
    this.stderr = fs.promises.readFile(stderr, 'utf8');
    this.input = this.output = this.process.stdio[3];
    if (!this.input) {
      const [output, input] = await Promise.all([util.promisify(fs.open)(requests, 'w'), util.promisify(fs.open)(answers)]);
      this.output = new net.Socket({ fd: output, readable: false });
      this.input = new net.Socket({ fd: input, writable: false });
    }
    this.input.on('data', bytes => this.take(bytes)).on('end', () => this.take()).on('error', () => this.take());
    this.output.on('error', () => {});
    return this;
  }

  take(bytes) {
    if (bytes) this.rest = Buffer.concat([this.rest, bytes]);
    else this.frames.push(null);
    for (let frame; (frame = kit.decodeFrame(this.rest, 0, 2 ** 32)); this.rest = this.rest.subarray(frame.end)) {
      const { kind, flags, remaining, id, payload } = frame;
      this.frames.push([kind, flags, remaining, id, payload.toString()]);
    }
    this.wake?.();
  }

  /** The next frame [kind, flags, remaining, id, text], or null at the end. */
  async read() {
    while (!this.frames.length) await new Promise(resolve => { this.wake = resolve; });
    return this.frames[0] && this.frames.shift();
  }

  /** Resolves when the bytes lie in the worker's end of the link. */
  write(bytes) {
    return new Promise(resolve => this.output.write(bytes, resolve));
  }

  send(kind, id, payload, flags, remaining) {
    return this.write(Buffer.from(kit.encodeFrame(kind, id, payload, flags, remaining)));
  }

  async hello(members) {
    this.send(HELLO, 0, JSON.stringify({ version: 1, codec: 'json', role: null, max_frame: MAX_FRAME, ...members }));
    const [kind, , , , text] = await this.read();
    assert.equal(kind, READY, text);
    return JSON.parse(text);
  }

  request(name, argument, remaining) {
    this.next += 1;
    this.send(REQ, this.next, JSON.stringify([name, argument]), 0, remaining);
    return this.next;
  }

  async answer(id) {
    const [kind, flags, , answered, text] = await this.read();
    assert.deepEqual([answered, flags], [id, 0], text);
    return [kind, JSON.parse(text)];
  }

  async ask(...request) {
    const [kind, value] = await this.answer(this.request(...request));
    assert.equal(kind, RESP, value?.message);
    return value;
  }

  /** [exit code, stderr], when the worker has ended. */
  end() {
    return Promise.all([this.exited, this.stderr]);
  }
}

function rows(columns) {
  const lines = fs.readFileSync(PROTOCOL, 'utf8').split('## Vectors')[1].split('\n').filter(line => line.startsWith('|'));
  const cells = lines.map(line => line.slice(1, -1).split('|').map(cell => cell.trim().replace(/^`|`$/g, '')));
  const found = cells.filter(row => row.length === columns && !/^-+$/.test(row[0])).slice(1);
  assert(found.length);
  return found;
}

function tests() {
  const { test } = require('node:test');

  test('the vectors of the frames', () => {
    for (const [name, kind, flags, remaining, id, text, hex] of rows(7)) {
      const frame = Buffer.from(hex, 'hex'), numbers = [kind, flags, remaining, id].map(Number);
      for (const payload of [text, Buffer.from(text)]) {
        assert.deepEqual(kit.encodeFrame(numbers[0], numbers[3], payload, numbers[1], numbers[2]), frame, name);
      }
      const twice = Buffer.concat([Buffer.from('abc'), frame, frame]);
      const decoded = kit.decodeFrame(twice, 3);
      assert.deepEqual([decoded.kind, decoded.flags, decoded.remaining, decoded.id], numbers, name);
      assert.equal(decoded.payload.toString(), text);
      assert.equal(decoded.end, 3 + frame.length);
      for (let n = 0; n < frame.length; n += 1) assert.equal(kit.decodeFrame(frame.subarray(0, n)), null);
    }
  });

  test('the vectors of `remaining`', () => {
    for (const [milliseconds, field] of rows(2)) {
      const exact = milliseconds === 'none' ? 0 : Number(milliseconds), decoded = kit.decodeRemaining(Number(field));
      assert(decoded >= exact && decoded - exact < 2 ** (field >> 11), `${field} is ${decoded}`);
    }
  });

  test('large frames', () => {
    for (const text of ['é'.repeat(100_000), 'x'.repeat(70_000)]) {
      assert.equal(kit.decodeFrame(kit.encodeFrame(RESP, 1, text)).payload.toString(), text);
      assert.equal(kit.decodeFrame(kit.encodeFrame(RESP, 1, Buffer.from(text))).payload.toString(), text);
    }
  });

  test('serve without a manager', () => {
    const script = `const kit = require(${JSON.stringify(KIT)}); kit.notice('hear'); kit.serve(x => x);`;
    const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
    assert.deepEqual([status, stdout], [64, '']);
    assert.match(stderr, /^hear\npm_worker: .*PM_LINK/);
  });

  for (const transport of ['stdio', 'uds']) conversations(transport, test);
}

function conversations(transport, declare) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'pm-worker-'));
  const managers = [];
  let made = 0;
  process.on('exit', () => fs.rmSync(directory, { recursive: true }));
  const run = (command, role) => {
    const own = file();
    fs.mkdirSync(own);
    const manager = new Manager(transport, own, command, role);
    managers.push(manager);
    return manager.open();
  };
  const start = (mode = 'plain', role = null) => run([process.execPath, __filename, mode], role);
  const ready = async (mode, members) => { const manager = await start(mode); await manager.hello(members); return manager; };
  const file = () => path.join(directory, `file${(made += 1)}`);
  const fifo = () => { const name = file(); execFileSync('mkfifo', [name]); return name; };
  /** Opens the gate once the handler has come to it, does something there, and lets the handler through. */
  const pass = async (gate, there = () => {}) => {
    const end = await fs.promises.open(gate, 'w');
    await there();
    await end.close();
  };
  const drained = async manager => {
    manager.send(DRAIN);
    assert.deepEqual(await manager.read(), [BYE, 0, 0, 0, '']);
    assert.equal(await manager.read(), null);
    const [code, stderr] = await manager.end();
    assert.equal(code, 0, stderr);
    return stderr;
  };

  const test = (name, run) => declare(`${transport}: ${name}`, { timeout: 20_000 }, async () => {
    try {
      await run();
    } finally {
      for (const manager of managers.splice(0)) manager.process.kill('SIGKILL');
    }
  });

  test('handshake', async () => {
    const plain = { version: 1, codec: 'json', role: null, concurrency: 1, ahead: 1 };
    const hello = async (members, ...how) => (await start(...how)).hello(members);
    assert.deepEqual(await hello({ later: 'member' }), plain);
    assert.deepEqual(await hello({ role: 'asked' }), { ...plain, role: 'asked' });
    assert.deepEqual(await hello({}, 'named'), { ...plain, role: 'named' });
    assert.deepEqual(await hello({}, 'bytes'), { ...plain, codec: 'bytes' });
    assert.deepEqual(await hello({ codec: 'postcard' }, 'three'), { ...plain, concurrency: 3, ahead: 3 });
    assert.equal((await hello({}, 'roles', 'call')).role, 'call'); // by PM_ROLE alone
  });

  test('roles', async () => {
    const manager = await start('roles');
    assert.equal((await manager.hello({ role: 'length' })).role, 'length');
    assert.equal(await manager.ask('a', 'b'), 2);
    for (const role of [null, 'none such', 'constructor', ['length']]) {
      const refusing = await start('roles');
      refusing.send(HELLO, 0, JSON.stringify({ version: 1, role }));
      assert.equal(await refusing.read(), null);
      const [code, stderr] = await refusing.end();
      assert.equal(code, 64);
      assert.match(stderr, /only call, length/);
    }
  });

  test('calls', async () => {
    const manager = await ready();
    const value = { n: [1, 2.5, null, true, '✓ \0 \u{1f600} \ufffd'], deep: { er: [] } };
    for (const name of ['echo', 'later', 'thenable']) assert.deepEqual(await manager.ask(name, value), value);
    assert.equal(await manager.ask('nothing'), null);
    assert.equal(await manager.ask('paired'), '\\ud800 \u{1f600}');
    const ids = Array.from({ length: 2000 }, (_, n) => manager.request(n % 3 ? 'echo' : 'later', n));
    for (const [n, id] of ids.entries()) assert.deepEqual(await manager.answer(id), [RESP, n]);
    for (const byte of Buffer.from(kit.encodeFrame(REQ, 2 ** 53 - 1, ' [ "echo" , 1 ] '))) await manager.write(Buffer.of(byte));
    assert.deepEqual(await manager.read(), [RESP, 0, 0, 2 ** 53 - 1, '1']);
    assert.equal((await manager.ask('echo', 'é'.repeat(3_000_000))).length, 3_000_000);
    await drained(manager);
  });

  test('bytes', async () => {
    const manager = await ready('bytes', { codec: 'bytes' });
    manager.send(REQ, 1, 'abc');
    assert.deepEqual(await manager.read(), [RESP, 0, 0, 1, 'cba']);
    manager.send(REQ, 2); // is answered by 5
    const [kind, error] = await manager.answer(2);
    assert.deepEqual([kind, error.kind, error.type], [ERR, 'error', 'TypeError']);
    await drained(manager);
  });

  test('errors', async () => {
    const manager = await ready();
    for (const [name, argument, type, message] of [
      ['fail', 'not a number', 'RangeError', /^not a number$/],
      ['reject', 'not a number', 'RangeError', /^not a number$/],
      ['string', 'thrown', 'string', /^thrown$/],
      ['null', 0, 'object', /^null$/],
      ['object', 0, 'object', /^\{ code: 7 \}$/],
      ['mute', 0, 'string', /cannot be shown/],
      ['surrogate', 0, 'TypeError', /surrogate/],
      ['cycle', 0, 'TypeError', /circular/],
      ['big', 0, 'TypeError', /BigInt/],
      ['function', 0, 'TypeError', /function/],
      ['nest', 100_000, 'RangeError', /stack/],
      ['recurse', 0, 'RangeError', /stack/],
      ['fail', '\ud800', 'RangeError', /^\ufffd$/],
    ]) {
      const [kind, error] = await manager.answer(manager.request(name, argument));
      assert.deepEqual([kind, error.kind, error.type], [ERR, 'error', type], error.message);
      assert.match(error.message, message);
      if (message.source === '^not a number$') assert.match(error.trace, /^RangeError: not a number\n +at .*test_pm_worker\.js/);
    }
    assert.equal(await manager.ask('echo', 'alive'), 'alive');
    await drained(manager);
  });

  test('inputs that cannot be decoded', async () => {
    const manager = await ready();
    for (const bytes of ['', '{', 'NaN', '1 2', Buffer.from('22eda08022', 'hex'), Buffer.from('22ff22', 'hex'), '\ufeff1', '['.repeat(1e5)]) {
      manager.send(REQ, 1, bytes);
      const [kind, error] = await manager.answer(1);
      assert.deepEqual([kind, error.kind], [ERR, 'decode']);
    }
    manager.send(REQ, 1, `["length",${'['.repeat(1e5)}${']'.repeat(1e5)}]`); // V8 does read this
    assert.deepEqual(await manager.answer(1), [RESP, 1]);
    await drained(manager);
  });

  test('max_frame', async () => {
    const most = 70_000, manager = await ready('plain', { max_frame: most });
    assert.equal((await manager.ask('long', most - 14)).length, most - 14); // two quotes and twelve bytes of header
    const [kind, error] = await manager.answer(manager.request('long', most - 13));
    assert.deepEqual([kind, error.kind], [ERR, 'error']);
    assert.match(error.message, new RegExp(`${most + 1}.*${most}`));
    manager.request('cry', 1_000_000); // its ERR fits although each character takes six bytes
    assert((await manager.read())[4].length < most - 12);
    manager.write(Buffer.from((most + 1).toString(16).padStart(8, '0'), 'hex'));
    assert.equal(await manager.read(), null);
    assert.equal((await manager.end())[0], 70);
  });

  test('violations', async () => {
    const bytes = hex => Buffer.from(hex, 'hex'), frame = (...of) => Buffer.from(kit.encodeFrame(...of));
    const after = [bytes('00000000'), bytes('0000000b'), bytes('ffffffff'), frame(99, 0, 'x', CRITICAL), frame(HELLO, 0, '{}')];
    const before = [frame(REQ, 1, '1'), frame(HELLO, 0, '{'), frame(99)];
    for (const data of [...after, ...before]) {
      const manager = await (before.includes(data) ? start() : ready());
      manager.write(data);
      assert.equal(await manager.read(), null);
      const [code, stderr] = await manager.end();
      assert.equal(code, 70);
      assert.match(stderr, /violation/);
    }
  });

  test('what is dropped', async () => {
    const manager = await ready(), id = manager.request('echo', 1);
    assert.deepEqual(await manager.answer(id), [RESP, 1]);
    for (const kind of [8, 32, 35, 99, 255, PONG]) manager.send(kind, 0, 'x');
    for (const kind of [RECALL, CANCEL]) {
      manager.send(kind, id); // answered already
      manager.send(kind, 12345); // never seen
      manager.send(kind, 12345, '', CRITICAL);
    }
    manager.send(PONG, 0, '', CRITICAL);
    assert.equal(await manager.ask('echo', 2), 2);
    await drained(manager);
  });

  test('ping', async () => {
    const manager = await ready(), gate = fifo();
    const running = manager.request('gate', gate);
    manager.send(PING, 0, 'tick');
    assert.deepEqual(await manager.read(), [PONG, 0, 0, 0, 'tick']); // while a call runs
    await pass(gate);
    assert.deepEqual(await manager.answer(running), [RESP, 'opened']);
    await drained(manager);
  });

  test('recall and cancel what waits behind a promise', async () => {
    const manager = await ready(), gate = fifo();
    const running = manager.request('gate', gate), recalled = manager.request('exit', 1), cancelled = manager.request('exit', 1);
    await pass(gate, async () => {
      for (const [kind, id] of [[RECALL, recalled], [CANCEL, cancelled], [RECALL, running], [CANCEL, running]]) manager.send(kind, id);
      assert.deepEqual(await manager.read(), [ERR, NOT_STARTED, 0, recalled, '']); // at once
      assert.deepEqual(await manager.read(), [ERR, CANCELLED, 0, cancelled, '']);
    });
    assert.deepEqual(await manager.answer(running), [RESP, 'opened']); // it did not look at its signal
    await drained(manager);
  });

  test('recall and cancel what waits behind a slow function', async () => {
    const manager = await ready(), gate = fifo();
    const running = manager.request('block', gate);
    const [recalled, cancelled, last] = [manager.request('exit', 1), manager.request('exit', 1), manager.request('echo', 4)];
    await pass(gate, async () => {
      await manager.send(RECALL, recalled);
      await manager.send(CANCEL, cancelled);
    });
    assert.deepEqual(await manager.answer(running), [RESP, 'opened']);
    assert.deepEqual(await manager.read(), [ERR, NOT_STARTED, 0, recalled, '']);
    assert.deepEqual(await manager.read(), [ERR, CANCELLED, 0, cancelled, '']);
    assert.deepEqual(await manager.answer(last), [RESP, 4]);
    await drained(manager);
  });

  test('cancel what runs', async () => {
    const manager = await ready(), gate = fifo();
    const running = manager.request('stop', gate);
    await pass(gate, () => manager.send(CANCEL, running));
    assert.deepEqual(await manager.read(), [ERR, CANCELLED, 0, running, '']);
    await drained(manager);
  });

  test('an answer is written before the next call starts', async () => {
    for (const [first, second] of [['echo', 'block'], ['later', 'block'], ['echo', 'gate']]) {
      const manager = await ready(), gate = fifo();
      const frames = [[1, [first, 1]], [2, [second, gate]]].map(([id, value]) => Buffer.from(kit.encodeFrame(REQ, id, JSON.stringify(value))));
      manager.write(Buffer.concat(frames));
      await pass(gate, async () => assert.deepEqual(await manager.answer(1), [RESP, 1]));
      assert.deepEqual(await manager.answer(2), [RESP, 'opened']);
      await drained(manager);
    }
  });

  test('concurrency', async () => {
    const manager = await ready('three'), gates = [fifo(), fifo(), fifo(), fifo()];
    const ids = gates.map(gate => manager.request('gate', gate)), touched = file();
    const late = manager.request('touch', touched);
    await pass(gates[1], () => pass(gates[2], () => assert(!fs.existsSync(touched)))); // these run beside the first
    const first = (await manager.read())[3], second = (await manager.read())[3];
    assert.deepEqual([first, second].sort(), [ids[1], ids[2]]);
    await manager.answer(late); // beside the fourth, which waits at its gate
    await pass(gates[0]);
    await manager.answer(ids[0]);
    await pass(gates[3]);
    await manager.answer(ids[3]);
    await drained(manager);
  });

  test('drain answers all', async () => {
    const manager = await ready(), gate = fifo();
    const ids = [manager.request('gate', gate), ...Array.from({ length: 100 }, (_, n) => manager.request(n % 2 ? 'echo' : 'later', n))];
    await manager.send(DRAIN);
    if (transport === 'uds') manager.output.end(); // end of file after DRAIN ends nothing
    else manager.output.destroy();
    await pass(gate);
    for (const id of ids) assert.equal((await manager.answer(id))[0], RESP);
    assert.equal((await manager.read())[0], BYE);
    assert.equal((await manager.end())[0], 0);
  });

  test('end of file', async () => {
    const whole = Buffer.from(kit.encodeFrame(REQ, 1, '["exit",1]'));
    for (const length of [0, 1, 4, 15, 16, whole.length - 1]) {
      const manager = await ready();
      if (length) await manager.write(whole.subarray(0, length));
      manager.output.destroy();
      assert.deepEqual(await manager.end(), [0, 'not ready yet\n']);
    }
    if (transport === 'uds') {
      const manager = await start(); // before HELLO
      manager.output.destroy();
      assert.equal((await manager.end())[0], 0);
    } else {
      const script = `: | { PM_LINK=stdio ${process.execPath} ${__filename} plain; echo $? >&2; } | cat`;
      assert.equal(spawnSync('sh', ['-c', script], { encoding: 'utf8' }).stderr, 'not ready yet\n0\n');
    }
  });

  test('end of file while calls run', async () => {
    for (const kind of ['gate', 'block']) {
      const manager = await ready(), gate = fifo(), touched = file();
      manager.request(kind, gate);
      await manager.send(REQ, 99, JSON.stringify(['touch', touched]));
      await pass(gate, async () => {
        manager.output.destroy();
        manager.input.destroy();
        if (kind === 'gate') assert.equal((await manager.end())[0], 0); // at once
      });
      assert.deepEqual(await manager.end(), [0, 'not ready yet\n']);
      assert(!fs.existsSync(touched));
    }
  });

  test('a manager that is gone while the worker writes', async () => {
    for (const kind of ['echo', 'later']) {
      const manager = await ready();
      for (let n = 0; n < 10; n += 1) manager.request(kind, 'x'.repeat(100_000));
      await manager.read();
      manager.input.destroy();
      manager.output.destroy();
      assert.deepEqual(await manager.end(), [0, 'not ready yet\n']);
    }
  });

  test('backpressure', async () => {
    const manager = await ready(), text = 'x'.repeat(10_000);
    manager.input.pause();
    const ids = [];
    let moved = true;
    while (moved) { // until the worker takes nothing more, as nobody reads its answers
      ids.push(manager.next + 1);
      moved = await Promise.race([
        manager.send(REQ, manager.next += 1, JSON.stringify(['echo', text])).then(() => true),
        new Promise(resolve => setTimeout(resolve, 500, false)),
      ]);
      assert(ids.length * text.length < 4 << 20);
    }
    manager.input.resume();
    for (const id of ids) assert.deepEqual(await manager.answer(id), [RESP, text]);
    assert.equal(await manager.ask('echo', 'alive'), 'alive');
    await drained(manager);
  });

  test('drain while nobody reads', async () => {
    const manager = await ready();
    manager.input.pause();
    const ids = Array.from({ length: 30 }, () => manager.request('long', 100_000));
    await manager.send(DRAIN);
    manager.input.resume();
    for (const id of ids) assert.equal((await manager.answer(id))[1].length, 100_000);
    assert.equal((await manager.read())[0], BYE);
    assert.equal((await manager.end())[0], 0);
  });

  test('prints', async () => {
    const manager = await ready();
    assert.equal(await manager.ask('prints'), '');
    const stderr = await drained(manager);
    for (const text of ['not ready yet', 'printed by Node', 'written to stdout', 'written to 1', 'echoed by a grandchild']) {
      assert(stderr.includes(`${text}\n`), stderr);
    }
  });

  test('children inherit nothing', async () => {
    const manager = await ready();
    assert.equal(await manager.ask('inherits'), 0);
    const piped = (await manager.ask('piped')).replace(/.* [012] -> socket:.*\n/g, ''); // which Node.js made for this child
    for (const seen of [piped, await drained(manager)]) {
      assert.match(seen, /\/proc\/[^]*PM_UNIT=u1\n/);
      assert.doesNotMatch(seen, /socket:|requests|answers|PM_LINK|PM_ROLE/);
    }
  });

  test('notice', async () => {
    const manager = await ready();
    for (const name of ['notice', 'tell']) {
      for (const [text, sent] of [['3 rules ✓', '3 rules ✓'], [`a${'é'.repeat(40_000)}`, `a${'é'.repeat(32_767)}`], ['\ud800', '\ufffd']]) {
        const id = manager.request(name, text);
        assert.deepEqual(await manager.read(), [NOTICE, 0, 0, 0, sent]);
        assert.deepEqual(await manager.answer(id), [RESP, null]);
      }
    }
    await drained(manager);
  });

  test('deadline', async () => {
    const manager = await ready();
    assert.equal(await manager.ask('deadline'), 0);
    const left = await manager.ask('deadline', 0, 20190); // 900,096 milliseconds
    assert(left > 800_000 && left <= 900_096, left);
    await drained(manager);
  });

  test('exit and crash', async () => {
    for (const [name, code, said] of [['exit', 3, /^/], ['crash', 1, /Error: outside\n +at/]]) {
      const manager = await ready();
      manager.request(name, 3);
      assert.equal(await manager.read(), null);
      const [ended, stderr] = await manager.end();
      assert.equal(ended, code);
      assert.match(stderr, said);
    }
  });

  test('FILE:FUNC', async () => {
    const body = 'const double = (n, { notice }) => { notice("doubling"); return 2 * n; }; console.log("loaded");';
    const commands = [[KIT], ['-e', fs.readFileSync(KIT, 'utf8'), '--']];
    const files = { 'a.js': 'module.exports = { double };', 'b.cjs': 'exports.double = double;', 'c.mjs': 'export { double };' };
    for (const [name, exported] of Object.entries(files)) {
      const own = path.join(directory, name);
      fs.writeFileSync(own, body + exported);
      for (const command of commands) {
        const manager = await run([process.execPath, ...command, `${own}:double`]);
        await manager.hello();
        manager.send(REQ, 1, '21');
        assert.deepEqual(await manager.read(), [NOTICE, 0, 0, 0, 'doubling']);
        assert.deepEqual(await manager.answer(1), [RESP, 42]);
        assert.match(await drained(manager), /loaded/);
      }
    }
    const own = path.join(directory, 'a.js');
    for (const [argument, said] of [[`${own}:triple`, /triple/], ['/no/such.js:f', /such\.js/], [own, /usage/], [null, /usage/]]) {
      for (const command of commands) {
        const manager = await run([process.execPath, ...command, ...(argument ? [argument] : [])]);
        assert.equal(await manager.read(), null);
        const [code, stderr] = await manager.end();
        assert.equal(code, 64);
        assert.match(stderr, said);
      }
    }
  });
}

process.env.UV_THREADPOOL_SIZE = 128; // a file operation that waits at a named pipe holds a thread
if (process.argv[2]) work(process.argv[2]);
else tests();
