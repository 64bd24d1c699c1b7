'use strict';
/* The package pokemon-showdown as a worker of pm: `validate` answers queries, `battle` serves streams. */
const { serve, streams } = require('../../workers/node/pm_worker.js'); // first, so that no print reaches the link
const { BattleStream, Dex, TeamValidator, Teams } = require('pokemon-showdown');

// A worker is ready once it has its data, which takes most of a second: no call has to wait for it.
Dex.includeData();

/** The problems of a packed team in a format; null where it has none. */
function validate({ format, team }) {
  return TeamValidator.get(format).validateTeam(Teams.unpack(team));
}

/** One battle. Messages are lines for the simulator, such as `>p1 move 2`, and come back as chunks of its output. */
async function battle(stream) {
  const simulator = new BattleStream({ noCatch: true }); // what it throws ends this stream, and no other
  for await (const lines of stream) {
    simulator.write(lines); // has said all that there is to say when it returns
    // Who does not read waits: the next lines are not looked at before the answers to these are on their way.
    for (const chunk of simulator.buf.splice(0)) await stream.write(chunk);
    if (simulator.atEOF) return;
  }
}

serve({ validate, battle: streams(battle) }, { concurrency: 8 });
