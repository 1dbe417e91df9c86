// Runs vats in the SwingSet kernel, sends them messages, and leaves the store in a folder. What is to be done comes on standard input, in JSON:
//
//   {"vats": [{"name", "bundle", "parameters"}], "snapshotInterval": 20, "calls": [{"vat", "method", "args"}]}
//
// In args, {"@vat": NAME} stands for the root object of a vat. Each message is delivered, with all that follows from it, before the next. It prints
// {"seconds", "results": [{"status", "value"}]}: how long the messages took, and what they were answered with.
//
//   node deliver.js DIR --worker=FILE
import '@endo/init/debug.js';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { kslot } from '@agoric/kmarshal';
import { initSwingStore } from '@agoric/swing-store';
import { initializeSwingset, makeSwingsetController } from '@agoric/swingset-vat';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { worker: { type: 'string' } } });
const { vats, snapshotInterval, calls } = JSON.parse(fs.readFileSync(0, 'utf8'));
const config = {
  defaultManagerType: 'xsnap',
  defaultReapInterval: 'never',
  snapshotInitial: 3,
  snapshotInterval,
  vats: Object.fromEntries(
    vats.map(({ name, bundle, parameters }) => [name, { sourceSpec: new URL(`vats/${bundle}.js`, import.meta.url).pathname, parameters }]),
  ),
};
const { kernelStorage, hostStorage } = initSwingStore(path.join(positionals[0], 'store'), { keepTranscripts: true });
await initializeSwingset(config, [], kernelStorage, { addTimer: false, addComms: false, addVattp: false });
const controller = await makeSwingsetController(
  kernelStorage,
  {},
  { spawn: (_worker, args, options) => spawn(values.worker, args, options) },
);
await controller.run();
const roots = Object.fromEntries(vats.map(({ name }) => [name, kslot(controller.pinVatRoot(name), 'root')]));
const root = arg => (arg && arg['@vat'] ? roots[arg['@vat']] : arg);
const promises = [];
const start = process.hrtime.bigint();
for (const { vat, method, args } of calls) {
  promises.push(controller.queueToVatRoot(vat, method, args.map(root), 'ignore'));
  await controller.run();
}
const seconds = Number(process.hrtime.bigint() - start) / 1e9;
const results = promises.map(kpid => {
  const status = controller.kpStatus(kpid);
  return { status, value: status === 'unresolved' ? '' : controller.kpResolution(kpid).body };
});
await hostStorage.commit();
await controller.shutdown();
await hostStorage.close();
process.stdout.write(JSON.stringify({ seconds, results }));
