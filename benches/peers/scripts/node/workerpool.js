'use strict';
// workerpool with a process.
const workerpool = require('workerpool');

if (process.send) {
  workerpool.worker({ echo: (text) => text, pid: () => process.pid });
} else {
  const { measure, pin, threads } = require('./measure');
  const pool = workerpool.pool(__filename, { workerType: 'process', minWorkers: 1, maxWorkers: 1 });
  pool.exec('pid', []).then((pid) => {
    pin(threads(pid));
    return measure((text) => pool.exec('echo', [text]));
  });
}
