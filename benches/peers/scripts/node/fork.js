'use strict';
// Node's own way: a forked process, and messages as JSON, which come back in their order.
const { fork } = require('child_process');

if (process.send) {
  process.on('message', (message) => process.send(message));
} else {
  const { measure, pin, threads } = require('./measure');
  const worker = fork(__filename);
  const waiting = [];
  worker.on('message', (answer) => waiting.shift()(answer));
  const echo = (text) =>
    new Promise((resolve) => {
      waiting.push(resolve);
      worker.send(text);
    });
  echo('ready?').then(() => {
    pin(threads(worker.pid));
    return measure(echo);
  });
}
