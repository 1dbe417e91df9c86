// Runs the SwingSet kernel with a few vats, and leaves its store, slog and archives in a folder. The same inputs give the same store,
// byte for byte; only the slog has times.
//
//   node make-store.js DIR --worker=FILE [--rounds=N] [--compact]
//
// With --compact the store has no heap snapshots, only their hashes, and the slog no times.
import '@endo/init/debug.js';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { kser, kunser } from '@agoric/kmarshal';
import { initSwingStore, makeArchiveSnapshot, makeArchiveTranscript } from '@agoric/swing-store';
import { initializeSwingset, makeSwingsetController } from '@agoric/swingset-vat';
import Database from 'better-sqlite3';
import tmp from 'tmp';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { worker: { type: 'string' }, rounds: { type: 'string', default: '20' }, compact: { type: 'boolean' } },
});
const [dir] = positionals;
if (!dir || !values.worker) {
  console.error('Usage: node make-store.js DIR --worker=FILE [--rounds=N] [--compact]');
  process.exit(2);
}
const rounds = Number(values.rounds);

const vat = name => new URL(`vats/${name}.js`, import.meta.url).pathname;
const worker = name => ({ sourceSpec: vat('worker'), parameters: { name } });
const config = {
  bootstrap: 'bootstrap',
  defaultManagerType: 'xsnap',
  defaultReapInterval: 10,
  snapshotInitial: 3,
  snapshotInterval: 25,
  includeDevDependencies: false,
  vats: {
    bootstrap: { sourceSpec: vat('bootstrap') },
    alice: worker('alice'),
    bob: worker('bob'),
  },
  bundles: Object.fromEntries(
    ['ledger-1', 'ledger-2', 'ledger-throws', 'ledger-forgets', 'worker'].map(name => [name, { sourceSpec: vat(name) }]),
  ),
};

