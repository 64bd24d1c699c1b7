'use strict';
// The QueryProcessManager of Pokemon Showdown. The same file is its worker.
const { QueryProcessManager } = require('pokemon-showdown/dist/lib/process-manager');

const manager = new QueryProcessManager('echo', module, (text) => text);
if (manager.isParentProcess) {
  const { measure, pin, threads } = require('./measure');
  manager.spawn(1);
  manager.query('ready?').then(() => {
    pin(threads(manager.processes[0].getProcess().pid));
    return measure((text) => manager.query(text));
  });
}
