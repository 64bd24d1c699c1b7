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
const [CREDIT, OPEN, DATA, FIN, RST] = [8, 32, 33, 34, 35];
const [NOT_STARTED, CANCELLED, CRITICAL] = [0x01, 0x02, 0x80];
const [AN_ERROR, A_CALL, A_REPLY] = [0x01, 0x02, 0x04];
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

const told = async promise => promise.then(() => 'sent', ({ name }) => name);

/** By the name of the stream. */
const players = {
  echo: async stream => { for await (const message of stream) await stream.write(message); },
  plain: () => {},
  name: async stream => stream.write([stream.name, stream.deadline]),
  sum: async stream => {
    let sum = 0;
    for await (const message of stream) sum += message;
    await stream.write(sum);
  },
  first: async stream => { // ends its own side, and reads on
    await stream.write('only');
    stream.end();
    stream.end();
    assert.equal(await told(stream.write('never')), 'StreamEnded');
    for await (const file of stream) fs.writeFileSync(file, '');
  },
  count: async stream => { for (let n = 0; n < 10; n += 1) await stream.write(n); },
  hasty: stream => { // awaits nothing
    for (let n = 0; n < 10; n += 1) stream.write(n);
    stream.end();
  },
  slow: async stream => { // reads as many as its gates are called
    const gate = stream.name.slice(5);
    for (const count of [1, 2, 1]) {
      await handlers.gate(`${gate}${count}`);
      for (let n = 0; n < count; n += 1) await stream.next();
    }
    await stream.next();
  },
  calls: async stream => {
    stream.onCall = async ([name, argument]) => {
      if (name === 'later') await later;
      return handlers[name](argument);
    };
    const later = stream.next();
    const { value } = await later;
    await stream.write(value);
    await stream.next();
  },
  late: async stream => { // is asked before it says who answers
    await new Promise(setImmediate);
    stream.onCall = value => value + base;
    const base = 1;
    for await (const message of stream) await stream.write(message);
  },
  replies: async stream => { // has no onCall
    for await (const message of stream) await stream.write(message);
  },
  stumbles: async stream => {
    for (let isOpen = true; isOpen;) {
      try {
        for await (const message of stream) {
          if (message === 'ask') await stream.error(new RangeError('not a number'));
          else await stream.write(message);
        }
        isOpen = false;
      } catch (error) {
        await stream.write([error.name, error.message, error.kind ?? null, error.trace ?? null]);
      }
    }
  },
  unsendable: async stream => {
    for (const name of ['surrogate', 'cycle', 'big', 'function', 'long']) {
      await stream.write(handlers[name](70_000)).catch(error => stream.write(error.name));
    }
  },
  fails: async stream => { await stream.next(); throw new RangeError('not a number'); },
  throws: () => raise('at once'),
  waits: async stream => {
    const written = [told(stream.write(1)), told(stream.write(2)), told(stream.error(3))];
    stream.signal.addEventListener('abort', () => kit.notice('aborted'));
    for await (const _ of stream) assert.fail('something came');
    kit.notice(`${await Promise.all(written)}, ${await told(stream.write(4))}, ${stream.signal.aborted}`);
  },
  deaf: async (stream, after = stream.write(1).then(() => stream.write(2))) => { await after; },
  breaks: async stream => {
    for await (const message of stream) if (message === 'stop') break;
    await stream.write('stopped');
    assert((await stream.next()).done);
    await stream.write('more');
    await handlers.gate(process.env.GATE);
  },
  reads: async stream => {
    try {
      for await (const message of stream) await stream.write(message);
    } catch (error) {
      kit.notice(`${error.name}: ${error.message}; ${await told(stream.write(1))}; ${(await stream.next()).done}`);
    }
  },
  pours: async stream => {
    const { value: file } = await stream.next(), text = 'x'.repeat(100_000);
    for (let n = 1; n <= 80; n += 1) { await stream.write(text); fs.writeFileSync(file, `${n}`); }
  },
};
const play = stream => players[stream.name.split(' ')[0]](stream);

