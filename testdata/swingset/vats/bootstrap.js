// Creates the dynamic vats and passes on what the driver asks for.
import { E, Far } from '@endo/far';
import { makePromiseKit } from '@endo/promise-kit';

export const buildRootObject = () => {
  let admin;
  let vats;
  const nodes = new Map(); // name -> { root, adminNode }
  const done = new Map(); // name -> how the vat ended
  return Far('bootstrap', {
    async bootstrap(staticVats, devices) {
      vats = staticVats;
      admin = await E(vats.vatAdmin).createVatAdminService(devices.vatAdmin);
    },
    async create(name, bundle, vatParameters, computrons) {
      const bcap = await E(admin).getNamedBundleCap(bundle);
      const options = { name, vatParameters };
      if (computrons !== undefined) {
        options.meter = await E(admin).createMeter(computrons, 0n);
      }
      const node = await E(admin).createVat(bcap, options);
      nodes.set(name, node);
      E(node.adminNode)
        .done()
        .then(
          value => done.set(name, `ended: ${value}`),
          reason => done.set(name, `failed: ${reason.message}`),
        );
      return name;
    },
    async upgrade(name, bundle, vatParameters) {
      const bcap = await E(admin).getNamedBundleCap(bundle);
      return E(nodes.get(name).adminNode)
        .upgrade(bcap, { vatParameters, upgradeMessage: `${name} to ${bundle}` })
        .then(
          () => 'upgraded',
          reason => `not upgraded: ${reason.message}`,
        );
    },
    terminate: name => E(nodes.get(name).adminNode).terminateWithFailure(Error(`${name} is no longer wanted`)),
    ended: name => done.get(name) ?? 'lives',
    call: (name, method, ...args) => E(nodes.get(name)?.root ?? vats[name])[method](...args),
    // One vat waits for a promise that is resolved to a promise of another's.
    introduce(a, b) {
      const { promise, resolve } = makePromiseKit();
      const greeting = E(vats[a]).greet(promise);
      resolve(E(vats[b]).greet(Promise.resolve('bootstrap')));
      return greeting;
    },
    async pass(from, method, to, taking, ...args) {
      const thing = await E(vats[from])[method](...args);
      return E(vats[to])[taking](thing);
    },
  });
};
