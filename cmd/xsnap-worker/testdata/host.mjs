// An unmodified @agoric/xsnap host: what it starts is the launcher. It runs a worker of each name given, all at the same time, and prints what
// each did and the digests of the programs that its processes were.
import '@endo/init/debug.js';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import { xsnap } from '@agoric/xsnap';
import tmp from 'tmp';

const decoder = new TextDecoder();
const start = async (name, options = {}) => {
  let pid;
  const upward = [];
  const worker = await xsnap({
    name,
    os: os.type(),
    spawn: (...args) => {
      const child = spawn(...args);
      pid = child.pid;
      return child;
    },
    fs: { ...fs, ...fs.promises, tmpName: tmp.tmpName },
    handleCommand: async message => {
      upward.push(decoder.decode(message));
      return new TextEncoder().encode('"host"');
    },
    stderr: 'inherit',
    ...options,
  });
  await worker.isReady();
  const program = createHash('sha256').update(fs.readFileSync(`/proc/${pid}/exe`)).digest('hex');
  return { worker, program, upward };
};

const results = {};
const names = process.argv.slice(2);
const running = await Promise.all(names.map(name => start(name)));
const use = async (name, first) => {
  await first.worker.evaluate(`
    globalThis.count = 41;
    globalThis.handleCommand = message => {
      count += 1;
      return issueCommand(message);
    };
  `);
  const { reply, meterUsage } = await first.worker.issueCommand(new TextEncoder().encode('hello'));
  const snapshot = [];
  for await (const chunk of first.worker.makeSnapshotStream()) snapshot.push(chunk);
  await first.worker.close();
  const second = await start(name, { snapshotStream: (async function* () { yield* snapshot; })(), snapshotDescription: name });
  const again = await second.worker.issueCommand(new TextEncoder().encode('again'));
  await second.worker.evaluate('if (count !== 43) throw Error(`the count is ${count}`)');
  await second.worker.close();
  const debug = await start(name, { debug: true });
  await debug.worker.close();
  const exits = await start(name);
  const ended = await exits.worker.evaluate('for (;;) {}').then(() => 'went on', e => e.code);
  results[name] = {
    program: first.program,
    resumed: second.program,
    debug: debug.program,
    replies: [decoder.decode(reply), decoder.decode(again.reply)],
    upward: [...first.upward, ...second.upward],
    compute: meterUsage.compute,
    snapshot: createHash('sha256').update(Buffer.concat(snapshot)).digest('hex'),
    ended,
  };
};
await Promise.all(names.map((name, i) => use(name, running[i])));
console.log(JSON.stringify(results));
