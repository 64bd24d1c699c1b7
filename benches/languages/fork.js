'use strict';
// Node's own way: forked processes (two), messages of so many bytes (64), so many under way to each (128). Prints messages per second.
//
//   node fork.js SECONDS [PROCESSES [UNDER_WAY [BYTES]]]
const { fork } = require('child_process');

if (process.send) {
  process.on('message', (message) => process.send(message));
} else {
  const [seconds, processes = 2, underWay = 128, bytes = 64] = process.argv.slice(2).map(Number);
  const text = 'x'.repeat(bytes - 2); // with its quotes, as JSON
  const workers = Array.from({ length: processes }, () => fork(__filename));
  let count = 0;
  const began = process.hrtime.bigint();
  const elapsed = () => Number(process.hrtime.bigint() - began) / 1e9;
  for (const worker of workers) {
    worker.on('message', (answer) => {
      if (answer !== text) throw new Error('a wrong answer');
      count++;
      if (elapsed() < seconds) return worker.send(text);
      console.log(count / elapsed());
      process.exit();
    });
    for (let n = 0; n < underWay; n++) worker.send(text);
  }
}
