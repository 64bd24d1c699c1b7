'use strict';
/* The worker kit of pm for Node.js 16 and later: one file, no dependencies. A whole worker is

    require('./pm_worker.js').serve(team => ({ legal: team.length <= 6 }));

and `node pm_worker.js FILE:FUNC` serves an export of a file (.js, .cjs or .mjs) that knows nothing of pm. Any other
program requires this file first: in a process that pm started, it takes the link away from descriptors 0 and 1, so that
console.log goes to stderr, stdin is empty, and no child inherits the link. A handler returns a result or the promise of
one, and each answer is written before a call starts that would exceed `concurrency`. What it throws answers its call
and the worker lives on; process.exit, and an exception outside of the calls, end it as they end any program.
`serve(streams(handler))` serves calls with many messages both ways: see the class Stream.
docs/PROTOCOL.md says what passes over the link. */
const fs = require('fs'), net = require('net'), url = require('url'), util = require('util');
const [HELLO, READY, PING, PONG, DRAIN, BYE, NOTICE] = [1, 2, 3, 4, 5, 6, 7];
const [REQ, RESP, ERR, CANCEL, RECALL] = [16, 17, 18, 19, 20];
const [CREDIT, OPEN, DATA, FIN, RST] = [8, 32, 33, 34, 35], MAX_CREDIT = 2 ** 31 - 1;
const [NOT_STARTED, CANCELLED, CRITICAL] = [0x01, 0x02, 0x80];
const [AN_ERROR, A_CALL, A_REPLY] = [0x01, 0x02, 0x04]; // what a DATA is that is no message
const WINDOW = Symbol.for('pm.streams'); // the mark of a handler of streams, the same in every copy of this file
const MAX_FRAME = (64 << 20) + 12; // until HELLO names another
const MAX_TEXT = 64 << 10; // bytes of a notice, characters of each text in an error
const MAX_WAITING = 1 << 20; // bytes of calls that wait in this process, each 1 KiB more: with more, nothing is read
const LOOK = 1; // milliseconds that calls run back to back before the link is looked at: a RECALL may have come

const attempt = (work, otherwise) => { try { return work(); } catch (error) { return otherwise(error); } };
const quit = (code, text) => { console.error('pm_worker:', text); process.exit(code); };
const scratch = Buffer.allocUnsafeSlow(64 << 10);

/** The frame around a string or bytes. It lasts until the next one is encoded. */
function encodeFrame(kind, id = 0, payload = '', flags = 0, remaining = 0) {
  const text = typeof payload === 'string', most = 16 + payload.length * (text ? 3 : 1);
  const frame = most <= scratch.length ? scratch : Buffer.allocUnsafe(16 + Buffer.byteLength(payload));
  const length = text ? frame.write(payload, 16) : (frame.set(payload, 16), payload.length);
  frame.writeUInt32BE(12 + length, 0);
  frame.writeUInt32BE(kind * 2 ** 24 + flags * 2 ** 16 + remaining, 4);
  frame.writeUInt32BE(Math.floor(id / 2 ** 32), 8);
  frame.writeUInt32BE(id % 2 ** 32, 12);
  return frame.subarray(0, 16 + length);
}

/** The frame at `at`, its payload a view of `buffer`; null while it is incomplete. */
function decodeFrame(buffer, at = 0, maxFrame = MAX_FRAME) {
  const rest = buffer.length < at + 4 ? 12 : buffer.readUInt32BE(at), end = at + 4 + rest;
  if (rest < 12 || rest > maxFrame) quit(70, `violation: a frame claims ${rest} bytes; 12 to ${maxFrame} are allowed`);
  if (buffer.length < end) return null;
  const id = buffer.readUInt32BE(at + 8) * 2 ** 32 + buffer.readUInt32BE(at + 12);
  const remaining = buffer.readUInt16BE(at + 6), payload = buffer.subarray(at + 16, end);
  return { kind: buffer[at + 4], flags: buffer[at + 5], remaining, id, payload, end };
}

/** The milliseconds that the header's `remaining` stands for; 0 means that there is no deadline. */
const decodeRemaining = field => (field & 0x7ff) * 2 ** (field >> 11);

