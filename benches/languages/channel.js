'use strict';
// Node's own channel to a forked process: 200 bytes, so many messages under way. Prints messages per second.
const { fork } = require('child_process');

if (process.send) {
  process.on('message', (message) => process.send(message));
} else {
  const [seconds, outstanding] = process.argv.slice(2).map(Number);
  const text = 'x'.repeat(198); // 200 bytes as JSON
  const worker = fork(__filename);
  let count = 0;
  const began = process.hrtime.bigint();
  const elapsed = () => Number(process.hrtime.bigint() - began) / 1e9;
  worker.on('message', (answer) => {
    if (answer !== text) throw new Error('a wrong answer');
    count++;
    if (elapsed() < seconds) return worker.send(text);
    console.log(count / elapsed());
    process.exit();
  });
  for (let n = 0; n < outstanding; n++) worker.send(text);
}