const show = value => (typeof value === 'string' ? value : JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}n` : v)));
// As cosmic-swingset writes a slog, BigInts are numbers in it.
const isTime = key => /^(time|monotime|timestamps|\w*[sS]econds)$/.test(key);
const slogValue = (key, v) => (typeof v === 'bigint' ? Number(v) : values.compact && isTime(key) ? undefined : v);

fs.mkdirSync(dir, { recursive: true });
const { kernelStorage, hostStorage } = initSwingStore(path.join(dir, 'store'), {
  keepTranscripts: true,
  keepSnapshots: true,
  archiveSnapshot: makeArchiveSnapshot(path.join(dir, 'snapshots'), { fs, path, tmp }),
  archiveTranscript: makeArchiveTranscript(path.join(dir, 'spans'), { fs, path, tmp }),
});
const slog = fs.openSync(path.join(dir, 'slog.jsonl'), 'w');
const controller = await (async () => {
  await initializeSwingset(config, [], kernelStorage, { addTimer: false, addComms: false, addVattp: false });
  return makeSwingsetController(
    kernelStorage,
    {},
    {
      spawn: (_worker, args, options) => spawn(values.worker, args, options),
      slogSender: object => fs.writeSync(slog, `${JSON.stringify(object, slogValue)}\n`),
    },
  );
})();

let blocks = 0;
let cleanUp = true; // what terminated vats leave behind
const go = () => true;
const commit = async () => {
  await controller.run({ vatCreated: go, crankComplete: go, crankFailed: go, emptyCrank: go, didCleanup: go, allowCleanup: () => cleanUp });
  blocks += 1;
  await hostStorage.commit();
};
const call = async (vatName, method, ...args) => {
  const kpid = controller.queueToVatRoot(vatName, method, args);
  await commit();
  return { status: controller.kpStatus(kpid), value: kunser(controller.kpResolution(kpid)) };
};
const expect = async (want, ...args) => {
  const { status, value } = await call(...args);
  const got = status === 'fulfilled' ? show(value) : `${status}: ${value.message}`;
  if (want !== undefined && !(want instanceof RegExp ? want.test(got) : got === show(want))) {
    throw Error(`${show(args)}: expected ${want}, got ${got}`);
  }
};

await commit();
await expect('ledger', 'bootstrap', 'create', 'ledger', 'ledger-1', { currency: 'IST' });
await expect('doomed', 'bootstrap', 'create', 'doomed', 'worker', { name: 'doomed' });
await expect('metered', 'bootstrap', 'create', 'metered', 'worker', { name: 'metered' }, 100_000_000n);

// Messages and promises between vats, collections, garbage.
for (let i = 0; i < rounds; i += 1) {
  await expect(i + 1, 'alice', 'count');
  await expect('alice greets bob greets bootstrap', 'bootstrap', 'introduce', 'alice', 'bob');
  await expect(undefined, 'alice', 'note', `note ${i}`, `text ${i}`);
  await expect(`text ${i} (1)`, 'alice', 'read', `note ${i}`);
  await expect(`thing ${i}`, 'bootstrap', 'pass', 'alice', 'make', 'bob', 'hold', `thing ${i}`);
  await expect(undefined, 'bootstrap', 'call', 'ledger', 'open', `owner ${i}`);
  await expect(`"${i}n"`, 'bootstrap', 'call', 'ledger', 'deposit', `owner ${i}`, BigInt(i));
  if (i % 4 === 3) {
    await expect(4, 'bob', 'release');
    await expect(undefined, 'alice', 'forget', `note ${i - 1}`);
    await expect(undefined, 'bootstrap', 'call', 'ledger', 'close', `owner ${i - 1}`);
    await expect(/rejected: no good/, 'bob', 'fail', `no good ${i}`);
    await expect(i, 'bootstrap', 'call', 'doomed', 'allocate', i);
  }
  if (i % 5 === 4) {
    controller.queueToVatRoot('bob', 'promise');
    controller.queueToVatRoot('bob', 'promise');
    await commit();
    await expect(2, 'bob', 'settle', i);
    controller.queueToVatRoot('bob', 'log', ['round', i]);
    controller.queueToVatRoot('bob', 'promise');
    await commit();
    await expect(undefined, 'bob', 'refuse', 'not now');
  }
}

// An upgrade, then two that fail and leave the vat as it was.
await expect('{"incarnations":1,"owners":15,"vatParameters":{"currency":"IST"},"version":1}', 'bootstrap', 'call', 'ledger', 'report');
await expect('upgraded', 'bootstrap', 'upgrade', 'ledger', 'ledger-2', { currency: 'BLD' });
await expect('{"incarnations":2,"owners":15,"vatParameters":{"currency":"BLD"},"version":2}', 'bootstrap', 'call', 'ledger', 'report');
await expect(/^not upgraded: /, 'bootstrap', 'upgrade', 'ledger', 'ledger-throws', {});
await expect(/^not upgraded: /, 'bootstrap', 'upgrade', 'ledger', 'ledger-forgets', {});
for (let i = 0; i < rounds; i += 1) {
  await expect(undefined, 'bootstrap', 'call', 'ledger', 'open', `later owner ${i}`);
}
await expect(/"incarnations":2/, 'bootstrap', 'call', 'ledger', 'report');

// Things that a vat knows only weakly, and that their maker retires.
for (let i = 0; i < 3; i += 1) {
  await expect(undefined, 'bootstrap', 'pass', 'alice', 'make', 'bob', 'mark', `weak thing ${i}`);
}
await expect(/^note 0,/, 'alice', 'keys');
await expect(/,owner 19,/, 'bootstrap', 'call', 'ledger', 'owners');
await expect('"140n"', 'bootstrap', 'call', 'ledger', 'sum');
for (let i = 0; i < 2; i += 1) {
  controller.reapAllVats();
  await commit();
}

// Computation near the limit of a delivery, and over it.
await expect('frugal', 'bootstrap', 'create', 'frugal', 'worker', { name: 'frugal' }, 1_000_000_000n);
await expect(undefined, 'bootstrap', 'call', 'frugal', 'compute', 5_881_500);
await expect('lives', 'bootstrap', 'ended', 'frugal');
await expect(undefined, 'bootstrap', 'call', 'metered', 'compute', 100_000);
await expect(undefined, 'bootstrap', 'call', 'metered', 'compute', 400_000);
await expect('lives', 'bootstrap', 'ended', 'metered');
await expect(/rejected: vat terminated/, 'bootstrap', 'call', 'metered', 'compute', 100_000_000);
await expect(/^failed: /, 'bootstrap', 'ended', 'metered');

// Vats that are terminated, and not cleaned up yet: by another, and by themselves.
cleanUp = false;
await expect(undefined, 'bootstrap', 'terminate', 'doomed');
await expect('failed: doomed is no longer wanted', 'bootstrap', 'ended', 'doomed');
await expect('leaver', 'bootstrap', 'create', 'leaver', 'worker', { name: 'leaver' });
await expect(undefined, 'bootstrap', 'call', 'leaver', 'exit', 'all is done');
await expect('ended: all is done', 'bootstrap', 'ended', 'leaver');

await controller.shutdown();
await hostStorage.close();
fs.closeSync(slog);
if (values.compact) {
  const db = new Database(path.join(dir, 'store', 'swingstore.sqlite'));
  db.exec('UPDATE snapshots SET compressedSnapshot = NULL; VACUUM;');
  db.close();
}
console.log(`${blocks} blocks`);
