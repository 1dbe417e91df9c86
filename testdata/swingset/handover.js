// Runs the SwingSet kernel on a store that others write in between.
//
//   node handover.js STORE --worker=FILE [--interval=N] [--copy=FOLDER] VAT.METHOD[.ARGUMENT]…
//   node handover.js STORE --worker=FILE [--interval=N] --measure=N VAT.METHOD[.ARGUMENT]
//
// It makes the store if there is none, prints an array of what the calls return, and copies all of the store by export and import, which
// check all hashes. Or it prints how many seconds N calls take, once the vat has started.
import '@endo/init/debug.js';
import { spawn } from 'node:child_process';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { kunser } from '@agoric/kmarshal';
import { importSwingStore, initSwingStore, isSwingStore, makeSwingStoreExporter, openSwingStore } from '@agoric/swing-store';
import { initializeSwingset, makeSwingsetController } from '@agoric/swingset-vat';

const { values, positionals } = parseArgs({ allowPositionals: true, options: {
  worker: { type: 'string' },
  interval: { type: 'string', default: '5' },
  copy: { type: 'string' },
  measure: { type: 'string' },
} });
const [dir, ...calls] = positionals;
const keep = { keepTranscripts: true, keepSnapshots: true };

const run = async () => {
  const isNew = !isSwingStore(dir);
  const { kernelStorage, hostStorage } = (isNew ? initSwingStore : openSwingStore)(dir, keep);
  if (isNew) {
    const vat = name => ({ sourceSpec: new URL(`vats/${name}.js`, import.meta.url).pathname });
    const config = {
      defaultManagerType: 'xsnap',
      defaultReapInterval: 'never',
      snapshotInitial: 3,
      snapshotInterval: Number(values.interval),
      includeDevDependencies: false,
      vats: { counter: { ...vat('worker'), parameters: { name: 'counter' } }, ledger: { ...vat('ledger-1'), parameters: {} } },
      bundles: { 'ledger-2': vat('ledger-2') },
    };
    await initializeSwingset(config, [], kernelStorage, { addTimer: false, addComms: false, addVattp: false });
  }
  const controller = await makeSwingsetController(kernelStorage, {}, {
    spawn: (_worker, args, options) => spawn(values.worker, args, options),
  });
  if (isNew) {
    controller.pinVatRoot('counter');
    controller.pinVatRoot('ledger');
  }
  const results = [];
  const send = async call => {
    const [vat, method, ...args] = call.split('.');
    const kpid = controller.queueToVatRoot(vat, method, args);
    await controller.run();
    const value = kunser(controller.kpResolution(kpid));
    results.push(`${controller.kpStatus(kpid)} ${JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}n` : v))}`);
    await hostStorage.commit();
  };
  let begin;
  for (let i = 0; i <= Number(values.measure); i += 1) {
    await send(calls[0]);
    begin ??= performance.now();
  }
  const seconds = (performance.now() - begin) / 1000;
  for (const call of values.measure ? [] : calls) await send(call);
  await controller.shutdown();
  await hostStorage.commit();
  await hostStorage.close();
  console.log(JSON.stringify(values.measure ? seconds : results));
};

await run();
if (values.copy) {
  const artifactMode = 'archival';
  const exporter = makeSwingStoreExporter(dir, { artifactMode });
  const { hostStorage } = await importSwingStore(exporter, values.copy, { artifactMode, ...keep });
  await hostStorage.commit();
  await hostStorage.close();
}