const strict = new util.TextDecoder('utf-8', { fatal: true, ignoreBOM: true }); // slow: for what U+FFFD may hide
const fromJson = (bytes, text = bytes.utf8Slice()) => JSON.parse(text.includes('\ufffd') ? strict.decode(bytes) : text);
function toJson(value) {
  const text = JSON.stringify(value === undefined ? null : value);
  if (text === undefined) throw new TypeError(`a ${typeof value} is not JSON`);
  if (text.includes('\\ud') && /(^|[^\\])(\\\\)*\\ud/.test(text)) throw new TypeError('a lone surrogate is not UTF-8');
  return text;
}
const codecs = { json: [fromJson, toJson], bytes: [bytes => bytes, value => Buffer.from(value)] };

/** What a handler gets beside the value. `deadline` is a time of performance.now(), or 0 where there is none. */
class Call {
  constructor(id, payload, deadline) { Object.assign(this, { id, payload, deadline, notice }); }
  get signal() { return this.controller.signal; } // an AbortSignal, raised when nobody waits for the call any more
  get controller() { return (this.lazy ??= new AbortController()); }
  cancel() { this.controller.abort(); }
}

const ended = (text = 'the stream has ended') => Object.assign(new Error(text), { name: 'StreamEnded' });
const add = (credit, messages, bytes) => { credit.messages += messages; credit.bytes += bytes; };
const isThere = ({ messages, bytes }) => messages > 0 && bytes > 0; // bytes fall below zero by one message at most

/** A call with many messages. `for await (const message of stream)` reads those of the manager; to break out is to read
    no more. An error that the manager sent, or what cannot be decoded, is thrown there, and another loop goes on. */
class Stream extends Call {
  #inbox = []; #readers = []; // messages that nobody has read, or those who wait for one
  #outbox = []; // messages that wait for credit, or for room on the link
  #credit = { ...serving.credit }; // for writes
  #allowance = { ...serving.window }; #taken = { messages: 0, bytes: 0 }; // of the manager, and by the reader since then
  #hasAll = false; #hasStopped = false; #isUnread = false; // FIN has come, RST was sent, RST has come
  #fin = 0; // 1: no more writes, 2: and FIN was sent
  #over = null; // why both ways have ended
  #answer = null;

  get name() { return this.payload.toString(); } // what the stream is about, as whoever opened it says
  [Symbol.asyncIterator]() { return this; }

