// Drives a worker as drive in ../../bench_test.go does, with upstream's own interface, and prints the same measurements.
import '@endo/init';
import { xsnap } from '@agoric/xsnap';
import { spawn } from 'child_process';
import fs from 'fs';
import os from 'os';
import tmp from 'tmp';

const [count, heap, handlers] = process.argv.slice(2).map(s => JSON.parse(s));
const options = {
  os: os.type(),
  spawn,
  fs: { ...fs, ...fs.promises, tmpName: tmp.tmpName },
  name: 'bench',
  meteringLimit: 0,
  handleCommand: async m => m,
};
const found = {};
const seconds = async action => {
  const start = performance.now();
  await action();
  return (performance.now() - start) / 1000;
};
const start = snapshotStream => xsnap({ ...options, snapshotStream });

const w = await start();
const message = new TextEncoder().encode('small');
for (const [name, handler] of Object.entries(handlers)) {
  await w.evaluate(`globalThis.handleCommand = ${handler}`);
  const run = async n => {
    for (let i = 0; i < n; i += 1) await w.issueCommand(message);
  };
  await run(count / 4); // the compiler warms up
  found[name] = count / (await seconds(() => run(count)));
}
const large = new Uint8Array(1 << 20);
await w.evaluate('globalThis.handleCommand = m => m');
found.large =
  (64 * large.length) /
  1e6 /
  (await seconds(async () => {
    for (let i = 0; i < 64; i += 1) await w.issueCommand(large);
  }));
await w.evaluate(heap);
const file = tmp.tmpNameSync();
await fs.promises.writeFile(file, w.makeSnapshotStream());
let size = 0;
const took = await seconds(async () => {
  for (let i = 0; i < 3; i += 1) {
    for await (const chunk of w.makeSnapshotStream()) size += chunk.length;
  }
});
found.snapshot = size / 1e6 / took;
const loaded = await seconds(async () => {
  const next = await start(fs.createReadStream(file));
  await next.isReady();
  await next.terminate();
});
fs.unlinkSync(file);
found.resume = size / 3 / 1e6 / loaded;
await w.close();
found.memory =
  Number(/VmHWM:\s*(\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) / 1e3;
console.log(JSON.stringify(found));
