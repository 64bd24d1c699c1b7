'use strict';
// Measures one way to call another process or thread, and prints the rows that `peers` reads.
// Arguments: SECONDS for each figure, CPU of the worker.
const { execFileSync } = require('child_process');
const { readdirSync } = require('fs');

const SIZES = [64, 64 << 10];
const CROWD = 256;
const [seconds, cpu] = [Number(process.argv[2]), process.argv[3]];

// The numbers of the threads of a process.
const threads = (pid) => readdirSync(`/proc/${pid}/task`);

// Sends threads to the processor of the worker, if it has one.
function pin(threads) {
  if (cpu === 'any') return;
  for (const thread of threads) execFileSync('taskset', ['-pc', cpu, thread]);
}

// Microseconds of processor time of this process.
function burnt() {
  const { user, system } = process.cpuUsage();
  return user + system;
}

// The times of calls, in order, and the processor time that each took here.
async function alone(call, seconds) {
  const times = [];
  const before = burnt();
  const end = performance.now() + seconds * 1000;
  for (let now = 0; now < end; ) {
    const began = performance.now();
    await call();
    now = performance.now();
    times.push((now - began) * 1000);
  }
  return { times: Float64Array.from(times).sort(), cpu: (burnt() - before) / times.length };
}

// Calls a second, and the processor time that each took here.
async function crowd(call, seconds) {
  const before = burnt();
  const began = performance.now();
  const end = began + seconds * 1000;
  let count = 0;
  const caller = async () => {
    while (performance.now() < end) {
      await call();
      count++;
    }
  };
  await Promise.all(Array.from({ length: CROWD }, caller));
  return { rate: count / ((performance.now() - began) / 1000), cpu: (burnt() - before) / count };
}

// `echo` takes a text and gives a promise of the same.
async function measure(echo) {
  for (const bytes of SIZES) {
    const text = 'x'.repeat(bytes);
    const call = async () => {
      if ((await echo(text)) !== text) throw new Error('a wrong answer');
    };
    await alone(call, seconds / 10);
    const { times, cpu } = await alone(call, seconds);
    await crowd(call, seconds / 10);
    const { rate, cpu: cpuOfCrowd } = await crowd(call, seconds);
    const at = (share) => times[Math.floor(times.length * share)];
    console.log(JSON.stringify({ bytes, p50: at(0.5), p99: at(0.99), rate, cpu_alone: cpu, cpu_crowd: cpuOfCrowd }));
  }
  process.exit();
}

module.exports = { measure, pin, threads };
