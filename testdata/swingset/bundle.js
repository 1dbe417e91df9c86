// Bundles vats as the kernel does, and prints an array of the bundles.
//
//   node bundle.js NAME…
import '@endo/init/debug.js';
import bundleSource from '@endo/bundle-source';
import process from 'node:process';

const bundles = [];
for (const name of process.argv.slice(2)) {
  bundles.push(await bundleSource(new URL(`vats/${name}.js`, import.meta.url).pathname, { dev: false }));
}
process.stdout.write(JSON.stringify(bundles));
