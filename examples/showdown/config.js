'use strict';
/* The configuration of the package's own workers, which look for a file that only a server has: `node --require` brings this one. */
global.Config = {
  ...require('pokemon-showdown/dist/config/config-example.js'),
  repl: false, // it would put sockets into the directory of the package
};