function work(mode) {
  kit.notice('not ready yet');
  const windows = { streams: {}, narrow: { messages: 4, bytes: 100 } };
  if (windows[mode]) kit.serve(kit.streams(play, windows[mode]));
  else if (mode === 'mixed') kit.serve({ check: value => value, battle: kit.streams(play) });
  else if (mode === 'few') kit.serve(kit.streams(play), { concurrency: 3 });
  else if (mode === 'raw') kit.serve(kit.streams(players.echo), { codec: 'bytes' });
  else if (mode === 'roles') kit.serve({ call, length: value => value.length });
  else if (mode === 'bytes') kit.serve(bytes => (bytes.length ? bytes.reverse() : 5), { codec: 'bytes' });
  else kit.serve(call, { role: mode === 'named' ? mode : null, concurrency: mode === 'three' ? 3 : 1 });
}

// The manager's side

const swap = n => Buffer.from(new Uint32Array([n]).buffer).readUInt32BE();
const END = [RESP, 0, ''];

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

  /** Opens a stream, and returns its end here. */
  stream(name) {
    const id = this.next += 1, send = (kind, payload, flags) => this.send(kind, id, payload, flags);
    send(OPEN, name);
    const numbers = counts => Buffer.from(new Uint32Array(counts).map(swap).buffer);
    const numbered = (name, value) => Buffer.from(`\0\0\0\0\0\0\0${name}${JSON.stringify(value)}`);
    return {
      id,
      send,
      write: (value, flags) => send(DATA, JSON.stringify(value), flags),
      call: (name, value, flags = A_CALL) => send(DATA, numbered(name, value), flags), // its number is a character
      grant: (...counts) => send(CREDIT, numbers(counts)),
      /** The next frame, which is of this stream: [kind, flags, value]. */
      read: async () => {
        const [kind, flags, , of, text] = await this.read();
        assert.equal(of, id, `${kind}: ${text}`);
        if (kind === CREDIT) return [kind, flags, [0, 4].map(at => Buffer.from(text, 'latin1').readUInt32BE(at))];
        if (flags & A_REPLY && kind === DATA) return [kind, flags, text[7], text.slice(8) && JSON.parse(text.slice(8))];
        return [kind, flags, text && JSON.parse(text)];
      },
    };
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

  /** Nothing has come, and nothing is on its way: handlers have gone on between two answers. */
  async silent() {
    for (let n = 0; n < 4; n += 1) {
      this.send(PING, 0, 'silence');
      assert.deepEqual(await this.read(), [PONG, 0, 0, 0, 'silence']);
    }
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
  const drained = async (manager, ...streams) => {
    for (const stream of streams) {
      stream.send(FIN);
      assert.deepEqual(await stream.read(), END);
    }
    manager.send(DRAIN);
    assert.deepEqual(await manager.read(), [BYE, 0, 0, 0, '']);
    assert.equal(await manager.read(), null);
    const [code, stderr] = await manager.end();
    assert.equal(code, 0, stderr);
    return stderr;
  };

  const test = (name, run) => declare(`${transport}: ${name}`, { timeout: 20_000 }, async () => {
    const kill = () => { for (const manager of managers.splice(0)) manager.process.kill('SIGKILL'); };
    const limit = setTimeout(kill, 15_000); // what waits for a worker fails now, before the next test has workers
    try {
      await run();
    } finally {
      clearTimeout(limit);
      kill();
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
      const unnamed = /the manager named no role, of call, length: \.serving\("NAME"\) of its Spec names one, or PM_ROLE/;
      assert.match(stderr, role === null ? unnamed : /there is no role '.*' here, only call, length/);
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

  const wide = { streams: { messages: 1000, bytes: 1 << 20 } };
  const flowing = (mode = 'streams', streams = wide.streams) => ready(mode, { streams });
  const grantOf = (...counts) => [CREDIT, 0, counts];

  test('streams: handshake', async () => {
    const window = { messages: 1024, bytes: 262144 }, hello = async (how, members) => (await start(how)).hello(members);
    const plain = { version: 1, codec: 'json', role: null, concurrency: 10000, ahead: 10000, streams: window };
    assert.deepEqual(await hello('streams', wide), plain);
    assert.deepEqual(await hello('streams'), plain); // the manager reports it
    assert.deepEqual(await hello('narrow', wide), { ...plain, streams: { messages: 4, bytes: 100 } });
    assert.deepEqual(await hello('few', wide), { ...plain, concurrency: 3, ahead: 3 });
    const { streams, ...check } = { ...plain, role: 'check', concurrency: 1, ahead: 1 };
    for (const members of [{}, wide]) {
      assert.deepEqual(await hello('mixed', { role: 'check', ...members }), check);
      assert.deepEqual(await hello('mixed', { role: 'battle', ...members }), { ...plain, role: 'battle' });
    }
  });

  test('streams: echo', async () => {
    const manager = await flowing(), stream = manager.stream('echo');
    for (const value of [1, { deep: ['✓ \0 \u{1f600} \ufffd'] }, null, 'x'.repeat(100_000)]) {
      stream.write(value);
      assert.deepEqual(await stream.read(), [DATA, 0, value]);
    }
    stream.send(FIN);
    assert.deepEqual(await stream.read(), END);
    for (const [kind, payload] of [[DATA, '1'], [FIN], [RST], [CREDIT, 'odd'], [CANCEL]]) { // it has ended
      manager.send(kind, stream.id, payload, CRITICAL);
      manager.send(kind, 12345, payload); // never seen
    }
    const again = manager.stream('name \u{1f600}');
    assert.deepEqual(await again.read(), [DATA, 0, ['name \u{1f600}', 0]]);
    assert.deepEqual(await again.read(), END);
    assert.deepEqual(await manager.stream('plain').read(), END);
    await drained(manager);
  });

  test('streams: bytes', async () => {
    const manager = await flowing('raw', wide.streams), stream = manager.stream('');
    for (const bytes of ['', 'abc']) {
      stream.send(DATA, bytes);
      assert.deepEqual(await manager.read(), [DATA, 0, 0, stream.id, bytes]);
    }
    stream.send(FIN);
    assert.deepEqual(await stream.read(), END);
    await drained(manager);
  });

  test('streams: half close', async () => {
    const manager = await flowing(), sum = manager.stream('sum'), first = manager.stream('first'), touched = file();
    assert.deepEqual(await first.read(), [DATA, 0, 'only']);
    assert.deepEqual(await first.read(), [FIN, 0, '']);
    for (const n of [1, 2, 3]) sum.write(n);
    sum.send(FIN); // all in front of it counts
    assert.deepEqual(await sum.read(), [DATA, 0, 6]);
    assert.deepEqual(await sum.read(), END);
    first.write(touched);
    await manager.silent();
    assert(fs.existsSync(touched));
    first.send(FIN);
    assert.deepEqual(await first.read(), END);
    await drained(manager);
  });

  test('streams: credit to write', async () => {
    const manager = await flowing('streams', { messages: 2, bytes: 3 });
    for (const name of ['count', 'hasty']) {
      const stream = manager.stream(name), expect = async (...values) => {
        for (const value of values) assert.deepEqual(await stream.read(), [DATA, 0, value]);
        await manager.silent();
      };
      await expect(0, 1);
      stream.grant(0, 5); // bytes alone are not enough
      await expect();
      stream.grant(3, 0);
      await expect(2, 3, 4);
      stream.grant(100, 0);
      await expect(5, 6, 7); // which spend the bytes: 3 + 5 - 8
      stream.grant(0, 1);
      await expect(8);
      stream.grant(0, 1);
      assert.deepEqual(await stream.read(), [DATA, 0, 9]);
      if (name === 'hasty') assert.deepEqual(await stream.read(), [FIN, 0, '']);
      assert.deepEqual(await stream.read(), END); // although it awaited none of them
    }
    await drained(manager);
  });

  test('streams: a message may be larger than the credit', async () => {
    const manager = await flowing('streams', { messages: 9, bytes: 1 }), stream = manager.stream('echo');
    stream.write('x'.repeat(98)); // a hundred bytes
    assert.equal((await stream.read())[2].length, 98);
    stream.write(1);
    stream.grant(0, 99); // up to nothing
    await manager.silent();
    stream.grant(0, 1);
    assert.deepEqual(await stream.read(), [DATA, 0, 1]);
  });

  test('streams: credit that is granted', async () => {
    const gate = file();
    for (const n of [1, 2]) execFileSync('mkfifo', [`${gate}${n}`]);
    const manager = await flowing('narrow'), stream = manager.stream(`slow ${gate}`);
    for (const n of [1, 2, 3, 4]) stream.write(n);
    await manager.silent(); // nobody reads
    await pass(`${gate}1`, () => manager.silent());
    await manager.silent(); // one message is less than half
    await pass(`${gate}2`);
    assert.deepEqual(await stream.read(), grantOf(2, 2));
    await pass(`${gate}1`);
    assert.deepEqual(await stream.read(), grantOf(2, 2));
    const sum = manager.stream('sum');
    sum.write('x'.repeat(47)); // a byte less than half
    await manager.silent();
    sum.write('');
    assert.deepEqual(await sum.read(), grantOf(2, 51));
    sum.send(FIN);
    assert.equal((await sum.read())[2].length, 48); // 0 and both texts
    assert.deepEqual(await sum.read(), END);
    await drained(manager, stream);
  });

  test('streams: long ones keep their windows', async () => {
    const manager = await flowing('narrow', { messages: 4, bytes: 100 }), stream = manager.stream('echo');
    let [sent, seen, credit] = [0, 0, 4];
    while (seen < 1000) {
      for (; credit && sent < 1000; credit -= 1) stream.write(sent++);
      const [kind, , value] = await stream.read();
      if (kind === CREDIT) credit += value[0];
      else assert.equal(value, seen++);
      if (kind === DATA) stream.grant(1, String(value).length);
      assert(credit <= 4);
    }
    await drained(manager, stream);
  });

  test('streams: calls', async () => {
    const manager = await flowing(), stream = manager.stream('calls');
    for (const [name, value] of [['a', ['later', 1]], ['b', ['echo', '✓']], ['c', ['fail', 'not a number']], ['d', ['big']]]) stream.call(name, value);
    assert.deepEqual(await stream.read(), [DATA, A_REPLY, 'b', '✓']);
    for (const [name, type] of [['c', 'RangeError'], ['d', 'TypeError']]) {
      const [kind, flags, of, error] = await stream.read();
      assert.deepEqual([kind, flags, of, error.kind, error.type], [DATA, A_REPLY | AN_ERROR, name, 'error', type]);
    }
    stream.send(DATA, '\0\0\0\0\0\0\0e{', A_CALL);
    assert.equal((await stream.read())[3].kind, 'decode');
    stream.call('x', 1, A_REPLY); // nobody asked
    stream.write('go');
    assert.deepEqual([await stream.read(), await stream.read()].sort(), [[DATA, 0, 'go'], [DATA, A_REPLY, 'a', 1]]);
    stream.send(FIN);
    assert.deepEqual(await stream.read(), END);

    const late = manager.stream('late');
    late.write(1);
    late.call('a', 1);
    late.write(2);
    const came = [await late.read(), await late.read(), await late.read()];
    assert.deepEqual(came.find(frame => frame[1]), [DATA, A_REPLY, 'a', 2]);
    assert.deepEqual(came.filter(frame => !frame[1]), [[DATA, 0, 1], [DATA, 0, 2]]);
    late.send(FIN);
    assert.deepEqual(await late.read(), END);

    const none = manager.stream('replies');
    none.call('a', 'asked');
    assert.deepEqual(await none.read(), [DATA, A_REPLY | AN_ERROR, 'a', '']);
    assert.deepEqual(await none.read(), [DATA, 0, 'asked']);
    await drained(manager, none);
  });

  test('streams: a call spends credit, and its reply none', async () => {
    const manager = await flowing('narrow', { messages: 1, bytes: 1 }), stream = manager.stream('calls');
    for (const name of 'abcdefgh') {
      stream.call(name, ['echo', name]);
      if ('bdfh'.includes(name)) assert.equal((await stream.read())[0], CREDIT);
      assert.deepEqual(await stream.read(), [DATA, A_REPLY, name, name]);
    }
  });

  test('streams: errors after which they go on', async () => {
    const manager = await flowing(), stream = manager.stream('stumbles'), sent = { kind: 'error', type: 'KeyError', message: 'no', trace: 'at' };
    stream.write('ask');
    const [kind, flags, error] = await stream.read();
    assert.deepEqual([kind, flags, error.kind, error.type, error.message], [DATA, AN_ERROR, 'error', 'RangeError', 'not a number']);
    stream.write(sent, AN_ERROR);
    assert.deepEqual(await stream.read(), [DATA, 0, ['KeyError', 'no', 'error', 'at']]);
    stream.send(DATA, '{');
    assert.equal((await stream.read())[2][0], 'SyntaxError');
    stream.write('on');
    assert.deepEqual(await stream.read(), [DATA, 0, 'on']);
    stream.send(FIN);
    assert.deepEqual(await stream.read(), END);
    const small = await ready('streams', { ...wide, max_frame: 70_000 }), unsendable = small.stream('unsendable');
    for (const name of ['TypeError', 'TypeError', 'TypeError', 'TypeError', 'RangeError']) assert.deepEqual(await unsendable.read(), [DATA, 0, name]);
    assert.deepEqual(await unsendable.read(), END);
    await drained(manager);
  });

  test('streams: errors of handlers', async () => {
    const manager = await flowing(), stream = manager.stream('fails'), other = manager.stream('echo');
    stream.write(1);
    const [kind, flags, error] = await stream.read();
    assert.deepEqual([kind, flags, error.kind, error.type, error.message], [ERR, 0, 'error', 'RangeError', 'not a number']);
    assert.match(error.trace, /test_pm_worker\.js/);
    assert.equal((await manager.stream('throws').read())[2].message, 'at once');
    assert.equal((await manager.stream('nobody').read())[2].type, 'TypeError');
    other.write('alive');
    assert.deepEqual(await other.read(), [DATA, 0, 'alive']);
    await drained(manager, other);
  });

  test('streams: cancel', async () => {
    const manager = await flowing('streams', { messages: 1, bytes: 100 }), stream = manager.stream('waits');
    assert.deepEqual(await stream.read(), [DATA, 0, 1]);
    stream.send(CANCEL);
    assert.deepEqual(await manager.read(), [NOTICE, 0, 0, 0, 'aborted']);
    assert.deepEqual(await manager.read(), [NOTICE, 0, 0, 0, 'sent,StreamEnded,StreamEnded, StreamEnded, true']);
    assert.deepEqual(await stream.read(), [ERR, CANCELLED, '']);
    const echo = manager.stream('echo'); // does not look at its signal
    echo.write(1);
    assert.deepEqual(await echo.read(), [DATA, 0, 1]);
    echo.write(2); // and waits for credit
    echo.write(3);
    await manager.silent();
    for (const kind of [CANCEL, CANCEL, FIN]) echo.send(kind);
    const [kind] = await echo.read();
    assert.equal(kind, ERR);
    await drained(manager);
  });

  test('streams: what the manager does not read', async () => {
    const manager = await flowing('streams', { messages: 1, bytes: 100 });
    for (const name of ['hasty', 'deaf']) {
      const stream = manager.stream(name);
      assert.equal((await stream.read())[0], DATA);
      stream.send(RST);
      if (name === 'hasty') { // awaited nothing, so that there was no error
        assert.deepEqual(await stream.read(), [FIN, 0, '']);
        assert.deepEqual(await stream.read(), END);
      } else assert.equal((await stream.read())[2].type, 'StreamEnded');
    }
    const sum = manager.stream('first'); // goes on to read
    assert.deepEqual(await sum.read(), [DATA, 0, 'only']);
    assert.deepEqual(await sum.read(), [FIN, 0, '']);
    const touched = file();
    sum.send(RST);
    sum.write(touched);
    sum.send(FIN);
    assert.deepEqual(await sum.read(), END);
    assert(fs.existsSync(touched));
    await drained(manager);
  });

  test('streams: what the worker does not read', async () => {
    const gate = fifo();
    process.env.GATE = gate;
    const manager = await flowing(), stream = manager.stream('breaks');
    for (const message of ['go', 'stop', 'dropped']) stream.write(message);
    assert.deepEqual(await stream.read(), [RST, 0, '']);
    for (const text of ['stopped', 'more']) assert.deepEqual(await stream.read(), [DATA, 0, text]);
    stream.call('a', 1); // was on its way
    assert.deepEqual(await stream.read(), [DATA, A_REPLY | AN_ERROR, 'a', '']);
    for (let n = 0; n < 200; n += 1) stream.write(n);
    await manager.silent(); // no credit for what nobody reads
    await pass(gate);
    assert.deepEqual(await stream.read(), END);
    const whole = manager.stream('breaks');
    manager.write(Buffer.concat([[DATA, '"stop"'], [DATA, '1'], [FIN]].map(([kind, text]) => Buffer.from(kit.encodeFrame(kind, whole.id, text)))));
    assert.deepEqual(await whole.read(), [DATA, 0, 'stopped']); // there was nothing left to say
    assert.deepEqual(await whole.read(), [DATA, 0, 'more']);
    await pass(gate);
    assert.deepEqual(await whole.read(), END);
    await drained(manager);
  });

  test('streams: broken rules end the stream and nothing else', async () => {
    const manager = await ready('narrow', wide), other = manager.stream('echo');
    const credit = (...counts) => { const bytes = Buffer.alloc(8); counts.forEach((n, at) => bytes.writeUInt32BE(n, 4 * at)); return [CREDIT, bytes]; };
    const rows = [
      [/no credit/, Array(9).fill([DATA, '""'])],
      [/last one/, [[FIN], [DATA, '1']]],
      [/second end/, [[FIN], [FIN]]],
      [/2\^31/, [credit(2 ** 31 - 900, 0)]], // with what is left of 1000 once it has written three
      [/2\^31/, [credit(0, 2 ** 31)]],
      [/credit of 7/, [[CREDIT, '1234567']]],
      [/number/, [[DATA, '1234567', A_CALL]]],
      [/number/, [[DATA, '1234567', A_REPLY]]],
      [/./, [[DATA, 'oh', AN_ERROR]]],
      [/cannot be read/, [[DATA, '{"message":5}', AN_ERROR]]],
      [/cannot be read/, [[DATA, '5', AN_ERROR]]],
    ];
    for (const [what, sent] of rows) {
      for (const name of ['reads', 'echo', 'waits']) {
        const stream = manager.stream(name), frames = [];
        if (name === 'reads') await manager.silent(); // it reads already
        manager.write(Buffer.concat(sent.map(([kind, ...rest]) => Buffer.from(kit.encodeFrame(kind, stream.id, ...rest))))); // at once
        let frame;
        do frames.push(frame = await manager.read()); while (frame[0] !== ERR && frame[0] !== RESP);
        assert.deepEqual([frame[0], frame[1], frame[3]], [ERR, 0, stream.id], `${what} ${name}`);
        if (name !== 'waits') assert.match(JSON.parse(frame[4]).message, what);
        if (name === 'reads') assert.match(frames.find(([kind]) => kind === NOTICE)[4], /^StreamEnded: .*broke.*; StreamEnded; true$/);
      }
      other.write('alive');
      for (let frame = [CREDIT]; frame[0] !== DATA;) frame = await other.read();
    }
    await drained(manager, other);
  });

  test('streams: violations', async () => {
    for (const [kind, payload, flags] of [[OPEN, 'echo'], [REQ, '1'], [RECALL], [99, '', CRITICAL], [HELLO, '{}']]) {
      const manager = await flowing(), stream = manager.stream('echo');
      manager.send(99);
      manager.send(kind, stream.id, payload, flags);
      assert.equal(await manager.read(), null);
      const [code, stderr] = await manager.end();
      assert.equal(code, 70);
      assert.match(stderr, /violation/);
    }
    for (const kind of [CREDIT, OPEN, DATA, FIN, RST]) { // are unknown to a worker of queries
      const manager = await ready('mixed', { role: 'check' });
      manager.send(kind, 1, 'x');
      manager.send(REQ, 2, '1');
      assert.deepEqual(await manager.answer(2), [RESP, 1]);
      manager.send(kind, 1, 'x', CRITICAL);
      assert.equal(await manager.read(), null);
      assert.equal((await manager.end())[0], 70);
    }
  });

  test('streams: many at once', async () => {
    const manager = await flowing(), streams = Array.from({ length: 2000 }, () => manager.stream('echo'));
    const seen = new Map(streams.map(({ id }) => [id, []])), values = [1, 'two', { three: 3 }];
    for (const value of values) for (const stream of streams) stream.write(value);
    for (let n = 0; n < 6000; n += 1) {
      const [kind, , , id, text] = await manager.read();
      assert.equal(kind, DATA);
      seen.get(id).push(JSON.parse(text));
    }
    for (const came of seen.values()) assert.deepEqual(came, values);
    for (const stream of streams) stream.send(FIN);
    for (const _ of streams) assert.equal((await manager.read())[0], RESP);
    await drained(manager);
  });

  test('streams: concurrency', async () => {
    const manager = await flowing('few'), streams = ['echo', 'echo', 'echo', 'sum', 'sum'].map(name => manager.stream(name));
    for (const stream of streams) { stream.write(5); stream.send(FIN); } // is kept for those that wait
    streams[4].send(CANCEL);
    const ends = [];
    for (let n = 0; n < 9; n += 1) ends.push((await manager.read()).filter((_, at) => at !== 2));
    for (const { id } of streams.slice(0, 4)) {
      assert.deepEqual(ends.filter(frame => frame[2] === id), [[DATA, 0, id, '5'], [RESP, 0, id, '']]);
    }
    assert.deepEqual(ends.filter(frame => frame[2] === streams[4].id), [[ERR, CANCELLED, streams[4].id, '']]);
    await drained(manager);
  });

  test('streams: drain waits for their ends', async () => {
    const manager = await flowing(), stream = manager.stream('echo'), sum = manager.stream('sum');
    manager.send(DRAIN);
    for (const value of [1, 2]) {
      stream.write(value);
      sum.write(value);
      assert.deepEqual(await stream.read(), [DATA, 0, value]);
    }
    stream.send(FIN);
    assert.deepEqual(await stream.read(), END);
    await sum.send(FIN);
    manager.output.end(); // means nothing now
    assert.deepEqual([await sum.read(), await sum.read()], [[DATA, 0, 3], END]);
    assert.deepEqual(await manager.read(), [BYE, 0, 0, 0, '']);
    assert.equal((await manager.end())[0], 0);
    const gone = await flowing();
    gone.stream('echo');
    await gone.silent();
    gone.output.destroy();
    assert.deepEqual(await gone.end(), [0, 'not ready yet\n']);
  });

  test('streams: a manager that does not look', async () => {
    const most = { messages: 2 ** 31 - 1, bytes: 2 ** 31 - 1 }, manager = await flowing('streams', most);
    const stream = manager.stream('pours'), counts = file();
    manager.input.pause();
    stream.write(counts);
    await new Promise(resolve => setTimeout(resolve, 500));
    assert(Number(fs.readFileSync(counts)) < 40); // all others wait in the handler
    manager.input.resume();
    for (let n = 0; n < 80; n += 1) assert.equal((await stream.read())[2].length, 100_000);
    assert.deepEqual(await stream.read(), END);
    await drained(manager);
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
