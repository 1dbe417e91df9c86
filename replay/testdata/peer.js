// Replays a one-vat transcript file with SwingSet's own manager, and its own comparison of syscalls, as agoric-sdk's misc-tools/replay-transcript.js
// does, with what that lacks to run: the worker is started anew from each heap snapshot, which is hashed while it streams.
//
//   node peer.js TRANSCRIPT BUNDLES WORKER
//
// BUNDLES is a folder with each bundle under its ID. It prints the number of deliveries, the seconds that they took, and the
// CPU time that this process used for them.
import '@endo/init/debug.js';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import readline from 'node:readline';
import { Readable } from 'node:stream';
import { finished } from 'node:stream/promises';

import { makeStartXSnap } from '@agoric/swingset-vat/src/controller/startXSnap.js';
import { makeXsSubprocessFactory } from '@agoric/swingset-vat/src/kernel/vat-loader/manager-subprocess-xsnap.js';
import { makeSyscallSimulator } from '@agoric/swingset-vat/src/kernel/vat-warehouse.js';
import tmp from 'tmp';

const [transcript, bundles, worker] = process.argv.slice(2);
const bundle = id => JSON.parse(fs.readFileSync(path.join(bundles, id), 'utf8'));
const kernelSlog = { write() {}, delivery: () => () => {}, syscall: () => () => {} };
const factory = makeXsSubprocessFactory({
  kernelKeeper: { provideVatKeeper: () => ({ getSnapshotInfo: () => undefined }) },
  kernelSlog,
  testLog() {},
  startXSnap: makeStartXSnap({
    bundleHandler: { getBundle: async id => bundle(id) },
    spawn: (_, args, options) => spawn(worker, args, options),
    fs,
    tmpName: tmp.tmpName,
  }),
});
const snapStore = {
  saveSnapshot: async (_vatID, _snapPos, stream) => {
    const hash = createHash('sha256');
    const readable = Readable.from(stream);
    readable.pipe(hash);
    await finished(readable);
    return { hash: hash.digest('hex') };
  },
};

let manager;
let vatID;
let deliveries = 0;
let begun;
let cpu;
for await (const line of readline.createInterface({ input: fs.createReadStream(transcript) })) {
  const entry = JSON.parse(line);
  if (entry.type === 'create-vat') {
    ({ vatID } = entry);
    const options = {
      name: entry.vatName,
      useTranscript: true,
      sourcedConsole: console,
      workerOptions: { type: 'xsnap', bundleIDs: entry.bundleIDs },
    };
    manager = await factory.createFromBundle(vatID, bundle(entry.vatSourceBundleID), options, {});
    begun = performance.now();
    cpu = process.cpuUsage();
    continue;
  }
  switch (entry.d[0]) {
    case 'load-snapshot':
      break;
    case 'save-snapshot': {
      const { hash } = await manager.makeSnapshot(entry.transcriptNum, snapStore, true);
      if (hash !== entry.r.snapshotID) throw Error(`heap snapshot ${hash}, expected ${entry.r.snapshotID}`);
      break;
    }
    default: {
      const { syscallHandler, finishSimulation } = makeSyscallSimulator(kernelSlog, vatID, entry.transcriptNum, entry);
      await manager.deliver(entry.d, syscallHandler);
      finishSimulation();
      deliveries += 1;
    }
  }
}
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ deliveries, seconds: (performance.now() - begun) / 1000, cpuSeconds: (user + system) / 1e6 }));
await manager.shutdown();