  async next() {
    for (; !this.#inbox.length; await new Promise(wake => this.#readers.push(wake))) {
      if (this.#over || this.#hasAll || this.#hasStopped) return { value: undefined, done: true };
    }
    const { size, bytes, number, error } = this.#inbox.shift();
    this.#take(size);
    if (error) throw error;
    if (number) this.#reply(number, '', AN_ERROR);
    return { value: serving.decode(bytes), done: false };
  }

  async return(value) {
    if (!this.#over && !this.#hasAll && !this.#hasStopped) send(RST, this.id);
    this.#hasStopped = true;
    for (const { number } of this.#inbox.splice(0)) if (number) this.#reply(number, '', AN_ERROR);
    this.#wake();
    return { value, done: true };
  }

  /** Resolves when the message is on its way, and rejects with StreamEnded where none goes any more. */
  write(value) { return this.#write(0, () => encoded(value)); }

  /** Sends an error, after which the stream goes on. */
  error(error) { return this.#write(AN_ERROR, () => shown(error, 'error')); }

  /** Nothing more is sent once that has gone which waits. */
  end() { this.#fin ||= 1; this.flush(); }

  /** A function (value) whose results answer the calls of the manager. Without one they are read as messages. */
  get onCall() { return this.#answer; }
  set onCall(answer) {
    this.#answer = answer;
    for (const message of this.#inbox.splice(0)) this.#put(message);
  }

  #write(flags, encode) {
    const message = { flags, payload: '', size: 0 };
    const gone = message.gone = new Promise((...settle) => { [message.resolve, message.reject] = settle; });
    if (this.#over || this.#fin || this.#isUnread) message.reject(this.#over ?? ended('nothing more goes on the stream'));
    else {
      try { message.size = Buffer.byteLength(message.payload = encode()); } catch (error) { return Promise.reject(error); }
      this.#outbox.push(message);
      this.flush();
    }
    gone.catch(() => {}); // whoever awaits none of its writes need not hear of the end
    return gone;
  }

  #put(message) { message.number && this.#answer ? this.#call(message, this.#answer) : this.#inbox.push(message); }

  async #call({ size, bytes, number }, answer) {
    this.#take(size);
    await null; // first comes the rest of the frames, or of the code that sets `onCall`
    let kind = 'decode';
    try {
      const value = serving.decode(bytes);
      kind = 'error';
      this.#reply(number, encoded(await answer(value), number.length));
    } catch (error) {
      this.#reply(number, shown(error, kind), AN_ERROR);
    }
  }

  #reply(number, payload, flags = 0) { // needs no credit: whoever made the call has room for it
    const goes = !this.#over && !this.#isUnread && this.#fin < 2;
    if (goes) send(DATA, this.id, Buffer.concat([number, Buffer.from(payload)]), A_REPLY | flags);
  }

  #take(size) { // grants what was taken once that is half of the window
    const { window } = serving, taken = this.#taken;
    add(taken, 1, size);
    const isWorth = 2 * taken.messages >= window.messages || 2 * taken.bytes >= window.bytes;
    if (!isWorth || this.#over || this.#hasAll || this.#hasStopped) return;
    add(this.#allowance, taken.messages, taken.bytes);
    const grant = Buffer.allocUnsafe(8);
    grant.writeUInt32BE(taken.bytes, grant.writeUInt32BE(taken.messages));
    send(CREDIT, this.id, grant);
    this.#taken = { messages: 0, bytes: 0 };
  }

  #wake() { for (const wake of this.#readers.splice(0)) wake(); }
  #drop(why) { for (const { reject } of this.#outbox.splice(0)) reject(why); }

  #data(flags, payload) {
    const message = { size: payload.length, bytes: payload, number: null, error: null };
    if (flags & A_REPLY || (flags & (A_CALL | AN_ERROR)) === A_CALL) {
      if (payload.length < 8) throw new Error('a call or a reply without its number');
      [message.number, message.bytes] = [payload.subarray(0, 8), payload.subarray(8)];
    }
    if (flags & A_REPLY) return; // this side makes no calls, so nobody waits for it
    if (this.#hasAll) throw new Error('a message after its last one');
    if (!isThere(this.#allowance)) throw new Error('a message for which it had no credit');
    add(this.#allowance, -1, -payload.length);
    if (flags & AN_ERROR) message.error = decodeError(payload);
    if (!this.#hasStopped) this.#put(message);
    else if (message.number) this.#reply(message.number, '', AN_ERROR);
    this.#wake();
  }

  #grant(payload) {
    if (payload.length !== 8) throw new Error(`credit of ${payload.length} bytes`);
    add(this.#credit, payload.readUInt32BE(0), payload.readUInt32BE(4));
    if (Math.max(this.#credit.messages, this.#credit.bytes) > MAX_CREDIT) throw new Error('more credit than 2^31 - 1');
    this.flush();
  }

  // From here on it is for the conversation below.

  flush() { // sends what there is credit and room for
    while (this.#outbox.length && isThere(this.#credit)) {
      if (output.writableLength) return void crowd.add(this);
      const { flags, payload, size, resolve } = this.#outbox.shift();
      add(this.#credit, -1, -size);
      send(DATA, this.id, payload, flags);
      resolve();
    }
    if (this.#fin === 1 && !this.#outbox.length && !this.#over) { this.#fin = 2; send(FIN, this.id); }
  }

  receive(kind, flags, payload) { // what breaks the rules ends this stream, and nothing else
    if (this.#over) return;
    try {
      if (kind === DATA) this.#data(flags, payload);
      else if (kind === CREDIT) this.#grant(payload);
      else if (kind === RST) { this.#isUnread = true; this.#drop(ended('the manager reads no more')); this.flush(); }
      else if (this.#hasAll) throw new Error('a second end');
      else { this.#hasAll = true; this.#wake(); }
    } catch ({ message }) {
      this.cut(ended(`the manager broke the rules of the stream: ${message}`), true);
    }
  }

  cut(why, isTold = false) { // ends both ways; a reader is told once where it cannot know
    this.#over ??= why;
    this.#inbox = isTold ? [{ size: 0, error: why }] : [];
    this.#drop(why);
    this.#wake();
  }

  cancel() { this.cut(ended('the stream was cancelled')); super.cancel(); }

  async settle() { // the handler has returned, and may not have awaited its last writes
    await Promise.allSettled(this.#outbox.map(({ gone }) => gone));
    if (this.#over) throw this.#over;
  }
}

function decodeError(payload) {
  const sent = fromJson(payload), { kind = 'error', type: name = '', message = '', trace = '' } = sent;
  const isOne = Object(sent) === sent && [kind, name, message, trace].every(text => typeof text === 'string');
  if (!isOne) throw new Error('an error that cannot be read');
  return Object.assign(new Error(message), { kind, name, trace });
}

// The one conversation of this process, and the calls that wait and that run in it, the oldest first.
let leaving;
/** Resolved once the manager wants this worker to leave: then it should take on nothing new, such as connections. */
const left = new Promise(resolve => (leaving = resolve));
let serving, input, output, maxFrame = MAX_FRAME, ready = false, draining = false, resting = false, look = 0, held = 0;
let parts = [], lack = 4; // of the frame that is not whole yet: its bytes, and how many more it takes at least
const waiting = new Map(), running = new Map(), crowd = new Set(); // streams that wait for room on the link
const enqueue = call => { held += 1024 + call.payload.length; waiting.set(call.id, call); };
const dequeue = call => { held -= 1024 + call.payload.length; waiting.delete(call.id); return call; };

function receive(chunk) {
  parts.push(chunk);
  lack -= chunk.length;
  if (lack > 0) return;
  let at = 0, buffer = parts.length > 1 ? Buffer.concat(parts) : chunk;
  for (let frame; (frame = decodeFrame(buffer, at, maxFrame)); at = frame.end) take(frame);
  const left = buffer.length - at;
  parts = left ? [buffer.subarray(at)] : [];
  lack = (left < 4 ? 4 : 4 + buffer.readUInt32BE(at)) - left;
  look = performance.now() + LOOK;
  run();
}

function take({ kind, flags, remaining, id, payload }) {
  if ((kind === HELLO) === ready) quit(70, `violation: a frame of kind ${kind} ${ready ? 'after' : 'before'} HELLO`);
  const { window } = serving, deadline = remaining && performance.now() + decodeRemaining(remaining);
  if (kind === REQ && !window) enqueue(new Call(id, payload, deadline));
  else if (window && (kind === CREDIT || kind > OPEN && kind <= RST)) {
    (running.get(id) ?? waiting.get(id))?.receive(kind, flags, payload);
  } else if (window && (kind === REQ || kind === RECALL)) quit(70, `violation: a frame of kind ${kind} among streams`);
  else if (window && kind === OPEN) {
    if (running.has(id) || waiting.has(id)) quit(70, `violation: a second OPEN of the stream ${id}`);
    enqueue(new Stream(id, payload, deadline));
  } else if (kind === CANCEL || kind === RECALL) {
    if (waiting.has(id)) send(ERR, dequeue(waiting.get(id)).id, '', kind === CANCEL ? CANCELLED : NOT_STARTED);
    else if (kind === CANCEL) running.get(id)?.cancel();
  } else if (kind === PING) send(PONG, id, payload);
  else if (kind === DRAIN) leaving((draining = true));
  else if (kind === HELLO) shakeHands(payload);
  else if (flags & CRITICAL && kind !== PONG) quit(70, `violation: the unknown kind ${kind} is critical`);
}

function shakeHands(payload) {
  const hello = attempt(() => Object(fromJson(payload)), error => quit(70, `violation: not a HELLO: ${error.message}`));
  const { handler, codec } = serving, roles = typeof handler === 'function' ? null : Object.keys(handler);
  const role = serving.role ?? hello.role ?? PM_ROLE ?? (roles?.length === 1 ? roles[0] : null);
  if (roles && !roles.includes(role)) {
    const names = roles.join(', '), hint = '.serving("NAME") of its Spec names one, or PM_ROLE';
    const unnamed = `the manager named no role, of ${names}: ${hint}`;
    quit(64, role == null ? unnamed : `there is no role '${role}' here, only ${names}`);
  }
  if (roles) serving.handler = handler[role];
  maxFrame = hello.max_frame ?? maxFrame;
  const window = serving.handler[WINDOW], concurrency = (serving.concurrency ??= window ? 10000 : 1);
  Object.assign(serving, { window, credit: hello.streams });
  send(READY, 0, JSON.stringify({ version: 1, codec, role, concurrency, ahead: concurrency, streams: window }));
  ready = true;
}

/** Starts what may start. Slow calls give the event loop a chance to read, which it takes between two immediates. */
function run() {
  const rested = () => { resting = false; look = performance.now() + LOOK; run(); };
  for (const stream of crowd) {
    if (output.writableLength) break;
    crowd.delete(stream);
    stream.flush();
  }
  for (const call of waiting.values()) {
    if (resting || running.size >= serving.concurrency || output.writableLength) break;
    if ((resting = performance.now() > look && setImmediate(setImmediate, rested))) break;
    (serving.window ? host : start)(dequeue(call));
  }
  input[held >= MAX_WAITING || output.writableLength ? 'pause' : 'resume']();
  if (!draining || waiting.size || running.size) return;
  draining = false;
  output.write(Buffer.from(encodeFrame(BYE)), () => process.exit(0)); // after all that the link did not take yet
}

async function start(call) { // has answered when it returns, unless the handler returned a promise
  let kind = 'decode', { handler, decode } = serving;
  try {
    const value = decode(call.payload);
    kind = 'error';
    let result = handler(value, call);
    if (typeof result?.then === 'function') { running.set(call.id, call); result = await result; }
    send(RESP, call.id, encoded(result));
  } catch (error) {
    fail(call, error, kind);
  }
  if (running.delete(call.id)) run();
}

async function host(stream) {
  running.set(stream.id, stream);
  try {
    await serving.handler(stream);
    await stream.settle();
    send(RESP, stream.id);
  } catch (error) {
    fail(stream, error, 'error');
  }
  stream.cut(ended());
  running.delete(stream.id);
  run();
}

/** A value as the payload of a frame, behind so many other bytes. */
function encoded(value, before = 0) {
  const payload = serving.encode(value), rest = 12 + before + Buffer.byteLength(payload);
  if (rest > maxFrame) throw new RangeError(`the value's frame has ${rest} bytes; max_frame is ${maxFrame}`);
  return payload;
}

function fail({ id, lazy }, error, kind) {
  send(ERR, id, ...(lazy?.signal.aborted ? ['', CANCELLED] : [shown(error, kind)]));
}

const shown = (error, kind) =>
  attempt(() => describe(error, kind), () => describe('what was thrown cannot be shown', kind));

function describe(error, kind) {
  const most = Math.min(MAX_TEXT, Math.floor(maxFrame / 20)); // there are three texts, and six bytes make a character
  const cut = text => Buffer.from(String(text).slice(0, most)).toString(); // without a half of a surrogate pair
  const { name = typeof error, message = util.format(error), stack = '' } = Object(error); // anything can be thrown
  return JSON.stringify({ kind, type: cut(name), message: cut(message), trace: cut(stack) });
}

function send(kind, id, payload, flags) {
  const frame = encodeFrame(kind, id, payload, flags), gone = error => (error.code === 'EAGAIN' ? 0 : process.exit(0));
  const waits = output.writableLength || typeof link === 'string';
  const sent = waits ? 0 : attempt(() => fs.writeSync(link[1], frame), gone);
  if (sent < frame.length) output.write(Buffer.from(frame.subarray(sent)), run);
}

/** Answers calls with `handler`, a function (value, call) or an object of them by role, until the manager drains this
    worker or is gone; then exits with code 0. The codec 'bytes' passes Buffers; `role` overrules the manager's;
    `concurrency` is 1 for calls and 10000 for streams unless given. */
function serve(handler, { role = null, codec = 'json', concurrency } = {}) {
  if (!link) quit(64, 'no manager started this worker: neither PM_LINK nor PM_SOCKET says where the link is');
  serving = { handler, role, codec, concurrency, decode: codecs[codec][0], encode: codecs[codec][1] };
  const visits = typeof link === 'string', options = { allowHalfOpen: true };
  input = visits ? net.connect({ path: link, ...options }) : new net.Socket({ fd: link[0], ...options });
  output = visits || link[0] === link[1] ? input : new net.Socket({ fd: link[1], readable: false });
  input.on('data', receive);
  const gone = error => (visits && !ready ? quit(64, `${link} takes no visitor: ${error.message}`) : process.exit(0));
  for (const socket of [input, output]) socket.on('error', gone);
  input.on('end', () => draining || process.exit(0));
}

/** Makes `handler`, an async function (stream), one of streams, which end when it does. The manager may send `messages`
    and `bytes` in them on each beyond what was read. */
function streams(handler, { messages = 1024, bytes = 262144 } = {}) {
  return Object.assign(stream => handler(stream), { [WINDOW]: { messages, bytes } });
}

/** Writes to the manager's log; before the handshake of `serve`, and outside of pm, to stderr. */
function notice(text) {
  if (!ready) return console.error(text);
  const bytes = Buffer.allocUnsafe(MAX_TEXT), { written } = new TextEncoder().encodeInto(`${text}`, bytes);
  if (!output.writableNeedDrain) send(NOTICE, 0, bytes.subarray(0, written)); // else it is dropped
}

async function main(argument = '', mode) {
  const [, file, name] = /^(.+):(.*)$/s.exec(argument) ?? [, '', ''];
  if (!fs.existsSync(file)) quit(64, `usage: pm_worker.js FILE:FUNC; there is no file '${file}'`);
  const { default: whole, [name]: handler = whole?.[name] } = await import(url.pathToFileURL(file).href);
  if (!handler) quit(64, `${file} exports no '${name}'`);
  serve(mode === 'streams' && !(WINDOW in handler) ? streams(handler) : handler);
}

/** Makes the link private and returns its descriptors [to read, to write], or null outside of pm. Node.js has no dup,
    so pipes are opened anew; and it has set close-on-exec on all descriptors that it was given when it started. */
function takeLink({ PM_LINK, PM_LINK_FD, PM_SOCKET }) {
  for (const name of ['PM_LINK', 'PM_LINK_FD', 'PM_ROLE', 'PM_SOCKET']) delete process.env[name];
  if (!PM_LINK) return PM_SOCKET ? PM_SOCKET : null; // the path of a pool's socket, for a worker that pm did not start
  const fd = Number(PM_LINK_FD), { O_RDONLY, O_WRONLY, O_APPEND, O_NONBLOCK } = fs.constants;
  if (PM_LINK === 'uds') return fd > 2 ? [fd, fd] : quit(64, `PM_LINK_FD is not 3 or more: ${fd}`);
  if (PM_LINK !== 'stdio') quit(64, `this kit speaks stdio and uds, not ${PM_LINK}`);
  const open = (fd, flags) => fs.openSync(`/proc/self/fd/${fd}`, flags);
  const link = attempt(() => [open(0, O_RDONLY | O_NONBLOCK), open(1, O_WRONLY | O_NONBLOCK)], error =>
    quit(64, `the stdio link is not two pipes of this user's, and cannot be made private: ${error.message}`));
  for (const fd of [0, 1]) fs.closeSync(fd);
  fs.openSync('/dev/null'); // as 0, for an open takes the lowest free number; the next one takes 1
  attempt(() => open(2, O_WRONLY | O_APPEND), () => fs.openSync('/dev/null', 'w')); // a socket cannot be opened anew
  Object.defineProperty(process, 'stdout', { configurable: true, get: () => process.stderr });
  return link;
}

const { PM_ROLE } = process.env, link = takeLink(process.env);
module.exports = { serve, streams, notice, draining: left, encodeFrame, decodeFrame, decodeRemaining };
if (require.main === module || module.id === '[eval]') main(...process.argv.slice(require.main ? 2 : 1));
